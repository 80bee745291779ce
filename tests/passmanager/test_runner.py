"""The loop that runs passes catches those that lie, break the graph, or raise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from rewriting import capture
from torch import nn

from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten
from graphopt.ir.passes import Change
from graphopt.passes.cleanup.fold_batchnorm import FoldBatchNorm
from graphopt.passes.cleanup.simplify import Simplify
from graphopt.passmanager.runner import first_bad, outputs, run
from graphopt.passmanager.step import Step
from graphopt.utils.errors import InputError, PassError


def network() -> Graph:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 2, 1)
    )
    with torch.no_grad():
        model[1].running_mean.normal_()
        model[1].weight.uniform_(0.5, 2)
    return capture(model, torch.randn(2, 3, 6, 6))


@dataclass(frozen=True)
class Negate:
    """Turns the sign of the first convolution's weight, and says that this changes nothing."""

    exact: ClassVar[bool] = True

    def __call__(self, graph: Graph) -> list[Change]:
        conv = graph.calls(aten.conv2d.default)[0]
        graph.set_constant(conv, 1, -graph.tensor(conv.args[1]))
        return [Change(graph.site(conv), "negated")]


@dataclass(frozen=True)
class Honest(Negate):
    exact: ClassVar[bool] = False


@dataclass(frozen=True)
class Break:
    """Puts in a weight that no longer fits."""

    exact: ClassVar[bool] = False

    def __call__(self, graph: Graph) -> list[Change]:
        conv = graph.calls(aten.conv2d.default)[-1]
        graph.set_constant(conv, 1, torch.zeros(2, 99, 1, 1))
        return [Change(graph.site(conv), "broken")]


@dataclass(frozen=True)
class Raise:
    exact: ClassVar[bool] = False
    error: type[BaseException] = RuntimeError

    def __call__(self, graph: Graph) -> list[Change]:
        raise self.error("the reason\nand details")


@dataclass(frozen=True)
class Poison:
    """Returns not-a-number, and says that this changes nothing."""

    exact: ClassVar[bool] = True

    def __call__(self, graph: Graph) -> list[Change]:
        conv = graph.calls(aten.conv2d.default)[0]
        graph.set_constant(conv, 1, graph.tensor(conv.args[1]) * torch.nan)
        return [Change(graph.site(conv), "poisoned")]


@dataclass(frozen=True)
class Transposed:
    """Turns the output round, and says that this changes nothing."""

    exact: ClassVar[bool] = True

    def __call__(self, graph: Graph) -> list[Change]:
        last = graph.outputs[0]
        turned = graph.call(aten.permute.default, last, [0, 2, 3, 1], before=graph.output)
        graph.output.replace_input_with(last, turned)
        return [Change(graph.site(last), "turned")]


@pytest.mark.parametrize("liar", [Negate(), Poison()])
def test_a_pass_that_lies_is_named_with_how_to_reproduce_it(liar: Any) -> None:
    name = type(liar).__name__
    with pytest.raises(
        PassError, match=rf"pass 2 {name}\(\) says it is exact but moved .* reproduce with passes\[:3\]"
    ):
        run([Simplify(), FoldBatchNorm(), liar], network())


@pytest.mark.thorough
def test_a_pass_that_turns_an_output_is_named() -> None:
    with pytest.raises(PassError, match=r"pass 0 Transposed\(\) changed an output's shape from \(2, 2, 4, 4\) to"):
        run([Transposed()], network())


def test_a_pass_that_says_it_is_not_exact_may_change_outputs() -> None:
    steps = run([Honest()], network())
    assert steps[0].sqnr_db is not None
    assert steps[0].sqnr_db < 10


def test_without_verification_nothing_is_compared() -> None:
    steps = run([Negate()], network(), verify=False)
    assert steps[0].sqnr_db is None


@pytest.mark.parametrize("bad", [Break(), Raise()])
def test_a_pass_that_breaks_the_graph_is_named(bad: Any) -> None:
    name = type(bad).__name__
    with pytest.raises(
        PassError, match=rf"pass 1 {name}\(.*\) broke the graph: .*; reproduce with passes\[:2\]"
    ) as caught:
        run([Simplify(), bad], network())
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("error", [InputError, ValueError, KeyboardInterrupt])
def test_the_callers_mistakes_and_interrupts_pass_through(error: type[BaseException]) -> None:
    with pytest.raises(error, match="the reason"):
        run([Raise(error)], network())


def test_steps_hold_numbers_of_the_graph_after_each_pass() -> None:
    graph = network()
    seen: list[Step] = []
    steps = run([Simplify(), FoldBatchNorm()], graph, on_step=seen.append)
    assert seen == steps
    assert [s.name for s in steps] == ["Simplify", "FoldBatchNorm"]
    assert [len(s.changes) for s in steps] == [1, 1]
    convs = 4 * 3 * 9 + 2 * 4 + 2
    assert [s.parameters for s in steps] == [convs + 2 * 4, convs + 4]  # the norm's scale and shift, then one bias
    assert steps[1].weight_bytes == 4 * steps[1].parameters < steps[0].weight_bytes
    assert {s.macs for s in steps} == {4 * 3 * 9 * 16 + 2 * 4 * 16}
    assert all(s.seconds >= 0 and s.sqnr_db > 100 for s in steps)


def test_no_passes_are_no_steps() -> None:
    assert run([], network()) == []


def test_a_dump_holds_the_text_after_every_pass(tmp_path: Path) -> None:
    graph = network()
    before = str(graph)
    run([Simplify(), FoldBatchNorm()], graph, dump=tmp_path / "new" / "folder")
    files = {f.name: f.read_text() for f in (tmp_path / "new" / "folder").iterdir()}
    assert sorted(files) == ["00_Simplify.txt", "01_FoldBatchNorm.txt", "capture.txt"]
    assert files["capture.txt"] == before + "\n"
    assert "dropout" not in files["00_Simplify.txt"]
    assert files["01_FoldBatchNorm.txt"] == str(graph) + "\n"


def test_a_dump_holds_what_was_before_a_failure(tmp_path: Path) -> None:
    with pytest.raises(PassError):
        run([Simplify(), Break()], network(), dump=tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["00_Simplify.txt", "capture.txt"]


@pytest.mark.parametrize("position", range(5))
def test_first_bad_finds_the_pass(position: int) -> None:
    graph = network()
    expected, text = outputs(graph)[0], str(graph)
    passes: list[Any] = [Simplify() for _ in range(5)]
    passes[position] = Honest()
    tried = 0

    def good(candidate: Graph) -> bool:
        nonlocal tried
        tried += 1
        return torch.allclose(outputs(candidate)[0], expected, atol=1e-4)

    assert first_bad(passes, graph, good) == position
    assert tried <= 4
    assert str(graph) == text


def test_first_bad_of_good_passes_is_none() -> None:
    assert first_bad([Simplify(), FoldBatchNorm()], network(), lambda g: True) is None
