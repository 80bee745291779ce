"""Targets and models of one's own, and formats of single layers, as commands take them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from commands import run

import graphopt
from graphopt.formats import Format, parse
from graphopt.passes.quantization import LayerFormat
from graphopt.targets import find
from graphopt.utils.errors import InputError, alternatives


def test_a_target_of_ones_own_is_explained() -> None:
    Path("boards.py").write_text("from graphopt.targets import find\nBOARD = find('arm').replace(name='board')\n")
    result = run("targets", "boards:BOARD")
    assert (result.exit_code, result.stdout.split()[0]) == (0, "board")


@pytest.mark.parametrize(
    ("options", "shows"),
    [
        (("--layers",), "conv + relu"),
        ((), "conv2d(input_1"),
        (("--input-shape", "2,3,9,9", "--layers"), "7 x 7"),
        (("--svg", "net.svg"), "drawn in net.svg"),
    ],
)
def test_the_model_of_a_factory_is_shown(options: tuple[str, ...], shows: str) -> None:
    result = run("show", "cli_models:net", *options)
    assert result.exit_code == 0, result.output
    assert shows in result.stdout


FORMATS = {
    "head*": None,
    "conv1": LayerFormat(Format(4, per_channel=True)),
    "conv2": LayerFormat(parse("s4 per channel"), parse("u16 affine")),
    "conv3": LayerFormat(None, parse("u16 affine")),
}


@pytest.mark.parametrize("way", ["line", "list", "mapping"])
def test_layers_have_formats_of_their_own(way: str, optimize_call: dict[str, Any]) -> None:
    assert find("arm").formats.weights == Format(8, per_channel=True)
    said = {"head*": "float", "conv1": "4", "conv2": "s4 per channel/u16 affine", "conv3": "/u16 affine"}
    pairs = [f"{pattern}={format}" for pattern, format in said.items()]
    if way == "line":
        given: list[str] = [word for pair in pairs for word in ("--formats", pair)]
    else:
        lines = [f"  - {pair!r}" for pair in pairs] if way == "list" else [f"  {p!r}: {f}" for p, f in said.items()]
        Path("job.yaml").write_text("\n".join(["formats:", *lines]))
        given = ["--config", "job.yaml"]
    result = run("optimize", "cli_models:net", "--target", "arm", *given, "--save-config", "saved.yaml")
    assert result.exit_code == 0, result.output
    assert optimize_call["formats"] == FORMATS
    optimize_call.clear()
    assert run("optimize", "cli_models:net", "--config", "saved.yaml").exit_code == 0
    assert optimize_call["formats"] == FORMATS


def test_what_does_not_compile_is_told_what_does(tmp_path: Path) -> None:
    result = graphopt.optimize(
        graphopt.Graph.capture(*_small()), target="x86", passes="fold-batch-norm", calibration=None, measure=False
    )
    with pytest.raises(
        InputError, match=r"for x86 is ready to run; what compiles are those for hexagon and the CPUs of tvm-"
    ):
        result.artifact.compile(tmp_path / "out")


def _small() -> Any:
    import torch

    return torch.nn.Linear(3, 2).eval(), torch.randn(1, 3)


def test_what_is_known_continues_the_sentence_or_begins_one() -> None:
    assert alternatives("amr", ["arm", "x86"], "targets") == "did you mean 'arm'? Known targets: arm, x86"
    assert alternatives("zzz", ["arm", "x86"], "targets") == "known targets: arm, x86"
