"""What is done to an image before a model sees it, as plain data: in this order,

    decode    turned as its EXIF data say, as RGB, BGR or grey pixels of 0..255
    resize    to a size; or, keeping its ratio, until it just covers that size (a square: until the shorter side has that length)
    crop      the centre
    scale     pixel * scale, then (... - mean) / std for each channel, in float32
    order     [1, channels, height, width] or [1, height, width, channels]

    Preprocessing(resize=256, crop=(224, 224))                    ImageNet's mean and deviation, bicubic
    Preprocessing(mean=(0.5,), std=(0.5,))                        values from -1 to 1, resized and cropped to the model's input
    Preprocessing(scale=1, mean=(0,), std=(1,), color="BGR")      raw pixels

Calibration reads photos by it (`graphopt.data.loaders`), and a deployed model carries it. Values of other libraries' forms of the
same are taken by `graphopt.data.preprocessing_sources`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from graphopt.utils import printing
from graphopt.utils.errors import InputError

Color = Literal["RGB", "BGR", "L"]
Layout = Literal["NCHW", "NHWC"]
Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LARGEST = 2**14  # pixels of a side
DTYPES = ("float32", "uint8")  # of images
HUGE = 1e30  # from where float32 may overflow
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Preprocessing:
    """See the head of this file. `None` stands for what follows from the model's input, which `fitted` puts in its place.

    Attributes:
        resize: height and width, or one number for both; None: those of `crop`.
        keep_ratio: the image covers `resize` and keeps its ratio; otherwise it is stretched to it.
        crop: height and width of the centre that is kept; None: those of the model's input.
        interpolation: Pillow's filter, by its name in small letters.
        color: the order of channels; L: grey. None: RGB or grey, by the number of channels.
        scale: what pixels are multiplied by.
        mean, std: for each channel in the order of `color`, or one for all, in units of scaled pixels.
        layout: of the model's input. None: where the number of channels is 1 or 3.
        dtype: of the model's input, where calls do not say; that of an artifact's is its input's. It is not stored.

    Raises:
        InputError: a value that cannot be meant: a deviation of 0, numbers that are not finite, more than three channels, sizes
            under 1 or over 16,384, a crop that is larger than what it is cut from, an unknown name.
    """

    resize: int | tuple[int, int] | None = None
    keep_ratio: bool = True
    crop: tuple[int, int] | None = None
    interpolation: Interpolation = "bicubic"
    color: Color | None = None
    scale: float = 1 / 255
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    layout: Layout | None = None
    dtype: str = field(default="float32", compare=False, repr=False, metadata={"stored": False})

    def __post_init__(self) -> None:
        if isinstance(self.resize, int):
            object.__setattr__(self, "resize", (self.resize, self.resize))
        for name in ("resize", "crop"):
            if (size := getattr(self, name)) is not None:
                object.__setattr__(self, name, _size(name, size))
        for name in ("mean", "std"):
            object.__setattr__(self, name, _channels(name, getattr(self, name)))
        object.__setattr__(self, "scale", _number("scale", self.scale))
        if self.scale == 0 or 0 in self.std:
            raise InputError(f"preprocessing: scale and std must not be 0, got scale={self.scale}, std={self.std}")
        if not isinstance(self.keep_ratio, bool):
            raise InputError(f"preprocessing: keep_ratio must be True or False, got {self.keep_ratio!r}")
        self._check_names()
        if self._sizes and self.crop is not None and any(c > r for c, r in zip(self.crop, self._sizes, strict=True)):
            raise InputError(
                f"preprocessing: crop {self.crop} is larger than resize {self._sizes}, which it is cut from"
            )

    def _check_names(self) -> None:
        optional = {"color": Color, "layout": Layout}
        for name, known in {**optional, "interpolation": Interpolation}.items():
            value = getattr(self, name)
            if value not in get_args(known) and not (value is None and name in optional):
                raise InputError(f"preprocessing: {name} must be one of {', '.join(get_args(known))}, got {value!r}")
        if self.dtype not in DTYPES:
            raise InputError(f"preprocessing: dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        counts = {len(values) for values in (self.mean, self.std)} - {1}
        channels = {"RGB": {3}, "BGR": {3}, "L": {1}}.get(self.color or "", {1, 3})
        default = (self.mean, self.std) == (IMAGENET_MEAN, IMAGENET_STD)  # grey images take its average
        if len(counts) > 1 or (not counts <= channels and not default):
            raise InputError(
                f"preprocessing: mean and std have {len(self.mean)} and {len(self.std)} values, for {self.color or 'RGB or L'} "
                f"images; give one for all channels, or one for each"
            )

    @property
    def _sizes(self) -> tuple[int, int] | None:
        """`resize`, which is a pair from the start."""
        assert not isinstance(self.resize, int)
        return self.resize

    # ---- What a model takes ----------------------------------------------------------------------------------------

    def fitted(self, shape: Sequence[int | None], dtype: str, example: Sequence[int] | None = None) -> Preprocessing:
        """With nothing left open, for an input of a model.

        Args:
            shape: of the input; None where a size is free.
            dtype: of the input, such as `float32`.
            example: sizes in place of those that are free.

        Raises:
            InputError: the input is no image, or none that this gives.
        """
        sizes: list[Any] = [n if n is not None else (example[i] if example else None) for i, n in enumerate(shape)]
        layout = self.layout or _layout_of(sizes)
        if len(sizes) != 4 or layout is None:
            raise InputError(
                f"preprocessing is for images, and the input is {dtype}{printing.sizes(shape)}, not [N, 1 or 3, H, W]"
            )
        channels, place = (sizes[1], slice(2, 4)) if layout == "NCHW" else (sizes[3], slice(1, 3))
        found = replace(self, layout=layout, color=self.color or ("L" if channels == 1 else "RGB"))
        free = None in shape[place]
        if self.crop is None and (self.resize is None or (self.keep_ratio and not free)) and None not in sizes[place]:
            found = replace(found, crop=(sizes[place][0], sizes[place][1]))
        found = replace(found, resize=self.resize or found.crop)
        if found.color == "L" and (self.mean, self.std) == (IMAGENET_MEAN, IMAGENET_STD):
            found = replace(found, mean=(sum(self.mean) / 3,), std=(sum(self.std) / 3,))
        if (reason := found.misfit(shape, dtype)) is not None:
            raise InputError(f"preprocessing does not fit the model: {reason}")
        return found

    def misfit(self, shape: Sequence[int | None], dtype: str) -> str | None:
        """Why what this gives is no such input of a model; None where it is."""
        begin = f"the input is {dtype}{printing.sizes(shape)}"
        if len(shape) != 4 or self.layout is None or self.color is None:
            return f"{begin}, and it gives no image of a known layout"
        inner = shape[2:] if self.layout == "NCHW" else shape[1:3]
        if self.size is None and any(n is not None for n in inner):
            return f"{begin}, and without crop images have sizes of their own"
        channels, size = 1 if self.color == "L" else 3, self.size or (None, None)
        ours = (channels, *size) if self.layout == "NCHW" else (*size, channels)
        if any(None not in (n, m) and n != m for n, m in zip(shape[1:], ours, strict=True)):
            return f"{begin}, but it gives {self.layout} {printing.sizes((1, *ours))}"
        if dtype == "uint8" and not self.raw:
            return f"{begin}, whole numbers: give scale=1, mean=(0,), std=(1,), as the model normalizes itself"
        return None if dtype in DTYPES else f"{begin}, and images are float32 or uint8"

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of what it gives; None where those are the image's own."""
        return self.crop or (None if self.keep_ratio else self._sizes)

    @property
    def raw(self) -> bool:
        """Whether values are pixels as they are."""
        return self.scale == 1 and set(self.mean) == {0} and set(self.std) == {1}

    # ---- Images ----------------------------------------------------------------------------------------------------

    def __call__(self, image: Any, dtype: str | None = None) -> Array:
        """An image as a model's input of one sample.

        Args:
            image: a path, or an image of Pillow.
            dtype: of the input; None: `self.dtype`.

        Raises:
            InputError: Pillow is missing, or the image is smaller than the crop. OSError: it cannot be read.
        """
        return self.normalized(self.pixels(image)[None], dtype or self.dtype)

    def pixels(self, image: Any) -> Array:
        """uint8 [height, width, channels] of an image, resized and cropped; the order of channels is that of `color`."""
        try:
            from PIL import Image, ImageOps
        except ImportError as error:
            raise InputError("reading images needs Pillow; pip install 'graphopt[images]'") from error
        if isinstance(image, (str, Path)):
            with Image.open(image) as stored:
                return self.pixels(stored)
        picture = ImageOps.exif_transpose(image).convert("L" if self.color == "L" else "RGB")
        if self._sizes is not None:
            picture = picture.resize(self.scaled(*picture.size), getattr(Image.Resampling, self.interpolation.upper()))
        if self.crop is not None:
            height, width = self.crop
            left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
            if left < 0 or top < 0:
                raise InputError(f"an image of {picture.height} x {picture.width} is smaller than the crop {self.crop}")
            picture = picture.crop((left, top, left + width, top + height))
        found = np.asarray(picture).reshape(picture.height, picture.width, -1)
        return found[..., ::-1] if self.color == "BGR" else found

    def scaled(self, width: int, height: int) -> tuple[int, int]:
        """Width and height that an image of this width and height is resized to."""
        assert self._sizes is not None
        tall, wide = self._sizes
        if not self.keep_ratio:
            return wide, tall
        return (wide, wide * height // width) if width * tall <= height * wide else (tall * width // height, tall)

    def normalized(self, pixels: Array, dtype: str = "float32") -> Array:
        """uint8 [N, height, width, channels] as a model's input."""
        mean, std = (np.array(values, np.float32) for values in (self.mean, self.std))
        if len({*mean.shape, *std.shape} - {1, pixels.shape[3]}) > 0:
            raise InputError(
                f"preprocessing: mean and std have {max(len(mean), len(std))} values, but the images have "
                f"{pixels.shape[3]} channels"
            )
        values = (pixels.astype(np.float32) * np.float32(self.scale) - mean) / std
        ordered = values.transpose(0, 3, 1, 2) if self.layout != "NHWC" else values
        return np.ascontiguousarray(ordered, dtype=dtype)

    # ---- Keeping ---------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        values = {name: value for name, value in asdict(self).items() if name in _stored()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, data: Any) -> Preprocessing:
        """What `to_dict` described.

        Raises:
            InputError: a field is unknown or has an impossible value.
        """
        known = _stored()
        if not isinstance(data, Mapping) or not set(data) <= known:
            found = ", ".join(sorted(set(map(str, data)) - known)) if isinstance(data, Mapping) else type(data).__name__
            raise InputError(f"preprocessing has no {found}; it has {', '.join(sorted(known))}")
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in data.items()}
        return cls(**values)


def _stored() -> set[str]:
    return {f.name for f in fields(Preprocessing) if f.compare}


def default_for(dtype: str) -> Preprocessing:
    """What is done to images where nobody says anything: ImageNet's way; raw pixels for a model that takes whole numbers."""
    return Preprocessing(scale=1, mean=(0.0,), std=(1.0,)) if dtype == "uint8" else Preprocessing()


def _layout_of(sizes: Sequence[int | None]) -> Layout | None:
    if len(sizes) != 4:
        return None
    return "NCHW" if sizes[1] in (1, 3) else "NHWC" if sizes[3] in (1, 3) else None


def _size(name: str, size: Any) -> tuple[int, int]:
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size,)
    if len(pair) != 2 or not all(type(n) is int and 1 <= n <= LARGEST for n in pair):
        raise InputError(f"preprocessing: {name} must be a height and a width of 1 to {LARGEST} pixels, got {size!r}")
    return pair


def _channels(name: str, values: Any) -> tuple[float, ...]:
    listed = tuple(values) if isinstance(values, (tuple, list)) else (values,)
    if len(listed) not in (1, 3):
        raise InputError(f"preprocessing: {name} must have one value, or one for each of 3 channels, got {values!r}")
    return tuple(_number(name, value) for value in listed)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < HUGE:
        raise InputError(f"preprocessing: {name} must be a finite number, got {value!r}")
    if 0 < abs(value) < 1 / HUGE:
        raise InputError(f"preprocessing: {name}={value!r} is next to 0, in float32 as well as none")
    return float(value)
