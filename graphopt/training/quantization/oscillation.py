"""Weights that flip between two codes from step to step: held back, or held still.

A weight whose best value lies between two codes is pulled to the one and then to the other; with few bits per weight, and most in
depthwise layers, that never settles, and the running statistics of batch norms follow what just was.

    dampening   weight * sum (w^ - clip(w))^2            towards the middle of its step, more and more as the training goes on
    freezing    once f > threshold, w stays at the code it had most      f = m |flipped| + (1 - m) f, m = `momentum`

Paper: Nagel et al. 2022, "Overcoming Oscillations in Quantization-Aware Training", sections 4.1 and 4.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx.node import Node

from graphopt.formats import quantize
from graphopt.formats.protocol import broadcast
from graphopt.ir.graph import Graph
from graphopt.ir.passes import Change
from graphopt.ir.quantizers import UniformQuantizer
from graphopt.training.compression import Compression, Run
from graphopt.training.quantization.grids import rounded_weights
from graphopt.utils.errors import InputError


class Memory(nn.Module):
    """What is remembered of the codes of a rounded weight; kept in checkpoints.

    Attributes:
        codes, direction: of the last step and change. frequency, mean: moving averages of flips and of codes. frozen: what stays.
        progress: of the training, at the last step.
    """

    codes: Tensor
    progress: Tensor
    direction: Tensor
    frequency: Tensor
    mean: Tensor
    frozen: Tensor

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        for name in ("direction", "frequency"):
            self.register_buffer(name, torch.zeros_like(codes))
        self.register_buffer("codes", codes)
        self.register_buffer("mean", codes.clone())
        self.register_buffer("progress", torch.full((), -1.0, dtype=torch.float64))
        self.register_buffer("frozen", torch.zeros_like(codes, dtype=torch.bool))

    def observe(self, codes: Tensor, momentum: float) -> None:
        """Take in the codes of a step. A flip is a change in the other direction than the last one."""
        change = (codes - self.codes).sign()
        flipped = (change != 0) & (change == -self.direction)
        self.frequency.lerp_(flipped.to(self.frequency), momentum)
        self.mean.lerp_(codes, momentum)
        self.direction.copy_(torch.where(change != 0, change, self.direction))
        self.codes.copy_(codes)


@dataclass
class Weight:
    """A rounded weight as it is now: the parameter, its codes, and its grid as it meets the weight."""

    parameter: Tensor
    codes: Tensor
    scale: Tensor
    zero: Tensor
    low: int
    high: int

    @classmethod
    def of(cls, graph: Graph, node: Node) -> Weight:
        quantizer = UniformQuantizer.of(node)
        assert quantizer is not None
        value, axis = graph.parameter(quantizer.value), quantizer.axis
        scale, zero = graph.tensor(quantizer.scale), graph.tensor(quantizer.zero_point)
        codes = quantize(value.detach(), scale, zero, quantizer.low, quantizer.high, axis)
        return cls(
            value, codes, broadcast(scale, value, axis), broadcast(zero, value, axis), quantizer.low, quantizer.high
        )

    def distance(self) -> Tensor:
        """The squared distance of what the grid reaches from the middle of its step."""
        ends = ((code - self.zero) * self.scale for code in (self.low, self.high))
        low, high = ends
        clipped = torch.minimum(torch.maximum(self.parameter, low), high)
        return ((self.codes - self.zero) * self.scale - clipped).square().sum()

    @torch.no_grad()
    def hold(self, frozen: Tensor, mean: Tensor) -> None:
        """Let what is frozen be at its mean code."""
        place = (mean.round().clamp(self.low, self.high) - self.zero) * self.scale
        self.parameter.copy_(torch.where(frozen, place, self.parameter))


class _OnWeights(Compression):
    """What watches the rounded weights of a graph."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def attach(self, graph: Graph) -> list[Change]:
        self.graph, self.nodes = graph, [quantizer.node for quantizer in rounded_weights(graph)]
        if not self.nodes:
            raise InputError(
                "no weight is rounded straight through, so none oscillates; quantize first, and put this behind a "
                "QuantizationAware whose method is 'lsq' or 'ste'"
            )
        return []

    def weights(self) -> list[Weight]:
        return [Weight.of(self.graph, node) for node in self.nodes]


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
        return self.weight * self.share * torch.stack([each.distance() for each in self.weights()]).sum()


class FreezeOscillations(_OnWeights):
    """Weights that flip too often stay at the code that they had most.

    Args:
        threshold: the share of steps with a flip above which a weight is frozen at the end of the training.
        begin: that at the beginning; it falls as a cosine. momentum: of the moving averages.

    Raises:
        InputError: a share that is not over 0 and at most 1.
    """

    def __init__(self, threshold: float = 0.01, *, begin: float = 0.04, momentum: float = 0.01) -> None:
        super().__init__()
        for name, value in (("threshold", threshold), ("begin", begin), ("momentum", momentum)):
            if not 0 < value <= 1:
                raise InputError(f"{name} must be over 0 and at most 1, got {value}")
        self.threshold, self.begin, self.momentum = threshold, begin, momentum
        self.memories: list[Memory] = []

    def attach(self, graph: Graph) -> list[Change]:
        super().attach(graph)
        self.memories = [Memory(weight.codes) for weight in self.weights()]
        return []

    def helpers(self) -> Sequence[nn.Module]:
        return self.memories

    def step(self, progress: float) -> None:
        limit = self.threshold + (self.begin - self.threshold) * (1 + math.cos(math.pi * progress)) / 2
        for weight, memory in zip(self.weights(), self.memories, strict=True):
            if float(memory.progress) != progress:  # a step that was interrupted is begun again
                memory.observe(weight.codes, self.momentum)
                memory.progress.fill_(progress)
            memory.frozen |= memory.frequency > limit
            weight.hold(memory.frozen, memory.mean)

    @property
    def frozen(self) -> float:
        """The share of weights that stay."""
        counts = [(int(memory.frozen.sum()), memory.frozen.numel()) for memory in self.memories]
        return sum(n for n, _ in counts) / max(1, sum(n for _, n in counts))
