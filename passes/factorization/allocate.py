"""Which layer takes which option, so that the cost is met with the least damage.

Every layer has options, each with a cost and a damage, and may stay as it is. Only options on the lower convex hull of damage
over cost are worth taking (elsewhere a mixture of two others is better); taken by rising damage per cost saved they are optimal
but for the last step, which is chosen among all options. (Multiple-choice knapsack by its linear relaxation.)

Paper:  Sinha & Zoltners 1979, "The Multiple-Choice Knapsack Problem".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Option(NamedTuple):
    """`saved`: of the cost, over 0. `damage`: at least 0."""

    saved: float
    damage: float


def allocate(layers: Sequence[Sequence[Option]], wanted: float) -> list[int | None]:
    """The index of each layer's option, None where it stays as it is, with which `wanted` is saved if it can be."""
    wanted -= 1e-9 * abs(wanted)  # sums of the same numbers in another order are the same
    chosen: list[int | None] = [None] * len(layers)
    saved = 0.0
    edges = sorted((slope, number, index) for number, options in enumerate(layers) for slope, index in _hull(options))
    for _, number, index in edges:
        if saved >= wanted:
            break
        before = _of(layers[number], chosen[number])
        gain = layers[number][index].saved - before.saved
        if saved + gain >= wanted:
            number, index = _last(layers, chosen, wanted - saved)
            gain = layers[number][index].saved - _of(layers[number], chosen[number]).saved
        chosen[number] = index
        saved += gain
    return chosen


def _of(options: Sequence[Option], index: int | None) -> Option:
    return Option(0.0, 0.0) if index is None else options[index]


def _hull(options: Sequence[Option]) -> list[tuple[float, int]]:
    """The options on the lower hull from (0, 0), by rising cost saved, each with its slope; slopes rise."""
    hull: list[tuple[float, float, float, int]] = [(-1.0, 0.0, 0.0, -1)]  # slope, saved, damage, index
    for index in sorted(range(len(options)), key=lambda i: (options[i].saved, -options[i].damage)):
        option = options[index]
        while True:
            slope, saved, damage, _ = hull[-1]
            if option.saved <= saved:
                if option.damage >= damage or len(hull) == 1:
                    break
                hull.pop()
                continue
            steepness = (option.damage - damage) / (option.saved - saved)
            if steepness <= slope and len(hull) > 1:
                hull.pop()
                continue
            hull.append((max(steepness, 0.0), option.saved, option.damage, index))
            break
    return [(slope, index) for slope, _, _, index in hull[1:]]


def _last(layers: Sequence[Sequence[Option]], chosen: Sequence[int | None], missing: float) -> tuple[int, int]:
    """The one change that saves what is missing with the least damage."""
    changes = [
        (option.damage - _of(options, chosen[number]).damage, number, index)
        for number, options in enumerate(layers)
        for index, option in enumerate(options)
        if option.saved - _of(options, chosen[number]).saved >= missing
    ]
    _, number, index = min(changes)
    return number, index
