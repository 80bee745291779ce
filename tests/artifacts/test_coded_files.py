"""An artifact whose files are entropy-coded is the same artifact in fewer bytes."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

import graphopt
from graphopt.artifacts.storage import CODED
from graphopt.backends.onnxruntime.places import initializers
from graphopt.targets import find
from graphopt.utils.errors import ArtifactError, InputError


class Words(nn.Module):
    """An embedding and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(500, 32), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding(x).mean(1))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 32), nn.ReLU(), nn.Linear(32, 5)
    ).eval()


X = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def optimized(target: str = "x86", **options: object) -> graphopt.Artifact:
    options = {"measure": False, **options}
    return graphopt.optimize(network(), X[:1], target=target, calibration=X, **options).artifact  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "target",
    [
        "x86",
        "nnie",
        pytest.param("executorch", marks=pytest.mark.thorough),
        pytest.param("tvm-x86", marks=pytest.mark.thorough),
    ],
)
def test_it_answers_the_same_and_is_smaller(tmp_path: Path, target: str) -> None:
    if (runtime := find(target).runtime.name) in ("tvm", "executorch"):
        pytest.importorskip(runtime)
    artifact, plain = optimized(target), optimized(target)
    artifact.store()
    artifact.save(tmp_path / "deployed")
    loaded = graphopt.load(tmp_path / "deployed")
    assert torch.equal(artifact(X), plain(X))
    assert torch.equal(loaded(X), plain(X))
    assert loaded.size_bytes == artifact.size_bytes < 0.92 * plain.size_bytes
    on_disk = sum(f.stat().st_size for f in (tmp_path / "deployed").iterdir() if f.name != "manifest.json")
    unneeded = sum(plain.manifest.files[n].size for n in plain.manifest.files if n not in plain.loaded)
    assert on_disk - unneeded <= loaded.size_bytes + 2**20 * target.startswith("tvm")
    assert target.startswith("tvm") or on_disk == loaded.size_bytes


def test_the_report_says_the_size_on_disk(tmp_path: Path) -> None:
    result = graphopt.optimize(network(), X[:1], target="x86", calibration=X, storage="huffman")
    result.artifact.save(tmp_path / "deployed")
    assert result.report.size_after == (tmp_path / "deployed" / CODED).stat().st_size
    assert sorted(p.name for p in (tmp_path / "deployed").iterdir()) == [CODED, "manifest.json"]


def test_it_can_be_stored_in_either_way_afterwards(tmp_path: Path) -> None:
    artifact = optimized()
    plain = artifact.size_bytes
    artifact.save(tmp_path / "deployed")
    loaded = graphopt.load(tmp_path / "deployed")
    loaded.store("ans")
    loaded.save(tmp_path / "deployed")
    again = graphopt.load(tmp_path / "deployed")
    assert again.size_bytes == loaded.size_bytes < plain
    again.save(tmp_path / "copied")
    assert (tmp_path / "copied" / CODED).read_bytes() == (tmp_path / "deployed" / CODED).read_bytes()
    again.store(None)
    again.save(tmp_path / "deployed")
    assert graphopt.load(tmp_path / "deployed").size_bytes == plain


def test_embeddings_are_coded_too() -> None:
    torch.manual_seed(0)
    x = torch.randint(0, 500, (16, 7))
    artifact = graphopt.optimize(Words().eval(), x[:1], target="x86", calibration=x, measure=False).artifact
    plain = artifact.size_bytes
    artifact.store()
    assert artifact.size_bytes < 0.95 * plain


def test_the_places_are_those_of_the_initializers(tmp_path: Path) -> None:
    optimized().save(tmp_path / "deployed")
    content = (tmp_path / "deployed/model.onnx").read_bytes()
    model = onnx.load(str(tmp_path / "deployed/model.onnx"))
    large = {t.raw_data for t in model.graph.initializer if len(t.raw_data) >= 128}
    found = {content[place.begin : place.end] for place in initializers(content)}
    assert found == large
    assert len(large) >= 3


def test_a_program_without_graphopt_is_refused_for_coded_files() -> None:
    with pytest.raises(InputError, match="entropy-coded"):
        optimized(storage="entropy").usage()


def test_an_altered_file_is_refused(tmp_path: Path) -> None:
    optimized(storage="entropy").save(tmp_path / "deployed")
    content = bytearray((tmp_path / "deployed" / CODED).read_bytes())
    content[-5] ^= 1
    (tmp_path / "deployed" / CODED).write_bytes(content)
    with pytest.raises(ArtifactError, match="SHA-256"):
        graphopt.load(tmp_path / "deployed")


def test_an_unknown_coding_is_refused() -> None:
    with pytest.raises(InputError, match="unknown coding 'zip'"):
        optimized().store("zip")  # type: ignore[arg-type]
