"""Channel shuffles written by hand, as one gather.

    view [N, g, C/g, ...] -> transpose(1, 2) -> view [N, C, ...]   =   index_select(1, order)

In the long form the middle value must stay a rectangle, so channels could only be removed g at a time, and a stack of shuffles
would tie nearly all of them; a gather takes any order of any channels. The values are the same.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.channels.trace import call_on_labels, sizes, spread
from graphopt.ir.calls import operand, value
from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten, family

LINKS = ("reshape", "transpose", "identity")
LONGEST = 5


def gather_shuffles(graph: Graph) -> list[Node]:
    """Rewrite every shuffle of a dimension into `index_select`, in place; returns the new calls."""
    done = []
    for node in graph.calls():
        chain = _chain(node)
        if chain and (found := _shuffle(graph, chain)) is not None:
            dim, order = found
            last = chain[-1]
            index = graph.add_constant(f"{node.name}_order", order, before=last)
            new = graph.call(aten.index_select.default, chain[0].args[0], dim, index, before=last)
            graph.replace(last, new)
            done.append(new)
    if done:
        graph.refresh()
    return done


def _chain(node: Node) -> list[Node]:
    """A reshape that splits a dimension, and what moves data behind it until the first shape is back."""
    if family(node) != "reshape" or not node.args[0] or value(node).dim() != value(operand(node)).dim() + 1:
        return []
    start = list(value(operand(node)).shape)
    chain = [node]
    while len(chain) < LONGEST and len(chain[-1].users) == 1:
        reader = next(iter(chain[-1].users))
        if family(reader) not in LINKS or not isinstance(value(reader), Tensor):
            return []
        chain.append(reader)
        if list(value(reader).shape) == start:
            return chain
    return []


def _shuffle(graph: Graph, chain: list[Node]) -> tuple[int, Tensor] | None:
    """The one dimension that changes its order, and the order; None where none does, or the chain is no shuffle."""
    shape = sizes(value(operand(chain[0])))
    found = None
    for dim, size in enumerate(shape):
        labels = spread(torch.arange(size).numpy(), dim, shape)
        for link in chain:
            (labels,) = call_on_labels(graph, link, labels)
        line = labels[tuple(slice(None) if d == dim else 0 for d in range(len(shape)))]
        if not torch.equal(labels, spread(line.numpy(), dim, shape)):
            return None
        if not torch.equal(line, torch.arange(size)):
            if found is not None:
                return None
            found = dim, line.clone()
    return found
