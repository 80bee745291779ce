"""Passes as a text: what it names is what runs, and nothing of it is executed."""

from __future__ import annotations

from inspect import getdoc, getmodule
from typing import Any

import pytest
import torch
from rewriting import randomised
from torch import nn
from typer.testing import CliRunner

import graphopt
from graphopt import passes
from graphopt.cli.main import app
from graphopt.compiler.option_values import hints
from graphopt.compiler.pipeline import options, pipeline, read
from graphopt.data import Calibration
from graphopt.formats import FLOAT16, Format, LogFormat
from graphopt.ir.graph import Graph
from graphopt.ir.quantizers import quantizers
from graphopt.passes import CorrectBias, FoldBatchNorm, Prune, Quantize, Simplify
from graphopt.passes.factorization import CP, SVD, Tucker
from graphopt.passes.factorization.ranks import Energy
from graphopt.passes.quantization import LayerFormat
from graphopt.targets import find
from graphopt.utils.errors import InputError


@pytest.fixture(scope="module")
def case() -> Any:
    model = randomised(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))).eval()
    images = torch.randn(16, 3, 8, 8)
    return model, images


def test_passes_get_their_options_target_and_data(case: Any) -> None:
    model, images = case
    data = Calibration(images, Graph.capture(model, images[:1]))
    text = """simplify,fold-batch-norm , prune{keep_ratio=0.6, layers={"head*": None, 'a, b}': 0.5}, scope=global},
        svd{rank=0.5}, quantize{estimator=minmax}, correct-bias{calibration=None}"""
    found = pipeline(text)(find("x86"), data)
    layers = {"head*": None, "a, b}": 0.5}
    assert found[:3] == [Simplify(), FoldBatchNorm(), Prune(0.6, data=data, layers=layers, scope="global")]
    assert isinstance(found[3], SVD)
    assert (found[3].rank, found[3].data) == (0.5, data)
    assert found[4] == Quantize(find("x86"), data, estimator="minmax")
    assert found[5] == CorrectBias(None)


def given(text: str) -> dict[str, Any]:
    """The options of the only pass in a text."""
    (found,) = read(text)
    return found.options


def test_number_formats_are_words_or_quoted_text() -> None:
    assert given("quantize{weights=s8, activations='u16 affine'}") == {
        "weights": Format(8), "activations": Format(16, signed=False, symmetric=False),
    }  # fmt: skip
    formats = given("quantize{formats={'head*': None, fc: {weights: log8, activations: float16}}}")["formats"]
    assert formats == {"head*": None, "fc": LayerFormat(LogFormat(8), FLOAT16)}


def test_what_a_word_means_follows_from_the_type_of_the_option() -> None:
    assert given("refine-ranges{weights=false}") == {"weights": False}
    assert given("learn-rounding{regularizer=0.1}") == {"regularizer": 0.1}
    assert given("sparsify{criterion=obd, pattern=[2, 4]}") == {"criterion": "obd", "pattern": (2, 4)}
    assert given("decompose-activations{activations=[silu]}") == {"activations": frozenset({"silu"})}
    assert given("quantize{target=x86}") == {"target": find("x86")}
    assert given("svd{rank={share: 0.9}}") == {"rank": Energy(0.9)}
    assert given("tucker{rank=(2, 8)}") == {"rank": (2, 8)}


def test_passes_may_be_options_of_others() -> None:
    found = given("factorize{methods=[svd, 'tucker{rank=(2, 8)}'], layers={stem: cp, head: None}}")
    assert found["methods"] == [SVD(), Tucker((2, 8))]
    assert found["layers"] == {"stem": CP(), "head": None}


def test_formats_in_a_text_reach_the_weights(case: Any) -> None:
    model, images = case
    how = {"target": "x86", "calibration": images, "measure": False}
    result = graphopt.optimize(model, images[:1], passes="fold-batch-norm, quantize{weights='s4 per channel'}", **how)
    weights = [q for q in quantizers(result.graph) if q.args[3:5] == (-7, 7)]
    assert len(weights) == 2


def test_options_of_every_pass_have_types_that_can_be_looked_up() -> None:
    assert [name for name in passes.names() if not {*options(passes.find(name))} <= {*hints(passes.find(name))}] == []


def test_made_up_inputs_decide_nothing(case: Any) -> None:
    from graphopt.data.calibration import synthetic

    data = synthetic(Graph.capture(case[0], case[1][:1]))
    prune, quantize = pipeline("prune{keep_ratio=0.6}, quantize")(find("x86"), data)
    assert prune.data is None  # type: ignore[attr-defined]
    assert quantize.calibration is data  # type: ignore[attr-defined]


def test_optimize_takes_the_text(case: Any) -> None:
    model, images = case
    text = "simplify, fold-batch-norm, quantize{estimator=percentile}"
    result = graphopt.optimize(model, images[:1], target="x86", calibration=images, passes=text, measure=False)
    named = [Simplify(), FoldBatchNorm()]
    same = graphopt.optimize(
        model, images[:1], target="x86", calibration=images, measure=False,
        passes=lambda target, data: [*named, Quantize(target, data, estimator="percentile")],
    )  # fmt: skip
    assert [step.name for step in result.report.steps] == [step.name for step in same.report.steps]
    assert str(result.graph) == str(same.graph)
    assert torch.equal(result.artifact(images), same.artifact(images))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no passes are named"),
        ("simplfy", "did you mean 'simplify'"),
        ("simplify fold-batch-norm", "expected a comma"),
        ("simplify,", "missing behind the last comma"),
        ("simplify, {}", "expected the name of a pass"),
        ("prune{keep_ratio=0.6", "a brace is not closed"),
        ("prune{0.6}", "need names"),
        ("prune{**{}}", "need names"),
        ("prune{keep_rato=0.6}", "did you mean 'keep_ratio'"),
        ("prune{keep_ratio=0.6, keep_ratio=0.5}", "cannot be read|twice"),
        ("prune{keep_ratio=open('/tmp/x', 'w')}", "is no plain value"),
        ("prune{keep_ratio=(lambda: 1)()}", "is no plain value"),
        ("prune{keep_ratio=0.6) or f(}", "cannot be read|not closed"),
        ("prune{keep_ratio=0.6, criterion=l1_norm}", "criterion takes an object"),
        ("quantize{calibration=3}", "calibration takes an object"),
        ("quantize{weights=s88}", "weights: the number format 's88' does not exist"),
        ("quantize{weights=9}", "weights takes a number format such as s8"),
        ("quantize{weights=s8 affine}", "quotes around text of several words"),
        ("quantize{target=amr}", "target: unknown target 'amr'; did you mean 'arm'"),
        ("quantize{formats={fc: s8}}", "formats takes {weights: ..., activations: ...}, not 's8'"),
        ("quantize{formats={fc: {weihts: s8}}}", "formats: has no 'weihts'; did you mean 'weights'"),
        ("prune{keep_ratio=0.6, layers=[fc]}", "layers takes {name: value}"),
        ("decompose-activations{activations=silu}", "activations takes .value, ...., not 'silu'"),
        ("factorize{methods=[svdd]}", "methods: unknown pass 'svdd'; did you mean 'svd'"),
        ("factorize{methods=[simplify]}", "methods takes a pass that is a Method, not 'simplify'"),
        ("factorize{methods=['svd, cp']}", "one pass is wanted"),
        ("factorize{target_macs=[0.5]}", "target_macs takes a single value"),
    ],
)
def test_what_cannot_be_read_is_refused_before_any_work(text: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        list(read(text))
    with pytest.raises(InputError, match=complaint):
        graphopt.optimize(nn.ReLU(), torch.randn(1), passes=text)


@pytest.mark.thorough
def test_a_value_that_a_pass_refuses_names_the_pass(case: Any) -> None:
    model, images = case
    with pytest.raises(InputError, match="keep_ratio"):
        graphopt.optimize(model, images[:1], target="x86", calibration=images, passes="prune{keep_ratio=7}")
    with pytest.raises(InputError, match=r"Prune: .*keep_ratio"):
        graphopt.optimize(model, images[:1], target="x86", calibration=images, passes="prune")


def test_options_in_the_sources_are_those_of_the_classes() -> None:
    own = passes.described()
    assert len(own) > 20
    assert {name: about.options for name, about in own.items()} == {name: options(passes.find(name)) for name in own}


def test_what_passes_say_is_read_from_their_sources() -> None:
    for name, about in passes.described().items():
        kind = passes.find(name)
        own = (
            None if (kind.__doc__ or "").startswith(f"{kind.__name__}(") else kind.__doc__
        )  # else the dataclass's call
        written = [getdoc(getmodule(kind)), own and getdoc(kind)]
        assert about.texts == [text for text in written if text], name


def test_every_pass_has_options_with_names() -> None:
    assert all(isinstance(options(passes.find(name)), list) for name in passes.names())


def test_the_command_lists_and_explains_them() -> None:
    listed = CliRunner().invoke(app, ["passes"])
    assert listed.exit_code == 0, listed.output
    assert all(name in listed.output for name in passes.names())
    one = CliRunner().invoke(app, ["passes", "fold-batch-norm"])
    assert "Fold batch norm" in one.output
    assert CliRunner().invoke(app, ["passes", "fold-batchnorm"]).exit_code == 1
