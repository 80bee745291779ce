"""Calibration data by name, for the command line: arrays in a file, a folder of images, or a Python function.

    data.npz, data.npz:images, data.npy     arrays; several in one file are matched to the model's input names
    photos/                                 .jpg .jpeg .png .bmp .webp, also in sub-folders
    package.module:function                 called without arguments; returns anything that `Calibration` takes

Raw pixels (uint8) and photos become what the model takes by a `Preprocessing`; where none is given, that of ImageNet, resized and
cropped to the input's height and width. The channels of arrays are in the model's own order.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphopt.data.batches import BATCH, Input, Signature, inputs
from graphopt.data.preprocessing import Preprocessing, default_for
from graphopt.ir.graph import Graph
from graphopt.utils import imports
from graphopt.utils.errors import InputError
from graphopt.utils.quantities import few

NAMED = 3  # files that a note lists
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


@dataclass(frozen=True)
class Named:
    """Calibration data by name; `Calibration` opens it once it knows the graph.

    Attributes:
        name: see the head of this file.
        preprocessing: of photos and raw pixels; ImageNet's by default.
        limit: take at most this many samples from a file or folder, evenly spread.
    """

    name: str
    preprocessing: Preprocessing | None = None
    limit: int = 512

    def __post_init__(self) -> None:
        self._kind()  # a name that leads nowhere is told before any work

    def _kind(self) -> str:
        """Raises `InputError` where nothing usable has this name."""
        path, key = self._path()
        if path.suffix in (".npz", ".npy"):
            if not path.is_file():
                raise InputError(f"there is no file {path}")
            return "arrays"
        if path.is_dir():
            return "images"
        if path.exists():
            raise InputError(f"calibration data {self.name}: only .npz, .npy and folders of images can be read")
        if key:
            return "function"
        raise InputError(f"there is no file, folder or package.module:function called {self.name}")

    def _path(self) -> tuple[Path, str]:
        whole = Path(self.name).expanduser()
        file, _, key = self.name.partition(":")
        return (whole, "") if whole.exists() else (Path(file).expanduser(), key)

    def load(self, graph: Graph | Signature) -> tuple[Any, Preprocessing | None]:
        """The source, ready for `Calibration`, and what is done to its images; None where nothing is.

        Raises:
            InputError: what is there does not fit the graph's inputs; the message says what was found.
        """
        takes, (path, key) = inputs(graph), self._path()
        kind = self._kind()
        if kind == "arrays":
            return self._pixels(_arrays(path, key, takes, self.limit), takes)
        if kind == "images":
            if len(takes) != 1 or not _is_image(takes[0]):
                raise InputError(f"{path} is a folder of images, but the model takes {_listed(takes)}; use .npz")
            preprocessing = self._fitted(takes[0])
            return _images(path, preprocessing, takes[0], self.limit), preprocessing
        found = imports.find(self.name)
        return (found() if callable(found) else found), None

    def _pixels(self, arrays: Any, takes: list[Input]) -> tuple[Any, Preprocessing | None]:
        """Arrays as they are, and raw pixels as the model takes them."""
        raw = isinstance(arrays, np.ndarray) and arrays.dtype == np.uint8 and arrays.ndim == 4
        if not raw or not takes[0].dtype.is_floating_point or len(takes[0].shape) != 4:
            return arrays, None
        if _is_image(takes[0]):
            preprocessing = self._fitted(takes[0])
            return _pixel_batches(arrays, preprocessing, takes[0]), preprocessing
        plain = self.preprocessing or Preprocessing()  # pictures of other than 1 or 3 channels, normalized as well
        return _pixel_batches(arrays, replace(plain, layout="NCHW"), takes[0]), None

    def _fitted(self, takes: Input) -> Preprocessing:
        return fitted(self.preprocessing or default_for(takes.type_name), takes)


def fitted(preprocessing: Preprocessing, takes: Input) -> Preprocessing:
    """With nothing left open, for what a graph takes; see `Preprocessing.fitted`."""
    return preprocessing.fitted(takes.fixed, takes.type_name, takes.shape)


def _arrays(path: Path, key: str, takes: list[Input], limit: int) -> Any:
    try:
        loaded = np.load(path, allow_pickle=False)  # pickles could run code
        arrays = {"": loaded} if isinstance(loaded, np.ndarray) else {k: loaded[k] for k in loaded.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path} cannot be read as numbers ({error}); write it with numpy.savez(path, x=...)"
        ) from error
    if key:
        if key not in arrays:
            raise InputError(f"{path} has no array {key!r}; it has {', '.join(arrays)}")
        arrays = {key: arrays[key]}
    chosen = _choose(path, arrays, takes)
    if len(chosen) > 1:
        return {name: _spread(a, limit) for name, a in chosen.items()}
    (array,) = chosen.values()
    return _spread(array, limit)


def _choose(path: Path, arrays: dict[str, Any], takes: list[Input]) -> dict[str, Any]:
    by_name = {i.name: next((arrays[k] for k in i.keys if k in arrays), None) for i in takes}
    if all(a is not None for a in by_name.values()):
        return by_name
    if len(takes) == 1:
        ranked = {k: a for k, a in arrays.items() if a.ndim == len(takes[0].shape)}
        if len(ranked) == 1 or len(arrays) == 1:
            return ranked or arrays
    names = ", ".join(i.keys[-1] for i in takes)
    found = ", ".join(f"{k} {list(a.shape)}" for k, a in arrays.items()) or "nothing"
    raise InputError(f"{path} has {found}, but the model takes {names}; name the arrays so, or add :name to the path")


def _is_image(takes: Input) -> bool:
    return len(takes.shape) == 4 and bool({takes.shape[1], takes.shape[3]} & {1, 3})


def _listed(takes: list[Input]) -> str:
    return ", ".join(map(str, takes))


def _pixel_batches(array: Any, preprocessing: Preprocessing, takes: Input) -> Callable[[], Iterator[Tensor]]:
    """`array`: uint8, channels last or first, in the order that the model takes them in."""
    channels = takes.shape[3] if preprocessing.layout == "NHWC" else takes.shape[1]
    first = array.shape[3] != channels or (array.shape[1] == channels and preprocessing.layout == "NCHW")

    def stream() -> Iterator[Tensor]:
        for start in range(0, len(array), BATCH):
            batch = array[start : start + BATCH]
            yield torch.from_numpy(preprocessing.normalized(batch.transpose(0, 2, 3, 1) if first else batch))

    return stream


def _images(folder: Path, preprocessing: Preprocessing, takes: Input, limit: int) -> Callable[[], Iterator[Tensor]]:
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not files:
        raise InputError(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))})")
    files = [files[i] for i in _picks(len(files), limit)]
    together = BATCH if preprocessing.size is not None else 1  # images with sizes of their own come one by one

    notes: list[str] = []

    def stream() -> Iterator[Tensor]:
        unreadable: dict[str, Exception] = {}
        for start in range(0, len(files), together):
            batch = []
            for file in files[start : start + together]:
                try:
                    batch.append(preprocessing.pixels(file))
                except (OSError, ValueError, SyntaxError) as error:
                    unreadable[file.name] = error
                    warnings.warn(f"the image {file} cannot be read ({error}); it is left out", stacklevel=2)
            if batch:
                yield torch.from_numpy(preprocessing.normalized(np.stack(batch), takes.type_name))
        if len(unreadable) == len(files):
            raise InputError(f"none of the {len(files)} images in {folder} can be read ({[*unreadable.values()][-1]})")
        if unreadable:
            which = few([*unreadable], NAMED)
            notes[:] = [
                f"{len(unreadable)} of {len(files)} images in {folder} cannot be read and are left out: {which}"
            ]

    stream.notes = notes  # type: ignore[attr-defined]
    return stream


def _spread(array: Any, limit: int) -> Any:
    return array if array.ndim == 0 or len(array) <= limit else array[_picks(len(array), limit)]


def _picks(length: int, limit: int) -> list[int]:
    """At most `limit` positions, evenly spread: data sets are often sorted by class."""
    return list(range(length)) if length <= limit else [i * length // limit for i in range(limit)]
