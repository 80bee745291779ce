"""The output of a network on some data, to compare changed networks with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from graphopt.graph import Graph
from graphopt.observe import Swapped

SAMPLES = 128  # that the output is compared on


class Probe:
    """Remembers what a graph answers to the first samples of the data."""

    def __init__(self, graph: Graph, data: Iterable[list[Tensor]]) -> None:
        self.graph = graph
        self.batches: list[list[Tensor]] = []
        for batch in data:
            self.batches.append(batch)
            if sum(len(b[0]) for b in self.batches) >= SAMPLES:
                break
        self.wanted = [_outputs(graph, batch, {}) for batch in self.batches]
        self.power = max(sum(float((z.double() ** 2).sum()) for z in self.wanted), 1e-30)

    def damage(self, graph: Graph | None = None, changed: Mapping[str, Tensor] | None = None) -> float:
        """sum |z' - z|^2 / sum |z|^2 for another graph, or for this one with some constants exchanged by name."""
        lost = 0.0
        for batch, wanted in zip(self.batches, self.wanted, strict=True):
            lost += float(((_outputs(graph or self.graph, batch, changed or {}) - wanted).double() ** 2).sum())
        return lost / self.power


def _outputs(graph: Graph, batch: list[Tensor], changed: Mapping[str, Tensor]) -> Tensor:
    with torch.no_grad():
        result = Swapped(graph, changed).run(*batch, enable_io_processing=False)
    return torch.cat([z.flatten().float() for z in pytree.tree_leaves(result) if isinstance(z, Tensor)])
