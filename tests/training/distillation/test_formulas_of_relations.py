"""What methods compare of pairs and triples of samples, against the formula of each paper written as loops over numbers."""

from __future__ import annotations

import math

import torch
from formulas import N, S, T, close, dot, drawn, maps, mean_squared, method, norm, rows, unit
from torch import Tensor

from graphopt.training.distillation import distances


def test_similarity_is_the_distance_of_normed_products_of_samples() -> None:
    def similarity(value: Tensor) -> list[list[float]]:
        return [unit([dot(a, b) for b in rows(value)]) for a in rows(value)]

    expected = [mean_squared(a, b) for a, b in zip(similarity(S), similarity(T), strict=True)]
    close(method("similarity", [S], [T]), expected)


def huber(difference: float) -> float:
    return 0.5 * difference**2 if abs(difference) < 1 else abs(difference) - 0.5


def test_relations_are_distances_and_angles() -> None:
    s, t = 3 * drawn(N, 6), drawn(N, 4, seed=1)

    def pairs(value: Tensor) -> list[float]:
        found = [norm([x - y for x, y in zip(a, b, strict=True)]) for a in rows(value) for b in rows(value)]
        mean = sum(found) / (N * (N - 1))
        return [f / mean for f in found]

    def angles(value: Tensor) -> list[float]:
        found = []
        for j in rows(value):
            for i in rows(value):
                for k in rows(value):
                    e, f = ([a - b for a, b in zip(end, j, strict=True)] for end in (i, k))
                    found.append(dot(e, f) / (norm(e) * norm(f)) if norm(e) and norm(f) else 0.0)
        return found

    for term, relation, weight in ((0, pairs, 25), (1, angles, 50)):
        found = [huber(a - b) for a, b in zip(relation(s), relation(t), strict=True)]
        close(method("relations", [s], [t], term), weight * sum(found) / len(found))


def squared_pairs(value: Tensor) -> list[float]:
    found = [sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) for a in rows(value) for b in rows(value)]
    return [f / max(found) for f in found]


def test_instances_are_answers_edges_and_moves() -> None:
    s, t = drawn(N, 5), drawn(N, 5, seed=1)
    close(method("instances", [s], [t]), [0.1 * mean_squared(a, b) for a, b in zip(rows(s), rows(t), strict=True)])
    close(
        method("instances", [S], [maps(7, 4, 3)], 1).mean(),
        5 * mean_squared(squared_pairs(S), squared_pairs(maps(7, 4, 3))),
    )

    def moved(first: Tensor, last: Tensor) -> list[float]:  # last has twice the channels and half the size
        small = torch.nn.functional.avg_pool2d(first.double(), 2)
        paired = last.double().unflatten(1, (-1, 2)).mean(2)
        found = [
            sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) for x, y in zip(rows(small), rows(paired), strict=True)
        ]
        return [f / max(found) for f in found]

    one, other = (maps(3, 4, 1), maps(6, 2, 2)), (maps(2, 4, 3), maps(4, 2, 4))
    close(
        method("instances", one, other, 2), [5 * (a - b) ** 2 for a, b in zip(moved(*one), moved(*other), strict=True)]
    )


def test_teachers_vote_on_which_of_two_samples_is_nearer() -> None:
    s, teachers = drawn(N, N).abs(), [drawn(N, N, seed=seed).abs() for seed in (1, 2, 3)]
    wrong = []
    for i in range(N):
        for j in range(N):
            for k in range(N):
                vote = sum(math.copysign(1, float(t[i, j] - t[i, k])) if j != k else 0 for t in teachers)
                if vote:
                    wrong.append(max(0.0, 0.1 - math.copysign(1, vote) * float(s[i, j] - s[i, k])))
    close(distances.Ranking()(s, distances.votes(teachers)), sum(wrong) / len(wrong))
