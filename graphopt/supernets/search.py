"""Search among the networks that a supernet holds, for the best within a budget.

found = search(graph, {"macs": 0.5}, evaluate=accuracy, data=images, evaluations=200)
found.graph                     an ordinary graph: fine-tune it, optimize it

solver        asks `evaluate`     how
    evolution     yes                 Guo et al. 2020 (SPOS); the default with `evaluate`
    reinforce     yes                 with shared weights: ENAS, Pham et al. 2018
    netadapt      yes                 step by step to the budget, the best scored step each time: Yang et al. 2018;
                                      after `Sandwich`, on widths, this is AutoSlim, Yu and Huang 2019
    ddpg          yes                 an agent that decides choice by choice: He et al. 2018 (AMC)
    optuna        yes                 tree-structured Parzen estimators: Bergstra et al. 2011
    random        yes                 the control
    exact         no                  the likeliest by learned weights (DARTS, FBNet, ProxylessNAS, DMCP); the default without
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from graphopt.analysis.choices import extract
from graphopt.ir.graph import Graph
from graphopt.searching import SOLVERS, Assignment, Problem, Solver, solve
from graphopt.searching.sampled import Score, random_assignments
from graphopt.supernets.found import Found, Tried
from graphopt.supernets.predictor import Predictor
from graphopt.supernets.problem import Times, problem_of
from graphopt.supernets.refit import refitted
from graphopt.supernets.scores import Evaluate, Scores
from graphopt.training.choices.sampled import settle_norms
from graphopt.utils.errors import InputError, alternatives
from graphopt.utils.progress import progress

SCORING = ("evolution", "reinforce", "netadapt", "ddpg", "optuna", "random")
BATCHES = 4  # for the statistics of batch norms


def search(
    graph: Graph,
    budget: Mapping[str, float],
    *,
    evaluate: Evaluate | None = None,
    data: Iterable[list[Tensor]] | None = None,
    solver: Solver | None = None,
    evaluations: int = 200,
    seed: int = 0,
    predicted: int = 0,
    folder: str | Path | None = None,
    times: Times | None = None,
    refit: int = 0,
) -> Found:
    """The best network of a supernet within a budget.

    Args:
        graph: with choices, trained; it is not changed.
        budget: limits of `macs` and `parameters`: up to 1 a share of the network with the first options, above that a number;
            of `ms` (milliseconds) or `latency` (a share of what that network takes), with `times`.
        evaluate: takes a callable that behaves like the model and returns a score, higher is better; on data that training has
            not seen. None: learned weights of choices decide.
        data: batches of inputs, for the statistics of batch norms (`graphopt.data.Calibration`). Needed where there are any.
        solver: see the head of this file.
        evaluations: networks that `evaluate` is asked about, at most.
        seed: of what is drawn.
        predicted: how many further networks are looked at by scores that are predicted from the evaluated ones
            (`graphopt.supernets.predictor`): half of `evaluations` go to random networks, the other half to the best predicted.
        folder: keeps the scores: a search that was interrupted goes on there.
        refit: so many of the best networks are fitted to the largest one, layer by layer on `data`, and judged again
            (`graphopt.supernets.refit`); the best of all is found. Worth it after short trainings.
        times: what says how long networks take, such as `graphopt.compiler.supernet_times.SupernetTimes("host")`.

    Raises:
        InputError: there are no choices, the budget is out of reach (the message says what is in reach), a solver that needs
            `evaluate` has none, or nothing tells the options apart.
    """
    name = solver or ("evolution" if evaluate is not None else "exact")
    _check(graph, name, evaluate, data, evaluations, predicted)
    if refit and (evaluate is None or data is None or not isinstance(refit, int) or refit < 0):
        raise InputError(f"refit says how many networks are fitted on data= and judged by evaluate=; got {refit}")
    problem = problem_of(graph, budget, times)
    batches = list(islice(data or [], BATCHES))
    scores = None if evaluate is None else Scores(graph, evaluate, batches, folder)
    if scores is None or name not in SCORING:
        if not any(option.damage for choice in problem.choices for option in choice.options):
            raise InputError("nothing tells the options apart: pass evaluate=, or learn weights of the choices first")
        chosen = solve(problem, name)
    else:
        with progress("searching", evaluations) as advance:

            def score(options: Assignment) -> float:
                advance()
                return -scores(options)

            if predicted:
                chosen = by_prediction(problem, name, score, evaluations, predicted, seed)
            else:
                chosen = solve(problem, name, score=score, evaluations=evaluations, seed=seed)
    found = _found(graph, problem, chosen, batches, scores)
    return found if scores is None or not refit else _fitted(graph, problem, found, batches, scores, refit)


def by_prediction(
    problem: Problem, solver: Solver, score: Score, evaluations: int, predicted: int, seed: int
) -> Assignment:
    """Random networks first, then those that score best by what they predict."""
    known: dict[Assignment, float] = {}
    for options in random_assignments(problem, random.Random(seed)):
        known[options] = score(options)
        if len(known) >= max(2, evaluations // 2):
            break
    if len(known) < 2:
        return solve(problem, solver, score=score, evaluations=evaluations, seed=seed)
    predictor, ranked = Predictor(problem.choices, known), dict[Assignment, float]()

    def expected(options: Assignment) -> float:
        ranked[options] = predictor(options)
        return ranked[options]

    solve(problem, solver, score=expected, evaluations=predicted, seed=seed)
    for options in sorted(set(ranked) - set(known), key=ranked.__getitem__)[: max(1, evaluations - len(known))]:
        known[options] = score(options)
    return min(known, key=known.__getitem__)


def _check(graph: Graph, name: str, evaluate: object, data: object, evaluations: int, predicted: int) -> None:
    if name not in SOLVERS:
        raise InputError(f"there is no solver {name!r}; {alternatives(name, SOLVERS, 'solvers')}")
    if name in SCORING and evaluate is None:
        raise InputError(f"the solver {name!r} asks evaluate about every network; pass evaluate=")
    if evaluations < 1 or predicted < 0:
        raise InputError(f"evaluations must be at least 1 and predicted at least 0, got {evaluations} and {predicted}")
    if data is None and any("batch_norm" in str(node.target) for node in graph.calls()):
        raise InputError(
            "batch norms of a sub-network need statistics of their own; pass data=Calibration(inputs, graph)"
        )


def _found(
    graph: Graph, problem: Problem, chosen: Assignment, batches: list[list[Tensor]], scores: Scores | None
) -> Found:
    small = extract(graph, chosen)
    with torch.no_grad():
        settle_norms(small, batches)
    known = {} if scores is None else scores.known
    tried = [Tried(options, score, _costs(problem, options)) for options, score in known.items()]
    return Found(chosen, _labels(problem, chosen), small, known.get(chosen), _costs(problem, chosen), tried)


def _fitted(
    graph: Graph, problem: Problem, found: Found, batches: list[list[Tensor]], scores: Scores, count: int
) -> Found:
    """The best of what was found and of the best networks after they are fitted."""
    within = [options for options in scores.known if problem.keeps(options)]
    for options in sorted(within, key=scores.known.__getitem__, reverse=True)[:count]:
        small = refitted(graph, options, batches)
        with torch.no_grad():
            score = float(scores.evaluate(small))
        if found.score is None or score > found.score:
            labels, costs = _labels(problem, options), _costs(problem, options)
            found = replace(found, options=options, labels=labels, graph=small, score=score, costs=costs)
    return found


def _costs(problem: Problem, options: Assignment) -> dict[str, float]:
    return {name: problem.cost(name, options) for name in problem.costs}


def _labels(problem: Problem, options: Assignment) -> dict[str, str]:
    return {c.name: c.options[o].label for c, o in zip(problem.choices, options, strict=True)}
