"""One grid for as long as it trains: what stands in the graph meanwhile, and what it leaves there."""

from __future__ import annotations

import torch
from torch.fx.node import Node

from graphopt.formats import FAKE_QUANTIZE
from graphopt.ir.graph import Graph
from graphopt.ir.quantizers import AXIS, SCALE, ZERO_POINT
from graphopt.training.quantization import scales, transforms
from graphopt.training.quantization.grids import Grid
from graphopt.training.quantization.methods import Method
from graphopt.training.quantization.parameters import parameter_of, put_back
from graphopt.training.quantization.surrogate import QUANTIZE_IN_TRAINING


class LearnedGrid:
    """The quantizers of a grid under a method; put in its place at once, with the same answers in eval mode."""

    def __init__(self, graph: Graph, grid: Grid, method: Method, accumulator_bits: int) -> None:
        self.graph, self.grid, self.method = graph, grid, method
        self.nodes = [quantizer.node for quantizer in grid.quantizers]
        self.zero_points = [str(quantizer.zero_point.target) for quantizer in grid.quantizers]  # their names
        self.scale = None if method.scale == "fixed" else scales.learn(graph, grid, method.share)
        self.transforms = transforms.insert(graph, grid, method.transform, accumulator_bits)
        self.offset = self._learned_offset() if method.offset else None
        self.sharpness: Node | None = None
        if self.offset is not None or not method.plain:
            self._put_surrogates()

    def _learned_offset(self) -> Node | None:
        """A zero point that may move: one between the ends of an activation's grid, which is not symmetric."""
        first = self.grid.quantizers[0]
        zero = self.graph.tensor(first.zero_point)
        inside = zero.numel() == 1 and first.low < int(zero.reshape(())) < first.high
        alone = all(quantizer.zero_point is first.zero_point for quantizer in self.grid.quantizers)
        if self.grid.of_weights or self.grid.symmetric or self.scale is None or not inside or not alone:
            return None
        return parameter_of(self.graph, f"{first.zero_point.target}_learned", zero.float(), before=min(self.nodes))

    def _put_surrogates(self) -> None:
        graph, method, first = self.graph, self.method, min(self.nodes)
        name = str(self.grid.scale.target)
        begin = torch.tensor(method.sharpness[0])
        self.sharpness = graph.add_constant(f"{name}_sharpness", begin, before=first)
        zero = self.offset
        if zero is None:
            fixed = graph.tensor(self.grid.quantizers[0].zero_point).float()
            zero = graph.add_constant(f"{name}_zero_point_learned", fixed, before=first)
        for quantizer, node in zip(self.grid.quantizers, self.nodes, strict=True):
            ends = (quantizer.low, quantizer.high, node.args[AXIS])
            how = (method.rounding, self.sharpness, method.scale == "clip", False)
            node.target = QUANTIZE_IN_TRAINING
            node.args = (node.args[0], node.args[SCALE], zero, *ends, *how)

    def step(self, progress: float) -> None:
        if self.scale is not None:
            self.scale.limit(self.graph, self.method.decay)
        if self.sharpness is not None:
            begin, end = self.method.sharpness
            if begin:
                self.graph.parameter(self.sharpness).fill_(begin * (end / begin) ** progress)

    def settle(self) -> None:
        """Leave plain quantizers that answer the same in eval mode."""
        if self.sharpness is not None:
            self._take_surrogates_away()
        for each in self.transforms:
            each.settle(self.graph)
        if self.scale is not None:
            self.scale.settle(self.graph)

    def _take_surrogates_away(self) -> None:
        graph, learned = self.graph, self.nodes[0].args[ZERO_POINT]
        assert isinstance(learned, Node)
        value = graph.tensor(learned).round().clamp(*self.grid.codes).int()
        zeros = {name: put_back(graph, name, value, before=min(self.nodes)) for name in dict.fromkeys(self.zero_points)}
        for node, name in zip(self.nodes, self.zero_points, strict=True):
            rounded = graph.tensor(node) if self.method.rounding == "toward_zero" else None
            source, scale, _, low, high, axis, *_ = node.args
            node.target = FAKE_QUANTIZE
            node.args = (source, scale, zeros[name], low, high, axis)
            for transform in self.transforms:
                if transform.quantizer is node and rounded is not None:  # the nearest code on the grid is its own
                    transform.settle(graph, rounded)
