"""Re-fit the layers of a pruned graph to give what the original network gave; see `graphopt.fitting.least_squares`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from torch import Tensor

from graphopt.analysis.im2col import Moments
from graphopt.fitting.least_squares import Pairs, fit, fits
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.utils.progress import track


def reconstruct(
    original: Graph,
    graph: Graph,
    kept: Mapping[str, Tensor],
    data: Iterable[list[Tensor]],
    only: Collection[str] | None = None,
) -> list[str]:
    """Fit layers of a pruned graph to the original, in place.

    Args:
        original: the graph before removal.
        graph: after it; calls have the names they had.
        kept: name of a layer's call -> the output channels it still has.
        data: batches.
        only: names of the calls to fit; None: all layers without groups.

    Returns:
        The names of the layers fitted.
    """
    pairs = Pairs(original, graph, data)
    chosen = [layer for node in graph.calls() if (layer := Layer.of(node)) and fits(graph, layer)]
    chosen = [c for c in chosen if (only is None or c.node.name in only) and pairs.source(c.node) is not None]
    for layer in track(chosen, "reconstructing"):
        moments = Moments(layer)
        for x, wanted in pairs(layer.node, layer.node, kept.get(layer.node.name)):
            moments.update(x, wanted)
        fit(graph, layer, moments)
    return [layer.node.name for layer in chosen]
