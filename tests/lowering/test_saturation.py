"""Sums of pairs that saturate without VNNI, against what ONNX Runtime answered on such a CPU, recorded and, with qemu, live."""

from __future__ import annotations

import json
from pathlib import Path

import onnxruntime as ort
import pytest
import saturating
import torch
from blocks import images, lowered, model_of, simulated
from emulation import HASWELL
from saturating import CASES
from torch import nn

import graphopt
from graphopt import targets
from graphopt.backends.onnxruntime import lower
from graphopt.backends.onnxruntime.artifact import expose
from graphopt.evaluation import timing
from graphopt.ir.graph import Graph
from graphopt.targets import find

RECORDED = json.loads(saturating.RECORDED.read_text())

with_qemu = pytest.mark.skipif(bool(HASWELL.missing), reason=HASWELL.missing)


@pytest.mark.parametrize("name", CASES)
def test_every_sum_is_what_the_runtime_computed_without_vnni(name: str) -> None:
    codes, expected = saturating.make(name).codes, torch.tensor(RECORDED[name])
    found = saturating.kernel(name, in_pairs=True)(codes)
    exact = saturating.kernel(name, in_pairs=False)(codes)
    assert found.flatten().tolist() == expected.tolist()
    assert torch.equal(found, exact) != CASES[name].saturates
    assert found.unique().numel() > 8  # else it proves little


@with_qemu
@pytest.mark.skipif(ort.__version__ != "1.31.1", reason="recorded with release 1.31.1")
def test_the_recorded_answers_are_the_runtimes() -> None:
    assert saturating.answers(CASES) == RECORDED


def near_the_ends(block: str) -> nn.Module:
    """Weights of nearly one size, so that neighbours of one sign saturate."""
    model = model_of(block)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            size = module.weight.detach().abs()
            module.weight.data = module.weight.detach().sign() * (0.03 * size + 0.3 * size.max())
    return model


def saturated(block: str, target: str = "x86") -> Graph:
    return simulated(near_the_ends(block), find(target))


@with_qemu
def test_an_artifact_answers_bit_for_bit_what_the_simulation_answers(tmp_path: Path) -> None:
    graph, x = saturated("inverted residual"), images(4, seed=3) * 1.5
    simulation = graphopt.simulate(graph, "x86", machine="avx2")
    ours, exact = simulation.codes(x), graphopt.simulate(graph, "x86", machine="x86_64").codes(x)
    names = expose(lower(graph, find("x86")), list(ours), tmp_path)
    theirs = HASWELL.onnxruntime({tmp_path: [x.numpy()]}, qdqisint8allowed="1")[tmp_path]
    assert len(names) >= 7
    assert [name for name in names if not torch.equal(ours[name], torch.from_numpy(theirs[name]))] == []
    assert [name for name in names if torch.equal(exact[name], ours[name])] == [names[0]]  # the input's own codes
    (answer,) = [value for name, value in theirs.items() if name not in names]
    assert torch.equal(simulation(x), torch.from_numpy(answer))


@with_qemu
@pytest.mark.slow
def test_the_runtimes_precise_products_do_not_saturate() -> None:
    """Of unsigned values: with signed ones the runtime refuses its own rewritten linear layers."""
    unsigned = {name: case for name, case in CASES.items() if case.values is torch.uint8}
    for name, found in saturating.answers(unsigned, x64quantprecision="1").items():
        exact = saturating.kernel(name, in_pairs=False)(saturating.make(name).codes)
        assert found == exact.flatten().tolist(), name


@pytest.mark.skipif(targets.machine_here() != "avx2", reason="needs an x86-64 CPU without VNNI")
@pytest.mark.parametrize("block", ["plain", "residual"])
def test_an_artifact_can_be_told_not_to_saturate(block: str) -> None:
    graph, x = saturated(block), images(4)
    artifact = lower(graph, find("x86"))
    saturating_ones, exact = (graphopt.simulate(graph, "x86", machine=machine)(x) for machine in ("avx2", "x86_64"))
    assert not torch.equal(saturating_ones, exact)
    assert torch.equal(artifact(x), saturating_ones)
    artifact.set_exact_products()
    assert torch.equal(artifact(x), exact)
    artifact.set_exact_products(False)
    assert torch.equal(artifact(x), saturating_ones)


# ---- What it counts -------------------------------------------------------------------------------------------------


def test_saturation_counts_the_sums_that_are_wrong_layer_by_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.ReLU(), nn.Conv2d(2, 2, 1, bias=False))
    model[0].weight.data = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.5, 1.0]])[:, :, None, None]
    model[2].weight.data = torch.tensor([[1.0, -1.0], [0.0, 1.0]])[:, :, None, None]
    x = torch.zeros(1, 3, 1, 4)
    x[0, :, 0] = torch.tensor([[0.0, 1.0, 1.0, 0.5], [0.0, 1.0, 0.0, 0.5], [0.0, 0.0, 1.0, 0.5]])
    graph = simulated(model, find("x86"), x)
    simulation = graphopt.simulate(graph, "x86", machine="avx2")
    (line,) = simulation.saturation(x)
    # 255 (127 + 127) and 255 (127 + 64 = 191), in one pixel; 128 (127 + 127) = 32512 fits
    assert (line.site, line.kernel, line.wrong, line.total) == ("0", "conv", 2, 8)
    assert line.largest == pytest.approx((255 * 254 - 32767) / (255 * 127), rel=1e-3)
    assert str(line) == "0 (conv): 2 of 8 sums saturated, by 0.988 at most"


@pytest.mark.thorough
def test_a_linear_layer_that_answers_in_float_counts_too() -> None:
    lines = graphopt.simulate(saturated("plain"), "x86", machine="avx2").saturation(images(4, seed=3))
    assert [line.kernel for line in lines] == ["conv", "conv", "linear"]
    assert all(0 < line.wrong < line.total for line in lines)


@pytest.mark.thorough
@pytest.mark.parametrize(("target", "machine"), [("x86-avx2", "avx2"), ("x86", "x86_64"), ("arm", "avx2")])
def test_nothing_saturates_with_7_bits_nor_vnni_nor_signed_values(target: str, machine: str) -> None:
    graph = saturated("residual", target)
    simulation = graphopt.simulate(graph, target, machine=machine)
    assert simulation.saturation(images(4)) == []
    assert torch.equal(simulation(images(4)), graphopt.simulate(graph, target, machine="x86_64")(images(4)))


# ---- The target -----------------------------------------------------------------------------------------------------


def test_the_target_without_vnni_has_7_bits_and_its_own_kernels() -> None:
    target = find("x86-avx2")
    assert target.formats.weights.bits == max(target.formats.weight_bits) == 7
    assert graphopt.simulate(saturated("plain", "x86-avx2"), target).machine == "avx2"


@pytest.mark.thorough
def test_a_latency_without_vnni_is_not_measured_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    artifact, runtime = lowered("plain", "x86").artifact, find("x86-avx2").runtime
    monkeypatch.setattr(timing, "architecture", lambda: "x86_64")
    monkeypatch.setattr(timing, "machine_here", lambda: "x86_64")
    assert timing.untimed(runtime, artifact) == "the target has the kernels of avx2, this machine those of x86_64"
    monkeypatch.setattr(timing, "machine_here", lambda: "avx2")
    assert timing.untimed(runtime, artifact) == ""


@pytest.mark.parametrize(
    ("architecture", "features", "machine", "like"),
    [
        ("x86_64", {"avx2", "avx512_vnni"}, "x86_64", "x86"),
        ("x86_64", {"avx2", "avx_vnni"}, "x86_64", "x86"),
        ("x86_64", {"avx2", "avx512f"}, "avx2", "x86-avx2"),
        ("aarch64", {"asimd"}, "aarch64", "arm"),
    ],
)
def test_the_host_is_told_by_its_instructions(
    monkeypatch: pytest.MonkeyPatch, architecture: str, features: set[str], machine: str, like: str
) -> None:
    monkeypatch.setattr("graphopt.targets.machine.architecture", lambda: architecture)
    monkeypatch.setattr("graphopt.targets.machine.cpu_features", lambda: frozenset(features))
    assert targets.machine_here() == machine
    assert targets.host().formats.weights == find(like).formats.weights
    assert targets.host().runtime.machine == find(like).runtime.machine
