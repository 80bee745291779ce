"""Products that a CPU without VNNI adds in pairs of 16 bits, and what saturation takes from the sums.

AVX2 has no instruction that adds products of bytes in 32 bits. ONNX Runtime's kernels multiply unsigned x by signed w with
vpmaddubsw, which adds two products and saturates, before vpmaddwd widens. With x and w the codes as they are stored, and k over
kernel positions and, within each, input channels of the group, from 0:

    acc = sum_j sat16(x_2j w_2j + x_2j+1 w_2j+1) - corrections for zero points, exact in 32 bits
        = exact acc - sum_j excess_j          excess = p - sat16(p),  sat16(p) = min(max(p, -32768), 32767)

A pair of weights whose products cannot leave 16 bits whatever the codes has no excess, so only the others are looked at: of 7-bit
weights none, 255 * 2 * 64 < 2^15.

The order of k is that of the channels-last patches the kernels are given: mlas/lib/x86_64/QgemmU8X8KernelAvx2.S,
QgemvU8S8KernelAvx2.S, ConvSymKernelAvx2.S. Depthwise convolutions (one channel to one channel), signed values and unsigned
weights take other instructions, and are exact. Compared with release 1.31, as an emulated CPU without VNNI runs it
(tests/emulated.py). AVX-512 without VNNI adds the same pairs in the source; nothing at hand runs it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from graphopt.ir.layer import Layer
from graphopt.lowering.qdq import QuantizationParameters

LOWEST, HIGHEST = -(2**15), 2**15 - 1
LARGEST = 255  # of the values' codes

Place = tuple[int, tuple[int, ...]]  # an input channel, and a position under the kernel


def can_saturate(weights: Tensor) -> Tensor:
    """Whether products of pairs of weights, [..., 2], can leave 16 bits for some codes of values: bool, [...]."""
    w = weights.float()
    return (LARGEST * w.clamp(min=0).sum(-1) > HIGHEST) | (LARGEST * w.clamp(max=0).sum(-1) < LOWEST)


class Pair(NamedTuple):
    """Two neighbours in k, and the output channels in which their products can leave 16 bits.

    Attributes:
        first, second: where their codes are.
        channels: int64 [n]. weights: float32 [n, 2].
    """

    first: Place
    second: Place
    channels: Tensor
    weights: Tensor


@dataclass(frozen=True, eq=False)
class Pairs:
    """The pairs of one layer.

    Attributes:
        kernel, stride, padding, dilation: of a convolution, one number per image dimension; empty for a linear layer.
        out_channels: of the result. zero_point: of the values.
        risky: pairs that can saturate.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    out_channels: int
    zero_point: int
    risky: list[Pair]

    @classmethod
    def of(cls, layer: Layer, codes: Tensor, x: QuantizationParameters) -> Pairs | None:
        """Of a layer that reads values on the grid x, from the codes of its weight; None where none can saturate.

        Args:
            codes: [out, in / groups, *kernel].
        """
        depthwise = layer.kind == "conv" and codes.shape[1] == 1 and codes.shape[0] == layer.groups
        if (x.dtype, codes.dtype) != (torch.uint8, torch.int8) or depthwise:
            return None
        kernel, per_group = tuple(codes.shape[2:]), codes.shape[1]
        places = [(c, at) for at in itertools.product(*map(range, kernel)) for c in range(per_group)]
        w = codes.reshape(*codes.shape[:2], -1).transpose(1, 2).flatten(1).float()  # [out, k]
        w = w[:, : len(places) // 2 * 2].reshape(len(w), -1, 2)  # [out, pairs, 2]; one product alone fits
        beyond = can_saturate(w)
        risky = []
        for group, rows in enumerate(torch.arange(len(w)).chunk(layer.groups)):
            for j in beyond[rows].any(0).nonzero().flatten().tolist():
                channels = rows[beyond[rows, j]]
                (a, at_a), (b, at_b) = places[2 * j : 2 * j + 2]
                first = group * per_group
                risky.append(Pair((first + a, at_a), (first + b, at_b), channels, w[channels, j]))
        options = (layer.stride, layer.padding, layer.dilation)
        return cls(kernel, *options, len(w), x.zero_point, risky) if risky else None

    def excess(self, codes: Tensor) -> Tensor:
        """What to take from exact sums, int32 [samples, out, *image], or [..., out] of a linear layer."""
        values = codes.float()
        if self.kernel:
            pads = [p for p in reversed(self.padding) for _ in range(2)]
            values = F.pad(values, pads, value=float(self.zero_point))
            size = self._places(values, (0, (0,) * len(self.kernel))).shape[2:]
        else:
            values, size = values.flatten(0, -2), torch.Size()
        excess = torch.zeros(values.shape[0], self.out_channels, *size, dtype=torch.int32)
        for pair in self.risky:
            w = pair.weights.reshape(-1, 2, *[1] * len(size))
            sums = self._places(values, pair.first) * w[:, 0] + self._places(values, pair.second) * w[:, 1]
            excess.index_add_(1, pair.channels, (sums - sums.clamp(LOWEST, HIGHEST)).int())
        return excess if self.kernel else excess.reshape(*codes.shape[:-1], self.out_channels)

    def _places(self, values: Tensor, place: Place) -> Tensor:
        """The codes that one input of the kernel meets: [samples, 1, *image]."""
        channel, position = place
        window: list[slice] = [slice(None), slice(channel, channel + 1)]
        sizes = zip(values.shape[2:], self.kernel, self.stride, self.dilation, position, strict=True)
        for n, k, s, d, at in sizes:
            last = (n - d * (k - 1) - 1) // s * s  # where the last window begins
            window.append(slice(at * d, at * d + last + 1, s))
        return values[tuple(window)]
