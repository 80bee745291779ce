"""What a graph with choices costs: for options that are chosen, and expected under weights of them.

    costs = Costs(graph)
    sum(term.of(weights) for term in costs.macs())      weights: for each choice a vector of its options, one-hot or not

A cost is a sum of terms, one for each call or weight: the lengths of its dimensions, times the share of cases in which it is
computed at all (`computed.py`). Lengths are linear in the weights of the widths around. Of one-hot weights all of it is exact;
of others it is the expected value where choices are independent (the loss of FBNet and of DMCP, the expected latency of
ProxylessNAS).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx.node import Node

from graphopt.analysis.channels.cost import Length, Lengths
from graphopt.analysis.channels.groups import Group, Member, groups
from graphopt.analysis.channels.trace import Trace
from graphopt.analysis.choices.computed import Computed, Weights
from graphopt.execution.executor import constant_calls
from graphopt.ir import cost as measure
from graphopt.ir.calls import value
from graphopt.ir.choices import CHOOSE, KEEP, LiveChoice, choices, generated, weights_of
from graphopt.ir.graph import Graph

Levels = dict[
    tuple[str, int], list[tuple[int, Tensor]]
]  # of a constant's dimension: choices, and what counts [options, size]


@dataclass(frozen=True)
class LiveTerm:
    """A part of a cost.

    Attributes:
        name: of the call or weight.
        scope: the choices that it depends on, by number.
        of: one vector of weights for each choice of the graph -> the cost, a scalar with gradient.
    """

    name: str
    scope: tuple[int, ...]
    of: Callable[[Weights], Tensor]


class Costs:
    """The costs of a graph with choices, which is not changed.

    Attributes:
        choices: of the graph, in the order of weights.
    """

    def __init__(self, graph: Graph) -> None:
        self.choices = choices(graph)
        numbers = {choice.node.target: number for number, choice in enumerate(self.choices)}
        self.graph = graph.clone(share_weights=True)
        for made, constant in generated(self.graph):
            self.graph.replace(made, constant)  # of the same shape, at all widths
        self.graph.sweep()
        levels = _stripped(self.graph, numbers)
        chosen_by = {
            call: numbers[node.target] for call in self.graph.calls(CHOOSE) if (node := weights_of(self.graph, call))
        }
        trace = Trace(self.graph)
        self.groups = [(group, *found) for group in groups(self.graph, trace) if (found := _of_group(group, levels))]
        self.lengths = Lengths(trace, [group for group, *_ in self.groups])
        self.constant = constant_calls(self.graph.nodes)
        self.computed = Computed(self.graph, chosen_by)

    def macs(self) -> list[LiveTerm]:
        """Multiply-accumulates of one sample, as `graphopt.ir.cost.macs` counts them."""
        return [
            self._term(node, [self.lengths(*factor) for factor in factors])
            for node in self.graph.calls()
            if node not in self.constant
            for factors in measure.products(node)
        ]

    def parameters(self) -> list[LiveTerm]:
        """Elements of the trainable weights; of those that are computed from others, as smaller kernels are, of what is read."""
        constants = (node for node in self.graph.nodes if node.op == "get_attr" or node in self.constant)
        read = [node for node in constants if self.computed.readers(node) and self._is_trained(node)]
        return [self._term(node, [self.lengths(node, dim) for dim in range(value(node).dim())]) for node in read]

    def _is_trained(self, node: Node) -> bool:
        if node.op == "get_attr":
            return isinstance(self.graph.parameter(node), nn.Parameter)
        return any(self._is_trained(source) for source in node.all_input_nodes)

    # ---- Lengths ----------------------------------------------------------------------------------------------------

    def _term(self, node: Node, lengths: list[Length]) -> LiveTerm:
        widths = {self.groups[g][1] for length in lengths for block in length for g in block.groups}
        scope = self.computed.scope(node)

        times = [g for length in lengths for g in {self.groups[g][1] for block in length for g in block.groups}]
        repeated = tuple(sorted(c for c in widths | scope if times.count(c) + (c in scope) > 1))

        def product(weights: Weights) -> Tensor:
            size = torch.ones(())
            for length in lengths:
                size = size * self._length(length, weights)
            return size * self.computed(node, weights)

        def of(weights: Weights) -> Tensor:
            return _expected(product, weights, repeated)

        return LiveTerm(self.graph.site(node), tuple(sorted(widths | scope)), of)

    def _length(self, length: Length, weights: Weights) -> Tensor:
        """The expected number of indices of a dimension."""
        total = torch.zeros(())
        for block in length:
            shares = [self._kept(number, weights) for number in block.groups]
            if block.per_unit is not None:
                counts = torch.from_numpy(block.per_unit).to(shares[0].dtype)
                total = total + shares[0] @ counts
            else:
                total = total + block.size * prod((share.mean() for share in shares), start=torch.ones(()))
        return total

    def _kept(self, number: int, weights: Weights) -> Tensor:
        """[units] how far each counts."""
        _, choice, levels = self.groups[number]
        return weights[choice] @ levels


def _expected(product: Callable[[Weights], Tensor], weights: Weights, repeated: tuple[int, ...]) -> Tensor:
    """The mean of a product over the options of the choices that several of its factors depend on."""
    if not repeated:
        return product(weights)
    choice, *rest = repeated
    total = torch.zeros(())
    for option, weight in enumerate(weights[choice]):
        if weight.requires_grad or weight != 0:
            fixed = torch.zeros_like(weights[choice]).index_fill_(0, torch.tensor(option), 1.0)
            total = total + weight * _expected(product, [*weights[:choice], fixed, *weights[choice + 1 :]], tuple(rest))
    return total


def _stripped(graph: Graph, numbers: Mapping[Any, int]) -> Levels:
    """Take every `keep` away; what it said of which dimension of which constant."""
    found: Levels = {}
    for call in graph.calls(KEEP):
        node = weights_of(graph, call)
        assert node is not None
        constant, dim = call.args[0], int(call.args[3])  # type: ignore[arg-type]
        level = graph.tensor(call.args[2])  # type: ignore[arg-type]
        found.setdefault((str(constant.target), dim), []).append((numbers[node.target], level))  # type: ignore[union-attr]
        graph.replace(call, constant)  # type: ignore[arg-type]
    return found


def _of_group(group: Group, levels: Levels) -> tuple[int, Tensor] | None:
    """The choice that a group's width is, and which units count by option: [options, units]."""
    choice, counts = None, torch.ones(1, len(group))
    for member in group.members:
        for number, level in levels.get((str(member.node.target), member.dim), []):
            found = _by_unit(member, level, len(group))
            if found is not None:
                choice, counts = number, found if choice is None else torch.minimum(counts, found)
    return None if choice is None else (choice, counts)


def _by_unit(member: Member, level: Tensor, count: int) -> Tensor | None:
    """What counts along a dimension as a matter of a group's units, [options, units]; None: it is the width of another
    group, next to it, or the columns of its rows."""
    where = np.flatnonzero(member.units >= 0)
    units, along = torch.from_numpy(member.units[where]), level[:, where]
    found = torch.ones(level.shape[0], count)
    found[:, units] = along
    return found if bool((along == 0).any()) and torch.equal(found[:, units], along) else None


def names(known: Sequence[LiveChoice]) -> list[str]:
    """What choices are called in messages: the name, and the kind where several share it."""
    found = [choice.name for choice in known]
    return [name if found.count(name) == 1 else f"{name} ({c.kind})" for name, c in zip(found, known, strict=True)]
