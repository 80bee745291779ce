"""The files of an artifact, entropy-coded into one: what `Artifact.store` keeps, and what `graphopt.load` opens.

    deployed/manifest.json     lists files.coded, and what it holds under options["storage"]
    deployed/files.coded       see `graphopt.coding.container`

Whatever the runtime, its files are what they were to the last byte once they are restored, so that no backend knows of this but
for where the tensors lie in them (`Artifact.tensors`).
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from graphopt.artifacts.manifest import FileEntry, Manifest
from graphopt.coding import container
from graphopt.coding.pieces import Place
from graphopt.coding.streams import Coding
from graphopt.utils.errors import ArtifactError, InputError

CODED = "files.coded"
STORAGE = "storage"  # of a manifest's options


@dataclass(frozen=True, eq=False)
class Coded:
    """The coded file. names: of the files in it. It lies in a folder of its own, which goes away with this object."""

    path: Path
    names: tuple[str, ...]
    entry: FileEntry

    @classmethod
    def of(cls, folder: Path, places: Mapping[str, Sequence[Place]], coding: Coding) -> Coded:
        """Code files of a folder, with where tensors lie in each.

        Raises:
            InputError: an unknown coding.
        """
        path = _own_folder() / CODED
        container.write(path, {name: folder / name for name in places}, places, coding)
        return cls._held(path, tuple(places))

    @classmethod
    def copied(cls, source: Path, names: Sequence[str]) -> Coded:
        """What is coded already."""
        path = _own_folder() / CODED
        shutil.copyfile(source, path)
        return cls._held(path, tuple(names))

    @classmethod
    def _held(cls, path: Path, names: tuple[str, ...]) -> Coded:
        found = cls(path, names, FileEntry.of(path))
        weakref.finalize(found, shutil.rmtree, path.parent, True)
        return found


def _own_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="graphopt-"))


def is_coded(manifest: Manifest) -> bool:
    """Whether a manifest that was read says that files are coded."""
    return STORAGE in manifest.options


def restored(folder: Path, manifest: Manifest, into: Path) -> Manifest:
    """Restore the files of a saved artifact into an empty folder; the manifest of that.

    Raises:
        ArtifactError: they are damaged, or not those that the manifest names.
    """
    said = manifest.options[STORAGE]
    if not isinstance(said, dict) or not isinstance(said.get("files"), list) or CODED not in manifest.files:
        raise ArtifactError(f"the artifact {folder} does not say what {CODED} holds; write it again")
    others = {name: entry for name, entry in manifest.files.items() if name != CODED}
    try:
        if [entry.name for entry in container.entries(folder / CODED)] != said["files"] or set(said["files"]) & set(
            others
        ):
            raise ArtifactError(f"{folder / CODED} does not hold the files that the manifest names; write it again")
        found = {entry.name: FileEntry(entry.size, entry.sha256) for entry in container.restore(folder / CODED, into)}
        for name in others:
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, into / name)
    except InputError as error:
        raise ArtifactError(str(error)) from error
    return replace(manifest, files={**found, **others})
