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

Means lie at every position, so that borders of zeros count as what they are. What is not followed is unknown, with the reason.

Paper: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2.1, appendix C.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch.fx.node import Node

from graphopt.execution.reference import unquantized
from graphopt.ir import cost
from graphopt.ir.facts import MOMENTS, Moments
from graphopt.ir.graph import Graph
from graphopt.ir.layer import BatchNorm, Layer, Pool
from graphopt.ir.ops import argument, clip_of, family, info, operand
from graphopt.ir.quantizers import is_quantizer

POINTS = torch.linspace(-6, 6, 241, dtype=torch.float64)  # of N(0, 1), for numerical integrals
WEIGHTS = torch.exp(-(POINTS**2) / 2) / torch.exp(-(POINTS**2) / 2).sum()


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
        """Follow the batch norms of a graph, folded (`meta["moments"]`) or not."""
        found = cls()
        for node in graph.nodes:
            if node.op == "output":
                continue
            try:
                found.known[node] = found._visit(graph, node)
            except Unknown as reason:
                found.unknown[node] = str(reason)
        return found

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
        kind, known = family(node), info(node)
        if is_quantizer(node):
            return self._of(node.args[0])
        if known.fusable:
            return self._clip(graph, node)
        if known.pointwise:
            return self._integrate(node, lambda x: self._run(node, lambda n: x if n is node.args[0] else self._mean(n)))
        if kind == "mul" and (inner := _gated(node)) is not None:
            return self._integrate(
                inner, lambda x: x * self._run(inner, lambda n: x if n is inner.args[0] else self._mean(n))
            )
        if kind in ("add", "sub"):
            one, other = (self._operand(a) for a in node.args[:2])
            mean = self._run(node, self._mean)
            both = one.variance + other.variance
            return Distribution(mean, 4 * one.variance if kind == "add" and node.args[0] is node.args[1] else both)
        if kind == "mul" and node.args[0] is not node.args[1]:
            (a, s), (b, t) = (self._operand(argument) for argument in node.args[:2])
            return Distribution(a * b, s * t + s * b**2 + t * a**2)
        if kind == "div" and not self._is_random(node.args[1]):
            (a, s), (b, _) = (self._operand(argument) for argument in node.args[:2])
            return Distribution(a / b, s / b**2)
        if kind == "max_pool":
            return self._max_pool(node)
        if known.moves or known.averages or kind in ("pad", "concat", "stack"):
            return Distribution(self._run(node, self._mean), self._run(node, lambda n: self._of(n).variance))
        what = str(getattr(node.target, "__name__", node.target)).split(".")[0]
        raise Unknown(f"no batch norm behind {what} at {graph.site(node)!r}")

    # ---- Operands ---------------------------------------------------------------------------------------------------

    def _of(self, node: Any) -> Distribution:
        return self.known[node]

    def _mean(self, node: Node) -> Any:
        return self.known[node].mean

    def _operand(self, argument: Any) -> Distribution:
        if isinstance(argument, Node):
            return self.known[argument]
        number = torch.tensor(float(argument), dtype=torch.float64)
        return Distribution(number, torch.zeros_like(number))

    def _is_random(self, argument: Any) -> bool:
        return bool((self._operand(argument).variance != 0).any())

    def _run(self, node: Node, read: Callable[[Node], Any]) -> Any:
        """The call itself, on other values than the graph's."""
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), read)
        found = node.target(*args, **kwargs)  # type: ignore[operator]
        if not pytree.tree_all(lambda leaf: isinstance(leaf, Tensor) and leaf.is_floating_point(), found):
            raise Unknown(f"{node.name} is no floating-point value")
        return found

    # ---- Operators --------------------------------------------------------------------------------------------------

    def _clip(self, graph: Graph, node: Node) -> Distribution:
        """A clip of a clip is one clip of the normal in front of both."""
        low: Any = torch.tensor(-torch.inf, dtype=torch.float64)
        high: Any = -low
        chain = [node]
        while info(source := unquantized(operand(chain[-1]))).fusable:
            chain.append(source)
        for clip in reversed(chain):
            ends = _ends(graph, clip)
            low, high = (torch.minimum(torch.maximum(end, ends[0]), ends[1]) for end in (low, high))
        base = self._of(source)
        return Distribution(*_elementwise(clipped_normal, base.mean, base.variance.sqrt(), low, high))

    def _integrate(self, node: Node, function: Callable[[Tensor], Tensor]) -> Distribution:
        """E[f] and Var[f] of an elementwise f of the normal value that `node` reads."""
        base = self._of(node.args[0])
        deviation = base.variance.sqrt()
        mean, square = torch.zeros_like(base.mean), torch.zeros_like(base.mean)
        for point, weight in zip(POINTS.tolist(), WEIGHTS.tolist(), strict=True):
            found = function(base.mean + point * deviation)
            mean, square = mean + weight * found, square + weight * found**2
        return Distribution(mean, (square - mean**2).clamp(min=0))

    def _max_pool(self, node: Node) -> Distribution:
        pool = Pool.of(node)
        assert pool is not None
        base = self._of(pool.input)
        mean = base.mean + base.variance.sqrt() * expected_maximum(math.prod(pool.kernel)) / 2
        return Distribution(self._run(node, lambda _: mean), self._run(node, lambda _: base.variance))


def clipped_normal(mean: Tensor, deviation: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of min(max(x, low), high), x normal; ends may be infinite. Shapes broadcast; float64."""
    mean, deviation, low, high = torch.broadcast_tensors(mean, deviation, low, high)  # type: ignore[no-untyped-call]
    # measured from the mean in deviations: no cancellation for narrow channels far from zero
    spread = deviation.clamp(min=1e-30)
    u, v = ((end - mean) / spread for end in (low, high))
    below, above = torch.special.ndtr(u), torch.special.ndtr(-v)
    inside = (1 - below - above).clamp(min=0)
    density = [torch.exp(-(end**2) / 2) / math.sqrt(2 * math.pi) for end in (u, v)]
    (left, right), (du, dv) = ((torch.where(t.isinf(), 0.0, t) for t in (u, v)), density)
    first = du - dv + left * below + right * above
    second = inside + left * du - right * dv + left**2 * below + right**2 * above
    certain = deviation <= 1e-30
    expected = torch.where(certain, torch.minimum(torch.maximum(mean, low), high), mean + spread * first)
    variance = torch.where(certain, 0.0, (spread**2 * (second - first**2)).clamp(min=0))
    return expected, variance


def expected_maximum(count: int) -> float:
    """E[the largest of so many independent values of N(0, 1)]."""
    at = torch.linspace(-10, 10, 4001, dtype=torch.float64)
    below = torch.special.ndtr(at) ** count
    return float((at[1:] + at[:-1]).div(2) @ below.diff())


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


def _elementwise(function: Callable[..., tuple[Tensor, ...]], *values: Tensor) -> list[Tensor]:
    """An elementwise function, computed once along dimensions in which nothing changes."""
    values = torch.broadcast_tensors(*values)  # type: ignore[no-untyped-call]
    shape = values[0].shape
    alike = [d for d in range(len(shape)) if all(v.stride(d) == 0 for v in values)]
    for d in alike:
        values = tuple(v.narrow(d, 0, 1) for v in values)
    return [found.expand(shape) for found in function(*values)]


def _gated(node: Node) -> Node | None:
    """The activation f of a product x f(x)."""
    one, other = (unquantized(a) if isinstance(a, Node) else None for a in node.args[:2])
    for x, gate in ((one, other), (other, one)):
        if gate is not None and info(gate).pointwise and not info(gate).fusable and unquantized(operand(gate)) is x:
            return gate
    return None


def _ends(graph: Graph, clip: Node) -> tuple[Tensor, Tensor]:
    if (ends := clip_of(clip)) is not None:
        return torch.tensor(ends[0], dtype=torch.float64), torch.tensor(ends[1], dtype=torch.float64)
    low, high = (argument(clip, name) for name in ("min", "max"))  # constants, an end per channel
    infinity = torch.tensor(torch.inf, dtype=torch.float64)
    return (
        -infinity if low is None else graph.tensor(low).double(),
        infinity if high is None else graph.tensor(high).double(),
    )
