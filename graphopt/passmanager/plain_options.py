"""The options of a pass as plain data: numbers as numbers, formats and targets by name, data and functions by what they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graphopt.formats import Binary, BlockFloat, Codebook, FloatFormat, Format, LogFormat, Ternary
from graphopt.targets import Target

FORMATS = (Format, LogFormat, FloatFormat, BlockFloat, Codebook, Binary, Ternary)


def options(transform: Any) -> dict[str, Any]:
    """Name -> value, of the fields of a dataclass; empty for other passes, whose options are not known."""
    if not dataclasses.is_dataclass(transform):
        return {}
    return {f.name: plain(getattr(transform, f.name)) for f in dataclasses.fields(transform) if f.init}


def plain(value: Any) -> Any:
    """Numbers, text, truth values and None, in lists and dictionaries; other things as text that says what they are."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, FORMATS):
        return str(value)
    if isinstance(value, Target):
        return value.name
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"kind": type(value).__name__, **options(value)}
    name, module = (
        getattr(value, "__qualname__", None),
        getattr(value, "__module__", None),
    )  # a generator has but a name
    return f"{module}.{name}" if name and module else type(value).__name__
