"""Assignments that a sampler of optuna suggests (`pip install graphopt[optuna]`), by default the tree-structured Parzen
estimator.

A suggestion beyond the limits is mended like those of the other solvers, and the sampler is told of what was scored, not of what
it suggested. Options of widths, kernels and the like are numbers in an order; operators and edges are names.

    solve(problem, "optuna", score=lost, evaluations=100, sampler=optuna.samplers.GPSampler(seed=0))

Papers: Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization" (TPE); Akiba et al. 2019, "Optuna".
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from graphopt.searching.greedy import cheapest
from graphopt.searching.problem import Assignment, Problem
from graphopt.searching.sampled import TRIES, Judge, Score, mended
from graphopt.utils.errors import InputError

UNORDERED = ("operator", "edge")  # kinds of choices whose options are names


def sampler_search(
    problem: Problem, score: Score | None = None, evaluations: int = 500, seed: int = 0, sampler: Any = None
) -> Assignment | None:
    """The best by `score` (less is better; None: the damage) of so many evaluations; None where nothing keeps the limits.

    Args:
        sampler: of optuna; None: `TPESampler(seed=seed)`.

    Raises:
        InputError: optuna is not installed.
    """
    if not problem.keeps(cheapest(problem)):
        return None
    try:
        optuna: Any = importlib.import_module("optuna")
    except ImportError as error:
        raise InputError(f"optuna cannot be imported ({error}); pip install 'graphopt[optuna]'") from error
    judge, drawn = Judge(problem, score), random.Random(seed)
    space = _distributions(problem, optuna)
    with _quiet(optuna):
        study = optuna.create_study(sampler=sampler or optuna.samplers.TPESampler(seed=seed))
        for _ in range(TRIES * evaluations):
            if judge.count >= evaluations:
                break
            trial = study.ask(space)
            draft = tuple(int(trial.params[name]) for name in space)
            kept = mended(problem, draft, drawn)
            if kept == draft:
                study.tell(trial, judge(draft))
                continue
            study.tell(trial, state=optuna.trial.TrialState.FAIL)  # no sampler learns from those
            if kept is not None:
                params = dict(zip(space, kept, strict=True))
                study.add_trial(optuna.create_trial(params=params, distributions=space, value=judge(kept)))
    return judge.best


def _distributions(problem: Problem, optuna: Any) -> dict[str, Any]:
    """Of every choice, by its number."""
    found = {}
    for number, choice in enumerate(problem.choices):
        last = len(choice.options) - 1
        ordered = choice.kind not in UNORDERED and last > 0
        make = optuna.distributions
        found[str(number)] = (
            make.IntDistribution(0, last) if ordered else make.CategoricalDistribution(list(range(last + 1)))
        )
    return found


@contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Inside, optuna does not say what each trial found."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
