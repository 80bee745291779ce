"""How many units each group loses, so that the network hits a target cost with the least damage.

Every group has a curve: the damage done once its first, second, ... unit has gone. Greedy: of all groups, the one whose next step
does the least damage (per cost it saves, where asked) takes it, until the target is met. For convex curves that is optimal up to
one step (Fox 1966, marginal allocation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphopt.analysis.channels.cost import Budget, Cost

STEPS = 48  # per group, on the way to its last unit; the last steps before the target are single ones


@dataclass(frozen=True)
class Curve:
    """A group's damage by units removed.

    Attributes:
        order: its units, the first to go first.
        damage: cumulative, one for each unit that may go; shorter than the order where the rest stays.
        units: of the group, in all.
        multiple: the number of units kept should be a multiple of this.
        least: units kept at least.
        start: units that go in any case.
    """

    order: list[int]
    damage: list[float]
    units: int
    multiple: int = 1
    least: int = 1
    start: int = 0

    @property
    def most(self) -> int:
        """Units that may go."""
        return min(len(self.damage), self.units - max(self.least, self.multiple))

    def after(self, removed: int, step: int) -> int:
        """Units removed after a further step of about `step`, so that a multiple is kept; `removed` where none is possible."""
        for size in (step, 1):
            kept = self.units - removed - size
            gone = self.units - (kept - kept % self.multiple)
            if removed < gone <= self.most:
                return gone
        return removed

    def rise(self, removed: int, gone: int) -> float:
        return self.damage[gone - 1] - (self.damage[removed - 1] if removed else 0.0)


def allocate(curves: Sequence[Curve], cost: Cost, target: float, *, per_cost: bool) -> tuple[list[int], float]:
    """Units to remove from each group until the cost is at most `target`, or nothing is left to remove.

    Args:
        curves: one per group of the cost.
        target: in units of the cost.
        per_cost: weigh the damage of a step by the cost it saves.

    Returns:
        The numbers, and the cost that is left.
    """
    budget = Budget(cost, [curve.order for curve in curves], [curve.start for curve in curves])
    steps = [max(1, curve.units // STEPS) for curve in curves]
    while (now := budget.now) > target:
        best, choice = float("inf"), None
        for g, curve in enumerate(curves):
            removed = budget.removed[g]
            gone = curve.after(removed, steps[g])
            saved = budget.saving(g, gone) if gone > removed else 0.0
            if saved <= 0:
                continue
            price = curve.rise(removed, gone) / (saved if per_cost else gone - removed)
            if price < best:
                best, choice = price, (g, gone, saved)
        if choice is None:
            break
        g, gone, saved = choice
        if now - saved < target and max(steps) > 1:
            steps = [1] * len(curves)  # close to the target: single units from here
            continue
        budget.take(g, gone)
    return budget.removed, budget.now
