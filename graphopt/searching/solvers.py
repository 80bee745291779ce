"""The solvers by name.

solve(problem)                      exact where that is possible, else greedy
solve(problem, "evolution", score=accuracy_lost, evaluations=200)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from graphopt.searching.ddpg import ddpg
from graphopt.searching.exact import exact
from graphopt.searching.greedy import cheapest, greedy
from graphopt.searching.netadapt import netadapt
from graphopt.searching.problem import Assignment, Problem
from graphopt.searching.reinforce import reinforce
from graphopt.searching.sampled import evolution, random_search
from graphopt.searching.samplers import sampler_search
from graphopt.utils.errors import InputError, alternatives

Solver = Literal["exact", "greedy", "evolution", "reinforce", "netadapt", "ddpg", "optuna", "random"]
SOLVERS: dict[str, Callable[..., Assignment | None]] = {
    "exact": exact,
    "greedy": greedy,
    "evolution": evolution,
    "reinforce": reinforce,
    "netadapt": netadapt,
    "ddpg": ddpg,
    "optuna": sampler_search,
    "random": random_search,
}
MOST = 200_000  # combinations that integer programming is given


def solve(problem: Problem, solver: Solver | None = None, **options: Any) -> Assignment:
    """The assignment that a solver finds.

    Args:
        solver: None: `exact`, or `greedy` where there are more than `MOST` combinations.
        **options: of `evolution`, `reinforce`, `netadapt`, `ddpg`, `optuna` and `random`: `score`, `evaluations`, `seed`; of
            `optuna` also `sampler`.

    Raises:
        InputError: an unknown solver, or limits that nothing keeps: the message says what is in reach.
    """
    name = solver or ("exact" if problem.combinations() <= MOST else "greedy")
    if name not in SOLVERS:
        raise InputError(f"there is no solver {name!r}; {alternatives(name, SOLVERS, 'solvers')}")
    if problem.keeps(problem.first) and problem.first_is_best and not options.get("score"):
        return problem.first
    found = SOLVERS[name](problem, **options)
    if found is None or not problem.keeps(found):
        found = greedy(problem) if name == "exact" else None
    if found is None:
        raise problem.shortfall(cheapest(problem))
    return found
