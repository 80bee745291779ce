import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from graphopt import targets
from graphopt.artifacts.artifact import Artifact
from graphopt.artifacts.lowered import describe, temporary_folder
from graphopt.artifacts.manifest import read_manifest
from graphopt.artifacts.report import Report
from graphopt.ir.graph import Graph
from graphopt.utils.errors import InputError


class Sums(nn.Module):
    def forward(self, x: Tensor, extra: dict[str, Tensor]) -> dict[str, Any]:
        return {"sum": x + extra["y"], "both": (x, extra["y"] * 2)}


class NumpySums(Artifact):
    """What a backend would compute."""

    def set_threads(self, threads: int) -> None:
        self.threads = threads

    def _run(self, inputs: list[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        x, y = inputs
        return [x + y, x, y * 2]


X, Y = torch.randn(4, 3), torch.randn(4, 3)


@pytest.fixture(params=[True, False], ids=["free batch", "fixed batch"])
def artifact(request: pytest.FixtureRequest) -> NumpySums:
    example = (torch.zeros(4, 3), {"y": torch.zeros(4, 3)})
    graph = Graph.capture(Sums().eval(), example, dynamic_batch=request.param)
    graph.output_names = ["sum", "both_0", "both_1"]
    folder = temporary_folder()
    (folder / "sub").mkdir()
    (folder / "sub" / "data").write_bytes(b"1234567")
    manifest = describe(graph, targets.find("x86"), folder, model="Sums")
    return NumpySums(folder, manifest, temporary=True)


def test_it_is_called_like_the_original(artifact: NumpySums) -> None:
    out = artifact(X, {"y": Y})
    assert list(out) == ["sum", "both"]
    assert torch.equal(out["sum"], X + Y)
    assert isinstance(out["both"], tuple)
    assert torch.equal(out["both"][1], Y * 2)


def test_arrays_flat_calls_and_names_work_too(artifact: NumpySums) -> None:
    names = [s.name for s in artifact.manifest.inputs]
    for out in (
        artifact(X.numpy(), {"y": Y.numpy()}),
        artifact(X, Y),
        artifact(**dict(zip(names, (X, Y), strict=True))),
    ):
        assert torch.equal(out["sum"], X + Y)


@pytest.mark.parametrize(
    "args, says",
    [
        ((X,), r"the model takes x: .*; the arguments\[0\] must be a tuple of 2, got tuple of 1"),
        ((X, Y, Y), r"the model takes x: .*must be a tuple of 2, got tuple of 3"),
        ((X, {"z": Y}), r"must have the entries y, got z"),
        ((X.double(), {"y": Y}), r"input 'x' must be float32\[.*3\], got float64\[4, 3\]"),
        ((X, {"y": Y[:, :2]}), r"must be float32\[.*3\], got float32\[4, 2\]"),
        ((X, {"y": 3.0}), "must be a tensor or numpy array, got float"),
    ],
)
def test_what_does_not_fit_is_named(artifact: NumpySums, args: tuple[Any, ...], says: str) -> None:
    with pytest.raises(InputError, match=says):
        artifact(*args)


def test_a_mixture_of_order_and_names_is_refused(artifact: NumpySums) -> None:
    names = [s.name for s in artifact.manifest.inputs]
    with pytest.raises(InputError, match="the model takes x: "):
        artifact(X, **dict(zip(names, (X, Y), strict=True)))
    with pytest.raises(InputError, match="the model takes x: "):
        artifact(x=X, unknown=Y)


def test_only_a_free_batch_may_vary_and_only_for_all_inputs_together(artifact: NumpySums) -> None:
    if artifact.manifest.inputs[0].shape[0] is None:
        assert artifact(X[:2], {"y": Y[:2]})["sum"].shape == (2, 3)
        with pytest.raises(InputError, match=r"different sizes: 'batch' is 4 by dimension 0 of input 'x' and 2 by"):
            artifact(X, {"y": Y[:2]})
    else:
        with pytest.raises(InputError, match=r"must be float32\[4, 3\], got float32\[2, 3\]"):
            artifact(X[:2], {"y": Y[:2]})


def test_outputs_are_described(artifact: NumpySums) -> None:
    free = artifact.manifest.inputs[0].shape[0] is None
    assert [s.shape for s in artifact.manifest.outputs] == [((None if free else 4), 3)] * 3


def test_saving_and_reading_back(artifact: NumpySums, tmp_path: Path) -> None:
    artifact.manifest.report = Report("Sums", "x86").to_dict()
    for _ in range(2):  # a second save replaces the first
        assert artifact.save(tmp_path / "out") == tmp_path / "out"
    loaded = NumpySums(tmp_path / "out", read_manifest(tmp_path / "out"))
    assert torch.equal(loaded(X, {"y": Y})["sum"], X + Y)
    assert loaded.size_bytes == 7
    assert loaded.report == Report("Sums", "x86")
    assert "Sums for x86; x: float32" in repr(loaded)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_a_temporary_folder_goes_with_its_artifact(artifact: NumpySums, tmp_path: Path) -> None:
    folder = temporary_folder()
    NumpySums(folder, artifact.manifest, temporary=True)
    gc.collect()
    assert not folder.exists()
    kept = tmp_path / "kept"
    kept.mkdir()
    NumpySums(kept, artifact.manifest)
    gc.collect()
    assert kept.exists()


def test_an_interrupted_save_leaves_nothing(
    artifact: NumpySums, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.copyfile", interrupt)
    with pytest.raises(KeyboardInterrupt):
        artifact.save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_other_peoples_files_are_not_overwritten(artifact: NumpySums, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match=r"did not write \(thesis\.tex\)"):
        artifact.save(tmp_path)
