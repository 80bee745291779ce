"""The output of a network on some data, to compare changed networks with.

    damage = mean over outputs of  sum |z' - z|^2 / sum |z|^2         sums over all samples

Each output counts by its own size: boxes in pixels do not outweigh scores of 0 to 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from graphopt.execution.executor import Executor
from graphopt.ir import cost
from graphopt.ir.batches import first
from graphopt.ir.graph import Graph

SAMPLES = 128  # that the output is compared on, at most
FEWEST = 16
WORK = 2e10  # multiply-accumulates of one comparison


class Probe:
    """Remembers what a graph answers to the first samples of the data; of large networks to fewer, at least `FEWEST`."""

    def __init__(self, graph: Graph, data: Iterable[list[Tensor]]) -> None:
        self.graph = graph
        self.batches = list(first(graph, data, samples(graph)))
        executor = Executor(graph).settled()
        self.wanted = [executor.float_outputs(batch) for batch in self.batches]
        self.power = add_up(map(squares, self.wanted))

    def damage(self, graph: Graph | None = None, changed: Mapping[str, Tensor] | None = None) -> float:
        """Of another graph, or of this one with some constants exchanged by name; see the head of this file."""
        graph, changed = graph or self.graph, changed or {}
        constants = {n: changed[str(n.target)] for n in graph.nodes if n.target in changed}
        executor = Executor(graph, constants=constants).settled()
        pairs = zip(map(executor.float_outputs, self.batches), self.wanted, strict=True)
        return relative(add_up(squares(z, wanted) for z, wanted in pairs), self.power)


def squares(values: Sequence[Tensor], reference: Sequence[Tensor] | None = None) -> list[float]:
    """sum |z|^2 of each output, or sum |z - reference|^2."""
    pairs = zip(values, reference if reference is not None else [None] * len(values), strict=True)
    return [float((z.double() if r is None else z.double() - r.double()).square().sum()) for z, r in pairs]


def add_up(parts: Iterable[Sequence[float]]) -> list[float]:
    """The sums of several batches, output by output."""
    return [sum(column) for column in zip(*parts, strict=True)]


def relative(lost: Sequence[float], power: Sequence[float]) -> float:
    """The mean over outputs of what each lost of its own power; one that is zero throughout has nothing to lose."""
    shares = [a / b for a, b in zip(lost, power, strict=True) if b > 0]
    return sum(shares) / max(len(shares), 1)


def samples(graph: Graph) -> int:
    """How many samples a comparison of a network's output is worth: 16 for large networks to 128 for small ones."""
    return int(min(SAMPLES, max(FEWEST, WORK / max(1, cost.macs(graph)))))


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
