"""Fit the layers of a pruned graph again, to give what the original network gave."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from torch import Tensor

from graphopt.fitting.fit import fit
from graphopt.fitting.least_squares import LayerWeights
from graphopt.ir.graph import Graph


def reconstruct(
    original: Graph,
    graph: Graph,
    kept: Mapping[str, Tensor],
    data: Iterable[list[Tensor]],
    only: Collection[str] | None = None,
    checkpoint: str | Path | None = None,
) -> None:
    """Fit weights and biases by least squares, layer by layer, in place; see `graphopt.fitting.fit`.

    Args:
        original: the graph before removal.
        graph: after it; calls have the names they had.
        kept: name of a layer's call -> the output channels it still has.
        data: batches.
        only: names of the calls to fit; None: all that `LayerWeights` can fit.
        checkpoint: a folder that remembers the layers that are done.
    """
    tasks = LayerWeights.all_of(graph, {node.name: node for node in original.nodes}, kept, only)
    fit(original, graph, data, tasks, "reconstructing", checkpoint=checkpoint)
