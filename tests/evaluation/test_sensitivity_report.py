"""The analysis of layers as tables, plots, JSON and a command; its mistakes."""

import dataclasses
import json
import math
import sys
import xml.etree.ElementTree
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sensitive import Small, images, quantized
from torch import nn
from typer.testing import CliRunner

import graphopt
from graphopt.cli import main
from graphopt.data.calibration import Calibration
from graphopt.evaluation.sensitivity import Analysis, Fidelity
from graphopt.ir.graph import Graph
from graphopt.utils import files
from graphopt.utils.errors import InputError, NonFiniteError

# ---- Mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_an_iterator_is_enough_once() -> None:
    graph = quantized(Small())
    stream = iter(images().split(8))
    assert graphopt.analyze(graph, stream).samples == 24
    with pytest.raises(InputError, match="an iterator that was used up before"):
        graphopt.analyze(graph, stream)
    used = Calibration(iter(images().split(8)), graph)
    list(used)
    with pytest.raises(InputError, match="one-shot iterator and was used up"):
        graphopt.analyze(graph, used)


@pytest.mark.thorough
def test_mistakes_are_explained() -> None:
    x, graph = images(), quantized(Small())
    with pytest.raises(InputError, match=r"no quantizers.*or run Quantize"):
        graphopt.analyze(Graph.capture(Small().eval(), (x[:1],)), x)
    with pytest.raises(InputError, match=r"quantized Graph such as optimize\(...\).graph, got Small"):
        graphopt.analyze(Small(), x)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the calibration data is empty"):
        graphopt.analyze(graph, [])
    with pytest.raises(ValueError, match="output_samples must be a whole number"):
        graphopt.analyze(graph, x, output_samples=0)


@pytest.mark.thorough
@pytest.mark.parametrize("output_samples", [8, 100])
def test_values_that_are_not_finite_are_blamed(output_samples: int) -> None:
    model = Small()
    nn.init.ones_(model.first.weight)
    x, graph = images(), quantized(model)
    x[20] = 1e38  # the quantized graph clips it, its float twin overflows
    with pytest.raises(NonFiniteError, match="conv2d at 'first' is the first operator to produce"):
        graphopt.analyze(graph, x.split(8), output_samples=output_samples)


def test_without_data_the_inputs_are_made_up_and_it_says_so() -> None:
    assert "note: the inputs are made up" in str(graphopt.analyze(quantized(Small())))


# ---- Tables, plots, command line ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    torch.manual_seed(0)
    return graphopt.analyze(quantized(Small(), formats={"second": None}), images())


def test_the_table_ranks_layers_and_shows_as_many_as_wanted(
    analysis: Analysis, capsys: pytest.CaptureFixture[str]
) -> None:
    analysis.print()
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split()[0] for line in lines if line.startswith(" ")]
    assert rows[2 : 2 + len(analysis.layers)] == [layer.name.split()[0] for layer in analysis.ranked()]
    analysis.print(layers=2, tensors=0)
    short = capsys.readouterr().out
    assert analysis.ranked()[1].name in short
    assert "codes used" not in short


def test_the_numbers_are_kept_as_json(analysis: Analysis, tmp_path: Path) -> None:
    analysis.save(tmp_path / "a.json")
    data = json.loads((tmp_path / "a.json").read_text())
    assert [layer["name"] for layer in data["layers"]] == [layer.name for layer in analysis.layers]
    assert data["layers"][0]["alone"]["here"]["sqnr_db"] == analysis.layers[0].alone.here.sqnr_db
    assert next(layer for layer in data["layers"] if layer["name"] == "second")["alone"]["here"]["sqnr_db"] == "inf"
    assert data["tensors"][0]["clipped"] == analysis.tensors[0].clipped


@pytest.mark.thorough
@pytest.mark.parametrize("format", ["png", "svg"])
def test_plots_are_whole_files(analysis: Analysis, tmp_path: Path, format: str) -> None:
    pytest.importorskip("matplotlib")
    written = analysis.plot(tmp_path / "plots", worst=2, format=format)
    assert len(written) == 3
    assert written[0].name == f"layers.{format}"
    index = tmp_path / "plots" / "index.html"
    assert sorted([*written, index]) == sorted((tmp_path / "plots").iterdir()), "nothing half-written beside them"
    assert all(f'src="{path.name}"' in index.read_text() for path in written)
    for path in written:
        if format == "png":
            assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
            assert path.read_bytes().endswith(b"IEND\xaeB`\x82")
        else:
            assert xml.etree.ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"


@pytest.mark.thorough
def test_every_value_and_weight_has_its_plot(analysis: Analysis, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    names = [path.name for path in analysis.plot(tmp_path / "plots")]
    assert len(set(names)) == 1 + len(analysis.tensors)
    assert any(name.endswith("weight_first.weight.png") for name in names)


@pytest.mark.thorough
def test_a_plot_that_fails_leaves_the_old_one(
    analysis: Analysis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "layers.png").write_bytes(b"old")

    def fail(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "_flush", fail)
    with pytest.raises(KeyboardInterrupt):
        analysis.plot(tmp_path)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("layers.png", b"old")]


def test_plots_that_cannot_be_made_are_explained(
    analysis: Analysis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="unknown format 'bmp' for plots; known: png, svg"):
        analysis.plot(tmp_path / "plots", format="bmp")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="it is a file, not a folder"):
        analysis.plot(tmp_path / "file")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"pip install 'graphopt\[plots\]'"):
        analysis.plot(tmp_path / "plots")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_extreme_numbers_can_be_drawn(analysis: Analysis, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    effect = analysis.layers[0].alone
    layers = [
        dataclasses.replace(analysis.layers[0], alone=effect._replace(output=Fidelity(sqnr, 0.0)))
        for sqnr in (math.inf, -math.inf, math.nan)
    ]
    drawn = dataclasses.replace(analysis, layers=layers).plot(tmp_path / "odd", worst=0)
    assert drawn
    assert all(path.stat().st_size > 0 for path in drawn)
    dataclasses.replace(analysis, layers=[], tensors=[]).plot(tmp_path / "none")


MODELS = """
from torch import nn
def net(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
"""


@pytest.mark.thorough
def test_the_command_prints_and_keeps_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "analyze_models.py").write_text(MODELS)
    np.save(tmp_path / "x.npy", images(8).numpy())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    args = ["analyze", "analyze_models:net", "--target", "x86", "--input-shape", "1,3,12,12", "--calibration", "x.npy"]
    result = CliRunner().invoke(main.app, [*args, "--plots", "plots", "--json", "a.json"])
    assert result.exit_code == 0, result.output
    assert "quantized layers, worst first" in result.stdout
    assert f"plots in {tmp_path / 'plots'}" in result.stdout
    assert json.loads(Path("a.json").read_text())["samples"] == 8
    assert (tmp_path / "plots" / "layers.png").exists()


def test_the_command_finds_mistakes_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "graphopt.compiler.optimize", SimpleNamespace())  # any work would fail differently
    monkeypatch.chdir(tmp_path)
    for args, says in ((["--json", "a/b.json"], "does not exist"), (["--plots", "a/b"], "does not exist")):
        result = CliRunner().invoke(main.app, ["analyze", "m:net", *args])
        assert result.exit_code == 1
        assert says in result.stderr
