"""Rounding of a region's weights, its biases and its steps, learned together by gradients through the activations.

    minimize    E | f(x^) - y |^2  +  lambda sum (1 - |2 h - 1|^beta)         x^: the region's input in the quantized network
                                                                               y:  its output in the float network
`f` is the region with soft rounding (`soft.py`); values inside it go through their quantizers, whose steps have the gradient of
learned step sizes (`graphopt.formats`). With `importance`, the squared gradient of the network's loss by y, errors count by it:
E sum (dL/dy)^2 (f - y)^2, the diagonal of the Fisher information.

Papers: Nagel et al. 2020, sections 3.3 and 3.4 (asymmetric, with the activation behind); Li et al. 2021, section 3.3 (Fisher);
        Esser et al. 2020 (steps).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.fitting.fit import Found, Parametrization
from graphopt.fitting.gradient import Learnable, Search, descend
from graphopt.fitting.region import Region
from graphopt.fitting.samples import Samples
from graphopt.formats import FAKE_QUANTIZE
from graphopt.ir.calls import operand
from graphopt.ir.graph import Graph
from graphopt.ir.quantizers import SCALE, is_scale_expression
from graphopt.ir.scales import free_step
from graphopt.passes.rounding.free import FreeWeight
from graphopt.passes.rounding.soft import BLUNT, SHARP, SoftWeight
from graphopt.passes.rounding.weights import Rounded

FAR = 1e3  # from here on a channel is far smaller than another
SLOW = 1 / 20  # the pace of scales and steps, and of biases for their size


@dataclass(eq=False, kw_only=True)
class RelaxedRounding(Parametrization):
    """Codes, scales and biases of all rounded layers of a region, and the steps of the values inside it.

    Attributes:
        layers: the rounded ones.
        aims: of each the weight that is to be rounded, [g, out, d].
        way: how whole numbers are relaxed.
        scales: whether scales of weights and steps of values are learned, too.
        warmup: the share of the iterations before soft roundings are driven to their ends.
        regularizer: how strongly.
    """

    layers: Sequence[Rounded]
    aims: Sequence[Tensor]
    way: type[SoftWeight] | type[FreeWeight]
    scales: bool
    search: Search
    warmup: float
    regularizer: float

    def solve(self, graph: Graph, samples: Samples) -> Iterator[Found]:
        learned = _Rounding(graph, self)
        descend(graph, self.region, samples, learned, self.search)
        yield learned.found()

    def constants(self, graph: Graph, found: Found) -> Mapping[Node, Any]:
        values: dict[Node, Any] = dict(self._steps(graph, found))
        for rounded, (codes, scale, bias) in zip(self.layers, found["layers"], strict=True):
            values[rounded.quantizer] = rounded.settled(graph, codes, scale)[0]
            if bias is not None and rounded.bias is not None:
                values[rounded.bias[0]] = bias
        return values

    def store(self, graph: Graph, found: Found) -> None:
        for constant, value in self._steps(graph, found).items():
            graph.put_constant(constant, value)
        for rounded, parts in zip(self.layers, found["layers"], strict=True):
            rounded.store(graph, *parts)

    def _steps(self, graph: Graph, found: Found) -> dict[Node, Tensor]:
        constants = {str(node.target): node for node in graph.nodes if node.op == "get_attr"} if found["steps"] else {}
        return {constants[name]: value for name, value in found["steps"].items()}


class _Rounding(Learnable):
    """What is learned of a region."""

    def __init__(self, graph: Graph, task: RelaxedRounding) -> None:
        self.graph, self.task = graph, task
        self.weights = [self._relaxed(*pair) for pair in zip(task.layers, task.aims, strict=True)]
        self.biases: dict[Node, Tensor] = {}  # call that computes a layer's bias -> the bias being learned
        self._begun: dict[Node, tuple[Tensor, Tensor]] = {}  # what it was, and the pace of each channel
        for rounded in task.layers:
            if rounded.bias is not None and rounded.bias[0] is rounded.layer.bias:
                bias = graph.tensor(rounded.bias[1])
                self.biases[rounded.bias[0]] = bias.clone().requires_grad_()
                self._begun[rounded.bias[0]] = bias, _pace(rounded.layer.canonical(rounded.weight(graph)), bias)
        self.steps = _free_steps(graph, task.region) if task.scales else {}

    def _relaxed(self, rounded: Rounded, aim: Tensor) -> SoftWeight | FreeWeight:
        """Begins between the weight that is to be rounded and the codes found for it."""
        lattice = rounded.lattice(self.graph)
        codes = lattice.codes(rounded.grouped(rounded.weight(self.graph)).double())
        scales = self.task.scales and not rounded.scales_fixed(self.graph)
        return self.task.way.around(aim.double(), lattice, codes, scales=scales)

    def step(self, constant: Node, share: float) -> Tensor:
        """The scale of a value as it is now.

        Its gradient is normalised by the root of the number of elements (LSQ): parts of a batch, each larger by the root of their
        share, would add up to more than the batch.
        """
        value, growth, limit = self.steps[constant]
        now = growth.detach()
        return (value * (now + (growth - now) * math.sqrt(share)).exp()).clamp(max=limit)

    def bias(self, call: Node) -> Tensor:
        """A bias as it is now."""
        (begun, pace), now = self._begun[call], self.biases[call]
        return torch.where(pace < 1, begun + pace * (now - begun), now)

    def values(self, share: float) -> Mapping[Node, Any]:
        found: dict[Node, Any] = {call: self.bias(call) for call in self.biases}
        for rounded, weight in zip(self.task.layers, self.weights, strict=True):
            found[rounded.quantizer] = rounded.native(weight.weight(), rounded.weight(self.graph))
        return found | {constant: self.step(constant, share) for constant in self.steps}

    def parameters(self) -> list[tuple[Tensor, float]]:
        scales = [weight.growth for weight in self.weights if weight.growth is not None]
        scales += [growth for _, growth, _ in self.steps.values()]
        sizes = [float(bias.detach().square().mean().sqrt().clamp(min=1e-3)) for bias in self.biases.values()]
        return [
            *((weight.v, 1.0) for weight in self.weights),
            *((scale, SLOW) for scale in scales),
            *((bias, SLOW * size) for bias, size in zip(self.biases.values(), sizes, strict=True)),
        ]

    def penalty(self, done: float) -> Tensor | None:
        warmup = self.task.warmup
        if done < warmup:
            return None
        beta = BLUNT + (SHARP - BLUNT) * (1 - done) / (1 - warmup)
        parts = [weight.penalty(beta) / weight.v.numel() for weight in self.weights]
        wanted = [part for part in parts if part.requires_grad]
        return self.task.regularizer * torch.stack(wanted).sum() if wanted else None

    def found(self) -> Found:
        """Codes, scales, biases and steps as they are now."""
        layers = []
        for rounded, weight in zip(self.task.layers, self.weights, strict=True):
            codes, lattice = weight.harden()
            bias = None if rounded.layer.bias not in self.biases else self.bias(rounded.layer.bias).detach()
            layers.append((codes, lattice.scale, bias))
        return {"layers": layers, "steps": {str(c.target): self.step(c, 1.0).detach() for c in self.steps}}


def _pace(weight: Tensor, bias: Tensor) -> Tensor:
    """Of each channel's bias, from its weight, [out, ...].

    Adam moves all alike, and would carry one away whose channel is far smaller than the others.
    """
    reach = torch.maximum(weight.flatten(1).abs().amax(1), bias.abs())
    return (FAR * reach / reach.max().clamp(min=1e-30)).clamp(max=1.0)


def _free_steps(graph: Graph, region: Region) -> dict[Node, tuple[Tensor, Tensor, float]]:
    """The scales of values that only the region reads: the constant -> its value, the logarithm of its growth, and its limit."""
    found = {}
    for node in region.nodes:
        if node.target is FAKE_QUANTIZE and (limit := free_step(graph, node)) is not None:
            constant = operand(node, SCALE)
            if all(user in region.nodes or is_scale_expression(user) for user in constant.users):
                value = graph.tensor(constant)
                found[constant] = value, torch.zeros(()).requires_grad_(), max(limit, float(value))
    return found
