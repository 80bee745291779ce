"""Shapes that need no rule of torch's: of calls whose result looks like their first argument.

With free sizes, torch's own rules, which are made of many operators, take up to thirty times as long, and those of rounding to a
format come with layers for gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from graphopt.ir.ops import registered


def like_its_input(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.dtype | None:
    """The type of what a call gives whose result has the sizes of its first argument; None for other calls."""
    own: torch.dtype | None = getattr(args[0], "dtype", None) if args else None
    if target in _CURVES:
        return own if own and own.is_floating_point and not any(isinstance(a, Tensor) for a in args[1:]) else None
    if target is torch.ops.aten.batch_norm.default and _is_frozen_norm(*args[:6]):
        return own
    name = target._schema.name if isinstance(target, torch._ops.OpOverload) else ""
    if name.startswith("graphopt::fake_quantize"):
        return own
    if name == "quantized_decomposed::quantize_per_tensor" and isinstance(args[-1], torch.dtype):
        return args[-1]
    if name in _DEQUANTIZE:
        return kwargs.get("out_dtype") or torch.float32
    return None


def _is_frozen_norm(x: Tensor, weight: Any, bias: Any, mean: Any, variance: Any, training: bool) -> bool:
    """Whether a batch norm goes by its running statistics and all fits, in one type; whatever does not is torch's to refuse."""
    known = [t for t in (weight, bias, mean, variance) if t is not None]
    fits = x.dim() > 1 and all(t.dtype == x.dtype and tuple(t.shape) == (x.shape[1],) for t in known)
    return not training and mean is not None and variance is not None and fits


_DEQUANTIZE = {"quantized_decomposed::dequantize_per_tensor", "quantized_decomposed::dequantize_per_channel"}


def _in_place(target: Any) -> Any:
    """aten.relu.default -> aten.relu_.default; None without such."""
    packet = getattr(torch.ops.aten, target._schema.name.removeprefix("aten::") + "_", None)
    return getattr(packet, target._overloadname, None)


_CURVES = {form for target in registered(lambda info: info.pointwise) for form in (target, _in_place(target))} - {None}
