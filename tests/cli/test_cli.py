import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from graphopt import optimize as optimized
from graphopt.artifacts.manifest import Manifest, TensorSpec, listing
from graphopt.artifacts.report import Report
from graphopt.cli import main
from graphopt.data.loaders import Named
from graphopt.ir.graph import Graph
from graphopt.targets import find
from graphopt.utils.errors import PassError

MODELS = """
import time
import torch
from torch import nn

def net(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
made = nn.Linear(3, 2)
def broken(): raise TypeError("two\\nlines")
def accuracy(model): return 0.5
def slow():
    print("started", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def optimize_call(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands in for `graphopt.optimize`; holds what it was called with."""
    call: dict[str, Any] = {}

    def optimize(model: Any, example_inputs: Any = None, **options: Any) -> Any:
        call.update(model=model, example=example_inputs, **options)
        if isinstance(call.get("raises"), BaseException):
            raise call["raises"]
        artifact = SimpleNamespace(save=lambda folder: Path(folder).resolve())
        return SimpleNamespace(artifact=artifact, report=Report("Net", options["target"].name))

    monkeypatch.setitem(sys.modules, "graphopt.compiler.optimize", SimpleNamespace(optimize=optimize))
    return call


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cli_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])


def run(*args: str) -> Result:
    sys.modules.pop("cli_models", None)
    return CliRunner().invoke(main.app, list(args))


def test_optimize_hands_everything_over(optimize_call: dict[str, Any], tmp_path: Path) -> None:
    np.save("x.npy", np.zeros((4, 3, 8, 8), "float32"))
    result = run(
        "optimize", "cli_models:net", "--target", "x86", "--input-shape", "2,3,8,8", "--calibration", "x.npy",
        "--evaluate", "cli_models:accuracy", "--estimator", "minmax", "--threads", "2", "--no-measure",
        "--mean", "0.5", "--samples", "7", "--out", "out", "--report", "report.json", "--dump", "steps",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert not optimize_call["model"].training
    assert [tuple(t.shape) for t in optimize_call["example"]] == [(2, 3, 8, 8)]
    assert optimize_call["target"].name == "x86"
    assert isinstance(optimize_call["calibration"], Named)
    assert (optimize_call["calibration"].limit, optimize_call["preprocessing"].mean) == (7, (0.5,))
    assert optimize_call["evaluate"](None) == 0.5
    assert (optimize_call["estimator"], optimize_call["threads"], optimize_call["measure"]) == ("minmax", 2, False)
    assert optimize_call["dump"] == Path("steps")
    assert "Net for x86" in result.stdout
    assert f"saved to {tmp_path / 'out'}" in result.stdout
    assert json.loads(Path("report.json").read_text())["model"] == "Net"


def test_cores_and_kept_results(optimize_call: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", limits.append)
    assert run("optimize", "cli_models:net", "--cache", "kept", "--jobs", "1").exit_code == 0
    assert (optimize_call["cache"], limits) == (Path("kept"), [1])
    assert run("optimize", "cli_models:net", "--jobs", "0").exit_code == 2
    assert limits == [1]


def test_few_bits_are_asked_for_by_options(optimize_call: dict[str, Any]) -> None:
    options = {
        "--rounding": "gptq",
        "--average-bits": 4.0,
        "--weight-only": 8,
        "--checkpoint": Path("kept"),
        "--max-drop": 0.5,
    }
    assert run("optimize", "cli_models:net", *(str(part) for pair in options.items() for part in pair)).exit_code == 0
    assert {name: optimize_call[name[2:].replace("-", "_")] for name in options} == options


def test_what_is_done_to_images_is_a_file_and_options_over_it(optimize_call: dict[str, Any]) -> None:
    timm = {
        "input_size": [3, 96, 96],
        "crop_pct": 0.75,
        "mean": [0.1] * 3,
        "std": [0.2] * 3,
        "interpolation": "bilinear",
    }
    Path("config.json").write_text(json.dumps({"pretrained_cfg": timm}))
    Path("names.json").write_text(json.dumps({"id2label": {"0": "cat", "1": "dog"}}))
    Path("names.txt").write_text("cat\ndog\n")
    options = ("--preprocessing", "config.json", "--std", "0.3", "--color", "BGR", "--resize", "100")
    assert run("optimize", "cli_models:net", *options, "--class-labels", "names.txt").exit_code == 0
    found = optimize_call["preprocessing"]
    assert (found.crop, found.mean, found.std) == ((96, 96), (0.1, 0.1, 0.1), (0.3,))
    assert (found.resize, found.color, found.interpolation) == ((100, 100), "BGR", "bilinear")
    assert optimize_call["class_labels"] == ["cat", "dog"]
    assert run("optimize", "cli_models:net", "--class-labels", "names.json").exit_code == 0
    assert optimize_call["class_labels"] == {"0": "cat", "1": "dog"}
    assert optimize_call["preprocessing"] is None


def test_timings_are_printed_where_they_are_asked_for(optimize_call: dict[str, Any]) -> None:
    timed = run("optimize", "cli_models:net", "--timings")
    assert timed.exit_code == 0, timed.output
    assert ["stage", "part", "seconds"] in [line.split() for line in timed.stdout.splitlines()]
    assert "seconds" not in run("optimize", "cli_models:net").stdout


@pytest.mark.thorough
def test_analyze_reads_photos_as_optimize_did(monkeypatch: pytest.MonkeyPatch) -> None:
    image = pytest.importorskip("PIL.Image")
    Path("photos").mkdir()
    image.fromarray(np.zeros((9, 9, 3), "uint8")).save("photos/a.png")
    cfg = {"input_size": (3, 8, 8), "crop_pct": 1.0, "mean": [0.1] * 3, "std": [0.2] * 3}
    Path("cli_models.py").write_text(
        f"{MODELS}\ndef timm():\n    found = net()\n    found.pretrained_cfg = {cfg}\n    return found\n"
    )
    given: list[Any] = []
    shown = SimpleNamespace(print=lambda **_: None)
    monkeypatch.setattr("graphopt.evaluation.sensitivity.analyze", lambda graph, source: given.append(source) or shown)
    options = ("--target", "x86-avx2", "--calibration", "photos", "--input-shape", "1,3,8,8")
    for more, mean in (((), (0.1, 0.1, 0.1)), (("--mean", "0.7"), (0.7,))):
        result = run("analyze", "cli_models:timm", *options, *more)
        assert result.exit_code == 0, result.output
        assert given[-1].preprocessing.mean == mean


def test_the_target_is_this_machine_unless_another_is_named(optimize_call: dict[str, Any]) -> None:
    said = run("optimize", "cli_models:net").stdout
    assert optimize_call["target"] == find("host")
    assert "no --target was given: this is for the machine it ran on" in said
    assert "no --target" not in run("optimize", "cli_models:net", "--target", "host").stdout
    assert optimize_call["target"] == find("host")
    assert run("optimize", "cli_models:net", "--quiet").stdout == ""


def test_tuning_is_asked_for_by_options(optimize_call: dict[str, Any]) -> None:
    options = ("--target", "tvm-x86", "--tune", "60s", "--tune-database", "tiles.jsonl")
    assert run("optimize", "cli_models:net", *options).exit_code == 0
    assert (optimize_call["tune"], optimize_call["tune_database"]) == ("60s", Path("tiles.jsonl"))


def test_a_finished_module_and_several_typed_inputs(optimize_call: dict[str, Any]) -> None:
    result = run("optimize", "cli_models:made", "--input-shape", "1x5:int64", "--input-shape", "4:float64")
    assert result.exit_code == 0, result.output
    ids, value = optimize_call["example"]
    assert (ids.dtype, ids.shape, value.dtype) == (torch.int64, (1, 5), torch.float64)
    assert optimize_call["target"].name == "host"
    assert optimize_call["calibration"] is None


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
    (("optimize", "cli_models:broken"), "unexpected TypeError: two lines (--debug shows where)"),
    (("optimize", "cli_models:net", "--evaluate", "cli_models:time"), "is a module, not a function that takes a model"),
    (("show", "nowhere"), "there is no file or folder nowhere"),
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
