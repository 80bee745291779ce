"""Targets whose formats no runtime has: files of packed codes that answer what was simulated, checked like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from blocks import BLOCKS, images, model_of
from rewriting import apply, capture
from torch import Tensor, nn

import graphopt
from graphopt.artifacts import packing
from graphopt.artifacts.manifest import Manifest, listing, read_manifest
from graphopt.backends.packed.artifact import NETWORK, WEIGHTS
from graphopt.compiler.optimize import Optimized
from graphopt.formats import BlockFloat, Codebook, Format, LogFormat
from graphopt.passes.quantization import LayerFormat, Quantize
from graphopt.targets import Target, find
from graphopt.utils.errors import ArtifactError, InputError

NNIE = find("nnie")
KINDS = {
    "nnie": NNIE,
    "16-bit logarithms": NNIE.replace(weights=LogFormat(16), activations=LogFormat(16)),
    "block floating point": NNIE.replace(weights=BlockFloat(8), activations=BlockFloat(8)),
    "codebooks and codes": NNIE.replace(weights=Codebook(4, per_channel=True), activations=Format(8, symmetric=False)),
}  # fmt: skip


def optimized(model: nn.Module, target: Target = NNIE, **options: Any) -> Optimized:
    data = [images(8, seed=s) for s in range(2)]
    return graphopt.optimize(model, images(2), target=target, calibration=data, measure=False, **options)


@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_is_all_codes(block: str) -> None:
    done = optimized(model_of(block))
    assert done.report.integer_macs == 1.0
    assert graphopt.check(done.artifact, "nnie") == []


@pytest.mark.thorough
@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_artifact_answers_what_was_simulated_bit_for_bit(kind: str, tmp_path: Path) -> None:
    done = optimized(model_of("inverted residual"), KINDS[kind])
    folder = done.artifact.save(tmp_path / "deployed")
    loaded, x = graphopt.load(folder), images(5, seed=7)
    with torch.no_grad():
        simulated, exact = done.graph(x), model_of("inverted residual")(x)
    assert torch.equal(loaded(x), simulated)
    assert float((simulated - exact).abs().max()) < 0.15 * float(exact.max() - exact.min())
    for model in (done.graph, done.artifact, folder):
        assert graphopt.check(model, KINDS[kind]) == []


def test_codes_are_stored_once_and_take_their_bits() -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3)).eval()
    count = sum(p.numel() for p in model.parameters())
    done = optimized(model)
    found = packing.read(done.artifact.folder / WEIGHTS)
    assert [w.quantizer.format for w in found.values()] == [LogFormat(8)] * 2
    assert count < done.artifact.size_bytes < 1.5 * count
    assert count < done.report.steps[-1].weight_bytes < 1.1 * count + 3 * 128


@pytest.mark.thorough
def test_the_users_data_are_not_in_it() -> None:
    x = images(64, seed=5)
    done = graphopt.optimize(model_of("plain"), x, target="nnie", calibration=[x], measure=False)
    assert done.artifact.size_bytes < x.nbytes
    assert x[0].numpy().tobytes()[:64] not in (done.artifact.folder / NETWORK).read_bytes()
    assert torch.equal(done.artifact(x), done.graph(x))
    assert done.artifact(x[:1]).shape == (1, 5)


@pytest.mark.thorough
def test_a_weight_that_something_else_reads_in_float_keeps_its_floats(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.weight) + self.weight.sum()

    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    done = graphopt.optimize(Tied().eval(), x, target="nnie", calibration=[x], measure=False)
    loaded = graphopt.load(done.artifact.save(tmp_path / "deployed"))
    with torch.no_grad():
        assert torch.equal(loaded(x), done.graph(x))


# ---- What breaks the rules ------------------------------------------------------------------------------------------


def planted(what: str) -> Any:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    formats: dict[str, LayerFormat | None] = {
        "float-layer": {"3": None},
        "weight-format": {"3": LayerFormat(Codebook(4))},
        "value-format": {"0": LayerFormat(None, BlockFloat(8))},
    }.get(what, {})  # type: ignore[assignment]
    if what == "batch-norm":
        graph = capture(nn.Sequential(model[0], nn.ReLU(), model[1]).eval(), images(2))
        apply(Quantize(NNIE, [[images(2)]]), graph)
        return graph
    lenient = NNIE.replace(more_weights=(Codebook(4),), more_activations=(BlockFloat(8),))
    return optimized(model, lenient, formats=formats).artifact


@pytest.mark.parametrize("rule", ["float-layer", "weight-format", "value-format", "batch-norm"])
def test_every_planted_violation_is_found(rule: str) -> None:
    found = graphopt.check(planted(rule), "nnie")
    assert rule in {violation.rule for violation in found}
    assert all(violation.remedy for violation in found)


@pytest.mark.thorough
def test_weights_in_a_narrower_format_are_named() -> None:
    (found,) = graphopt.check(planted("weight-format"), "nnie")
    assert found.node == "3.weight"
    assert "codebook4" in found.what
    assert "log8" in found.remedy


@pytest.mark.thorough
def test_an_onnx_file_cannot_be_in_logarithms() -> None:
    done = optimized(model_of("plain"), find("sigmastar"))
    assert {v.rule for v in graphopt.check(done.artifact, "nnie")} == {"weight-format", "value-format"}


@pytest.mark.thorough
def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    folder = optimized(model_of("plain")).artifact.save(tmp_path / "deployed")
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"weights\.packed was altered"):
        graphopt.load(folder)
    (folder / "manifest.json").write_bytes(vouched(folder))
    with pytest.raises(ArtifactError, match=r"weights\.packed is damaged"):
        graphopt.load(folder)
    assert (folder / NETWORK).exists()


def vouched(folder: Path) -> bytes:
    """A manifest that vouches for the files as they are."""
    manifest = Manifest.from_json((folder / "manifest.json").read_bytes())
    manifest.files = listing(folder)
    return manifest.to_json()


@pytest.mark.thorough
def test_there_are_no_kernels_to_be_simulated() -> None:
    with pytest.raises(InputError, match="call the simulated graph itself"):
        graphopt.simulate(optimized(model_of("plain")).graph, "nnie")


@pytest.mark.thorough
def test_the_manifest_tells_the_formats_apart(tmp_path: Path) -> None:
    folder = optimized(model_of("plain")).artifact.save(tmp_path / "deployed")
    assert read_manifest(folder).target["formats"]["weights"] == {
        "kind": "log",
        "bits": 8,
        "per_channel": False,
        "steps": 16,
    }
