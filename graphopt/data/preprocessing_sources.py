"""`Preprocessing` from the forms that other libraries have of it. None of them is imported: attributes are read by name.

    timm            `model.pretrained_cfg`, `default_cfg`, or what `timm.data.resolve_data_config` returns
    Transformers    an image processor, or the dictionary in its `preprocessor_config.json`
    torchvision     `weights`, `weights.transforms()`, or a `Compose` of Resize, CenterCrop, ToTensor and Normalize
    a path          of a JSON file that holds one of those dictionaries, or `Preprocessing.to_dict()`

An object that can be called is tried on a made-up image: where it answers something else than its attributes say, it is refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.data.preprocessing import Array, Preprocessing
from graphopt.utils import json_data
from graphopt.utils.errors import InputError

PILLOW = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # in the order of its numbers
CONFIG = 2**20  # bytes of a JSON file
DRIFT = 3  # steps of a pixel by which answers may differ on average: libraries round crops differently, by one pixel


def preprocessing_of(source: Any) -> Preprocessing:
    """What a source says; see the head of this file. A `Preprocessing` is returned as it is.

    Raises:
        InputError: it is of an unknown form, does something that `Preprocessing` cannot say, or has an impossible value.
    """
    if isinstance(source, Preprocessing):
        return source
    if isinstance(source, (str, Path)):
        return preprocessing_of(_read(Path(source).expanduser()))
    if callable(getattr(source, "transforms", None)):  # torchvision's weights
        return preprocessing_of(source.transforms())
    found = _from_dictionary(source) if isinstance(source, Mapping) else _from_object(source)
    if callable(source):
        _check_answer(found, source)
    return found


def own_preprocessing(model: Any) -> Preprocessing | None:
    """What a model says of itself; None where it says nothing that can be meant."""
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    try:
        return preprocessing_of(config) if isinstance(config, Mapping) else None
    except InputError:
        return None


def _read(path: Path) -> Any:
    if path.is_dir():
        path = path / "preprocessor_config.json"
    try:
        return json_data.parse(path.read_bytes(), limit=CONFIG)
    except (OSError, ValueError) as error:
        raise InputError(f"preprocessing: {path} cannot be read as JSON ({error})") from error


def _from_dictionary(data: Mapping[Any, Any]) -> Preprocessing:
    if isinstance(nested := data.get("pretrained_cfg"), Mapping):
        return _from_dictionary(nested)
    if "crop_pct" in data and "mean" in data:
        return _timm(data)
    if "do_rescale" in data or "image_mean" in data or "do_normalize" in data:
        return _processor(data.get)
    return Preprocessing.from_dict(data)


def _from_object(source: Any) -> Preprocessing:
    if hasattr(source, "resize_size") and hasattr(source, "mean"):
        return _preset(source)
    if hasattr(source, "do_rescale") or hasattr(source, "image_mean"):
        return _processor(lambda name: getattr(source, name, None))
    if isinstance(steps := getattr(source, "transforms", None), Sequence):
        return _composed(steps)
    raise InputError(
        f"preprocessing cannot be read from {type(source).__name__}; give a graphopt.Preprocessing(...), timm's pretrained_cfg, "
        "an image processor of Transformers, or torchvision's weights.transforms()"
    )


# ---- timm ------------------------------------------------------------------------------------------------------------


def _timm(config: Mapping[Any, Any]) -> Preprocessing:
    _, height, width = _listed("input_size", config.get("input_size"), 3)
    share = config["crop_pct"] or 1
    mode = config.get("crop_mode") or "center"
    if mode not in ("center", "squash") or not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise InputError(
            f"preprocessing: crop_mode={mode!r} with crop_pct={share!r} is not known; give a Preprocessing"
        )
    return Preprocessing(
        resize=(int(height / share), int(width / share)),
        keep_ratio=mode == "center",
        crop=(height, width),
        interpolation=_filter(config.get("interpolation")),
        mean=_values(config["mean"]),
        std=_values(config.get("std")),
    )


# ---- Transformers ----------------------------------------------------------------------------------------------------


def _processor(get: Any) -> Preprocessing:
    for name in ("do_pad", "do_thumbnail", "do_align_long_axis", "rescale_offset"):
        if get(name):
            raise InputError(f"preprocessing: {name} of an image processor is not known; give a Preprocessing")
    resize = crop = None
    ratio = True
    if get("do_resize"):
        resize, ratio = _extent(get("size"), get("crop_pct"))
    if get("do_center_crop"):
        crop, _ = _extent(get("crop_size"), None)
        if resize is None:
            raise InputError("preprocessing: do_center_crop without do_resize is not known; give a Preprocessing")
    elif get("crop_pct") and ratio:  # ConvNext's way: its own crop behind resizing
        crop, _ = _extent(get("size"), None)
    normal = get("do_normalize")
    factor = get("rescale_factor")
    return Preprocessing(
        resize=resize,
        keep_ratio=ratio,
        crop=crop,
        interpolation=_filter(get("resample")),
        color="BGR" if get("do_flip_channel_order") else None,
        scale=(1 / 255 if factor is None else factor) if get("do_rescale") is not False else 1,
        mean=_values(get("image_mean")) if normal else (0.0,),
        std=_values(get("image_std")) if normal else (1.0,),
    )


def _extent(size: Any, share: Any) -> tuple[tuple[int, int], bool]:
    """A size as image processors have it, and whether images keep their ratio. `share`: of it that a crop behind it keeps."""
    if isinstance(size, int):
        return (size, size), False
    names = ("height", "width", "shortest_edge", "longest_edge")
    mapped = isinstance(size, Mapping)
    given: dict[str, Any] = {name: size.get(name) if mapped else getattr(size, name, None) for name in names}
    known = {name for name, value in given.items() if value is not None}
    if known == {"height", "width"}:
        return (given["height"], given["width"]), False
    edge = given["shortest_edge"]
    if known != {"shortest_edge"} or not isinstance(edge, int):
        raise InputError(f"preprocessing: the size {size!r} is not known; give a Preprocessing")
    if share is None:
        return (edge, edge), True
    if edge >= 384:  # ConvNext: larger ones are stretched, not cropped
        return (edge, edge), False
    return (int(edge / share), int(edge / share)), True


# ---- torchvision -----------------------------------------------------------------------------------------------------


def _preset(source: Any) -> Preprocessing:
    edges, crop = _edges(source.resize_size), _edges(getattr(source, "crop_size", None))
    return Preprocessing(
        resize=edges, crop=crop, interpolation=_filter(source.interpolation), mean=_values(source.mean),
        std=_values(source.std),
    )  # fmt: skip


def _composed(steps: Sequence[Any]) -> Preprocessing:
    """Of the transforms that every training script has, in their order; `Resize` of a pair stretches."""
    found: dict[str, Any] = {"mean": (0.0,), "std": (1.0,), "resize": None, "crop": None}
    for step in steps:
        kind = type(step).__name__
        if kind == "Resize" and found["resize"] is None and found["crop"] is None:
            edges = step.size if isinstance(step.size, Sequence) else [step.size]
            found |= {
                "resize": _edges(edges),
                "keep_ratio": len(edges) == 1,
                "interpolation": _filter(step.interpolation),
            }
        elif kind == "CenterCrop" and found["crop"] is None:
            found["crop"] = _edges(step.size)
        elif kind == "Normalize":
            found |= {"mean": _values(step.mean), "std": _values(step.std)}
        elif kind not in ("ToTensor", "MaybeToTensor", "ToImage", "PILToTensor", "ToDtype", "ConvertImageDtype"):
            raise InputError(f"preprocessing: {kind} among the transforms is not known; give a Preprocessing")
    return Preprocessing(**found)


def _edges(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    listed = list(size) if isinstance(size, Sequence) else [size]
    first, second = listed if len(listed) == 2 else (listed * 2 if len(listed) == 1 else (None, None))
    return (first, second)  # type: ignore[return-value]  # checked where it is used


# ---- Values ----------------------------------------------------------------------------------------------------------


def _filter(given: Any) -> Any:
    """A filter by its name or Pillow's number."""
    if isinstance(given, int):  # Pillow's enumeration, too
        return PILLOW[given] if 0 <= given < len(PILLOW) else given
    name = getattr(given, "value", given)
    return "bicubic" if name is None else name


def _values(given: Any) -> tuple[float, ...]:
    """One number or several, whatever holds them."""
    if given is None:
        raise InputError("preprocessing: mean or std is missing; give a Preprocessing")
    try:
        return tuple(float(value) for value in (given if hasattr(given, "__iter__") else [given]))
    except (TypeError, ValueError) as error:
        raise InputError(f"preprocessing: mean and std are numbers, got {given!r}") from error


def _listed(name: str, given: Any, count: int) -> list[Any]:
    if not isinstance(given, Sequence) or len(given) != count or not all(isinstance(n, int) and n > 0 for n in given):
        raise InputError(f"preprocessing: {name} must be {count} sizes, got {given!r}")
    return list(given)


# ---- What an object does ---------------------------------------------------------------------------------------------


def _check_answer(found: Preprocessing, source: Any) -> None:
    """Raise `InputError` where an object answers something else than what was read from it, on an image made up for that."""
    try:
        from PIL import Image
    except ImportError:  # then nothing reads images here
        return
    rows, columns = np.mgrid[0:160, 0:208]
    waves = [127.5 + 127 * np.sin(rows / (40 + 9 * i) + columns / (50 - 9 * i)) for i in range(3)]
    image = Image.fromarray(np.stack(waves, -1).astype(np.uint8))
    complete = found.fitted((1, 3, None, None), "float32")
    ours, theirs = complete(image)[0], _answer(source, image)
    step = abs(found.scale) / max(map(abs, found.std))  # of a pixel
    if theirs.shape != ours.shape or not float(np.abs(ours - theirs).mean()) <= DRIFT * step:
        raise InputError(
            f"preprocessing: {type(source).__name__} does something that its attributes do not say, or that is not known here; "
            "give a graphopt.Preprocessing(...) that says it"
        )


def _answer(source: Any, image: Any) -> Array:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            answer = (
                source(image, return_tensors="np")["pixel_values"] if hasattr(source, "do_rescale") else source(image)
            )
        except Exception as error:
            raise InputError(f"preprocessing: {type(source).__name__} fails on an image ({error})") from error
    return np.asarray(answer[0] if getattr(answer, "ndim", 3) == 4 else answer)
