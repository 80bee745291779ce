"""Whether a captured graph answers what the model answers: the same structure, plain values, shapes, types, and numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from graphopt.utils import printing
from graphopt.utils.errors import CaptureError


def compare(found: Any, expected: Any, output_names: Iterable[str], who: str) -> None:
    """Compare the graph's outputs with the model's.

    Args:
        output_names: of the tensors among them. who: the model's class.

    Raises:
        CaptureError: names the output that differs, and how.
    """
    if pytree.tree_structure(found) != pytree.tree_structure(expected):
        raise CaptureError(f"the captured graph returns another structure than {who}; please report the model")
    names = iter(output_names)
    for a, b in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
        if not isinstance(b, Tensor):
            if a != b:
                raise CaptureError(f"{who} returns {b!r} where its graph returns {a!r}: a constant that is none")
            continue
        name = next(names, "?")
        if (wrong := difference(a, b)) is not None:
            raise CaptureError(
                f"the captured graph of {who} differs from the model at output {name!r} ({wrong}); "
                "the model probably keeps state or draws random numbers in forward: make it pure"
            )


def difference(found: Tensor, expected: Tensor) -> str | None:
    """How two tensors differ; None where they agree up to rounding (operators that were normalised may round anew)."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return f"{shown_type(found)} instead of {shown_type(expected)}"
    if torch.equal(found, expected):
        return None
    if not (expected.is_floating_point() or expected.is_complex()):
        return "other values"
    scale = max(1.0, float(torch.nan_to_num(expected, posinf=0, neginf=0).abs().max()))
    close = torch.isclose(found, expected, rtol=0, atol=8 * torch.finfo(expected.dtype).eps * scale, equal_nan=True)
    return None if bool(close.all()) else f"by {float((found - expected).abs().max()):.2e}"


def shown_type(value: Tensor) -> str:
    """Type and sizes, as in `f32[2, 3]`."""
    return f"{printing.dtype(value.dtype)}[{', '.join(map(str, value.shape))}]"
