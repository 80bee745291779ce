"""Second moments of what the readers of many groups read: one walk through the data for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor
from torch.fx.node import Node

from graphopt.channels.groups import Group
from graphopt.graph import Graph
from graphopt.observe import observe
from graphopt.passes.prune.readers import Reader, readers
from graphopt.patches import Moments, weight_matrix

BUDGET = 2**30  # bytes of moments kept at a time; more groups take more walks


def reader_moments(
    graph: Graph, groups: Sequence[Group], data: Iterable[list[Tensor]]
) -> Iterator[tuple[Group, list[Reader], dict[Node, Moments]]]:
    """For each group its readers and the moments of their inputs, in constant memory."""
    todo = [(group, readers(graph, group)) for group in groups]
    while todo:
        batch = [todo.pop(0)]
        while todo and _bytes(graph, [*batch, todo[0]]) <= BUDGET:
            batch.append(todo.pop(0))
        moments = {r.layer.node: Moments(r.layer) for _, found in batch for r in found}
        watched: dict[Node, list[Moments]] = {}
        for moment in moments.values():
            watched.setdefault(moment.layer.input, []).append(moment)
        if watched:
            observe(graph, watched, data)  # type: ignore[arg-type]
        for group, found in batch:
            yield group, found, moments


def _bytes(graph: Graph, batch: list[tuple[Group, list[Reader]]]) -> int:
    widths = {r.layer.node: weight_matrix(r.layer, graph.tensor(r.layer.weight)).shape[1] for _, f in batch for r in f}
    return sum(8 * d * d for d in widths.values())
