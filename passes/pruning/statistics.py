"""Second moments of what the readers of many groups read: one walk through the data for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.channels.groups import Group
from graphopt.analysis.moments import BUDGET, Moments, input_moments, moment_bytes
from graphopt.ir.graph import Graph
from graphopt.passes.pruning.readers import Reader, readers


def reader_moments(
    graph: Graph, groups: Sequence[Group], data: Iterable[list[Tensor]]
) -> Iterator[tuple[Group, list[Reader], dict[Node, Moments]]]:
    """For each group its readers and the moments of their inputs, in constant memory."""
    todo = [(group, readers(graph, group)) for group in groups]
    while todo:
        batch = [todo.pop(0)]
        while todo and _bytes([*batch, todo[0]]) <= BUDGET:
            batch.append(todo.pop(0))
        layers = {r.layer.node: r.layer for _, found in batch for r in found}
        moments = {layer.node: found for layer, found in input_moments(graph, list(layers.values()), data)}
        for group, found in batch:
            yield group, found, moments


def _bytes(batch: list[tuple[Group, list[Reader]]]) -> int:
    return sum(moment_bytes(layer) for layer in {r.layer.node: r.layer for _, found in batch for r in found}.values())
