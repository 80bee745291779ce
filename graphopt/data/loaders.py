"""Calibration data by name, for the command line: arrays in a file, a folder of images, or a Python function.

    data.npz, data.npz:images, data.npy     arrays; several in one file are matched to the model's input names
    photos/                                 .jpg .jpeg .png .bmp .webp, also in sub-folders
    package.module:function                 called without arguments; returns anything that `Calibration` takes

Raw pixels (uint8) become what image models usually take: the shorter side resized and the centre cropped to the input's
height and width, divided by 255, minus `mean`, divided by `std`; both default to those of ImageNet. State others where
the model was trained with others.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphopt.data.batches import BATCH, Input, Signature, inputs
from graphopt.ir.graph import Graph
from graphopt.utils import imports
from graphopt.utils.errors import InputError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Pixels:
    """How pixels of 0..255 become model inputs: `(pixel * scale - mean) / std`, per channel."""

    scale: float = 1 / 255
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def normalize(self, pixels: Tensor) -> Tensor:
        """uint8 [N, C, H, W] -> float32 [N, C, H, W]."""
        channels = pixels.shape[1]
        mean, std = (_per_channel(v, channels) for v in (self.mean, self.std))
        return ((pixels.float() * self.scale - mean) / std).contiguous()


@dataclass(frozen=True)
class Named:
    """Calibration data by name; `Calibration` opens it once it knows the graph.

    Attributes:
        name: see the head of this file.
        pixels: how raw pixels are normalized; ImageNet's way by default.
        limit: take at most this many samples from a file or folder, evenly spread.
    """

    name: str
    pixels: Pixels = Pixels()
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

    def load(self, graph: Graph | Signature) -> Any:
        """The source, ready for `Calibration`.

        Raises:
            InputError: what is there does not fit the graph's inputs; the message says what was found.
        """
        takes, (path, key) = inputs(graph), self._path()
        kind = self._kind()
        if kind == "arrays":
            return _arrays(path, key, takes, self.pixels, self.limit)
        if kind == "images":
            return _images(path, takes, self.pixels, self.limit)
        found = imports.find(self.name)
        return found() if callable(found) else found


def _arrays(path: Path, key: str, takes: list[Input], pixels: Pixels, limit: int) -> Any:
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
    array = _spread(array, limit)
    if array.dtype != np.uint8 or not takes[0].dtype.is_floating_point or len(takes[0].shape) != 4:
        return array
    return _pixel_batches(array, takes[0], pixels)


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


def _pixel_batches(array: Any, takes: Input, pixels: Pixels) -> Callable[[], Iterator[Tensor]]:
    last = array.shape[3] == takes.shape[1] and array.shape[1] != takes.shape[1]

    def stream() -> Iterator[Tensor]:
        for start in range(0, len(array), BATCH):
            batch = torch.tensor(array[start : start + BATCH])
            yield pixels.normalize(batch.permute(0, 3, 1, 2) if last else batch)

    return stream


def _images(folder: Path, takes: list[Input], pixels: Pixels, limit: int) -> Callable[[], Iterator[Tensor]]:
    if len(takes) != 1 or len(takes[0].shape) != 4 or takes[0].shape[1] not in (1, 3):
        raise InputError(f"{folder} is a folder of images, but the model takes {', '.join(map(str, takes))}; use .npz")
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not files:
        raise InputError(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))})")
    files = [files[i] for i in _picks(len(files), limit)]
    _, channels, height, width = takes[0].shape

    def stream() -> Iterator[Tensor]:
        unreadable: list[Exception] = []
        for start in range(0, len(files), BATCH):
            batch = []
            for file in files[start : start + BATCH]:
                try:
                    batch.append(_read_image(file, channels, height, width))
                except (OSError, ValueError, SyntaxError) as error:
                    unreadable.append(error)
                    warnings.warn(f"the image {file} cannot be read ({error}); it is left out", stacklevel=2)
            if batch:
                yield pixels.normalize(torch.stack(batch).permute(0, 3, 1, 2))
        if len(unreadable) == len(files):
            raise InputError(f"none of the {len(files)} images in {folder} can be read ({unreadable[-1]})")

    return stream


def _read_image(path: Path, channels: int, height: int, width: int) -> Tensor:
    """uint8 [height, width, channels], as viewers show it: turned as its EXIF data say, the shorter side resized to fit, the
    centre cropped."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise InputError("reading images needs Pillow; pip install 'graphopt[images]'") from error
    with Image.open(path) as stored:
        upright = ImageOps.exif_transpose(stored)
        image = ImageOps.fit(upright.convert("RGB" if channels == 3 else "L"), (width, height))
        return torch.tensor(np.asarray(image)).reshape(height, width, channels)


def _spread(array: Any, limit: int) -> Any:
    return array if array.ndim == 0 or len(array) <= limit else array[_picks(len(array), limit)]


def _picks(length: int, limit: int) -> list[int]:
    """At most `limit` positions, evenly spread: data sets are often sorted by class."""
    return list(range(length)) if length <= limit else [i * length // limit for i in range(limit)]


def _per_channel(values: tuple[float, ...], channels: int) -> Tensor:
    if len(values) not in (1, channels):
        if values not in (IMAGENET_MEAN, IMAGENET_STD):
            raise InputError(f"mean and std have {len(values)} values, but the images have {channels} channels")
        values = (sum(values) / len(values),)  # grey images take the average of the default
    return torch.tensor(values).reshape(1, -1, 1, 1)
