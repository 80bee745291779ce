"""Step by step by a measured score: every choice proposes its own way to the next milestone, and the best scored one is taken.

    milestone_k = cost now - step * cost of the whole          for the cost that exceeds its limit most
    from every choice: the first option on its way to cheaper ones that reaches the milestone alone, else its cheapest

Paper: Yang et al. 2018, "NetAdapt: Platform-Aware Neural Network Adaptation for Mobile Applications", algorithm 1. Whether a
proposal is trained for a moment before it is scored is the score's matter.
"""

from __future__ import annotations

from collections.abc import Iterator

from graphopt.searching.problem import Assignment, Problem, replaced
from graphopt.searching.sampled import Judge, Score

STEP = 0.05  # of the whole cost


def netadapt(problem: Problem, score: Score | None = None, evaluations: int = 500, seed: int = 0) -> Assignment | None:
    """Within the limits, with the best score of every step (less is better; None: the damage); None where nothing keeps them.

    `evaluations` bounds how many proposals are scored: behind that, those that save most are taken. `seed` is for the sake of the
    other solvers: nothing is drawn.
    """
    judge, now = Judge(problem, score), problem.first
    while not problem.keeps(now):
        found = list(_proposals(problem, now))
        if not found:
            return None
        affordable = found[: max(0, evaluations - judge.count)]
        now = min(affordable, key=judge) if affordable else found[0]
    return now


def _proposals(problem: Problem, now: Assignment) -> Iterator[Assignment]:
    """From every choice that can save something, those that save most first."""
    name = max(problem.limits, key=lambda n: problem.cost(n, now) / problem.limits[n])
    cost = problem.cost(name, now)
    milestone = max(problem.limits[name], cost - STEP * problem.cost(name, problem.first))
    saved: list[tuple[float, Assignment]] = []
    for number, choice in enumerate(problem.choices):
        ways = [replaced(now, number, option) for option in range(len(choice.options)) if option != now[number]]
        cheaper = sorted(((problem.cost(name, way), way) for way in ways), reverse=True)
        cheaper = [each for each in cheaper if each[0] < cost * (1 - 1e-9)]
        if cheaper:
            saved.append(next((each for each in cheaper if each[0] <= milestone), cheaper[-1]))
    yield from (way for _, way in sorted(saved))
