"""What every choice of bits makes of weights and values, worked out once.

Weights are rounded as `LearnRounding(method="gptq")` would begin: the scale of each row that is best under the second moments of
the layer's float inputs, rounding with feedback (`graphopt.fitting.rounding`), and what that does to the mean taken out of the
bias. What remains is what a choice costs in the end; rounding to the nearest code overstates it, at 2 bits ten to a hundred
times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.moments import Moments
from graphopt.execution.observers import Statistic, observe
from graphopt.fitting import rounding as quadratic
from graphopt.fitting.rounding import Lattice
from graphopt.formats import Format, dequantize, fake_quantize, quantize, scale_and_zero_point, with_bits
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.passes.quantization.mixed.space import Space
from graphopt.passes.quantization.mixed.trials import NOTHING, Network, Trial, Weights
from graphopt.passes.quantization.placement import SharedGrid
from graphopt.passes.quantization.ranges import weight_range
from graphopt.utils.progress import track

RIDGE = 1e-2  # of the mean second moment: what the data say nothing about stays as it was
NOISE = 1e-5  # of the mean's square


def input_moments(graph: Graph, layers: Iterable[Node], data: Iterable[list[Tensor]]) -> dict[Node, Moments]:
    """Of what every layer reads, from one walk through the data."""
    views = {node: layer for node in layers if (layer := Layer.of(node))}
    found = {node: Moments(layer, centred=layer.bias is not None) for node, layer in views.items()}
    watched: dict[Node, list[Statistic]] = {}
    for node, moments in found.items():
        watched.setdefault(views[node].input, []).append(moments)
    observe(graph, watched, data)
    return found


class WeightRounder:
    """Rounds one layer's weights to any format, under the moments of its inputs; without any, to the nearest codes."""

    def __init__(self, graph: Graph, node: Node, moments: Moments | None) -> None:
        layer = Layer.of(node)
        assert layer is not None
        self.graph, self.layer, self.moments = graph, layer, moments
        self.own = graph.tensor(layer.weight)
        self.weight = layer.canonical(self.own)
        if moments is not None:
            xx = moments.xx
            size = xx.diagonal(dim1=1, dim2=2).mean(1)
            least = (
                NOISE * moments.mean_x.square().mean(1) + 1e-12
            )  # few samples may differ by less than rounding errors
            self.metric = xx + (RIDGE * size + least)[:, None, None] * torch.eye(xx.shape[-1], dtype=xx.dtype)
            self.factor = quadratic.feedback(self.metric)

    def nearest(self, format: Format, method: str) -> Weights:
        scale, zero = scale_and_zero_point(*weight_range(self.weight, format, method), format)
        axis = 0 if format.per_channel else -1
        codes = quantize(self.weight, scale, zero, format.quant_min, format.quant_max, axis)
        return Weights(self.layer.native(dequantize(codes, scale, zero, axis)).to(self.own.dtype), None)

    def __call__(self, format: Format, method: str) -> Weights:
        if self.moments is None:
            return self.nearest(format, method)
        weight = self.weight.double().reshape(self.layer.groups, self.layer.out_channels // self.layer.groups, -1)
        full = (*weight.shape[:2], 1)
        low, high = weight_range(self.weight, format, method)
        s, z = (p.double() for p in scale_and_zero_point(low, high, format))
        s, z = (p.reshape(full) if p.dim() else p.expand(full) for p in (s, z))
        lattice = Lattice(s, z, format.quant_min, format.quant_max)
        if format.per_channel and not format.power_of_two:
            lattice = quadratic.shrink(weight, self.metric, lattice)
        found = lattice.weight(quadratic.sequential(weight, self.factor, lattice))
        bias = None
        if self.layer.bias is not None:
            lost = ((weight - found) @ self.moments.mean_x[..., None]).flatten()
            own = self.graph.tensor(self.layer.bias)
            bias = (own.double() + lost).to(own.dtype)
        return Weights(self.layer.native(found.reshape(self.weight.shape)).to(self.own.dtype), bias)


def rounding(low: float, high: float, format: Format) -> Callable[[Tensor], Tensor]:
    """What a grid that covers a range makes of its values."""
    scale, zero = scale_and_zero_point(torch.tensor(low), torch.tensor(high), format)
    return lambda x: fake_quantize(x, scale, zero, format.quant_min, format.quant_max, -1)


class Roundings:
    """The trial that each choice of each decision stands for.

    Args:
        data: what weights are rounded for; None: they are rounded to the nearest codes.
        ranges: of every grid of a decision about values in a format, the range it covers.
    """

    def __init__(
        self,
        space: Space,
        network: Network,
        data: Iterable[list[Tensor]] | None,
        ranges: Callable[[SharedGrid, Format], tuple[float, float]],
        method: str,
    ) -> None:
        layers = [node for d in space.decisions if d.kind == "weights" for node in d.nodes]
        moments = {} if data is None else input_moments(space.graph, layers, data)
        self.trials: list[list[Trial]] = []
        for number, decision in track(list(enumerate(space.decisions)), "rounding"):
            own = space.target.formats.weights if decision.kind == "weights" else space.target.formats.activations
            formats = [None if bits is None else with_bits(own, bits) for bits in decision.choices]
            if decision.kind == "weights":
                rounders = {node: WeightRounder(space.graph, node, moments.pop(node, None)) for node in decision.nodes}
                self.trials.append([_weights(rounders, format, method) for format in formats])
            else:
                self.trials.append([_activations(space.grids[number], format, ranges) for format in formats])

    def __call__(self, assignment: Sequence[int]) -> Trial:
        """All choices of an assignment at once."""
        return Trial.of(trials[index] for trials, index in zip(self.trials, assignment, strict=True))


def _weights(rounders: Mapping[Node, WeightRounder], format: Format | None, method: str) -> Trial:
    if format is None:
        return NOTHING
    return Trial({node: rounder(format, method) for node, rounder in rounders.items()}, {})


def _activations(
    grids: Sequence[SharedGrid], format: Format | None, ranges: Callable[[SharedGrid, Format], tuple[float, float]]
) -> Trial:
    assert format is not None
    found = {}
    for grid in grids:
        found.update(dict.fromkeys(grid.produced, rounding(*ranges(grid, format), format)))
    return Trial({}, found)
