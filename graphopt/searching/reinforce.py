"""REINFORCE: options drawn from learned probabilities, which rise with what the drawn networks score.

    theta += rate * (reward - mean of the rewards) / spread of the rewards * gradient of log p(assignment)

theta: for each choice one number per option, p = softmax(theta). What a draw exceeds limits by is mended before it is scored.

Papers: Williams 1992, "Simple Statistical Gradient-Following Algorithms"; Zoph and Le 2017, "Neural Architecture Search with
        Reinforcement Learning"; Tan et al. 2019, "MnasNet", section 4 (limits are kept here, and not weighed in the reward).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from graphopt.searching.problem import Assignment, Problem
from graphopt.searching.sampled import Judge, Score, mended

RATE = 0.3
TOGETHER = 8  # draws for one step


def reinforce(problem: Problem, score: Score | None = None, evaluations: int = 500, seed: int = 0) -> Assignment | None:
    """The best by `score` (less is better; None: the damage) of so many draws; None where nothing keeps the limits."""
    drawn, judge = random.Random(seed), Judge(problem, score)
    theta = [[0.0] * len(choice.options) for choice in problem.choices]
    for _ in range(20 * max(1, evaluations // TOGETHER)):  # draws that are known already cost nothing
        if judge.count >= evaluations:
            break
        drafts = [tuple(_draw(row, drawn) for row in theta) for _ in range(TOGETHER)]
        batch = [kept for draft in drafts if (kept := mended(problem, draft, drawn)) is not None]
        if not batch:
            return judge.best
        _learn(theta, batch, [-judge(each) for each in batch])
    return judge.best


def _draw(row: Sequence[float], drawn: random.Random) -> int:
    return drawn.choices(range(len(row)), _softmax(row))[0]


def _softmax(row: Sequence[float]) -> list[float]:
    powers = [math.exp(t - max(row)) for t in row]
    return [p / sum(powers) for p in powers]


def _learn(theta: list[list[float]], batch: Sequence[Assignment], rewards: Sequence[float]) -> None:
    mean = sum(rewards) / len(rewards)
    spread = math.sqrt(sum((r - mean) ** 2 for r in rewards) / len(rewards))
    if spread == 0:
        return
    shares = [_softmax(row) for row in theta]
    for assignment, reward in zip(batch, rewards, strict=True):
        step = RATE * (reward - mean) / spread / len(batch)
        for row, share, option in zip(theta, shares, assignment, strict=True):
            for other in range(len(row)):
                row[other] += step * ((other == option) - share[other])
