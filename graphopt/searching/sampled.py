"""Evolution, and random draws as its control: for scores that are no sum, such as the measured accuracy of a sub-network.

Both draw assignments, mend those that exceed a limit by single changes, and keep what scores best. Evolution draws around the
best so far: parents of a population, crossed choice by choice and mutated (Real et al. 2019, "Regularized Evolution", whose
oldest member goes; Guo et al. 2020, "Single Path One-Shot", section 3.4, for crossing within limits).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from graphopt.searching.greedy import greedy
from graphopt.searching.problem import Assignment, Problem

Score = Callable[[Assignment], float]
POPULATION = 32
MUTATED = 0.1  # of the choices
TRIES = 20  # to draw what was not seen


def evolution(problem: Problem, score: Score | None = None, evaluations: int = 500, seed: int = 0) -> Assignment | None:
    """The best by `score` (less is better; None: the damage) after so many evaluations; None where nothing keeps the limits.

    The first of the population is what `greedy` finds.
    """
    drawn = random.Random(seed)
    judge = Judge(problem, score)
    start = greedy(problem)
    if start is None:
        return None
    judge(start)
    alive = [start]
    for parent in random_assignments(problem, drawn):
        if len(alive) >= POPULATION or judge.count >= evaluations:
            break
        judge(parent)
        alive.append(parent)
    while judge.count < evaluations:
        child = _fresh(problem, judge, drawn, alive)
        if child is None:
            break
        judge(child)
        alive = [*alive, child][-POPULATION:]
    return judge.best


def random_search(
    problem: Problem, score: Score | None = None, evaluations: int = 500, seed: int = 0
) -> Assignment | None:
    """The best of so many random assignments within the limits."""
    judge = Judge(problem, score)
    for assignment in random_assignments(problem, random.Random(seed)):
        judge(assignment)
        if judge.count >= evaluations:
            break
    return judge.best


class Judge:
    """Scores assignments, each once, and remembers the best."""

    def __init__(self, problem: Problem, score: Score | None) -> None:
        self.score = score or problem.damage
        self.known: dict[Assignment, float] = {}

    def __call__(self, assignment: Assignment) -> float:
        if assignment not in self.known:
            self.known[assignment] = self.score(assignment)
        return self.known[assignment]

    @property
    def count(self) -> int:
        return len(self.known)

    @property
    def best(self) -> Assignment | None:
        return min(self.known, key=self.known.__getitem__, default=None)


def random_assignments(problem: Problem, drawn: random.Random) -> Iterator[Assignment]:
    """Random assignments that keep the limits, none twice; ends where no new ones are found."""
    seen: set[Assignment] = set()
    for _ in range(TRIES * POPULATION * TRIES):
        draft = tuple(drawn.randrange(len(choice.options)) for choice in problem.choices)
        kept = mended(problem, draft, drawn)
        if kept is not None and kept not in seen:
            seen.add(kept)
            yield kept


def _fresh(problem: Problem, judge: Judge, drawn: random.Random, alive: list[Assignment]) -> Assignment | None:
    """A child that was not seen yet."""
    for _ in range(TRIES):
        ranked = sorted(drawn.sample(alive, min(len(alive), 8)), key=judge)
        mother, father = ranked[0], ranked[min(1, len(ranked) - 1)]
        child = [drawn.choice(pair) for pair in zip(mother, father, strict=True)]
        for number, choice in enumerate(problem.choices):
            if drawn.random() < max(MUTATED, 1 / len(problem.choices)):
                child[number] = drawn.randrange(len(choice.options))
        kept = mended(problem, tuple(child), drawn)
        if kept is not None and kept not in judge.known:
            return kept
    return None


def mended(problem: Problem, draft: Assignment, drawn: random.Random) -> Assignment | None:
    """The draft, with random choices made cheaper until it keeps the limits."""
    now, order = list(draft), list(range(len(draft)))
    drawn.shuffle(order)
    for number in order:
        if problem.keeps(tuple(now)):
            break
        options = range(len(problem.choices[number].options))
        now[number] = min(options, key=lambda option: problem.excess((*now[:number], option, *now[number + 1 :])))
    return tuple(now) if problem.keeps(tuple(now)) else None
