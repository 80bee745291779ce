"""Say why a model cannot be captured: its source line, the reason in one sentence, and what to change."""

from __future__ import annotations

import inspect
import linecache
import re
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from graphopt.utils.errors import CaptureError, first_line

_OURS = Path(__file__).parent
_TORCH = Path(torch.__file__).parent
_PYTHON = Path(inspect.__file__).parent
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')


class SourceLine(NamedTuple):
    """A line of source code."""

    file: str
    line: int

    def __str__(self) -> str:
        code = linecache.getline(self.file, self.line).strip()
        return f"{self.file}:{self.line}" + (f": `{code}`" if code else "")


class Reason(NamedTuple):
    """What in an error message points to a reason, the reason, and the remedy. `{}` is the message's first line."""

    pattern: str
    why: str
    remedy: str


CONTROL_FLOW = Reason(
    r"data-dependent expression|DataDependentOutput|bool\(\) on a tensor|non-concrete",
    "Python decides on the value of a tensor here, which is not known before the model runs",
    "compute both sides and select with torch.where, or decide before calling the model",
)
ITEM = Reason(
    r"",
    "the value of a tensor is turned into a Python number here, so the graph would depend on the data",
    "keep it a tensor (drop .item(), int(), float(), tolist())",
)
DATA_SHAPE = Reason(
    r"",
    "the size of this result depends on the values in a tensor, so no fixed plan of memory exists",
    "use a mask of fixed size (torch.where, multiplication) instead of selecting elements",
)
REASONS = [
    Reason(
        r"^(RecursionError|MemoryError)",
        "the process ran out of stack or memory here ({}), for which the model need not be the reason",
        "capture it from less deep in the call stack, or with more memory",
    ),
    CONTROL_FLOW,
    Reason(
        r"numpy|__array__|from_numpy",
        "a tensor is converted to NumPy here, which takes it out of the graph",
        "use the torch function of the same name",
    ),
    Reason(
        r"__format__|unsupported format string",
        "the value of a tensor is formatted for printing here, and there is none during capture",
        "remove the print or the log message from forward",
    ),
    Reason(
        r"tolist|aten\.item|_local_scalar_dense",
        ITEM.why,
        ITEM.remedy,
    ),
    Reason(
        r"fake tensor in the exported program constant's list|assigned during export",
        "forward works behind the graph's back (it writes through .data, calls autograd, or keeps a tensor on self)",
        "write it with ordinary operators, and register state that stays between calls with register_buffer",
    ),
    Reason(
        r"UnsupportedOperator|could not find kernel|no fake impl|FakeTensor.*kernel|fake kernel"
        r"|NotImplementedError.*(Meta|SymInt)",
        "this operator has no shape rule, so it cannot be traced ({})",
        "replace it by dense standard operators, or give a custom operator a fake kernel (torch.library.register_fake)",
    ),
    Reason(
        r"torch\.jit|ScriptFunction|ScriptModule|_ModuleNotInstalledAsSubmodule|RecursiveScript",
        "part of the model is TorchScript or is compiled inside forward, which cannot be looked into",
        "call the original Python module instead",
    ),
    Reason(
        r"pytree|not a known type|input type|Unsupported input",
        "a value of a type that holds no tensors as far as torch knows goes in or out ({})",
        "use tensors, tuples, lists, dicts, namedtuples or dataclasses",
    ),
]
IN_PLACE = Reason(
    r"",
    "this call writes into a value through a view that has no functional form ({})",
    "compute a new tensor instead of writing into this one",
)
BRANCH = Reason(r"", "{} holds a graph within the graph, which passes cannot see", "use plain tensor operators instead")
STATE = Reason(
    r"",
    "the model changes its buffer '{}' here and its outputs depend on it, so the next call would give another result",
    "pass the state in as an input and return the new one as an output",
)
OTHER = Reason(r"", "torch.export cannot trace it ({})", "rewrite this line with plain tensor operators")


def capture_error(error: BaseException, model: Any) -> CaptureError:
    """The `CaptureError` for what `torch.export` raised on a model."""
    text = f"{type(error).__name__}: {error}"
    place = place_of_error(error) or _definition(model)
    reason = next((r for r in REASONS if re.search(r.pattern, text)), OTHER)
    code = linecache.getline(place.file, place.line) if place else ""
    if reason is CONTROL_FLOW and re.search(r"\.item\(|\bint\(|\bfloat\(|\.tolist\(|range\(", code):
        reason = ITEM
    return make_error(model, place, reason, headline(error))


def make_error(model: Any, place: SourceLine | None, reason: Reason, detail: str = "") -> CaptureError:
    where = f" at {place}" if place else ""
    why = reason.why.replace("{}", detail)
    return CaptureError(f"cannot capture {type(model).__name__}{where}: {why}; {reason.remedy}")


def place_of_error(error: BaseException) -> SourceLine | None:
    """The innermost line of user code an exception passed through, or that its message quotes."""
    frames = [SourceLine(f.filename, f.lineno or 0) for f in traceback.extract_tb(error.__traceback__)]
    quoted = list(_quoted(str(error)))
    return _innermost(frames, outside_capture=True) or _innermost(quoted)


def place_of_node(node: Any) -> SourceLine | None:
    """The line of user code that a graph node comes from."""
    return _innermost(list(_quoted(str(node.meta.get("stack_trace") or ""))))


def place_of_frame(frame: traceback.FrameSummary | None) -> SourceLine | None:
    return _innermost([SourceLine(frame.filename, frame.lineno or 0)]) if frame is not None else None


def _quoted(text: str) -> Iterable[SourceLine]:
    return (SourceLine(m[1], int(m[2])) for m in _FRAME.finditer(text))


def _innermost(frames: list[SourceLine], outside_capture: bool = False) -> SourceLine | None:
    if outside_capture:  # the caller's own frames come first, up to the one in this package that called torch.export
        ours = [i for i, f in enumerate(frames) if _inside(f.file, _OURS)]
        frames = frames[ours[-1] + 1 :] if ours else frames
    theirs = [f for f in frames if Path(f.file).is_file() and not any(_inside(f.file, p) for p in (_OURS, _TORCH))]
    user = [f for f in theirs if not _inside(f.file, _PYTHON) or "site-packages" in f.file]
    return user[-1] if user else None


def _inside(file: str, folder: Path) -> bool:
    return Path(file).is_absolute() and Path(file).is_relative_to(folder)


def _definition(model: Any) -> SourceLine | None:
    try:
        code = inspect.unwrap(type(model).forward).__code__
    except AttributeError:
        return None
    place = SourceLine(code.co_filename, code.co_firstlineno)
    return None if _inside(place.file, _TORCH) else place


def headline(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)[:160].rstrip('.')}"
