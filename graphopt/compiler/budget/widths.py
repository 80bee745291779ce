"""Choices of widths: for every group of channels how many are left, in multiples that the target's kernels like.

An option's value is the number of units removed, in the order of the pruning plan; its damage is measured there.
"""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.analysis.channels.trace import Trace
from graphopt.ir.graph import Graph
from graphopt.passes.pruning import Prune
from graphopt.passes.pruning.allocate import Curve
from graphopt.passes.pruning.plan import PruningPlan
from graphopt.passes.pruning.removal import Removal, RemovalPlan
from graphopt.searching import Assignment, Choice, Option

LEVELS = 8  # options of a group, at most
LEAST = 1 / 8  # of a group, which is kept in any case


@dataclass(frozen=True)
class Widths:
    """The groups of a graph, and a choice for each."""

    plan: PruningPlan
    choices: list[Choice]

    @classmethod
    def of(cls, prune: Prune, graph: Graph, trace: Trace) -> Widths:
        """From what `prune` measures on a graph."""
        plan = PruningPlan.of(prune, graph, trace)
        choices = [
            Choice(group.name, group.kind, tuple(_options(curve)))
            for group, curve in zip(plan.groups, plan.curves, strict=True)
        ]
        return cls(plan, choices)

    def kept(self, assignment: Assignment) -> list[float]:
        """The share of each group that is left."""
        return [
            1 - choice.options[option].value / len(group)
            for group, choice, option in zip(self.plan.groups, self.choices, assignment, strict=True)
        ]

    def removal(self, assignment: Assignment) -> RemovalPlan:
        """What goes."""
        return RemovalPlan(
            [
                Removal(group.name, group.kind, len(group), tuple(sorted(curve.order[: choice.options[option].value])))
                for group, curve, choice, option in zip(
                    self.plan.groups, self.plan.curves, self.choices, assignment, strict=True
                )
            ]
        )


def _options(curve: Curve) -> list[Option]:
    """From all units to the fewest, about evenly."""
    counts, removed = [0], 0
    while (gone := curve.after(removed, 1)) > removed and curve.units - gone >= LEAST * curve.units:
        counts.append(gone)
        removed = gone
    if len(counts) > LEVELS:
        counts = sorted({counts[round(i * (len(counts) - 1) / (LEVELS - 1))] for i in range(LEVELS)})
    return [Option(str(curve.units - n), curve.damage[n - 1] if n else 0.0, n) for n in counts]
