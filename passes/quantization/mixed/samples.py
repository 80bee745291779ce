"""Which of the data serve what: the first samples choose, as many more judge what was chosen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from graphopt.analysis.output_error import samples as worth
from graphopt.ir.batches import count, cut
from graphopt.ir.graph import Graph
from graphopt.utils.errors import InputError

ROUNDING = 4  # times as many samples for the moments that weights are rounded under


@dataclass(frozen=True)
class Samples:
    """`rounding`: batches to take moments from."""

    seen: list[list[Tensor]]
    held_out: list[list[Tensor]]
    rounding: int
    notes: list[str]


def split(graph: Graph, data: Iterable[list[Tensor]]) -> Samples:
    """The first samples and those behind them, in batches no larger than the data's; half of each where there are few."""
    wanted = worth(graph)
    batches: list[list[Tensor]] = []
    taken = rounding = 0
    for batch in data:
        if taken < 2 * wanted:
            batches.append(batch)
        taken, rounding = taken + count(graph, batch), rounding + 1
        if taken >= ROUNDING * wanted:
            break
    if not batches:
        raise InputError("the data are empty; give at least one batch")
    total = sum(count(graph, batch) for batch in batches)
    front = min(wanted, total // 2)
    if not graph.dynamic_batch:
        half = min(-(-wanted // count(graph, batches[0])), len(batches) // 2)
        seen, held_out = batches[:half], batches[half : 2 * half]
    else:
        seen, held_out = _cut(graph, batches, 0, front), _cut(graph, batches, front, 2 * front)
    if not seen:
        return Samples(
            batches, batches, rounding, ["a single sample or batch: nothing could be held out to compare on"]
        )
    return Samples(seen, held_out, rounding, [])


def _cut(graph: Graph, batches: list[list[Tensor]], start: int, end: int) -> list[list[Tensor]]:
    """The samples from `start` to `end`."""
    found, position = [], 0
    for batch in batches:
        size = count(graph, batch)
        low, high = max(start - position, 0), min(end - position, size)
        if low < high:
            found.append(cut(graph, batch, low, high))
        position += size
    return found
