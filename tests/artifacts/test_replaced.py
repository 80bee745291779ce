"""Artifacts whose folders are replaced, by this process or another one, while they are loaded and run."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import graphopt
from graphopt import Artifact
from graphopt.artifacts.manifest import read_manifest
from graphopt.artifacts.registry import backend
from graphopt.targets import find
from graphopt.utils.errors import ArtifactError

IMAGE = torch.ones(1, 4)


def constant(value: float) -> Artifact:
    """A deployed model whose answer tells which one it is."""
    layer = nn.Linear(4, 3)
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, value)
    return backend("onnxruntime").lower(graphopt.Graph.capture(layer.eval(), IMAGE), find("x86"))


@pytest.fixture(scope="module")
def versions() -> list[Artifact]:
    return [constant(1.0), constant(2.0)]


def answer(artifact: Callable[[Tensor], Tensor]) -> float:
    found = set(artifact(IMAGE).flatten().tolist())
    assert len(found) == 1
    return found.pop()


def test_a_loaded_artifact_stays_what_it_was_when_another_takes_its_place(
    tmp_path: Path, versions: list[Artifact]
) -> None:
    versions[0].save(tmp_path / "deployed")
    loaded = graphopt.load(tmp_path / "deployed")
    versions[1].save(tmp_path / "deployed")
    assert answer(loaded) == 1.0
    assert answer(graphopt.load(tmp_path / "deployed")) == 2.0


def test_files_of_another_artifact_are_never_taken_for_its_own(tmp_path: Path, versions: list[Artifact]) -> None:
    versions[0].save(tmp_path / "deployed")
    loaded = graphopt.load(tmp_path / "deployed")
    versions[1].save(tmp_path / "deployed")
    loaded.set_threads(2)  # reads the model again
    with pytest.raises(ArtifactError, match="was replaced since it was loaded; load it again"):
        loaded(IMAGE)
    with pytest.raises(ArtifactError, match="was replaced"):
        loaded.save(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_an_artifact_saved_over_itself_goes_on(tmp_path: Path, versions: list[Artifact]) -> None:
    versions[0].save(tmp_path / "deployed")
    loaded = graphopt.load(tmp_path / "deployed")
    loaded.save(tmp_path / "deployed")
    loaded.set_threads(2)
    assert answer(loaded) == 1.0


@pytest.mark.thorough
def test_readers_beside_a_writer_always_get_one_of_the_two(tmp_path: Path, versions: list[Artifact]) -> None:
    folder, stop, seen, wrong = tmp_path / "deployed", threading.Event(), [], []
    versions[0].save(folder)

    def read() -> None:
        try:
            while not stop.is_set():
                loaded = graphopt.load(folder)
                seen.append(answer(loaded))
                assert read_manifest(folder).files
        except BaseException as error:
            wrong.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(60):
        versions[number % 2].save(folder)
    stop.set()
    for reader in readers:
        reader.join()
    assert wrong == []
    assert set(seen) == {1.0, 2.0}


def test_a_callback_that_is_interrupted_interrupts_everything(versions: list[Artifact]) -> None:
    def evaluate(model: Callable[[Tensor], Tensor]) -> float:
        raise KeyboardInterrupt

    layer = nn.Sequential(nn.Linear(4, 3)).eval()
    with pytest.raises(KeyboardInterrupt):
        graphopt.optimize(
            layer, IMAGE, target="x86", calibration=torch.rand(16, 4), evaluate=evaluate, max_drop=1.0, measure=False
        )
