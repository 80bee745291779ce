"""The output of a network on some data, to compare changed networks with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.utils._pytree as pytree
from torch import Tensor

from graphopt.execution.observers import Swapped
from graphopt.ir import cost
from graphopt.ir.graph import Graph

SAMPLES = 128  # that the output is compared on, at most
FEWEST = 16
WORK = 2e10  # multiply-accumulates of one comparison


class Probe:
    """Remembers what a graph answers to the first samples of the data; of large networks to fewer, at least `FEWEST`."""

    def __init__(self, graph: Graph, data: Iterable[list[Tensor]]) -> None:
        self.graph = graph
        self.batches: list[list[Tensor]] = []
        left = samples(graph)
        for batch in data:
            part = [tensor[:left] for tensor in batch] if graph.dynamic_batch else batch
            self.batches.append(part)
            left -= len(part[0])
            if left <= 0:
                break
        self.wanted = [_outputs(graph, batch, {}) for batch in self.batches]
        self.power = max(sum(float((z.double() ** 2).sum()) for z in self.wanted), 1e-30)

    def damage(self, graph: Graph | None = None, changed: Mapping[str, Tensor] | None = None) -> float:
        """sum |z' - z|^2 / sum |z|^2 for another graph, or for this one with some constants exchanged by name."""
        lost = 0.0
        for batch, wanted in zip(self.batches, self.wanted, strict=True):
            lost += float(((_outputs(graph or self.graph, batch, changed or {}) - wanted).double() ** 2).sum())
        return lost / self.power


def samples(graph: Graph) -> int:
    """How many samples a comparison of a network's output is worth: 16 for large networks to 128 for small ones."""
    return int(min(SAMPLES, max(FEWEST, WORK / max(1, cost.macs(graph)))))


def _outputs(graph: Graph, batch: list[Tensor], changed: Mapping[str, Tensor]) -> Tensor:
    with torch.no_grad():
        result = Swapped(graph, changed).run(*batch, enable_io_processing=False)
    return torch.cat([z.flatten().float() for z in pytree.tree_leaves(result) if isinstance(z, Tensor)])


def power_law(points: Sequence[tuple[float, float]], error: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Damage at some errors, from that measured at a few (error, damage) points.

    Lines between logarithms; damage rises with the error, beyond the ends at least in proportion.
    """
    pairs = sorted((max(e, 1e-12), max(d, 1e-12)) for e, d in points)
    at = np.log(np.maximum(error, 1e-12))
    x = np.log([e for e, _ in pairs])
    y = np.log(np.maximum.accumulate([d for _, d in pairs]))
    damage = np.interp(at, x, y)
    damage = np.where(at < x[0], y[0] + (at - x[0]), damage)
    slope = max(1.0, (y[-1] - y[-2]) / max(x[-1] - x[-2], 1e-9)) if len(pairs) > 1 else 1.0
    damage = np.where(at > x[-1], y[-1] + slope * (at - x[-1]), damage)
    return np.exp(damage)
