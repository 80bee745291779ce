"""Mean and variance of every value of a graph, from batch norms alone: no data.

Batch norm says how its channels are distributed over the training data: mean beta, deviation |g|. Taken to be normal, that is
pushed through what follows:

    clip to [a, b]       mean and variance of the clipped normal; u = (a - mean) / d, v = (b - mean) / d, phi and Phi the
    (relu, relu6, ...)   density and distribution of N(0, 1), P = Phi(v) - Phi(u):
                             E  = mean P + d (phi(u) - phi(v)) + a Phi(u) + b (1 - Phi(v))
                             E2 = (mean^2 + d^2) P + d ((mean + a) phi(u) - (mean + b) phi(v)) + a^2 Phi(u) + b^2 (1 - Phi(v))
    other activations    f and f^2, and products x f(x), integrated numerically over the normal
    sums, products       as of independent values; constants have variance 0
    average pools        the pool of the means; neighbours are alike, so variances are averaged, too
    max pools            between equal and independent neighbours: mean + d c_k / 2, c_k = E[max of k values of N(0, 1)]
    moves, pads, joins   the operator itself, run on the means and on the variances
    quantizers           change nothing

Means are kept for every position, so that borders of zeros count as what they are. What is not followed is unknown, with the
reason. The rules by operator are in `distribution_rules.py`.

Paper: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2.1, appendix C.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch.fx.node import Node

from graphopt.ir import cost
from graphopt.ir.facts import MOMENTS, Moments
from graphopt.ir.graph import Graph
from graphopt.ir.layer import BatchNorm, Layer


class Distribution(NamedTuple):
    """Mean and variance of every element of a value: of its shape with one sample (or a list of such), float64."""

    mean: Any
    variance: Any


class Unknown(Exception):
    """Why nothing is known of a value."""


@dataclass
class Distributions:
    """What is known of the values of a graph.

    Attributes:
        known: the distributions.
        unknown: the reasons of all others.
    """

    known: dict[Node, Distribution] = field(default_factory=dict)
    unknown: dict[Node, str] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: Graph) -> Distributions:
        """Follow the batch norms of a graph, folded or not."""
        found = cls()
        for node in graph.nodes:
            if node.op == "output":
                continue
            try:
                found.known[node] = found._visit(graph, node)
            except Unknown as reason:
                found.unknown[node] = str(reason)
        return found

    @staticmethod
    def _rule(node: Node) -> Callable[[Distributions, Graph, Node], Distribution]:
        from graphopt.analysis.distribution_rules import rule

        return rule(node)

    def _visit(self, graph: Graph, node: Node) -> Distribution:
        if node.op == "get_attr":
            constant = graph.tensor(node)
            return Distribution(constant.double(), torch.zeros((), dtype=torch.float64).expand(constant.shape))
        if (told := known_moments(graph, node)) is not None:
            return _spread(node, *told)
        if node.op == "placeholder":
            name = dict(zip(graph.inputs, graph.input_names, strict=True)).get(node, node.name)
            raise Unknown(f"no batch norm says what the input {name!r} is like")
        for source in node.all_input_nodes:
            if source in self.unknown:
                raise Unknown(self.unknown[source])
        return self._rule(node)(self, graph, node)

    # ---- For rules ----------------------------------------------------------------------------------------------------

    def mean(self, node: Node) -> Any:
        return self.known[node].mean

    def variance(self, node: Node) -> Any:
        return self.known[node].variance

    def operand(self, argument: Any) -> Distribution:
        """What is known of an argument; a number does not vary."""
        if isinstance(argument, Node):
            return self.known[argument]
        number = torch.tensor(float(argument), dtype=torch.float64)
        return Distribution(number, torch.zeros_like(number))

    def run(self, node: Node, read: Callable[[Node], Any]) -> Any:
        """The call itself, on other values than the graph's."""
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), read)
        found = node.target(*args, **kwargs)  # type: ignore[operator]
        if not pytree.tree_all(lambda leaf: isinstance(leaf, Tensor) and leaf.is_floating_point(), found):
            raise Unknown(f"{node.name} is no floating-point value")
        return found


def norm_moments(graph: Graph, norm: BatchNorm) -> Moments:
    """Mean and deviation of a batch norm's output on its training data, float32 [channels].

    beta and |g| sqrt(var / (var + eps)): a channel whose input never moved does not move behind the norm either.
    """
    weight, bias = (graph.tensor(a).double() if a is not None else None for a in (norm.weight, norm.bias))
    var = graph.tensor(norm.var).double()
    mean = bias if bias is not None else torch.zeros_like(var)
    deviation = (var.clamp(min=0) / (var.clamp(min=0) + norm.eps)).sqrt()
    deviation = deviation * weight.abs() if weight is not None else deviation
    return Moments(mean.float(), deviation.float())


def known_moments(graph: Graph, node: Node) -> tuple[Tensor, Tensor] | None:
    """Mean and deviation of each channel of a call, where a batch norm (it, or one folded into it) tells them: float64."""
    norm = BatchNorm.of(node)
    told = norm_moments(graph, norm) if norm is not None else graph.fact(node, MOMENTS)
    if told is None:
        return None
    mean, deviation = (m.double() for m in told)
    fits = len(mean) == cost.length(node, _channel_dim(node))  # channels may have been removed since
    return (mean, deviation) if fits else None


def _channel_dim(node: Node) -> int:
    layer = Layer.of(node)
    return layer.channel_dim if layer is not None else 1


def _spread(node: Node, mean: Tensor, deviation: Tensor) -> Distribution:
    """Per-channel moments at every position."""
    dim, dims = _channel_dim(node), node.meta["val"].dim()
    sizes = [cost.length(node, d) for d in range(dims)]
    broadcast = [-1 if d == dim else 1 for d in range(dims)]
    return Distribution(*(m.reshape(broadcast).expand(sizes) for m in (mean, deviation**2)))
