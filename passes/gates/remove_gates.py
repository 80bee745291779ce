"""Gates that never open are removed with what they guard, gates that always open become plain.

    where(open, x + f(x), x)   ->   x            on all data closed
                               ->   x + f(x)     on all data open

    RemoveGates(data=Calibration(images, graph))               counted on data
    RemoveGates(data=..., least=0.01, most=0.99)               nearly never, nearly always

Needs:  a graph with gates of blocks; gates of channels are left as they are.
Keeps:  the outputs on the data, where `least` is 0 and `most` is 1.
Paper:  Veit and Belongie 2018, "Convolutional Networks with Adaptive Inference Graphs", section 4.2.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from graphopt.analysis.gates import Gate, gates
from graphopt.execution.executor import Executor
from graphopt.ir.graph import Graph
from graphopt.ir.passes import Change, in_eval_mode
from graphopt.utils.checks import check_repeatable
from graphopt.utils.errors import InputError


@dataclass(frozen=True)
class RemoveGates:
    """See the head of this file.

    Attributes:
        data: batches of inputs that openings are counted on.
        least: the rate up to which a gate counts as never open. most: from which on as always open.

    Raises:
        InputError: no data, or rates that are none.
    """

    exact: ClassVar[bool] = False

    data: Iterable[list[Tensor]] | None = field(default=None, repr=False)
    least: float = 0.0
    most: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.least < self.most <= 1:
            raise InputError(f"least and most are rates, 0 <= least < most <= 1, got {self.least} and {self.most}")
        if self.data is None:
            raise InputError("RemoveGates counts on data how often gates open; pass data=Calibration(images, graph)")
        check_repeatable(self.data)

    @in_eval_mode
    def __call__(self, graph: Graph) -> list[Change]:
        assert self.data is not None
        known = [gate for gate in gates(graph) if gate.channels == 1]
        changes = []
        rates = opening_rates(graph, known, self.data)
        # The last first: a gate may be what is taken where a later one is closed.
        for gate, rate in reversed([*zip(known, rates, strict=True)]):
            if self.least < rate < self.most:
                continue
            always = rate >= self.most
            graph.replace(gate.select, gate.open if always else gate.closed)
            changes.append(Change(gate.name, f"{'always' if always else 'never'} taken ({rate:.1%})"))
        if changes:
            graph.refresh()
        return changes[::-1]


def opening_rates(graph: Graph, known: list[Gate], data: Iterable[list[Tensor]]) -> list[float]:
    """The share of samples for which each gate is open.

    Raises:
        InputError: the data are empty.
    """
    if not known:
        return []
    executor, opened, count = Executor(graph), [0] * len(known), 0
    for batch in data:
        values = executor.run([gate.condition for gate in known], batch)
        opened = [n + int(values[gate.condition].sum()) for n, gate in zip(opened, known, strict=True)]
        count += len(values[known[0].condition])
    if not count:
        raise InputError("the data have no samples to count on how often gates open")
    return [n / count for n in opened]
