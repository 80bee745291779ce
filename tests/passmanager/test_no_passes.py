"""What is no pass is refused before anything runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rewriting import Model, capture
from torch import nn

import graphopt
from graphopt.passes.cleanup import Simplify
from graphopt.passes.pruning import Prune
from graphopt.passmanager.runner import run
from graphopt.utils.errors import InputError

X = torch.randn(2, 4)


def model() -> nn.Module:
    return Model(lambda m, x: m.inner(x), inner=nn.Linear(4, 4)).eval()


@pytest.mark.parametrize(
    ("passes", "says"),
    [
        ([Simplify(), "nonsense"], r"passes\[1\] is 'nonsense', which is no pass"),
        ([3], r"passes\[0\] is 3, which is no pass"),
        ([lambda graph: None], r"passes\[0\] is <function .*, which is no pass: a pass is called with the graph"),
        ("simplify", "passes are a list, got 'simplify'; a text of passes is read by graphopt.compiler.pipeline"),
        (None, "passes are a list, got None"),
    ],
)
def test_what_is_no_pass_is_refused_before_any_runs(passes: Any, says: str) -> None:
    graph = capture(model(), X)
    text = str(graph)
    with pytest.raises(InputError, match=says):
        run(passes, graph)
    assert str(graph) == text


@pytest.mark.parametrize(
    ("passes", "says"),
    [
        (lambda target, data: None, "passes=<lambda> returned NoneType; it must return a list of passes"),
        (
            lambda target: [],
            "passes=<lambda> is called with the target and the calibration data: too many positional arguments",
        ),
        ("prune{keep_ratio=half}", "keep_ratio.* takes a number, not 'half'"),
        ("prune{keep_ratio=0.5, round_to=2.5}", "round_to.* takes a whole number, not 2.5"),
    ],
)
def test_functions_and_texts_that_give_no_passes_say_why(passes: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        graphopt.optimize(model(), X, target="x86", passes=passes, measure=False)


def test_errors_of_a_function_that_makes_passes_are_its_own() -> None:
    def broken(target: Any, data: Any) -> Any:
        raise TypeError("mine")

    with pytest.raises(TypeError, match="mine"):
        graphopt.optimize(model(), X, target="x86", passes=broken, measure=False)


def test_a_criterion_by_name_is_told_that_it_is_a_function() -> None:
    with pytest.raises(
        InputError, match=r"criterion is a function, such as graphopt.passes.pruning.l2_norm, .* got 'l2_norm'"
    ):
        Prune(keep_ratio=0.5, criterion="l2_norm")  # type: ignore[arg-type]
