"""What was measured: how many times faster than the rule's each variant of a layer was, in a file of one line each.

    {"code": "znver4 ... tvm 0.27.0", "layer": "{...}", "tile": [1, 14, 2], "speedup": 1.04}
    {"code": "znver4 ... tvm 0.27.0", "layer": "{...}", "sample": [true, false, [2, 7, 1], ...], "speedup": 0.98}

with the fields of `Conv`, `Tile` and `Sample` in their order.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any, BinaryIO

import tvm

from graphopt.backends.tvm.build import Code
from graphopt.backends.tvm.schedules import Conv, Sample, Tile, Variant
from graphopt.utils.errors import InputError
from graphopt.utils.files import check_file
from graphopt.utils.version import versions

KINDS: dict[str, Callable[..., Variant]] = {"tile": Tile, "sample": Sample}


class Database:
    """Known speedups; without a path, in memory. Only what was measured for the same code by the same TVM counts.

    Raises:
        InputError: a line is something else; the file cannot be written, or, where it is only read, is not there.
    """

    def __init__(self, path: str | Path | None, code: Code, *, read_only: bool = False) -> None:
        self.path = None if path is None else Path(path).expanduser() if read_only else check_file(path)
        if read_only and (self.path is None or not self.path.is_file()):
            raise InputError(f"there is no database {path}; tune=... writes one")
        self.code = f"{code}, tvm {versions().get('apache-tvm', tvm.__version__)}"
        self.known: dict[str, dict[Variant, float]] = {}
        lines = self.path.read_text().splitlines() if self.path is not None and self.path.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                if entry["code"] == self.code:
                    speedup = float(entry["speedup"])
                    self.known.setdefault(entry["layer"], {})[_variant(entry)] = speedup
            except (ValueError, KeyError, TypeError) as error:
                if isinstance(error, json.JSONDecodeError) and line.startswith('{"code": '):
                    continue  # an interruption cut it short
                raise InputError(
                    f"line {number} of {self.path} is no measured kernel; give a file tuning wrote"
                ) from error

    def of(self, layer: Conv) -> dict[Variant, float]:
        return self.known.setdefault(_name(layer), {})

    def best(self, layer: Conv) -> tuple[Variant, float] | None:
        """The fastest variant that was measured, and its speedup."""
        return max(self.of(layer).items(), key=lambda item: item[1], default=None)

    def add(self, layer: Conv, variant: Variant, speedup: float) -> None:
        self.of(layer)[variant] = speedup
        if self.path is not None:
            kind = "tile" if isinstance(variant, Tile) else "sample"
            entry = {"code": self.code, "layer": _name(layer), kind: astuple(variant), "speedup": speedup}
            with self.path.open("ab+") as file:
                file.write(b"" if _ends(file) else b"\n")  # behind what an interruption left
                file.write(json.dumps(entry).encode() + b"\n")


def _ends(file: BinaryIO) -> bool:
    """Whether a file ends with a whole line."""
    if file.seek(0, os.SEEK_END) == 0:
        return True
    file.seek(-1, os.SEEK_END)
    return file.read() == b"\n"


def _name(layer: Conv) -> str:
    return json.dumps(asdict(layer), sort_keys=True)


def _variant(entry: dict[str, Any]) -> Variant:
    """Raises ValueError, KeyError or TypeError where there is none."""
    kind = next((name for name in KINDS if name in entry), "")
    values = [tuple(map(int, v)) if isinstance(v, list) else v for v in entry[kind]]
    if not all(isinstance(v, int | tuple) for v in values):
        raise ValueError(kind)
    return KINDS[kind](*values)
