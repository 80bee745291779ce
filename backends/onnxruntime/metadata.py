"""What an ONNX file says of itself in `metadata_props`: texts by name, for whoever has the file alone.

model, target                 names
versions                      JSON: of graphopt and the libraries it was made with
preprocessing                 JSON: see `graphopt.data.preprocessing.Preprocessing`
class_labels                  JSON: the names of the classes, in the order of the first output
Image.BitmapPixelFormat       ONNX's own names for the same (docs/MetadataProps.md of the specification): Rgb8, Bgr8, Gray8,
Image.NominalPixelRange       and Normalized_0_1, Normalized_1_1 or NominalRange_0_255 where it is one of them
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from graphopt.data.preprocessing import Preprocessing
from graphopt.targets import Target
from graphopt.utils.version import versions

FORMATS = {"RGB": "Rgb8", "BGR": "Bgr8", "L": "Gray8"}
RANGES = {(0.0, 1.0): "Normalized_0_1", (-1.0, 1.0): "Normalized_1_1", (0.0, 255.0): "NominalRange_0_255"}


def of_model(target: Target, name: str) -> dict[str, str]:
    """What is known when a model is lowered."""
    return {"model": name, "target": target.name, "versions": json.dumps(versions())}


def of_annotations(preprocessing: Preprocessing | None, labels: Sequence[str]) -> dict[str, str]:
    """What an input is made of, and what classes are called; empty where neither is known."""
    found = {"class_labels": json.dumps(list(labels))} if labels else {}
    if preprocessing is not None:
        found["preprocessing"] = json.dumps(preprocessing.to_dict())
        found["Image.BitmapPixelFormat"] = FORMATS[preprocessing.color or "RGB"]
        if (known := RANGES.get(_range(preprocessing))) is not None:
            found["Image.NominalPixelRange"] = known
    return found


def add(path: Path, entries: Mapping[str, str]) -> None:
    """Add metadata to an ONNX file, whatever its size.

    Protobuf's readers join what is written one behind the other: lists of the first message go on with those of the second.
    """
    props = [onnx.StringStringEntryProto(key=key, value=value) for key, value in entries.items()]
    with path.open("ab") as file:
        file.write(onnx.ModelProto(metadata_props=props).SerializeToString())


def _range(preprocessing: Preprocessing) -> tuple[float, float]:
    """Where black and white lie, of all channels; nowhere where they differ."""
    black, white = (
        {(pixel * preprocessing.scale - mean) / std for mean, std in _each(preprocessing)} for pixel in (0, 255)
    )
    return (round(black.pop(), 6), round(white.pop(), 6)) if len(black) == len(white) == 1 else (0.0, 0.0)


def _each(preprocessing: Preprocessing) -> list[tuple[float, float]]:
    count = max(len(preprocessing.mean), len(preprocessing.std))
    means, stds = (values * count if len(values) == 1 else values for values in (preprocessing.mean, preprocessing.std))
    return list(zip(means, stds, strict=True))
