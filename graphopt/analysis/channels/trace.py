"""Labels pushed through a graph: what every index of every dimension of every value goes together with.

    constants        every dimension of a weight starts with labels of its own
    data movement    the operator itself is run on a tensor of labels, and where they went is read off the result; labels that
                     come to lie over several dimensions (768 channels as 12 heads of 64) are factored
    everything else  ties dimensions, as the operator's rule says (`graphopt.analysis.channels.rules`)

The model's inputs and outputs are fixed, and so is what meets them or an operator without a rule.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.channels.labels import NONE, Columns, Labels
from graphopt.ir.calls import operand, value
from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten, family, is_random

Dims = list[Columns]  # one entry per dimension of a value
LIKE = (aten.expand_as.default, aten.reshape_as.default, aten.view_as.default)  # of a second tensor they read the shape


class Trace:
    """The labels of a graph.

    Attributes:
        labels: what holds between labels.
        dims: for every tensor, the label columns of each of its dimensions.
        parts: for every call with several results, the same for each.
        writers: weights whose output channels can be removed, and the dimension they lie along.
        statistics: dimensions an operator computes statistics over (layer norm), and where: removing such an index changes
            the statistics of the others.
        sums: dimensions that are summed over, and where: of one value, or of products of several.
    """

    unfollowed = "an operator that channels are not followed through"

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.labels = Labels()
        self.dims: dict[Node, Dims] = {}
        self.parts: dict[Node, list[Dims]] = {}
        self.writers: list[tuple[Node, int]] = []
        self.statistics: list[tuple[Columns, Node]] = []
        self.sums: list[tuple[Columns, Node]] = []
        for node in graph.nodes:
            if node.op == "get_attr":
                self.dims[node] = self.constant(graph.tensor(node))
            elif node.op == "call_function":
                self._visit(node, self.rule(node))
            elif node.op == "output":
                self.fix(node, "the model's output")

    def rule(self, node: Node) -> Any:
        """What a call means for the labels; None where it has no meaning for them."""
        from graphopt.analysis.channels.rules import rule

        return rule(node)

    def constant(self, tensor: Tensor) -> Dims:
        """The labels a constant starts with."""
        if not tensor.is_floating_point():
            return [[] for _ in tensor.shape]
        return [[self.labels.fresh(size)] if size > 1 else [] for size in tensor.shape]

    def _visit(self, node: Node, rule: Any) -> None:
        found = value(node)
        if not isinstance(found, (Tensor, list, tuple)):
            return  # a size
        read = [value(source) for source in node.all_input_nodes]
        if read and all(isinstance(each, Tensor) and not each.dim() for each in read):
            dims = None  # scalars have no dimensions that a rule could follow
        elif rule is None:
            self.fix(node, f"{node.name}, {self.unfollowed}")
            dims = None
        else:
            dims = rule(self, node)
        if isinstance(found, Tensor):
            self.dims[node] = dims if dims is not None else [[] for _ in found.shape]
        else:
            self.parts[node] = dims if dims is not None else [[[] for _ in part.shape] for part in found]

    # ---- For rules --------------------------------------------------------------------------------------------------

    def of(self, node: Any) -> Dims:
        """The columns of each dimension; fixed ones where the node is an input."""
        return self.dims[node] if node in self.dims else [[] for _ in value(node).shape]

    def tie(self, one: Columns, other: Columns, at: Node) -> None:
        self.labels.tie(one, other, f"{at.name}, where it meets a dimension that is fixed")

    def pin(self, columns: Columns, at: Node) -> None:
        self.labels.pin(columns, at.name)

    def fix(self, reader: Node, reason: str) -> None:
        """Everything `reader` reads stays as it is."""
        for source in reader.all_input_nodes:
            for dims in [self.dims.get(source, []), *self.parts.get(source, [])]:
                for columns in dims:
                    self.labels.pin(columns, reason)

    def move(self, node: Node) -> list[Dims]:
        """Where a data movement takes the labels of its first argument: the columns of each of its results."""
        source, found = operand(node), value(node)
        results = [found] if isinstance(found, Tensor) else list(found)
        return self.run(
            node,
            lambda labels: call_on_labels(self.graph, node, labels),
            self.of(source),
            sizes(value(source)),
            [sizes(r) for r in results],
        )

    def run(self, node: Node, operator: Any, dims: Dims, shape: list[int], results: list[list[int]]) -> list[Dims]:
        """Where labels go when `operator`, a data movement, maps a tensor of `shape` to tensors of the shapes `results`."""
        found: list[Dims] = [[[] for _ in result] for result in results]
        for dim, columns in enumerate(dims):
            for column in self.labels.resolve(columns):
                for position, moved in enumerate(operator(spread(column, dim, shape))):
                    if not moved.numel():  # labels are read off elements
                        self.labels.pin([column], f"{node.name}, which leaves nothing of it")
                    for to, landed in enumerate(self.read(node, position, moved, dim)):
                        found[position][to] += landed
        return found

    def read(self, node: Node, position: int, moved: Tensor, before: int) -> Dims:
        """The columns of one result, given one column's labels where they came to lie; they lay along `before`."""
        dims: Dims = [[] for _ in moved.shape]
        if moved.numel() == 0:
            return dims
        along, lying = lies(moved)
        line = lying.numpy()
        if len(along) == 1:
            dims[along[0]] = [line]
        elif (
            not along
        ):  # every index has the same label: which dimension it lies along is seen where it does not vanish
            self.labels.pin([line.reshape(1)], f"{node.name}, which takes it out alone")
        elif (line == NONE).any():
            self.labels.pin([line.flatten()], f"{node.name}, which mixes it with what is fixed")
        else:
            grid = self.labels.roots(line)
            for d, axis in zip(along, self.labels.factor(grid), strict=True):
                dims[d] = [axis]
        return dims


def lies(labels: Tensor) -> tuple[list[int], Tensor]:
    """The dimensions along which labels vary, and the labels along those."""
    spread_out = [d for d in range(labels.dim()) if labels.shape[d] > 1 and labels.stride(d) != 0]
    dense = labels[tuple(slice(None) if d in spread_out else slice(1) for d in range(labels.dim()))]
    along = [d for d in spread_out if bool((dense != dense.narrow(d, 0, 1)).any())]
    return along, dense[tuple(slice(None) if d in along else 0 for d in range(labels.dim()))]


def spread(column: Any, dim: int, shape: list[int]) -> Tensor:
    """A tensor of `shape` that holds `column` along `dim`."""
    along = [-1 if d == dim else 1 for d in range(len(shape))]
    return torch.from_numpy(np.ascontiguousarray(column)).reshape(along).expand(shape)


def sizes(tensor: Any) -> list[int]:
    """A shape as numbers: a free size as it was while capturing."""
    return [s if isinstance(s, int) else int(s.node.hint) for s in tensor.shape]


def concrete(graph: Graph, tree: Any) -> Any:
    """Arguments with numbers in place of free sizes, and constants in place of their nodes."""

    def leaf(item: Any) -> Any:
        if not isinstance(item, Node):
            return item
        if is_known(graph, item):
            return graph.tensor(item) if item.op == "get_attr" else _computed(graph, item)
        found = value(item)
        return found if isinstance(found, (Tensor, int, float)) else int(found.node.hint)

    return pytree.tree_map(leaf, tree)


def is_known(graph: Graph, node: Node) -> bool:
    """Whether a value is a constant, or computed of constants and numbers alone."""
    if node.op != "call_function":
        return graph.is_constant(node)
    if is_random(node):
        return False
    return all(is_known(graph, source) for source in node.all_input_nodes)


def _computed(graph: Graph, node: Node) -> Any:
    args, kwargs = concrete(graph, (node.args, node.kwargs))
    return node.target(*args, **kwargs)  # type: ignore[operator]


def places(node: Node) -> list[Node]:
    """The tensors that say where a data movement takes its elements from."""
    leaves = [] if node.target in LIKE else pytree.arg_tree_leaves(*node.args[1:], **node.kwargs)
    return [leaf for leaf in leaves if isinstance(leaf, Node) and isinstance(value(leaf), Tensor)]


def call_on_labels(graph: Graph, node: Node, labels: Tensor) -> list[Tensor]:
    """Run a data movement on labels in place of its first argument."""
    args, kwargs = concrete(graph, (node.args[1:], node.kwargs))
    if node.target is aten.expand_as.default:
        result = labels.expand(sizes(value(node)))
    elif node.target in (aten.reshape_as.default, aten.view_as.default):
        result = labels.reshape(sizes(value(node)))
    elif node.target is aten.view.default:  # labels are spread, and lie in memory in another way than values
        result = labels.reshape(*args)
    elif family(node) == "resize_nearest":  # torch has no kernel of it for integers; labels are exact in double
        result = node.target(labels.double(), *args, **kwargs).long()  # type: ignore[operator]
    else:
        result = node.target(labels, *args, **kwargs)  # type: ignore[operator]
    return [result] if isinstance(result, Tensor) else list(result)
