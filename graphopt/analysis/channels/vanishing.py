"""Where channels whose weights are zero count like channels that are gone: every sum over them has to add zeros.

conv -> relu -> conv          a zero times a weight
conv -> + 0.5 -> x @ x        adds 0.25 for each channel that should be gone
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.channels.groups import Group
from graphopt.analysis.channels.labels import Columns
from graphopt.analysis.channels.rules import is_movement
from graphopt.analysis.channels.trace import Trace
from graphopt.ir.calls import argument, value
from graphopt.ir.choices import CHOOSE, KEEP
from graphopt.ir.graph import Graph
from graphopt.ir.layer import BatchNorm, Layer
from graphopt.ir.ops import aten, family, function_of_one, info


def adds_zeros(graph: Graph, trace: Trace, group: Group) -> bool:
    """Whether, with every constant of a group held at zero where a unit is to go, all sums over its units add zeros there."""
    met = [node for columns, node in trace.sums if meets(trace, columns, group)]
    zero = vanishing(graph, trace, group) if met else set()
    return all(zero.intersection(node.all_input_nodes) for node in met)


def meets(trace: Trace, columns: Columns, group: Group) -> bool:
    """Whether any of these labels is of a unit of the group."""
    return any(np.isin(column, group.labels).any() for column in trace.labels.resolve(columns))


def vanishing(graph: Graph, trace: Trace, group: Group) -> set[Node]:
    """The values that are known to be zero at units whose constants are zero, of those with units along one dimension alone."""
    norms = [norm for call in graph.calls() if (norm := BatchNorm.of(call)) is not None]
    statistics = {constant for norm in norms for constant in (norm.mean, norm.var)}
    found = _Vanishing(trace, group, {m.node for m in group.members} - statistics)
    for node in graph.calls():
        if isinstance(value(node), Tensor) and found.is_zero(node) and len(found.places(node)) == 1:
            found.zero.add(node)
    return found.zero


class _Vanishing:
    def __init__(self, trace: Trace, group: Group, zero: set[Any]) -> None:
        self.trace, self.group, self.zero = trace, group, zero

    def places(self, node: Node) -> list[int]:
        """The dimensions that a value has the units along."""
        return [dim for dim, columns in enumerate(self.trace.of(node)) if meets(self.trace, columns, self.group)]

    def is_zero(self, node: Node) -> bool:
        """Whether a call gives zeros at the units, where it has them, of operands that do."""
        zero, kind = self.zero, family(node)
        if (layer := Layer.of(node)) is not None:
            made = layer.weight if self.places(node) == [layer.channel_dim] else layer.input
            return made in zero and (layer.bias is None or layer.bias in zero)
        if (norm := BatchNorm.of(node)) is not None:
            return norm.weight in zero and norm.bias in zero
        if (function := function_of_one(node)) is not None:
            return node.args[0] in zero and not bool(function(torch.zeros(1)).any())
        if kind == "mul":
            return not zero.isdisjoint(node.all_input_nodes)
        if node.target in _CONTRACTIONS:
            return all(factor in zero for factor in node.all_input_nodes if self.places(factor))
        if kind in ("add", "sub"):
            return all(a in zero if isinstance(a, Node) else a == 0 for a in node.args[:2])
        if kind in ("concat", "stack") or node.target is CHOOSE:
            return all(part in zero for part in node.args[0] if self.places(part))  # type: ignore[union-attr, arg-type]
        if kind == "pad":
            return node.args[0] in zero and not argument(node, "value")
        like = kind in _LIKE_THE_FIRST or node.target in _ALIKE
        return (like or is_movement(node) or info(node).pools or info(node).averages) and node.args[0] in zero


_CONTRACTIONS = {aten.matmul.default, aten.bmm.default, aten.mm.default}
_LIKE_THE_FIRST = {"div", "prelu", "mean", "expand", "identity", "resize_nearest", "global_average_pool"}
_ALIKE = {aten.sum.dim_IntList, aten.linalg_vector_norm.default, aten.to.dtype, KEEP}
