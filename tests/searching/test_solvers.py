"""Solvers against every assignment there is."""

from __future__ import annotations

import itertools
import random
import sys
from functools import partial

import pytest

from graphopt.searching import SOLVERS, Assignment, Choice, Option, Problem, Term, solve
from graphopt.searching.problem import replaced
from graphopt.utils.errors import InputError


def drawn(seed: int, choices: int = 5, options: int = 4, limit: float = 0.5, second: bool = False) -> Problem:
    """A chain of layers: each costs by what it reads and makes; damages rise as options get cheaper."""
    rng = random.Random(seed)
    found = [
        Choice(
            f"layer{c}",
            "width",
            tuple(Option(str(o), d) for o, d in enumerate(sorted([0.0, *(rng.random() for _ in range(options - 1))]))),
        )
        for c in range(choices)
    ]
    size = [sorted((rng.random() + 0.1 for _ in range(options)), reverse=True) for _ in range(choices)]

    def pair(a: int, chosen: Assignment) -> float:
        return size[a][chosen[0]] * size[a + 1][chosen[1]]

    terms = [Term((a, a + 1), partial(pair, a)) for a in range(choices - 1)] + [Term((), lambda _: 0.05)]
    alone = [Term((c,), lambda chosen, c=c: size[c][chosen[0]] ** 2) for c in range(choices)]
    problem = Problem(found, {"ms": terms, "bytes": alone}, {})
    limits = {"ms": limit * problem.cost("ms", problem.first)}
    if second:
        limits["bytes"] = 0.6 * problem.cost("bytes", problem.first)
    return Problem(found, problem.costs, limits)


def best(problem: Problem) -> Assignment:
    every = itertools.product(*(range(len(choice.options)) for choice in problem.choices))
    return min((a for a in every if problem.keeps(a)), key=problem.damage)


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_integer_programming_finds_the_best(seed: int, second: bool) -> None:
    problem = drawn(seed, second=second)
    found = solve(problem, "exact")
    assert problem.keeps(found)
    assert problem.damage(found) == pytest.approx(problem.damage(best(problem)), rel=2e-3)


def test_small_damages_are_told_apart() -> None:
    problem = drawn(0)
    choices = [
        Choice(c.name, c.kind, tuple(Option(o.label, 1e-7 * o.damage) for o in c.options)) for c in problem.choices
    ]
    tiny = Problem(choices, problem.costs, problem.limits)
    assert tiny.damage(solve(tiny, "exact")) == pytest.approx(1e-7 * problem.damage(best(problem)), rel=2e-3)


@pytest.mark.parametrize("solver", ["greedy", "evolution"])
@pytest.mark.parametrize("seed", range(8))
def test_the_others_come_close(solver: str, seed: int) -> None:
    problem = drawn(seed, second=bool(seed % 2))
    found = solve(problem, solver)  # type: ignore[arg-type]
    assert problem.keeps(found)
    assert problem.damage(found) <= 1.15 * problem.damage(best(problem)) + 1e-9


def test_evolution_beats_random_draws_of_the_same_number() -> None:
    problems = [drawn(seed, choices=14, options=6) for seed in range(4)]
    ours = [p.damage(solve(p, "evolution", evaluations=150)) for p in problems]
    control = [p.damage(solve(p, "random", evaluations=150)) for p in problems]
    assert all(a < b for a, b in zip(ours, control, strict=True))


def test_a_score_takes_the_place_of_the_damage() -> None:
    problem = drawn(3)
    asked: list[Assignment] = []

    def score(assignment: Assignment) -> float:
        asked.append(assignment)
        return -float(sum(assignment))  # the cheapest, whatever it damages

    found = solve(problem, "evolution", score=score, evaluations=300)
    assert sum(found) == max(map(sum, asked))
    assert len(asked) == len(set(asked))  # each once
    assert all(map(problem.keeps, asked))


def test_the_network_as_it_is_where_it_keeps_the_limits() -> None:
    problem = drawn(0, limit=1.5)
    assert all(solve(problem, solver) == problem.first for solver in SOLVERS)  # type: ignore[arg-type]


def test_a_budget_out_of_reach_says_what_is_in_reach() -> None:
    problem = drawn(1, limit=1e-3)
    for solver in (None, *SOLVERS):
        with pytest.raises(InputError, match=r"ms can be brought from .* to .* at the least, .* were asked for"):
            solve(problem, solver)  # type: ignore[arg-type]


def test_bad_input_is_told_by_name() -> None:
    problem = drawn(0)
    with pytest.raises(InputError, match=r"no solver 'evolutoin'.*did you mean 'evolution'"):
        solve(problem, "evolutoin")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"no cost 'time'; there are ms, bytes"):
        Problem(problem.choices, problem.costs, {"time": 1.0})
    with pytest.raises(InputError, match="'layer9' has no options"):
        Choice("layer9", "width", ())


def test_changes_are_differences_of_costs() -> None:
    problem = drawn(5)
    for choice, option in ((0, 3), (2, 1), (4, 2)):
        start = (1, 0, 2, 0, 1)
        want = problem.cost("ms", replaced(start, choice, option)) - problem.cost("ms", start)
        assert problem.change("ms", start, choice, option) == pytest.approx(want)


def test_every_combination_of_a_term_is_asked_for_once() -> None:
    asked: list[Assignment] = []

    def of(chosen: Assignment) -> float:
        asked.append(chosen)
        return 1.0 - 0.1 * chosen[0]

    choices = [Choice("a", "width", tuple(Option(str(n), float(n)) for n in range(4)))]
    solve(Problem(choices, {"ms": [Term((0,), of)]}, {"ms": 0.85}))
    assert sorted(asked) == [(0,), (1,), (2,), (3,)]


def test_measured_steps_come_closer_than_as_many_random_draws() -> None:
    stepwise, drawn_at_random = [], []
    for seed in range(8):
        problem = drawn(seed)
        asked: list[Assignment] = []

        def score(options: Assignment, problem: Problem = problem, asked: list[Assignment] = asked) -> float:
            asked.append(options)
            return problem.damage(options)

        found = solve(problem, "netadapt", score=score)
        assert problem.keeps(found)
        least = problem.damage(best(problem))
        stepwise.append(problem.damage(found) / least)
        other = solve(problem, "random", evaluations=len(asked), seed=seed)
        drawn_at_random.append(problem.damage(other) / least)
    assert sum(stepwise) / 8 < min(1.25, sum(drawn_at_random) / 8)


def test_an_agent_comes_close_and_repeats_itself() -> None:
    excess = []
    for seed in range(8):
        problem = drawn(seed, second=bool(seed % 2))
        found = solve(problem, "ddpg", evaluations=120, seed=1)
        assert problem.keeps(found)
        assert found == solve(problem, "ddpg", evaluations=120, seed=1)
        excess.append(problem.damage(found) / problem.damage(best(problem)))
    assert sum(excess) / 8 < 1.2


def test_reinforce_learns_what_scores_well() -> None:
    problem = Problem([Choice(f"c{n}", "any", tuple(Option(str(o), 0.0) for o in range(6))) for n in range(6)], {}, {})
    wanted = (3, 1, 4, 1, 5, 2)

    def score(options: Assignment) -> float:
        return float(sum(a != b for a, b in zip(options, wanted, strict=True)))

    learned = [score(solve(problem, "reinforce", score=score, evaluations=400, seed=seed)) for seed in range(4)]
    control = [score(solve(problem, "random", score=score, evaluations=400, seed=seed)) for seed in range(4)]
    assert sum(learned) < 0.5 * sum(control)


def test_a_sampler_of_optuna_finds_more_than_its_first_draws() -> None:
    optuna = pytest.importorskip("optuna")
    problem = drawn(3, choices=6)
    asked: list[float] = []

    def score(assignment: Assignment) -> float:
        assert problem.keeps(assignment)
        asked.append(problem.damage(assignment))
        return asked[-1]

    found = solve(problem, "optuna", score=score, evaluations=80, seed=1)
    assert len(asked) == 80
    assert problem.damage(found) == min(asked) < min(asked[:20])
    assert problem.damage(found) <= 1.15 * problem.damage(best(problem))
    again = solve(problem, "optuna", score=problem.damage, evaluations=80, seed=1)
    assert again == found
    other = solve(problem, "optuna", score=problem.damage, evaluations=5, sampler=optuna.samplers.RandomSampler(seed=0))
    assert problem.keeps(other)


def test_without_optuna_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"graphopt\[optuna\]"):
        solve(drawn(0), "optuna", score=lambda a: 0.0)
