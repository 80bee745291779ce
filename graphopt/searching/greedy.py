"""Step by step to the limits: of all single changes the one that costs the least damage for what it saves, then exchanges.

A change may jump over options, so that a step which damages much but saves much more is seen. What several limits ask for is
weighed by how much of each is still missing. When all are kept, every pair of changes that keeps them and damages less is made.
"""

from __future__ import annotations

from collections.abc import Iterator

from graphopt.searching.problem import Assignment, Problem, replaced

LEAST = 1e-12  # damage: a change that costs none is taken by what it saves
EXCHANGES = 200  # at most


def greedy(problem: Problem, start: Assignment | None = None) -> Assignment | None:
    """An assignment that keeps the limits; None where none was found."""
    now = start or problem.first
    while not problem.keeps(now):
        best = max(_changes(problem, now), key=lambda change: change[0], default=None)
        if best is None:
            return None
        now = replaced(now, best[1], best[2])
    return _exchanged(problem, now)


def cheapest(problem: Problem) -> Assignment:
    """As cheap as single changes can make it, whatever the damage: what a budget can be held against."""
    now = problem.first
    while True:
        best = None
        for choice, option in _others(problem, now):
            saved = sum(-problem.change(n, now, choice, option) / limit for n, limit in problem.limits.items())
            if saved > LEAST and (best is None or saved > best[0]):
                best = saved, choice, option
        if best is None:
            return now
        now = replaced(now, best[1], best[2])


def _others(problem: Problem, now: Assignment) -> Iterator[tuple[int, int]]:
    for number, choice in enumerate(problem.choices):
        for option in range(len(choice.options)):
            if option != now[number]:
                yield number, option


def _changes(problem: Problem, now: Assignment) -> Iterator[tuple[float, int, int]]:
    """(what is saved for the damage, choice, option) of the changes that save something of what is missing."""
    missing = {name: problem.cost(name, now) / limit - 1 for name, limit in problem.limits.items()}
    missing = {name: over for name, over in missing.items() if over > 0}
    for number, option in _others(problem, now):
        options = problem.choices[number].options
        saved = 0.0
        for name, over in missing.items():
            share = -problem.change(name, now, number, option) / problem.limits[name]
            saved += min(share, over) / over  # more than is missing is worth nothing
        if saved > LEAST:
            rise = max(LEAST, options[option].damage - options[now[number]].damage)
            yield saved / rise, number, option


def _exchanged(problem: Problem, now: Assignment) -> Assignment:
    """The same after exchanges: one choice takes an option that damages less, another pays for it."""
    for _ in range(EXCHANGES):
        better = next(_improvements(problem, now), None)
        if better is None:
            return now
        now = better
    return now


def _improvements(problem: Problem, now: Assignment) -> Iterator[Assignment]:
    damage = problem.damage(now)
    for number, option in _others(problem, now):
        options = problem.choices[number].options
        gain = options[now[number]].damage - options[option].damage
        if gain <= LEAST:
            continue
        one = replaced(now, number, option)
        if problem.keeps(one):
            yield one
            continue
        for other, way in _others(problem, one):
            two = replaced(one, other, way)
            if other != number and problem.damage(two) < damage - LEAST and problem.keeps(two):
                yield two
