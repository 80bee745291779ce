"""Weights in blocks: codes of 2, 4 or 8 bits with one scale to every few weights along the inputs of a linear layer.

    W: [out, in]    codes, [out, ceil(in / B), B], unsigned    scale: [out, ceil(in / B)]    B weights to a block
    W = (codes - z) * scale

Symmetric blocks share z = 2^(bits - 1), and the sign of the scale is chosen so that the weight farthest from zero has code 0,
which reaches one step farther than the last code:

    scale = w_farthest / -2^(bits - 1)

Affine blocks have zero points of their own. Codes are packed as ONNX Runtime's MatMulNBits reads them: those of a block one
after another, the first in the lowest bits of a byte; zero points of a row likewise. What lies beyond `in` has the code of zero.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from graphopt.formats import SMALLEST_CHANNEL_SCALE, Format, quantize, scale_and_zero_point
from graphopt.utils.errors import InputError

# What MatMulNBits of ONNX Runtime 1.31 computes on CPUs by kernels of its own: block sizes by bits. (Two bits in blocks of 16 and
# 256 are taken as well, but unpacked to float for every call, over ten times slower than a float layer.)
BLOCKS = {2: (32, 64, 128), 4: (16, 32, 64, 128, 256), 8: (16, 32, 64, 128, 256)}
SHARES = [1 - step / 40 for step in range(24)]  # of the full range, tried by the `mse` estimator


def check_blocks(bits: Any, block: Any) -> None:
    """Raise `InputError` where no kernel has this combination; names those there are."""
    if bits not in BLOCKS:
        raise InputError(f"weights in blocks have {', '.join(map(str, BLOCKS))} bits in ONNX Runtime, got {bits!r}")
    if block not in BLOCKS[bits]:
        raise InputError(f"{bits}-bit weights come in blocks of {', '.join(map(str, BLOCKS[bits]))}, got {block!r}")


# ---- Grids ----------------------------------------------------------------------------------------------------------


def block_grid(weight: Tensor, bits: int, block: int, *, symmetric: bool, estimator: str) -> tuple[Tensor, Tensor]:
    """Scale and zero point of every block of a weight [out, in].

    Args:
        estimator: `minmax` covers every weight; `mse` shrinks each block's range to the best of `SHARES`.

    Returns:
        Scale, float32 [out, blocks]; zero point, int32 [] where symmetric, else [out, blocks].
    """
    blocks = split_blocks(weight, block)
    best = torch.full(blocks.shape[:2], torch.inf)
    found = [torch.ones(blocks.shape[:2]), torch.zeros(blocks.shape[:2], dtype=torch.int32)]
    for share in SHARES if estimator == "mse" else SHARES[:1]:
        scale, zero_point = _grid(blocks * share, bits, symmetric=symmetric)
        codes = quantize(blocks, scale[..., None], zero_point[..., None], 0, 2**bits - 1)
        error = ((codes - zero_point[..., None]) * scale[..., None] - blocks).square().sum(-1)
        better = error < best
        best = torch.where(better, error, best)
        found = [torch.where(better, new, old) for new, old in zip((scale, zero_point), found, strict=True)]
    scale, zero_point = found
    alive = (
        blocks.abs().amax(-1) > SMALLEST_CHANNEL_SCALE
    )  # where nothing is left, a large step would only add rounding errors
    scale = torch.where(alive, scale, scale[alive].abs().max() if bool(alive.any()) else SMALLEST_CHANNEL_SCALE)
    return scale, torch.tensor(2 ** (bits - 1), dtype=torch.int32) if symmetric else zero_point


def _grid(blocks: Tensor, bits: int, *, symmetric: bool) -> tuple[Tensor, Tensor]:
    low, high = torch.aminmax(blocks, dim=-1)
    if not symmetric:
        return scale_and_zero_point(low, high, Format(bits, signed=False, symmetric=False, per_channel=True))
    farthest = torch.where(-low >= high, low, high)
    half = 2 ** (bits - 1)
    scale = torch.where(farthest == 0, 1.0, farthest / -half)
    return scale, torch.full(scale.shape, half, dtype=torch.int32)


def block_codes(weight: Tensor, scale: Tensor, zero_point: Tensor, bits: int, block: int) -> Tensor:
    """Codes [out, blocks, block] of a weight on the grids of its blocks."""
    points = zero_point[..., None] if zero_point.dim() else zero_point
    return quantize(split_blocks(weight, block), scale[..., None], points, 0, 2**bits - 1)


def split_blocks(weight: Tensor, block: int) -> Tensor:
    """[out, in] -> [out, blocks, block], with zeros behind the end."""
    count = math.ceil(weight.shape[1] / block)
    return F.pad(weight, (0, count * block - weight.shape[1])).reshape(len(weight), count, block)


# ---- Packed codes ---------------------------------------------------------------------------------------------------


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes [..., n] as bytes [..., ceil(n * bits / 8)], the first in the lowest bits."""
    per_byte = 8 // bits
    codes = F.pad(codes.to(torch.uint8), (0, -codes.shape[-1] % per_byte))
    parts = codes.reshape(*codes.shape[:-1], -1, per_byte) << _places(bits)
    return parts.sum(-1, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """Bytes [..., n] as codes [..., n * 8 / bits]."""
    parts: Tensor = (packed[..., None] >> _places(bits)) & (2**bits - 1)
    return parts.flatten(-2)


def _places(bits: int) -> Tensor:
    return torch.arange(0, 8, bits, dtype=torch.uint8)


def pack_weight(
    weight: Tensor, scale: Tensor, zero_point: Tensor, bits: int, block: int
) -> tuple[Tensor, Tensor | None]:
    """Packed codes [out, blocks, block * bits / 8] and zero points [out, ceil(blocks * bits / 8)], None where symmetric."""
    codes = block_codes(weight, scale, zero_point, bits, block)
    return pack(codes, bits), pack(zero_point, bits) if zero_point.dim() else None


@torch.library.custom_op("graphopt::dequantize_blocks", mutates_args=())
def dequantize_blocks(codes: Tensor, scale: Tensor, zero_point: Tensor | None, bits: int, length: int) -> Tensor:
    """The weight [out, length] of packed codes; see the head of this file."""
    points = unpack(zero_point, bits)[:, : scale.shape[1], None] if zero_point is not None else 2 ** (bits - 1)
    weight = (unpack(codes, bits).int() - points).to(scale.dtype) * scale[..., None]
    return weight.flatten(1)[:, :length].contiguous()


@dequantize_blocks.register_fake
def _(codes: Tensor, scale: Tensor, zero_point: Tensor | None, bits: int, length: int) -> Tensor:
    return scale.new_empty(len(codes), length)


DEQUANTIZE_BLOCKS: Any = torch.ops.graphopt.dequantize_blocks.default
