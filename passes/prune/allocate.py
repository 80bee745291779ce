"""How many units each group loses, so that the network hits a target cost with the least damage.

Every group has a curve: the damage done once its first, second, ... unit has gone. Greedy: of all groups, the one whose next step
does the least damage (per cost it saves, where asked) takes it, until the target is met. For convex curves that is optimal up to
one step (Fox 1966, marginal allocation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.channels.cost import Cost

STEPS = 48  # per group, on the way to its last unit; the last steps before the target are single ones


@dataclass(frozen=True)
class Curve:
    """A group's damage by units removed.

    Attributes:
        units: of the group, in all.
        damage: cumulative, [units that may go].
        multiple: the number of units kept should be a multiple of this; also the least that is kept.
        least: units kept at least.
        start: units that go in any case.
    """

    units: int
    damage: Sequence[float]
    multiple: int = 1
    least: int = 1
    start: int = 0

    @property
    def most(self) -> int:
        """Units that may go."""
        return max(0, min(len(self.damage), self.units - max(self.least, self.multiple if self.multiple > 1 else 1)))

    def after(self, removed: int, step: int) -> int:
        """Units removed after a further step of about `step`, so that a multiple is kept; `removed` where none is possible."""
        kept = self.units - removed - step
        kept -= kept % self.multiple if self.multiple > 1 else 0
        return self.units - kept if removed < self.units - kept <= self.most else removed


def allocate(curves: Sequence[Curve], cost: Cost, target: float, *, per_cost: bool) -> list[int]:
    """Units to remove from each group until the cost is at most `target`, or nothing is left to remove.

    Args:
        curves: one per group of the cost.
        target: in units of the cost.
        per_cost: weigh the damage of a step by the cost it saves.
    """
    removed = [curve.start for curve in curves]
    shares = np.array([1 - curve.start / curve.units for curve in curves])
    now = cost(shares)
    steps = [max(1, curve.units // STEPS) for curve in curves]
    while now > target:
        slope = cost.slope(shares)
        best, choice = np.inf, (-1, 0)
        for g, curve in enumerate(curves):
            after = curve.after(removed[g], steps[g])
            if after == removed[g] and steps[g] > 1:
                after = curve.after(removed[g], 1)
            saved = slope[g] * (after - removed[g]) / curve.units
            if after == removed[g] or saved <= 0:
                continue
            damage = curve.damage[after - 1] - (curve.damage[removed[g] - 1] if removed[g] else 0.0)
            price = damage / (saved if per_cost else after - removed[g])
            if price < best:
                best, choice = price, (g, after)
        g, after = choice
        if g < 0:
            break
        trial = shares.copy()
        trial[g] = 1 - after / curves[g].units
        then = cost(trial)
        if then < target and steps[g] > 1:
            steps = [1] * len(curves)  # close to the target: single units from here
            continue
        removed[g], shares, now = after, trial, then
    return removed
