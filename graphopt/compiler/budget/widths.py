"""Choices of widths: for every group of channels how many are left, in multiples that the target's kernels like.

An option's value is the number of units removed, in the order of the pruning plan; its damage is measured there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphopt.analysis.channels.cost import channels
from graphopt.analysis.channels.groups import groups
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
        """From what `prune` measures on a graph; none where no group may lose units."""
        if not any(len(group.free) for group in groups(graph, trace)):
            return cls(PruningPlan([], [], channels([]), 0.0, False), [])
        plan = PruningPlan.of(prune, graph, trace)
        choices = [
            Choice(group.name, group.kind, tuple(_options(curve)))
            for group, curve in zip(plan.groups, plan.curves, strict=True)
        ]
        return cls(plan, choices)

    def stays(self, group: int, option: int) -> npt.NDArray[np.bool_]:
        """For each unit of a group whether it is left."""
        kept = np.ones(len(self.plan.groups[group]), dtype=np.bool_)
        kept[self.plan.curves[group].order[: self.choices[group].options[option].value]] = False
        return kept

    def kept(self, options: Mapping[int, int]) -> list[npt.NDArray[np.bool_]]:
        """The units of every group that are left where some groups have these options, and the others all they have."""
        return [self.stays(group, options.get(group, 0)) for group in range(len(self.choices))]

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
