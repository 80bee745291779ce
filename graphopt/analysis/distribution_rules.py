"""What each operator makes of the distributions it reads: the rules of `Distributions`, by family.

A rule takes the distributions known so far, the graph and the call, and returns that of the result; `Unknown` says why there is
none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.distributions import Distribution, Distributions, Unknown
from graphopt.analysis.normals import clipped_normal, expected_maximum, moments_of, once_where_equal
from graphopt.execution.reference import unquantized
from graphopt.ir.binary import Binary
from graphopt.ir.calls import argument, operand
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Pool
from graphopt.ir.ops import clip_of, info
from graphopt.ir.quantizers import is_quantizer
from graphopt.ir.rules import Rules

Rule = Callable[[Distributions, Graph, Node], Distribution]
RULES: Rules[Rule] = Rules("distribution")
"""Where traits do not say enough."""


def rule(node: Node) -> Rule:
    """The rule of a call."""
    if (own := RULES.find(node)) is not None:
        return own
    traits = info(node)
    if is_quantizer(node):
        return same
    if traits.fusable:
        return clip
    if traits.pointwise:
        return function
    return linear if traits.moves or traits.averages else unknown


def unknown(known: Distributions, graph: Graph, node: Node) -> Distribution:
    what = str(getattr(node.target, "__name__", node.target)).split(".")[0]
    raise Unknown(f"no batch norm behind {what} at {graph.site(node)!r}")


def same(known: Distributions, graph: Graph, node: Node) -> Distribution:
    return known.known[operand(node)]


@RULES.of("pad", "concat", "stack")
def linear(known: Distributions, graph: Graph, node: Node) -> Distribution:
    """The operator itself, on the means and on the variances."""
    return Distribution(known.run(node, known.mean), known.run(node, known.variance))


def clip(known: Distributions, graph: Graph, node: Node) -> Distribution:
    """A clip of a clip is one clip of the normal in front of both."""
    low: Any = torch.tensor(-torch.inf, dtype=torch.float64)
    high: Any = -low
    chain = [node]
    while info(source := unquantized(operand(chain[-1]))).fusable:
        chain.append(source)
    for each in reversed(chain):
        ends = _ends(graph, each)
        low, high = (torch.minimum(torch.maximum(end, ends[0]), ends[1]) for end in (low, high))
    base = known.known[source]
    return Distribution(*once_where_equal(clipped_normal, base.mean, base.variance.sqrt(), low, high))


def function(known: Distributions, graph: Graph, node: Node) -> Distribution:
    """Any function of each element."""
    base = known.known[operand(node)]
    return Distribution(*moments_of(_applied(known, node), base.mean, base.variance.sqrt()))


@RULES.of("add", "sub")
def add(known: Distributions, graph: Graph, node: Node) -> Distribution:
    """Operands are independent, but for a value added to itself or taken from itself."""
    total = _binary(node)
    one, other = map(known.operand, total.operands)
    variance = one.variance + other.variance
    if total.is_of_one_value:
        variance = 4 * one.variance if total.kind == "add" else torch.zeros_like(one.variance)
    return Distribution(known.run(node, known.mean), variance)


@RULES.of("mul")
def multiply(known: Distributions, graph: Graph, node: Node) -> Distribution:
    """Operands are independent, but for an activation's result times its input."""
    product = _binary(node)
    if (gate := _gate(product)) is not None:
        base, applied = known.known[operand(gate)], _applied(known, gate)
        return Distribution(*moments_of(lambda x: x * applied(x), base.mean, base.variance.sqrt()))
    if product.is_of_one_value:
        return unknown(known, graph, node)
    (a, s), (b, t) = map(known.operand, product.operands)
    return Distribution(a * b, s * t + s * b**2 + t * a**2)


@RULES.of("div")
def divide(known: Distributions, graph: Graph, node: Node) -> Distribution:
    """By constants only."""
    (a, s), (b, t) = map(known.operand, _binary(node).operands)
    return Distribution(a / b, s / b**2) if not (t != 0).any() else unknown(known, graph, node)


@RULES.of("max_pool")
def max_pool(known: Distributions, graph: Graph, node: Node) -> Distribution:
    """Half way between equal and independent neighbours."""
    pool = Pool.of(node)
    assert pool is not None
    base = known.known[pool.input]
    mean = base.mean + base.variance.sqrt() * expected_maximum(math.prod(pool.kernel)) / 2
    return Distribution(known.run(node, lambda _: mean), known.run(node, lambda _: base.variance))


def _applied(known: Distributions, node: Node) -> Callable[[Tensor], Tensor]:
    """The function that a call applies to its first argument."""
    return lambda x: known.run(node, lambda n: x if n is node.args[0] else known.mean(n))


def _binary(node: Node) -> Binary:
    found = Binary.of(node)
    assert found is not None
    return found


def _gate(product: Binary) -> Node | None:
    """The activation f of a product x f(x)."""
    one, other = (unquantized(a) if isinstance(a, Node) else None for a in product.operands)
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
