"""A deployed model: a folder with what the runtime loads and a manifest, callable like the original.

A backend subclasses `Artifact` and implements `_run`. What was just lowered lives in a temporary folder that goes away
with it; `save` copies it to a place of the user's choice. What a backend writes into the folder: `lowered.py`.
"""

from __future__ import annotations

import logging
import shutil
import time
import weakref
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from graphopt.artifacts import calling
from graphopt.artifacts.manifest import FileEntry, Manifest
from graphopt.artifacts.profile import KernelTime, Profile
from graphopt.artifacts.report import Report
from graphopt.artifacts.storage import CODED, STORAGE, Coded
from graphopt.artifacts.usage import Calls, script
from graphopt.coding.pieces import Place
from graphopt.coding.streams import Coding
from graphopt.data.preprocessing import Preprocessing
from graphopt.ir import structure
from graphopt.ir.cost import timings
from graphopt.utils.errors import ArtifactError, GraphoptError, InputError
from graphopt.utils.files import MANIFEST, folder_atomically, identity

LOG = logging.getLogger(__name__)


class Artifact(ABC):
    """A lowered model in a folder.

    Attributes:
        folder: where its files are.
        manifest: what it is; see `graphopt.artifacts.manifest`.
        coded: the same files entropy-coded, where they are stored so; see `store`.
    """

    coded: Coded | None = None

    def __init__(self, folder: Path, manifest: Manifest, *, temporary: bool = False) -> None:
        """`temporary`: the folder belongs to this object and is removed with it, at the latest at exit."""
        self.folder = folder
        self.manifest = manifest
        self._identity = () if temporary else identity(folder)
        if temporary:
            self.own_folder()

    def own_folder(self) -> None:
        """Remove the folder with this object, at the latest at exit."""
        weakref.finalize(self, shutil.rmtree, self.folder, True)

    def prepare(self) -> None:  # noqa: B027 - there need not be anything to open
        """Open what runs on this machine, so that whatever replaces the folder later does not reach it."""

    def hold(self) -> None:  # noqa: B027 - few runtimes are compiled further
        """Keep what is needed to compile it together with other stages; called before it is saved as one."""

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Around whatever reads its files after it was loaded.

        Raises:
            ArtifactError: the folder was replaced since.
        """
        self._check_folder()
        try:
            yield
        except (OSError, ArtifactError):
            self._check_folder()
            raise
        self._check_folder()

    def _check_folder(self) -> None:
        if self._identity and identity(self.folder) != self._identity:
            raise ArtifactError(f"{self.folder} was replaced since it was loaded; load it again")

    @property
    def refusal(self) -> str:
        """Why it cannot run on this machine; empty where it can."""
        return ""

    @property
    def device(self) -> str:
        """The device it runs on; empty for this machine."""
        return ""

    @property
    def emulated(self) -> bool:
        """Whether that device is emulated, so that its time says nothing about the hardware's."""
        return False

    @property
    def exact(self) -> bool:
        """Whether its answers are those of its simulation to the last bit."""
        return True

    def on(self, device: str) -> Artifact:
        """The same artifact, run on another device.

        Raises:
            InputError: its runtime cannot do that, or nothing answers there.
        """
        raise InputError(f"{self.manifest.runtime} runs on this machine only; copy the folder to {device}")

    def compile(self, folder: str | Path, architectures: Sequence[str] = (), *, name: str = "model") -> Path:
        """Write another form of it, which devices take as it is, and return the folder's absolute path.

        For `hexagon` that are binaries, one for each of the architectures; for CPUs through TVM, stages among them, C and objects
        whose names begin with `name`.

        Raises:
            InputError: it is made for hardware of which there is no such thing; or unknown architecture.
        """
        raise InputError(
            f"{self.manifest.model} for {self.manifest.target.get('name')} is ready to run; what compiles are those for hexagon "
            "and the CPUs of tvm-..."
        )

    def milliseconds(self, *args: Any, **kwargs: Any) -> float:
        """What one call takes, by the clock of the machine it runs on."""
        start = time.perf_counter_ns()
        self(*args, **kwargs)
        return (time.perf_counter_ns() - start) / 1e6

    def profile(self, *args: Any, runs: int = 20, **kwargs: Any) -> Profile:
        """What each kernel takes when it computes these inputs; see `graphopt.artifacts.profile`.

        Args:
            args, kwargs: as for a call.
            runs: how often.

        Raises:
            InputError: an input does not fit, or its runtime says nothing of its kernels. ArtifactError: it cannot run here.
        """
        if runs < 1:
            raise InputError(f"runs={runs}: give one or more")
        arrays = calling.arrays(self.manifest, args, kwargs)
        kernels = self._profile(arrays, runs)
        taken = timings({"call": lambda: self._run(arrays)}, repeats=runs)
        count, threads = len(taken.ms["call"]), getattr(self, "threads", 1)
        return Profile(kernels, taken.median("call"), count, self.manifest.runtime, threads)

    def _profile(self, inputs: list[np.ndarray[Any, Any]], runs: int) -> list[KernelTime]:
        """What each kernel takes, of some runs."""
        where = f" on {self.device}" if self.device else ""
        raise InputError(
            f"{self.manifest.runtime}{where} says nothing of its kernels; time the whole with milliseconds()"
        )

    @abstractmethod
    def _run(self, inputs: list[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        """Compute the outputs, flat and in the manifest's order."""

    @abstractmethod
    def set_threads(self, threads: int) -> None:
        """Let the runtime use this many threads from the next call on."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the model.

        Takes the original's arguments, or the input tensors one by one in order, by name, or in one dictionary by name, such as
        a tokenizer returns; tensors or numpy arrays.
        Returns CPU tensors nested like the original's result.

        Raises:
            InputError: names the input that does not fit, what was expected and what came.
        """
        arrays = calling.arrays(self.manifest, args, kwargs)
        outputs = self._run(arrays)
        if len(outputs) != len(self.manifest.outputs):
            raise GraphoptError(f"the runtime returned {len(outputs)} outputs, expected {len(self.manifest.outputs)}")
        return structure.decode(
            self.manifest.output_structure, map(calling.tensor, outputs), calling.free(self.manifest, arrays)
        )

    def zeros(self) -> dict[str, Tensor]:
        """Inputs by name that it takes, of the least sizes: what is computed does not matter for time."""
        return calling.least(self.manifest)

    @property
    def loaded(self) -> list[str]:
        """Names of the files that a device needs."""
        return list(self.manifest.files)

    def tensors(self, name: str) -> Sequence[Place]:
        """Where tensors lie in one of its files, which are coded by themselves; nowhere, where that is not known."""
        return ()

    def store(self, coding: Coding | None = "entropy") -> None:
        """Store its files entropy-coded from now on: `save` writes one file of them, from which `graphopt.load` restores them.

        Args:
            coding: `huffman`, `ans`, or `entropy`, whichever is smaller; None: files as they are.

        Raises:
            InputError: an unknown coding.
        """
        self.manifest.options.pop(STORAGE, None)
        self.coded = None
        if coding is not None:
            with self.reading():
                places = {name: self.tensors(name) for name in self.loaded}
                self.coded = Coded.of(self.folder, places, coding)
            self.manifest.options[STORAGE] = {"coding": coding, "files": list(self.coded.names)}

    def _stored(self) -> dict[str, tuple[Path, FileEntry]]:
        """The files that `save` writes, by name, and where they are."""
        held = self.coded.names if self.coded is not None else ()
        files = {n: (self.folder / n, entry) for n, entry in self.manifest.files.items() if n not in held}
        return files if self.coded is None else {CODED: (self.coded.path, self.coded.entry), **files}

    @property
    def _needed(self) -> dict[str, tuple[Path, FileEntry]]:
        """Those of them that a device needs."""
        unneeded = set(self.manifest.files) - set(self.loaded)
        return {name: found for name, found in self._stored().items() if name not in unneeded}

    @property
    def size_bytes(self) -> int:
        """Bytes of all files that a device needs, as they are stored, the manifest aside."""
        return sum(entry.size for _, entry in self._needed.values())

    @property
    def compressed_bytes(self) -> int:
        """Bytes of all files that a device needs, the manifest aside, each compressed with zlib."""
        with self.reading():
            return sum(len(zlib.compress(path.read_bytes())) for path, _ in self._needed.values())

    def usage(self, folder: str | Path | None = None) -> str:
        """A short program in Python that computes the artifact's answer with its runtime alone, without graphopt.

        Args:
            folder: where the artifact will lie; where it does by default.

        Raises:
            InputError: it runs through graphopt only, or not from Python.
        """
        return script(self.manifest, self.calls(), Path(folder or self.folder))

    def calls(self) -> Calls:
        """How its runtime opens and calls it, for `usage`.

        Raises:
            InputError: as `usage`.
        """
        raise InputError(
            f"{self.manifest.runtime} has no runtime but graphopt's; call the artifact that graphopt.load gives"
        )

    @property
    def preprocessing(self) -> Preprocessing | None:
        """From an image to its input, `artifact(artifact.preprocessing("photo.jpg"))`; None where that is not known."""
        images = self.manifest.preprocessing
        return None if images is None else replace(images, dtype=self.manifest.inputs[0].dtype)

    @property
    def labels(self) -> list[str]:
        """The classes of the first output, in its order; empty where they are not known."""
        return list(self.manifest.labels)

    def annotate(self, preprocessing: Preprocessing | None, labels: Sequence[str]) -> None:
        """Say once what its input is made of, and what its classes are called.

        Args:
            preprocessing: with nothing left open; see `Preprocessing.fitted`.
            labels: as `graphopt.artifacts.labels.class_labels` returns them.

        Raises:
            InputError: it was saved, and is what its checksums say; or was annotated before.
        """
        if self._identity or self.coded or self.preprocessing is not None or self.labels:
            raise InputError(f"{self.manifest.model} is saved or annotated already; give both to graphopt.optimize")
        self.manifest.preprocessing, self.manifest.labels = preprocessing, list(labels)

    @property
    def report(self) -> Report | None:
        """The report of the optimization this came from."""
        return Report.from_dict(self.manifest.report) if self.manifest.report else None

    def save(self, folder: str | Path) -> Path:
        """Write the artifact to a folder, whole or not at all, and return its absolute path.

        Raises:
            InputError: the place cannot be written, or holds files that graphopt did not write.
        """
        with folder_atomically(folder) as new, self.reading():
            stored = self._stored()
            for name, (path, _) in stored.items():
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, new / name)
            described = replace(self.manifest, files={name: entry for name, (_, entry) in stored.items()})
            (new / MANIFEST).write_bytes(described.to_json())
        written = Path(folder).expanduser().resolve()
        if self._identity and written == self.folder.resolve():
            self._identity = identity(written)
        LOG.info("saved to %s", written)
        return written

    def __repr__(self) -> str:
        takes = ", ".join(map(str, self.manifest.inputs))
        return f"{type(self).__name__}({self.manifest.model} for {self.manifest.target.get('name')}; {takes})"
