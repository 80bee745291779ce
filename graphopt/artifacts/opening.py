"""From a saved folder whose manifest was read to the artifact in it, its files restored where they are coded."""

from __future__ import annotations

import shutil
from pathlib import Path

from graphopt.artifacts import registry, staged, storage
from graphopt.artifacts.artifact import Artifact
from graphopt.artifacts.lowered import temporary_folder
from graphopt.artifacts.manifest import Manifest


def opened(folder: Path, manifest: Manifest) -> Artifact:
    """The artifact of a folder; coded files are restored into a temporary one, which goes away with it.

    Raises:
        ArtifactError: it is damaged. InputError: its runtime is not installed.
    """
    if not storage.is_coded(manifest):
        return _loaded(folder, manifest)
    place = temporary_folder()
    try:
        artifact = _loaded(place, storage.restored(folder, manifest, place))
        artifact.coded = storage.Coded.copied(folder / storage.CODED, manifest.options[storage.STORAGE]["files"])
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    artifact.own_folder()
    return artifact


def _loaded(folder: Path, manifest: Manifest) -> Artifact:
    if staged.is_staged(manifest):
        return staged.load(folder, manifest, opened)
    return registry.backend(manifest.runtime).load(folder, manifest)
