"""The operators of the families of formats, `graphopt::fake_quantize` and others, registered with torch by importing this file.

Each rounds a tensor to a grid, with a straight-through gradient; what the grid is, the file of its family says. The families
themselves are plain data, which is there without torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphopt.formats import codebook, floating, logarithmic, signs, straight_through
from graphopt.formats.block_floating import BlockFloat
from graphopt.formats.floating import BFLOAT16, FLOAT16, FloatFormat
from graphopt.formats.protocol import broadcast, rows

# ---- Uniform --------------------------------------------------------------------------------------------------------


@torch.library.custom_op("graphopt::fake_quantize", mutates_args=())
def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int, axis: int, block: int = 0
) -> Tensor:
    """Round x to the grid. `axis` is the dimension of x that scale and zero point run along, -1 for one grid.

    Args:
        x: float tensor of any shape.
        scale: float32, [], [channels], or with a block the shape of x with ceil(n / block) along `axis`.
        zero_point: int32, the same shape, or [] for one that all share.
        block: how many elements along `axis` share a scale; 0: each has its own.

    Returns:
        Tensor of x's shape and type. NaN stays NaN.
    """
    return straight_through.rounded(x, scale, zero_point, quant_min, quant_max, axis, block)


@fake_quantize.register_fake
def _(
    x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int, axis: int, block: int = 0
) -> Tensor:
    return torch.empty_like(x)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, scale, zero_point, *ctx.grid = inputs
    ctx.save_for_backward(x, scale, zero_point, output)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, scale, zero_point, y = ctx.saved_tensors
    of_scale = ctx.needs_input_grad[1]
    to_x, to_scale = straight_through.gradients(gradient, x, y, scale, zero_point, *ctx.grid, of_scale=of_scale)
    return to_x, to_scale, None, None, None, None, None


fake_quantize.register_autograd(_backward, setup_context=_setup)

fake_quantize.register_autocast("cpu", torch.float32)  # codes of eight bits do not survive a division in bfloat16

FAKE_QUANTIZE: Any = torch.ops.graphopt.fake_quantize.default


# ---- Floating point -------------------------------------------------------------------------------------------------


@torch.library.custom_op("graphopt::fake_quantize_float", mutates_args=())
def fake_quantize_float(x: Tensor, exponent_bits: int, mantissa_bits: int, subnormals: bool) -> Tensor:
    """Round x to a floating-point format of few bits; see the head of this file. NaN stays NaN."""
    format = FloatFormat(exponent_bits, mantissa_bits, subnormals)
    if subnormals and x.dtype == torch.float32 and (native := _NATIVE.get(format)) is not None:
        return x.to(native).to(x.dtype)  # the same numbers, at the speed of a conversion
    return floating.rounded(x, format)


_NATIVE = {FLOAT16: torch.float16, BFLOAT16: torch.bfloat16}


@fake_quantize_float.register_fake
def _(x: Tensor, exponent_bits: int, mantissa_bits: int, subnormals: bool) -> Tensor:
    return torch.empty_like(x)


def _setup_float(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(output)


def _backward_float(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Straight through wherever the result is finite."""
    (rounded,) = ctx.saved_tensors
    return torch.where(torch.isfinite(rounded), gradient, 0.0), None, None, None


fake_quantize_float.register_autograd(_backward_float, setup_context=_setup_float)

FAKE_QUANTIZE_FLOAT: Any = torch.ops.graphopt.fake_quantize_float.default


# ---- Logarithms -----------------------------------------------------------------------------------------------------


@torch.library.custom_op("graphopt::fake_quantize_log", mutates_args=())
def fake_quantize_log(x: Tensor, last: Tensor, bits: int, steps: int, axis: int) -> Tensor:
    """Round x to signed levels of a logarithmic grid; see the head of this file. NaN stays NaN."""
    quantizer = logarithmic.from_arguments(last, bits, steps, axis)
    rounded = quantizer.dequantize(quantizer.quantize(x)).to(x.dtype)
    return torch.where(torch.isnan(x), x, rounded)


@fake_quantize_log.register_fake
def _(x: Tensor, last: Tensor, bits: int, steps: int, axis: int) -> Tensor:
    return torch.empty_like(x)


def _setup_log(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, last, _, ctx.steps, ctx.axis = inputs
    ctx.save_for_backward(x, last)


def _backward_log(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Straight through, up to half a step beyond the largest level."""
    x, last = ctx.saved_tensors
    end = torch.exp2((broadcast(last, x, ctx.axis).double() + 0.5) / ctx.steps)
    return torch.where(x.abs() <= end, gradient, 0.0), None, None, None, None


fake_quantize_log.register_autograd(_backward_log, setup_context=_setup_log)

FAKE_QUANTIZE_LOG: Any = torch.ops.graphopt.fake_quantize_log.default


# ---- Block floating point -------------------------------------------------------------------------------------------


@torch.library.custom_op("graphopt::fake_quantize_block_float", mutates_args=())
def fake_quantize_block_float(x: Tensor, exponent: Tensor | None, bits: int, block: int, axis: int) -> Tensor:
    """Round blocks of x to whole multiples of a power of two; see the head of this file. NaN stays NaN.

    Args:
        exponent: int8, those of a stored tensor; None: every block has the one that fits it.
    """
    format = BlockFloat(bits, block)
    shared = format.exponent(x, axis) if exponent is None else exponent
    step = broadcast(shared, x, axis, block).int()
    return torch.ldexp(format.mantissas(x, shared, axis), step).to(x.dtype)


@fake_quantize_block_float.register_fake
def _(x: Tensor, exponent: Tensor | None, bits: int, block: int, axis: int) -> Tensor:
    return torch.empty_like(x)


def _setup_block_float(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, exponent, ctx.bits, ctx.block, ctx.axis = inputs
    ctx.found = exponent is None
    ctx.save_for_backward(*([] if exponent is None else [x, exponent]))


def _backward_block_float(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Straight through; with stored exponents, up to half a step beyond the last mantissa."""
    if ctx.found:
        return gradient, None, None, None, None
    x, exponent = ctx.saved_tensors
    step = broadcast(exponent, x, ctx.axis, ctx.block).int()
    inside = torch.ldexp(x, -step).abs() <= BlockFloat(ctx.bits, ctx.block).top + 0.5
    return torch.where(inside, gradient, 0.0), None, None, None, None


fake_quantize_block_float.register_autograd(_backward_block_float, setup_context=_setup_block_float)

FAKE_QUANTIZE_BLOCK_FLOAT: Any = torch.ops.graphopt.fake_quantize_block_float.default


# ---- Codebooks ------------------------------------------------------------------------------------------------------


@torch.library.custom_op("graphopt::fake_quantize_table", mutates_args=())
def fake_quantize_table(x: Tensor, table: Tensor, axis: int) -> Tensor:
    """Round x to the nearest entry of a table, or of the table of its channel along `axis`. NaN stays NaN."""
    quantizer = codebook.from_arguments(table, axis)
    rounded = quantizer.dequantize(quantizer.quantize(x)).to(x.dtype)
    return torch.where(torch.isnan(x), x, rounded)


@fake_quantize_table.register_fake
def _(x: Tensor, table: Tensor, axis: int) -> Tensor:
    return torch.empty_like(x)


def _setup_table(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, table, ctx.axis = inputs
    ctx.save_for_backward(x, table)


def _backward_table(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Straight through to x; an entry of the table gets the sum over its members."""
    x, table = ctx.saved_tensors
    to_table = None
    if ctx.needs_input_grad[1]:
        flat = rows(gradient, ctx.axis).to(table.dtype)
        codes = codebook.nearest(rows(x, ctx.axis).double(), table.reshape(len(flat), -1))
        to_table = torch.zeros_like(table).reshape(len(flat), -1).scatter_add_(1, codes, flat).reshape(table.shape)
    return gradient, to_table, None


fake_quantize_table.register_autograd(_backward_table, setup_context=_setup_table)

FAKE_QUANTIZE_TABLE: Any = torch.ops.graphopt.fake_quantize_table.default


# ---- Signs ----------------------------------------------------------------------------------------------------------


@torch.library.custom_op("graphopt::fake_quantize_signs", mutates_args=())
def fake_quantize_signs(
    x: Tensor, scale: Tensor, threshold: Tensor, below: Tensor, above: Tensor, bits: int, axis: int
) -> Tensor:
    """Round x to signs times a scale, with zero between them (2 bits) or without (1). NaN stays NaN."""
    codes = signs.multiples(x, (scale, threshold, below, above), axis)
    rounded = (codes * broadcast(scale, x, axis)).to(x.dtype)
    return torch.where(torch.isnan(x), x, rounded)


@fake_quantize_signs.register_fake
def _(x: Tensor, scale: Tensor, threshold: Tensor, below: Tensor, above: Tensor, bits: int, axis: int) -> Tensor:
    return torch.empty_like(x)


def _setup_signs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, scale, threshold, below, above, _, ctx.axis = inputs
    ctx.save_for_backward(x, scale, threshold, below, above)


def _backward_signs(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Straight through to x; the scale gets the sum over what is rounded to its multiples."""
    x, scale, *rest = ctx.saved_tensors
    to_scale = None
    if ctx.needs_input_grad[1]:
        share = gradient * signs.multiples(x, (scale, *rest), ctx.axis)
        to_scale = share.sum_to_size(broadcast(scale, x, ctx.axis).shape).reshape(scale.shape)
    return gradient, to_scale, *[None] * 5


fake_quantize_signs.register_autograd(_backward_signs, setup_context=_setup_signs)
fake_quantize_signs.register_autocast("cpu", torch.float32)

FAKE_QUANTIZE_SIGNS: Any = torch.ops.graphopt.fake_quantize_signs.default
