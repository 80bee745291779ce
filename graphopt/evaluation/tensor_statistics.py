"""How well a quantization grid fits what lies on it: distribution, range, what is clipped, which codes occur."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.artifacts.network import Distribution
from graphopt.execution.observers import Histogram
from graphopt.formats import FAKE_QUANTIZE, Format, in_blocks
from graphopt.formats.blocks import block_codes, split_blocks
from graphopt.ir.cost import Match
from graphopt.ir.graph import Graph
from graphopt.ir.quantizers import is_uniform, quantizer_of
from graphopt.utils.quantities import decibel

BARS = 96  # of a histogram in a report


@dataclass(frozen=True, eq=False)  # tensors have no equality that is a bool
class TensorStatistics:
    """A quantized activation, as the float network computes it, or a weight.

    Attributes:
        name: of the layer that produces the activation, or of the weight.
        kind: `activation` or `weight`.
        bits: of its codes.
        low, high: the ends of its grid; the outermost ones where each channel has its own, infinite where blocks find their own.
        channels: how many grids it has: 1, or one per output channel.
        smallest, largest: what was seen.
        clipped: the share of elements beyond the ends of their grid (0 to 1).
        used: how many different codes occur.
        codes: how many there are.
        sqnr_db: of rounding and clipping; what came in is exact.
        counts: elements per bin, float64; every element is counted.
        edges: of the bins, float64, one more than there are bins.
    """

    name: str
    kind: str
    bits: int
    low: float
    high: float
    channels: int
    smallest: float
    largest: float
    clipped: float
    used: int
    codes: int
    sqnr_db: float
    counts: Tensor
    edges: Tensor

    def cells(self) -> tuple[str, ...]:
        """A row of the table: name, bits, range, seen, clipped, codes, SQNR."""
        return (
            self.name,
            str(self.bits),
            f"[{self.low:.3g}, {self.high:.3g}]",
            f"[{self.smallest:.3g}, {self.largest:.3g}]",
            "<0.01%" if 0 < self.clipped < 1e-4 else f"{self.clipped:.2%}",
            f"{self.used} of {self.codes}",
            decibel(self.sqnr_db),
        )

    def distribution(self, bars: int = BARS) -> Distribution:
        """The histogram in about so many bins, those at its ends that hold nothing left out, as reports keep it."""
        counts, start, step = self.coarse(bars)
        return Distribution(
            self.name, self.kind, self.bits, self.low, self.high, start, step, counts,
            self.clipped, self.used, self.codes, self.sqnr_db,
        )  # fmt: skip

    def coarse(self, bars: int) -> tuple[list[float], float, float]:
        """Elements per bin, where the first bin begins, and how wide each is; bins in use, joined to about `bars`."""
        used = torch.nonzero(self.counts).flatten()
        if not len(used):
            return [0.0], 0.0, 1.0
        first, last = int(used[0]), int(used[-1]) + 1
        joined = max(1, -(-(last - first) // bars))
        counts = [float(self.counts[i : min(i + joined, last)].sum()) for i in range(first, last, joined)]
        return counts, float(self.edges[first]), joined * float(self.edges[1] - self.edges[0])

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without the histogram."""
        return {k: v for k, v in vars(self).items() if not isinstance(v, Tensor)}


class WeightInBlocks:
    """The quantizer of a weight that has a scale per block, as `GridUse` asks it."""

    def __init__(self, graph: Graph, quantizer: Node) -> None:
        arguments: list[Any] = [graph.tensor(a) if isinstance(a, Node) else a for a in quantizer.args[1:]]
        self.scale: Tensor = arguments[0]
        self.zero_point: Tensor = arguments[1]
        self.first, self.last, self.axis, self.block = map(int, arguments[2:])

    @property
    def format(self) -> Format:
        return Format((self.last - self.first).bit_length(), signed=False, symmetric=self.zero_point.dim() == 0)

    @property
    def ends(self) -> tuple[float, float]:
        outermost = [(end - self.zero_point) * self.scale for end in (self.first, self.last)]
        return min(float(e.min()) for e in outermost), max(float(e.max()) for e in outermost)

    @property
    def sets(self) -> int:
        return self.scale.numel()

    def quantize(self, x: Tensor) -> Tensor:
        """Codes, int32, of x's shape."""
        codes = block_codes(x, self.scale, self.zero_point, self.format.bits, self.block)
        return codes.flatten(1)[:, : x.shape[1]].int()

    def clipped(self, x: Tensor) -> Tensor:
        low, high = ((end - self.zero_point) * self.scale for end in (self.first, self.last))
        blocks, half = split_blocks(x, self.block), self.scale.abs()[..., None] / 2
        beyond = (blocks < torch.minimum(low, high)[..., None] - half) | (
            blocks > torch.maximum(low, high)[..., None] + half
        )
        return beyond.flatten(1)[:, : x.shape[1]]

    def __call__(self, x: Tensor) -> Tensor:
        rounded: Tensor = FAKE_QUANTIZE(x, self.scale, self.zero_point, self.first, self.last, self.axis, self.block)
        return rounded


class GridUse:
    """Learns from one tensor after another how a quantizer's grid is used; memory does not grow with their number."""

    def __init__(self, graph: Graph, quantizer: Node) -> None:
        blocks = is_uniform(quantizer) and in_blocks(quantizer)
        self.quantizer = WeightInBlocks(graph, quantizer) if blocks else quantizer_of(graph, quantizer)
        self.histogram = Histogram(samples=sys.maxsize)
        self.match = Match()
        self.elements = self.clipped = 0
        self.low, self.high = self.quantizer.ends
        self.first, last = self.quantizer.format.code_range
        self.used = torch.zeros(last - self.first + 1, dtype=torch.bool)

    def update(self, value: Tensor, stored: Tensor | None = None) -> None:
        """`stored`: what is rounded in place of the value, where codes were chosen on data."""
        stored = value if stored is None else stored
        self.histogram.update(value)
        self.clipped += int(self.quantizer.clipped(value).sum())
        self.elements += value.numel()
        self.used[(self.quantizer.quantize(stored) - self.first).long().flatten()] = True
        self.match.update(value, self.quantizer(stored))

    def found(self, name: str, kind: str) -> TensorStatistics:
        reach, bins = self.histogram.reach, len(self.histogram.counts)
        return TensorStatistics(
            name=name,
            kind=kind,
            bits=self.quantizer.format.bits,
            low=self.low,
            high=self.high,
            channels=self.quantizer.sets,
            smallest=self.histogram.low,
            largest=self.histogram.high,
            clipped=self.clipped / max(1, self.elements),
            used=int(self.used.sum()),
            codes=len(self.used),
            sqnr_db=self.match.sqnr_db,
            counts=self.histogram.counts,
            edges=torch.linspace(-reach, reach, bins + 1, dtype=torch.float64),
        )
