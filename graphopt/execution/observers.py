"""Watch the values of a graph over many batches, in constant memory.

The graph runs call by call as far as the last watched value; each updates its statistic and is dropped as soon as its last
reader has run. No observer nodes, no stored activations; memory does not grow with the number of batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from math import isfinite
from typing import Any, Protocol

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx.node import Node

from graphopt.execution.executor import Executor
from graphopt.ir.graph import Graph
from graphopt.utils.errors import NonFiniteError
from graphopt.utils.progress import track

BINS = 4096
PIECE = 2**18  # elements that are counted at once
SAMPLES = 2**20  # of one value per batch that enter its histogram; the range sees every element


class Statistic(Protocol):
    """Something that learns from one tensor after another."""

    def update(self, value: Tensor) -> None: ...


def ends(value: Tensor) -> tuple[float, float]:
    """Smallest and largest element; NaN where there is one."""
    low, high = torch.aminmax(value.detach())
    return float(low), float(high)


def is_finite(value: Tensor) -> bool:
    """Whether no element is NaN or infinite; `torch.isfinite(value).all()` takes ten times as long."""
    return not value.numel() or all(map(isfinite, ends(value)))


class Range:
    """Smallest and largest element seen."""

    def __init__(self) -> None:
        self.low, self.high = float("inf"), float("-inf")

    def update(self, value: Tensor) -> None:
        if value.numel() == 0:
            return
        low, high = ends(value)
        if not (isfinite(low) and isfinite(high)):
            raise _NonFinite
        self.low, self.high = min(self.low, low), max(self.high, high)


class Histogram(Range):
    """Range and distribution: equal bins over [-reach, reach], where reach doubles when the data outgrow it.

    Doubling merges neighbouring bins in pairs, which is exact, so the order of the batches does not matter beyond the first
    bin width. At least half of the bins on the side of the largest element are in use.

    Of a large value only about `samples` elements enter per update, weighted so that counts add up; the range sees all.
    """

    def __init__(self, samples: int = SAMPLES) -> None:
        super().__init__()
        self.samples = samples
        self.reach = 0.0
        self.counts = torch.zeros(BINS, dtype=torch.float64)

    def update(self, value: Tensor) -> None:
        super().update(value)
        flat = value.detach().flatten().float()
        stride = max(1, flat.numel() // self.samples) | 1  # odd: not in step with the power-of-two sizes of images
        largest = max(-self.low, self.high, 1e-30)
        if self.reach == 0.0:
            self.reach = 2.0 ** torch.tensor(largest).log2().ceil().item()
        while self.reach < largest:
            self.counts = torch.cat(
                [torch.zeros(BINS // 4).double(), self.counts.view(-1, 2).sum(1), torch.zeros(BINS // 4).double()]
            )
            self.reach *= 2
        self.counts += _counted(flat[::stride], self.reach).double() * stride

    @property
    def width(self) -> float:
        return 2 * self.reach / BINS

    @property
    def centers(self) -> Tensor:
        """Middle of each bin, float64 [BINS]."""
        return (torch.arange(BINS, dtype=torch.float64) + 0.5) * self.width - self.reach


def _counted(values: Tensor, reach: float) -> Tensor:
    """How many values lie in each of the bins over [-reach, reach], a power of two; `torch.histc` takes five times as long.

    Counted piece by piece: what is computed of a piece stays in the cache.
    """
    values = values if reach < 2.0**127 else values.double()  # whose ends would not fit float32
    counts = torch.zeros(BINS, dtype=torch.int64)
    for start in range(0, len(values), PIECE):
        bins = values[start : start + PIECE].add(reach).mul_(BINS / (2 * reach)).to(torch.int32)
        counts += torch.bincount(bins.clamp_(max=BINS - 1), minlength=BINS)
    return counts


class _NonFinite(Exception):
    pass


def blame(graph: Graph, node: Node, value: Tensor) -> str:
    """What to say of the first node that produces NaN or infinity."""
    bad = "NaN" if bool(torch.isnan(value).any()) else "infinity"
    if node.op == "placeholder":
        return f"input {node.name!r} contains {bad} in a calibration batch; clean the data"
    name = str(getattr(node.target, "__name__", node.target)).split(".")[0]
    return (
        f"{name} at {graph.site(node)!r} is the first operator to produce {bad} on the calibration data, from finite inputs; "
        "check its weights and the scale of its inputs"
    )


def observe(
    graph: Graph,
    watched: Mapping[Node, Statistic | list[Statistic]],
    batches: Iterable[list[Tensor]],
    overrides: Mapping[Node, Callable[..., Any]] | None = None,
) -> int:
    """Feed every batch through the graph and update the statistics of the watched values.

    Args:
        graph: any graph, unchanged afterwards.
        watched: value -> statistic, or several.
        batches: lists of input tensors in `graph.input_names` order.
        overrides: call -> what is called in place of its operator (see `Executor`).

    Returns:
        The number of batches seen.

    Raises:
        NonFiniteError: a watched value holds NaN or infinity; names the first node that produced one.
    """
    lists: dict[Node, list[Statistic]] = {n: s if isinstance(s, list) else [s] for n, s in watched.items()}
    executor, seen = Executor(graph, overrides=overrides), 0
    given = [*graph.placeholders, *filter(graph.is_constant, lists)]
    for batch in track(batches, "observing data"):
        values = executor.inputs(batch)
        try:
            for node in chain(given, executor.walk(values, lists)):
                for statistic in lists.get(node, ()):
                    statistic.update(executor.read(node, values))
        except _NonFinite:
            raise NonFiniteError(first_non_finite(executor, batch)) from None
        seen += 1
    return seen


def first_non_finite(executor: Executor, batch: Sequence[Tensor]) -> str:
    """What to say of the first value of a graph that holds NaN or infinity."""
    graph, values = executor.graph, executor.inputs(batch)
    for node in chain(graph.placeholders, executor.walk(values, graph.outputs)):
        for leaf in pytree.tree_leaves(values[node]):
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and not bool(torch.isfinite(leaf).all()):
                return blame(graph, node, leaf)
    return "a value is not finite on the calibration data"
