"""Capturing, for tests of what comes behind it: the same model with the same inputs is captured once in a process, then cloned.

Capturing is most of the time that tests of passes take. A model is the same where all it holds is, weights and
options and the code of its functions; one that cannot be pickled (of a class inside a function, parametrized) is captured anew.
"""

from __future__ import annotations

import hashlib
import io
import marshal
import pickle
from collections.abc import Mapping
from types import FunctionType
from typing import Any

from torch import nn

from graphopt.ir.graph import Graph

_KNOWN: dict[bytes, Graph] = {}
_MOST = 100  # graphs of tests are small


def capture_once(model: nn.Module, args: Any = (), kwargs: Mapping[str, Any] | None = None, **options: Any) -> Graph:
    """`Graph.capture`, or a clone of what it gave for the same model and inputs before."""
    key = _key((model, args, kwargs, options))
    if key is None:
        return Graph.capture(model, args, kwargs, **options)
    if key not in _KNOWN:
        if len(_KNOWN) == _MOST:
            del _KNOWN[next(iter(_KNOWN))]
        _KNOWN[key] = Graph.capture(model, args, kwargs, **options)
    return _KNOWN[key].clone()


def _key(value: Any) -> bytes | None:
    written = io.BytesIO()
    try:
        _Writer(written).dump(value)
    except (
        pickle.PicklingError,
        AttributeError,
        TypeError,
        ValueError,
        RuntimeError,
    ):  # torch refuses parametrized modules
        return None
    return hashlib.sha256(written.getvalue()).digest()


class _Writer(pickle.Pickler):
    """Functions by their code, and by what they enclose."""

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, FunctionType):
            return NotImplemented
        enclosed = tuple(cell.cell_contents for cell in value.__closure__ or ())
        return tuple, ((marshal.dumps(value.__code__, 2), value.__defaults__, value.__kwdefaults__, enclosed),)
