"""Scales that are learned: an expression of a parameter in the place of a constant.

    scale * 2^(share p)             p a parameter, 0 at first; share is one but for methods whose gradients are rare
    scale * 2^round(p)              where scales are powers of two

In the logarithm, one rate suits scales of any size, and none becomes negative: Adam's steps are absolute (Jain et al. 2020,
"Trained Quantization Thresholds", section 3.2). The gradient of the scale itself is that of Esser et al. 2020.

Scales of biases are expressions of these and follow them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.fx.node import Node

from graphopt.formats import FAKE_QUANTIZE
from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten
from graphopt.ir.scales import free_step, power_of_two
from graphopt.training.quantization.grids import Grid
from graphopt.training.quantization.parameters import parameter_of

REACH = 60  # powers of two that a scale moves at most


@dataclass
class LearnedScale:
    """The scale of a grid for as long as it is learned.

    Attributes:
        scale: the constant; changed: what stands in its place. parameter: p, of the scale's shape.
        share: see the head of this file.
        largest: share p stays below; a grid that clips for an activation ends no later than that does.
    """

    scale: Node
    changed: Node
    parameter: Node
    share: float
    largest: float

    def limit(self, graph: Graph, decay: float) -> None:
        """Keep the scale where it may be; before each step it loses a share of itself."""
        with torch.no_grad():
            ends = -REACH / self.share, self.largest / self.share
            graph.parameter(self.parameter).add_(math.log2(1 - decay) / self.share).clamp_(*ends)

    def settle(self, graph: Graph) -> None:
        """The constant is what was learned, and stands in its own place again."""
        value = graph.tensor(self.changed)
        self.changed.replace_all_uses_with(self.scale, propagate_meta=False)
        graph.put_constant(self.scale, value)


def learn(graph: Graph, grid: Grid, share: float = 1.0) -> LearnedScale | None:
    """None where a scale has to stay: one with a known range, or that others were computed from."""
    largest = largest_power(graph, grid)
    if largest is None:
        return None
    scale, name = grid.scale, str(grid.scale.target)
    readers = list(scale.users)
    value = graph.tensor(scale)
    before = min(readers)
    parameter = parameter_of(graph, f"{name}_power", torch.zeros_like(value), before=before)
    power = parameter
    if share != 1:
        power = graph.add_expression(f"{name}_share", aten.mul.Tensor, parameter, share, before=before)
    if power_of_two(value):
        one = graph.add_constant(f"{name}_one", torch.ones(()), before=before)
        zero = graph.add_constant(f"{name}_none", torch.zeros((), dtype=torch.int32), before=before)
        power = graph.add_expression(f"{name}_whole", FAKE_QUANTIZE, power, one, zero, -REACH, REACH, -1, before=before)
    factor = graph.add_expression(f"{name}_factor", aten.exp2.default, power, before=before)
    changed = graph.add_expression(f"{name}_learned", aten.mul.Tensor, scale, factor, before=before)
    for reader in readers:
        reader.replace_input_with(scale, changed)
    return LearnedScale(scale, changed, parameter, share, largest)


def largest_power(graph: Graph, grid: Grid, *, powers: bool = True) -> float | None:
    """How far p may rise; None where the scale has to stay, as a power of two has unless `powers`."""
    if grid.of_weights:
        return REACH
    value, limit = graph.tensor(grid.scale), float(REACH)
    if value.dim():
        return None
    for quantizer in grid.quantizers:
        step = free_step(graph, quantizer.node, powers=powers)
        if step is None:
            return None
        if step < math.inf:
            limit = min(limit, math.log2(step / float(value)))
    return max(limit, 0.0)
