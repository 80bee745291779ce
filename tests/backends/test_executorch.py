"""ExecuTorch artifacts: saved, loaded, batched and timed like any other; errors that say what to do."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blocks import conv, images, model_of
from rewriting import Model
from torch import nn
from typer.testing import CliRunner

import graphopt
from graphopt.artifacts import registry
from graphopt.backends.executorch import lower, running, runtime
from graphopt.backends.executorch.artifact import ExecutorchArtifact
from graphopt.cli.main import app
from graphopt.formats import Format
from graphopt.ir.graph import Graph
from graphopt.targets import find, names
from graphopt.utils.errors import ArtifactError, ExecutionError, GraphoptError, InputError

needs_executorch = pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None, reason="the ExecuTorch backend needs graphopt[executorch]"
)
ROOT = Path(__file__).parents[2]
TARGET = find("executorch")


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(conv(3, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()


@cache
def result() -> Any:
    data = images(32)
    return graphopt.optimize(model_of("residual"), data[:4], target="executorch", calibration=data)


# ---- Without ExecuTorch ---------------------------------------------------------------------------------------------


def test_the_target_is_known() -> None:
    assert "executorch" in names()
    assert dict(graphopt.targets.explain(TARGET))["artifact"] == "a program (.pte) with XNNPACK, run by ExecuTorch"
    assert registry.RUNTIMES["executorch"].extra == "executorch"


def test_every_module_imports_without_executorch() -> None:
    """In a process of its own, in which importing it fails."""
    modules = [f"graphopt.backends.executorch.{p.stem}" for p in (ROOT / "backends/executorch").glob("[a-z]*.py")]
    program = "import sys; sys.modules['executorch'] = None; import " + ", ".join(modules)
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_without_executorch_the_target_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "executorch" else find_spec(name))
    with pytest.raises(InputError, match=r"'executorch' is not installed; .*pip install 'graphopt\[executorch\]'"):
        graphopt.optimize(small(), images(1), target="executorch")


@pytest.mark.parametrize(
    "version, says",
    [("1.4.0", "executorch 1.4.0 is too old, graphopt needs 1.5 or newer"), ("", "not installed")],
)
def test_a_missing_or_old_release_is_refused(version: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(name: str) -> str:
        if not version:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(runtime.importlib.metadata, "version", found)
    with pytest.raises(InputError, match=rf"{says}.*pip install 'graphopt\[executorch\]'"):
        runtime.check_release()


# ---- On this machine ------------------------------------------------------------------------------------------------


@needs_executorch
def test_optimize_deploys_measures_saves_and_loads(tmp_path: Path) -> None:
    found, data = result(), images(32)
    assert found.report.integer_macs == 1
    assert found.report.latency is not None
    assert found.report.latency.after == "executorch, integer"
    assert found.report.agreement is not None
    folder = found.artifact.save(tmp_path / "deployed")
    assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "model.pte"]
    loaded = graphopt.load(folder)
    assert isinstance(loaded, ExecutorchArtifact)
    assert loaded.exact
    assert torch.equal(loaded(data), found.artifact(data))
    assert torch.equal(loaded(data.numpy()), graphopt.simulate(found.graph, "executorch")(data))
    assert loaded.manifest.versions["executorch"]
    assert loaded.manifest.options["audit"]["integer_macs"] == loaded.manifest.options["audit"]["total_macs"] > 0


@needs_executorch
def test_threads_change_nothing_and_programs_stay_usable() -> None:
    """The pool is one for all programs of a process, which must not outlive the pool that they were opened in."""
    first, second, x = result().artifact, lower(Graph.capture(small(), images(4)), TARGET), images(8)
    one, other = first(x), second(x)
    for threads in (2, 1, 2):
        first.set_threads(threads)
        assert torch.equal(first(x), one)
        torch.testing.assert_close(second(x), other)
    first.set_threads(1)


@needs_executorch
def test_any_batch_is_computed_in_slices() -> None:
    model = small()
    artifact = lower(Graph.capture(model, images(2)), TARGET, batch=4)
    assert artifact.batch == 4
    assert [len(x) for x in artifact.zeros().values()] == [4]
    with torch.no_grad():
        for count in (1, 4, 6, 9):
            x = images(count, seed=count)
            torch.testing.assert_close(artifact(x), model(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="the batch is empty"):
        artifact(images(0))


@needs_executorch
@pytest.mark.thorough
def test_a_float_graph_stays_float_and_all_of_it_is_delegated() -> None:
    model, x = model_of("inverted residual"), images(4)
    artifact = lower(Graph.capture(model, x), TARGET)
    torch.testing.assert_close(artifact(x), model(x), rtol=1e-4, atol=1e-5)
    assert artifact.manifest.options["audit"]["integer_macs"] == 0
    assert not artifact.exact


@needs_executorch
@pytest.mark.thorough
def test_the_program_without_graphopt_gives_the_same_answer(tmp_path: Path) -> None:
    folder, x = result().artifact.save(tmp_path / "it's deployed"), images(4)
    program = graphopt.load(folder).usage()
    np.save(tmp_path / "x.npy", x.numpy())
    own = [line for line in program.splitlines() if "executorch" in line or "method" in line or "Runtime" in line]
    assert len(own) <= 10
    kept = "np.save(sys.argv[2], outputs[0])\n"
    (tmp_path / "use.py").write_text(program + kept)
    command = [
        sys.executable,
        "-W",
        "ignore",
        str(tmp_path / "use.py"),
        str(tmp_path / "x.npy"),
        str(tmp_path / "y.npy"),
    ]
    paths = [p for p in sys.path if p and Path(p) != ROOT and not p.startswith(str(ROOT))]
    subprocess.run(command, check=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)})
    assert np.array_equal(np.load(tmp_path / "y.npy"), result().artifact(x).numpy())
    assert "graphopt" not in program.replace(str(folder), "")


@needs_executorch
def test_a_program_that_was_altered_or_is_none_is_refused(tmp_path: Path) -> None:
    folder = result().artifact.save(tmp_path / "deployed")
    content = (folder / "model.pte").read_bytes()
    (folder / "model.pte").write_bytes(content[:100] + b"\0" + content[101:])
    with pytest.raises(ArtifactError, match="altered"):
        graphopt.load(folder)
    (folder / "model.pte").write_bytes(content[:-1])
    with pytest.raises(ArtifactError, match="is damaged"):
        graphopt.load(folder)
    for broken in (b"", b"no program at all" * 100, content[: len(content) // 2]):
        with pytest.raises(ArtifactError, match=r"ExecuTorch .* cannot load model\.pte"):
            running.Program(broken, "model.pte").open(1)


@needs_executorch
def test_a_folder_that_is_replaced_later_does_not_reach_what_was_loaded(tmp_path: Path) -> None:
    folder = result().artifact.save(tmp_path / "deployed")
    loaded = graphopt.load(folder)
    shutil.rmtree(folder)
    lower(Graph.capture(small(), images(4)), TARGET).save(folder)
    assert torch.equal(loaded(images(4)), result().artifact(images(4)))


@needs_executorch
@pytest.mark.thorough
@pytest.mark.parametrize(
    "body, says",
    [
        (lambda m, x: m.inner(x).sort(1)[0], r"sort \(aten.sort.default\).*write that otherwise, or use a target of ONNX"),
        (lambda m, x: torch.special.bessel_j0(m.inner(x)), r"no kernel for special_bessel_j0 "),
        (lambda m, x: m.inner(x).round(decimals=1), r"has no kernel for aten\.round\.decimals_out; write that otherwise"),
        (lambda m, x: m.inner(x).softmax(0), "softmax.* mixes the samples of a batch, and programs of ExecuTorch"),
        (lambda m, x: m.inner(x).sum(), "has not one row for each sample"),
    ],
)  # fmt: skip
def test_what_cannot_be_lowered_is_refused_by_name(body: Any, says: str) -> None:
    model = Model(body, inner=conv(3, 4)).eval()
    with pytest.raises(InputError, match=says):
        lower(Graph.capture(model, images(2)), TARGET)


@needs_executorch
@pytest.mark.thorough
def test_images_without_a_batch_are_computed_in_integer() -> None:
    first, second = conv(3, 8), conv(8, 4)
    model = Model(lambda m, x: m.b(nn.functional.max_pool2d(m.a(x[0]).relu(), 2)), a=first, b=second).eval()
    data = images(4)
    found = graphopt.optimize(model, data, target="executorch", calibration=[data], measure=False, dynamic_batch=False)
    assert found.report.integer_macs == 1
    assert torch.equal(found.artifact(data), graphopt.simulate(found.graph, "executorch")(data))


@needs_executorch
def test_what_an_operator_does_not_take_is_said_with_its_name(capfd: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 3)).eval()
    artifact = lower(Graph.capture(model, torch.tensor([[1, 2, 3]])), TARGET)
    says = r"cannot compute aten\.embedding: .* 77 >= .* on these inputs; give inputs that the original model takes"
    with pytest.raises(ExecutionError, match=says):
        artifact(torch.tensor([[1, 2, 77]]))
    assert artifact(torch.tensor([[1, 2, 3]])).shape == (1, 3, 3)


@needs_executorch
@pytest.mark.thorough
def test_remainders_of_negative_integers_are_those_of_torch() -> None:
    model = Model(lambda m, x: (x * 7).long() % -3 + (x * 5).long() % (x[:, :1] * 0 + 3).long()).eval()
    artifact = lower(Graph.capture(model, images(2), dynamic_batch=False), TARGET)
    assert torch.equal(artifact(images(2)), model(images(2)))


@needs_executorch
@pytest.mark.thorough
@pytest.mark.parametrize("bits", [4, 6])
def test_fewer_bits_are_codes_of_a_byte(bits: int) -> None:
    weights, values = Format(bits, per_channel=True), Format(bits, symmetric=False)
    target, data = TARGET.replace(weights=weights, activations=values), images(16)
    found = graphopt.optimize(model_of("relu6"), data[:1], target=target, calibration=data, measure=False)
    assert found.report.integer_macs == 1
    simulation = graphopt.simulate(found.graph, target)
    assert [line for line in simulation.mismatches(found.artifact, data) if line.differing] == []
    assert torch.equal(found.artifact(data), simulation(data))


@needs_executorch
def test_weights_in_blocks_are_refused() -> None:
    with pytest.raises(GraphoptError, match="weight"):
        graphopt.optimize(
            nn.Linear(64, 8).eval(), torch.randn(2, 64), target="executorch", weight_only=4, measure=False
        )


@needs_executorch
def test_a_machine_is_not_to_be_chosen() -> None:
    with pytest.raises(InputError, match="XNNPACK computes the same integers on every CPU; leave out machine='avx2'"):
        graphopt.simulate(result().graph, "executorch", machine="avx2")
    loaded = ExecutorchArtifact(result().artifact.folder, result().artifact.manifest)
    with pytest.raises(InputError, match="was loaded from a folder"):
        graphopt.simulate(result().graph, "executorch").mismatches(loaded, images(4))


@needs_executorch
@pytest.mark.thorough
def test_the_command_line_takes_it(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(small(), (images(1),)), tmp_path / "model.pt2")
    np.savez(tmp_path / "inputs.npz", images(8).numpy())
    arguments = [
        "optimize",
        str(tmp_path / "model.pt2"),
        "--target",
        "executorch",
        "--calibration",
        str(tmp_path / "inputs.npz"),
    ]
    made = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "deployed")])
    assert made.exit_code == 0, made.output
    shown = CliRunner().invoke(app, ["show", str(tmp_path / "deployed"), "--usage"])
    assert "executorch.runtime" in shown.output
    compiled = CliRunner().invoke(app, ["compile", str(tmp_path / "deployed"), "--out", str(tmp_path / "bare")])
    assert compiled.exit_code == 1
    assert json.loads((tmp_path / "deployed" / "manifest.json").read_text())["target"]["name"] == "executorch"


@needs_executorch
@pytest.mark.thorough
def test_the_examples_of_the_guide_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/guides/executorch.md").read_text(), re.DOTALL)
    space = {"graphopt": graphopt, "model": model_of("residual"), "images": images(8), "accuracy": lambda model: 1.0}
    for block in blocks:
        exec(compile(block, "executorch.md", "exec"), space)
    assert (tmp_path / "deployed" / "model.pte").exists()
