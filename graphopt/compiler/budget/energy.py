"""The energy of a call by the table that a target carries (`graphopt.targets.energy`): a model, not a measurement.

    energy = sum over layers of  n e_mac(format) + (read + written) e_near(bits of values) + weights e_far(bits of the weights)

n: multiply-accumulates; every value a layer reads or writes passes the memory near the arithmetic once, every weight is fetched
from outside once a call. What is no layer is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.fx.node import Node

from graphopt.compiler.budget.costs import Costs
from graphopt.ir import cost as measure
from graphopt.ir.calls import value
from graphopt.ir.graph import Graph
from graphopt.searching import Assignment, Term
from graphopt.targets import Target
from graphopt.targets.energy import Energy

FLOAT_BITS = 32


@dataclass(frozen=True)
class Precision:
    """The bits that a layer's weights and values have, and whether they are floats."""

    weights: float
    values: float
    floating: bool

    @classmethod
    def of(cls, target: Target, weights: float | None = None) -> Precision:
        """In the integers of a target, its weights perhaps in other bits; 32 bits are floats."""
        if weights == FLOAT_BITS:
            return FLOAT
        own, values = target.formats.weights.bits, target.formats.activations.bits
        return cls(own if weights is None else weights, values, not hasattr(target.formats.activations, "signed"))


FLOAT = Precision(FLOAT_BITS, FLOAT_BITS, True)


def energy(graph: Graph, table: Energy, precision: Callable[[str], Precision]) -> float:
    """Picojoules of a call, of one sample; `precision`: of a layer by its name."""
    found = 0.0
    for node in graph.calls():
        if measure.products(node):
            each = _Each(table, precision(graph.site(node)))
            work = sum(math.prod(measure.length(*dim) for dim in p) for p in measure.products(node))
            values, weights = _operands(graph, node)
            found += work * each.multiply_add + sum(map(_elements, values)) * each.value
            found += sum(map(_elements, weights)) * each.weight
    return found


def energy_terms(costs: Costs, table: Energy, target: Target) -> list[Term]:
    """The same over choices."""
    graph, length, own = costs.graph, costs.lengths, Precision.of(target)
    first, found = _Each(table, own), []

    def times(kind: str) -> Callable[[int, int, Assignment], float]:
        def factor(number: int, option: int, _: Assignment) -> float:
            other = _Each(table, Precision.of(target, costs.formats.bits(number, option)))
            return float(getattr(other, kind) / getattr(first, kind))

        return factor

    for node in graph.calls():
        products = measure.products(node)
        for factors in products:
            lengths = [length(*factor) for factor in factors]
            found.append(costs.product(node, lengths, first.multiply_add, costs.macs_left, times("multiply_add")))
        values, weights = _operands(graph, node) if products else ([], [])
        for kind, nodes, left in (("value", values, None), ("weight", weights, costs.parameters_left)):
            for each in nodes:
                lengths = [length(each, d) for d in range(value(each).dim())]
                found.append(costs.product(node, lengths, getattr(first, kind), left, times(kind)))
    return found


@dataclass(frozen=True)
class _Each:
    """Picojoules of a layer's multiply-accumulates, values and weights, each."""

    table: Energy
    precision: Precision

    @property
    def multiply_add(self) -> float:
        bits = max(self.precision.weights, self.precision.values)
        return self.table.multiply_add(math.ceil(bits), floating=self.precision.floating)

    @property
    def value(self) -> float:
        return self.table.near(self.precision.values)

    @property
    def weight(self) -> float:
        return self.table.far(self.precision.weights)


def _operands(graph: Graph, node: Node) -> tuple[list[Node], list[Node]]:
    """What a layer reads and writes, and its weights; vectors, such as biases, are left out."""
    read = [source for source in node.all_input_nodes if isinstance(source.meta.get("val"), Tensor)]
    constants = [n for n in node.all_input_nodes if graph.is_constant(n) and value(n).dim() > 1]
    return [n for n in read if not graph.is_constant(n)] + [node], constants


def _elements(node: Node) -> int:
    return math.prod(measure.length(node, d) for d in range(value(node).dim()))


def precisions(target: Target, bits: Mapping[str, float]) -> Callable[[str], Precision]:
    """By the name of a layer: in the target's integers, some with weights in other bits or in float."""
    return lambda site: Precision.of(target, bits.get(site))
