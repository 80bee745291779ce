"""Weights that flip between two codes from step to step: held back, or held still.

A weight whose best value lies between two codes is pulled to the one and then to the other; with few bits per weight, and most in
depthwise layers, that never settles, and the running statistics of batch norms follow what just was.

    dampening   weight * sum (w^ - clip(w))^2            towards the middle of its step, more and more as the training goes on
    freezing    once f > threshold, w stays at the code it had most      f = m |flipped| + (1 - m) f, m = `momentum`

Paper: Nagel et al. 2022, "Overcoming Oscillations in Quantization-Aware Training", sections 4.1 and 4.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.formats import quantize
from graphopt.formats.protocol import broadcast
from graphopt.ir.calls import operand
from graphopt.ir.graph import Graph
from graphopt.ir.passes import Change
from graphopt.ir.quantizers import SCALE, UniformQuantizer, is_uniform
from graphopt.training.compression import Compression, Run
from graphopt.training.quantization.grids import grids
from graphopt.utils.errors import InputError


@dataclass
class _Weight:
    """A rounded weight: its quantizer, the parameter behind it, and what is remembered of its codes.

    Attributes:
        codes, direction: of the last step. frequency, mean: moving averages of flips and of codes. frozen: what stays.
    """

    graph: Graph
    node: Node
    codes: Tensor
    direction: Tensor
    frequency: Tensor
    mean: Tensor
    frozen: Tensor

    @classmethod
    def of(cls, graph: Graph, node: Node) -> _Weight:
        codes = _Weight.now(graph, node)
        zeros = torch.zeros_like(codes)
        return cls(graph, node, codes, zeros, zeros.clone(), codes.clone(), zeros.bool())

    @staticmethod
    def now(graph: Graph, node: Node) -> Tensor:
        quantizer = UniformQuantizer.of(node)
        assert quantizer is not None
        found = (graph.tensor(n) for n in (quantizer.value, quantizer.scale, quantizer.zero_point))
        return quantize(*found, quantizer.low, quantizer.high, quantizer.axis)

    @property
    def parameter(self) -> Tensor:
        return self.graph.parameter(operand(self.node))

    def ends(self) -> tuple[Tensor, Tensor, Tensor]:
        """The scale as it meets the weight, and the ends of the grid."""
        quantizer = UniformQuantizer.of(self.node)
        assert quantizer is not None
        scale, zero = (
            broadcast(self.graph.tensor(n), self.parameter, quantizer.axis) for n in (quantizer.scale, quantizer.zero_point)
        )
        return scale, (quantizer.low - zero) * scale, (quantizer.high - zero) * scale

    def observe(self, momentum: float) -> None:
        """Take in the codes of a step. A flip is a change in the other direction than the last one."""
        codes = self.now(self.graph, self.node)
        change = (codes - self.codes).sign()
        flipped = (change != 0) & (change == -self.direction)
        self.frequency.mul_(1 - momentum).add_(flipped, alpha=momentum)
        self.mean.mul_(1 - momentum).add_(codes, alpha=momentum)
        self.direction = torch.where(change != 0, change, self.direction)
        self.codes = codes

    @torch.no_grad()
    def freeze(self, threshold: float) -> None:
        """Let what flips more often than that stay from now on, and what stays be where it is."""
        self.frozen |= self.frequency > threshold
        quantizer = UniformQuantizer.of(self.node)
        assert quantizer is not None
        scale, _, _ = self.ends()
        zero = broadcast(self.graph.tensor(quantizer.zero_point), self.codes, quantizer.axis)
        place = (self.mean.round().clamp(quantizer.low, quantizer.high) - zero) * scale
        self.parameter.copy_(torch.where(self.frozen, place, self.parameter))


class _OnWeights(Compression):
    """What watches the rounded weights of a graph whose rounding goes straight through."""

    def __init__(self) -> None:
        self.weights: list[_Weight] = []

    def attach(self, graph: Graph) -> list[Change]:
        nodes = [quantizer.node for grid in _weight_grids(graph) for quantizer in grid]
        self.weights = [_Weight.of(graph, node) for node in nodes if graph.is_constant(node.args[0])]
        if not self.weights:
            raise InputError(
                "no weight is rounded straight through, so none oscillates; quantize first, and put this behind a "
                "QuantizationAware whose method is 'lsq' or 'ste'"
            )
        return []

    def finish(self, graph: Graph) -> list[Change]:
        self.weights = []
        return []


class DampenOscillations(_OnWeights):
    """A further loss that pulls weights to the middle of their step.

    Args:
        weight: of that loss at the end of the training; it rises from 0 as a cosine.

    Raises:
        InputError: a weight that is not over 0.
    """

    def __init__(self, weight: float = 1e-2) -> None:
        super().__init__()
        if not weight > 0:
            raise InputError(f"weight must be over 0, got {weight}")
        self.weight, self.share = weight, 0.0

    def step(self, progress: float) -> None:
        self.share = (1 - math.cos(math.pi * progress)) / 2

    def loss(self, run: Run) -> Tensor:
        parts = []
        for each in self.weights:
            _, low, high = each.ends()
            clipped = torch.minimum(torch.maximum(each.parameter, low), high)
            parts.append((each.graph.tensor(each.node) - clipped).square().sum())
        return self.weight * self.share * torch.stack(parts).sum()


class FreezeOscillations(_OnWeights):
    """Weights that flip too often stay at the code that they had most.

    Args:
        threshold: the share of steps with a flip above which a weight is frozen at the end of the training; it falls from
            `begin` to there as a cosine. momentum: of the moving averages.

    Raises:
        InputError: a threshold that is not between 0 and 1.
    """

    def __init__(self, threshold: float = 0.01, *, begin: float = 0.04, momentum: float = 0.01) -> None:
        super().__init__()
        for name, value in (("threshold", threshold), ("begin", begin), ("momentum", momentum)):
            if not 0 < value <= 1:
                raise InputError(f"{name} must be over 0 and at most 1, got {value}")
        self.threshold, self.begin, self.momentum = threshold, begin, momentum

    def step(self, progress: float) -> None:
        limit = self.threshold + (self.begin - self.threshold) * (1 + math.cos(math.pi * progress)) / 2
        for each in self.weights:
            each.observe(self.momentum)
            each.freeze(limit)

    @property
    def frozen(self) -> float:
        """The share of weights that stay."""
        counts = [(int(each.frozen.sum()), each.frozen.numel()) for each in self.weights]
        return sum(n for n, _ in counts) / max(1, sum(n for _, n in counts))

    def state_dict(self) -> dict[str, Any]:
        return {str(i): [w.codes, w.direction, w.frequency, w.mean, w.frozen] for i, w in enumerate(self.weights)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for number, found in state.items():
            weight = self.weights[int(number)]
            weight.codes, weight.direction, weight.frequency, weight.mean, weight.frozen = found


def _weight_grids(graph: Graph) -> list[list[UniformQuantizer]]:
    """Those of weights, whose scales may be learned: expressions of constants."""
    found = []
    for node in graph.calls():
        if is_uniform(node) and node.args[SCALE].op == "call_function" and any(_is_weight(user, node) for user in node.users):
            ...
    return found
