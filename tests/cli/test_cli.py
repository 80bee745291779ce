"""Commands of graphopt: what they print, how they refuse, and how they end."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import MODELS, run

from graphopt import optimize as optimized
from graphopt.artifacts.manifest import Manifest, TensorSpec, listing
from graphopt.artifacts.report import Report
from graphopt.cli import main
from graphopt.ir.graph import Graph
from graphopt.targets import find
from graphopt.utils.errors import PassError

MISTAKES = [
    (("optimize", "cli_models:nets"), "cli_models has no 'nets'; did you mean 'net'?"),
    (("optimize", "not_there:net"), "there is no module 'not_there'"),
    (("optimize", "weights.pth"), "holds weights without the model's code"),
    (("optimize", "cli_models:net", "--std", "0"), "scale and std must not be 0"),
    (("optimize", "cli_models:net", "--preprocessing", "none.json"), "none.json cannot be read as JSON"),
    (("optimize", "cli_models:net", "--resize", "big"), "--resize 'big' is not a list of numbers"),
    (("optimize", "model.pt2"), "there is no .pt2 file model.pt2"),
    (("optimize", "cli_models:net", "--target", "amr"), "unknown target 'amr'; did you mean 'arm'?"),
    (
        ("optimize", "cli_models:net", "--target", "arm", "--compiler", "g++"),
        "'onnxruntime' generates no code: no triple",
    ),
    (("optimize", "cli_models:net", "--calibration", "nowhere"), "there is no file, folder or package.module:function"),
    (("optimize", "cli_models:net", "--input-shape", "a,b"), "--input-shape 'a,b' is not a shape"),
    (("optimize", "cli_models:net", "--calibration", ".", "--mean", "grey"), "--mean 'grey' is not a list of numbers"),
    (("optimize", "cli_models:net", "--out", "."), "holds files that graphopt did not write (cli_models.py"),
    (("optimize", "cli_models:net", "--out", "a/b"), "does not exist; create it first"),
    (("optimize", "cli_models:broken"), ": two lines (--debug shows where)"),
    (("optimize", "cli_models:net", "--evaluate", "cli_models:time"), "is a module, not a function that takes a model"),
    (("optimize", "cli_models:net", "--target", "zzz"), "unknown target 'zzz'; known targets: "),
    (("passes", "zzz"), "unknown pass 'zzz'; known passes: "),
    (("targets", "cli_models:made"), "cli_models:made is a Linear, not a Target"),
    (("show", "nowhere"), "there is no file or folder nowhere; give one, or package.module:factory"),
    (("show", "model.pt2", "--input-shape", "1,3"), "--input-shape is for package.module:factory; model.pt2 has its"),
    (("show", "cli_models:net", "--usage"), "--usage is of a deployed model, and cli_models:net is no folder of one"),
    (("optimize", "cli_models:net", "--formats", "float"), "--formats 'float' is not of the form 'head*=float'"),
    (("optimize", "cli_models:net", "--formats", "0="), "--formats '0=' is not of the form"),
    (("optimize", "cli_models:net", "--formats", "0=s88"), "the number format 's88' does not exist"),
    (("optimize", "cli_models:net", "--target", "nnie", "--formats", "0=4"), "only uniform formats come in any number"),
    (("show", "cli_models.py"), "it is neither a .pt2 file nor"),
    (("show", "."), "is no artifact"),
    (("demo", "--out", "."), "holds files that graphopt did not write"),
]


@pytest.mark.parametrize("args, says", MISTAKES)
def test_errors_are_one_line_on_standard_error(optimize_call: dict[str, Any], args: tuple[str, ...], says: str) -> None:
    result = run(*args)
    assert result.exit_code == 1
    assert says in result.stderr
    assert result.stderr.startswith("graphopt: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert "model" not in optimize_call, "found out only after the work was done"


def test_an_error_in_a_file_of_the_users_own_says_where(optimize_call: dict[str, Any]) -> None:
    said = run("optimize", "cli_models:broken").stderr
    assert "unexpected TypeError at cli_models.py:8: two lines" in said


def test_errors_of_passes_are_one_line_too(optimize_call: dict[str, Any]) -> None:
    optimize_call["raises"] = PassError("pass 1 Negate() says\nit is exact")
    result = run("optimize", "cli_models:net", "--out", "out")
    assert (result.exit_code, result.stderr) == (1, "graphopt: error: pass 1 Negate() says it is exact\n")
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "args", [("--debug", "optimize", "cli_models:broken"), ("optimize", "cli_models:broken", "--debug")]
)
def test_debug_shows_the_traceback(optimize_call: dict[str, Any], args: tuple[str, ...]) -> None:
    assert isinstance(run(*args).exception, TypeError)
    assert not isinstance(run("optimize", "cli_models:broken").exception, TypeError), "asked for once, not for ever"


@pytest.mark.parametrize(
    "args", [("optimize",), ("optimise", "x"), ("optimize", "x", "--threads", "0"), ("show", "--what")]
)
def test_usage_mistakes_exit_with_two(args: tuple[str, ...]) -> None:
    assert run(*args).exit_code == 2


def test_targets_are_listed() -> None:
    result = run("targets")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in ("arm", "x86", "host", "onnxruntime"))


def test_show_tells_what_a_deployed_model_is(tmp_path: Path) -> None:
    folder = tmp_path / "deployed"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"x" * 2000)
    tensor = TensorSpec("x", "float32", (None, 3))
    manifest = Manifest(
        "Net", find("arm").to_dict(), [tensor], [tensor], [None], None,
        files=listing(folder), report=Report("Net", "arm").to_dict(),
    )  # fmt: skip
    manifest.input_structure = {"tuple": [{"tuple": [None]}, {"dict": {}}]}
    (folder / "manifest.json").write_bytes(manifest.to_json())
    result = run("show", "deployed")
    assert result.exit_code == 0, result.output
    assert "Net for arm, to run on onnxruntime" in result.stdout
    assert "takes    x: float32[N, 3]" in result.stdout
    assert "file     model.onnx, 2 kB" in result.stdout
    assert "latency    not measured" in result.stdout


@pytest.mark.parametrize("entry, reader", [("graph.json", "load"), ("model/data", "capture")])
def test_both_kinds_of_pt2_files_are_read(
    optimize_call: dict[str, Any], monkeypatch: pytest.MonkeyPatch, entry: str, reader: str
) -> None:
    monkeypatch.setattr(Graph, "load", classmethod(lambda cls, path: f"load {path}"))
    monkeypatch.setattr(Graph, "capture", classmethod(lambda cls, path: f"capture {path}"))
    with zipfile.ZipFile("m.pt2", "w") as archive:
        archive.writestr(entry, "{}")
    assert run("show", "m.pt2").stdout == f"{reader} m.pt2\n"
    assert run("optimize", "m.pt2").exit_code == 0
    assert optimize_call["model"] == ("load m.pt2" if reader == "load" else Path("m.pt2"))


def test_show_draws_a_graph_and_the_network_of_a_deployed_model(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 8, 8)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3)).eval()
    found = optimized(model, x, target="x86-avx2", calibration=x, measure=False)
    found.graph.save("graph.pt2")
    found.artifact.save("deployed")
    for source in ("graph.pt2", "deployed"):
        assert run("show", source, "--svg", "out.svg").stdout == "drawn in out.svg\n"
        text = Path("out.svg").read_text()
        assert text.startswith("<svg ")
        assert all(words in text for words in ("conv + relu · 7/8 bits", "<title>0\n"))
    assert run("show", "graph.pt2", "--svg", "none/out.svg").exit_code == 1
    for source in ("graph.pt2", "deployed"):
        listed = [line.split() for line in run("show", source, "--layers").stdout.splitlines()]
        assert [
            "0",
            "conv",
            "+",
            "relu",
            "N",
            "x",
            "4",
            "x",
            "6",
            "x",
            "6",
            "7",
            "/",
            "8",
            "integer",
            "3.89",
            "k",
        ] in listed


def test_time_and_damage_of_layers_go_into_the_report() -> None:
    Path("cli_models.py").write_text(MODELS)
    options = ("--input-shape", "1,3,8,8", "--target", "x86-avx2", "--no-measure", "--quiet")
    result = run("optimize", "cli_models:net", *options, "--report", "r.json", "--profile", "--analyze")
    assert result.exit_code == 0, result.output
    calls = json.loads(Path("r.json").read_text())["network"]
    assert [call["milliseconds"] is not None and call["sqnr_db"] is not None for call in calls] == [True, True]
    refused = run("optimize", "cli_models:net", *options, "--profile")
    assert refused.exit_code == 1
    assert "name a file for it, --report report.html" in refused.output


def test_a_runtime_that_says_nothing_of_its_kernels_keeps_the_report() -> None:
    options = ("--input-shape", "1,3,8,8", "--target", "nnie", "--quiet", "--report", "r.json", "--profile")
    result = run("optimize", "cli_models:net", *options)
    assert result.exit_code == 0, result.output
    assert any("what each layer takes was not measured" in n for n in json.loads(Path("r.json").read_text())["notes"])


def start(*args: str) -> "subprocess.Popen[str]":
    root = Path(main.__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "graphopt", *args]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=_listen
    )


def _listen() -> None:
    """Hear SIGINT also where the tests run in the background, to which shells give processes that ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.thorough
def test_ctrl_c_exits_with_130_and_one_line() -> None:
    process = start("optimize", "cli_models:slow", "--out", "out")
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (130, "graphopt: interrupted; no result was written\n")
    assert sorted(p.name for p in Path().iterdir() if p.name != "__pycache__") == ["cli_models.py"]


@pytest.mark.thorough
def test_debug_may_stand_anywhere() -> None:
    process = start("optimize", "cli_models:broken", "--debug")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" in stderr


def test_help_and_version_answer_without_loading_pytorch() -> None:
    begin = time.perf_counter()
    process = start("--version")
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert stdout.startswith("graphopt 0.")
    code = "import sys; import graphopt.cli.main; sys.exit('torch' in sys.modules)"
    root = str(Path(main.__file__).parents[2])
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root}).returncode == 0
    assert time.perf_counter() - begin < 30
