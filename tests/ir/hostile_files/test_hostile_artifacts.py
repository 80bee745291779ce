"""Artifacts made to do harm: their graphs, links, and files beside the listed ones."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import (
    as_json,
    entries,
    payloads,
    replaced,
    set_off,
    shape_of,
    texts,
    write,
)
from torch import nn

import graphopt
from graphopt.artifacts.manifest import listing, read_manifest
from graphopt.utils.errors import ArtifactError, GraphoptError

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def packed_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    done = graphopt.optimize(model, torch.randn(2, 4), target="nnie", calibration=torch.randn(8, 4))
    return done.artifact.save(tmp_path_factory.mktemp("artifact") / "deployed")


def relisted(folder: Path) -> None:
    """Let the manifest list the files as they are now, as whoever alters an artifact would."""
    from graphopt.artifacts.manifest import Manifest

    manifest = Manifest.from_json((folder / "manifest.json").read_bytes())
    manifest.files = listing(folder)
    (folder / "manifest.json").write_bytes(manifest.to_json())


def test_no_text_of_an_artifacts_graph_is_run(packed_folder: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "bad"
    shutil.copytree(packed_folder, folder)
    content = entries(folder / "network.graph")
    data = json.loads(content["graph.json"])
    kinds: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    for path in texts(data):
        kinds.setdefault(shape_of(path), path)
    for number, path in enumerate(kinds.values()):
        payload = payloads("x")[number % len(payloads("x"))]
        changed = replaced(data, path, lambda old, p=payload: p)
        write(folder / "network.graph", {**content, "graph.json": as_json(changed)})
        relisted(folder)
        with contextlib.suppress(GraphoptError):
            graphopt.load(folder)(torch.randn(2, 4))
        assert not set_off(), (path, payload)


def test_links_in_an_artifact_are_refused(packed_folder: Path, tmp_path: Path) -> None:
    import shutil

    for name in ("network.graph", "manifest.json"):
        folder = tmp_path / name
        shutil.copytree(packed_folder, folder)
        (folder / name).rename(tmp_path / f"elsewhere-{name}")
        (folder / name).symlink_to(tmp_path / f"elsewhere-{name}")
        with pytest.raises(ArtifactError):
            graphopt.load(folder)


def test_a_file_that_the_manifest_does_not_list_is_not_read(packed_folder: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "a"
    shutil.copytree(packed_folder, folder)
    manifest = read_manifest(folder)
    del manifest.files["weights.packed"]
    (folder / "manifest.json").write_bytes(manifest.to_json())
    with pytest.raises(ArtifactError):
        graphopt.load(folder)
