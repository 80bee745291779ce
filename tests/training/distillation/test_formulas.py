"""What methods compare of answers, maps, attention and gradients, against the formulas of the papers as loops over numbers."""

from __future__ import annotations

import math

import pytest
import torch
from formulas import N, S, T, close, divergence, dot, drawn, maps, mean_squared, method, rows, softmax, unit
from torch import Tensor

from graphopt.training.distillation import distances, transforms


def test_response_is_hintons() -> None:
    s, t = drawn(N, 5), drawn(N, 5, seed=1)
    expected = [
        16 * divergence(softmax([v / 4 for v in b]), softmax([v / 4 for v in a]))
        for a, b in zip(rows(s), rows(t), strict=True)
    ]
    close(method("response", [s], [t]), expected)


def test_attention_is_the_distance_of_normed_sums_over_channels() -> None:
    def attention(value: Tensor) -> list[list[float]]:
        return [
            unit([sum(float(x) ** 2 for x in sample.flatten(1)[:, p]) for p in range(4)]) for sample in value.double()
        ]

    expected = [4 * mean_squared(a, b) for a, b in zip(attention(S), attention(T), strict=True)]
    close(method("attention", [S], [T]), expected)


def test_flow_is_the_distance_of_products_averaged_over_positions() -> None:
    def flow(first: Tensor, last: Tensor) -> list[list[float]]:
        return [
            [sum(float(a[i, p] * b[j, p]) for p in range(4)) / 4 for i in range(3) for j in range(2)]
            for a, b in zip(first.double().flatten(2), last.double().flatten(2), strict=True)
        ]

    s, t = (maps(3, 2, 1), maps(2, 2, 2)), (maps(3, 2, 3), maps(2, 2, 4))
    close(method("flow", [s], [t]), [mean_squared(a, b) for a, b in zip(flow(*s), flow(*t), strict=True)])


def test_flow_averages_the_larger_of_two_maps() -> None:
    first, last = maps(3, 4, 1), maps(2, 2, 2)
    pooled = torch.nn.functional.avg_pool2d(first, 2)
    torch.testing.assert_close(transforms.gram(first, last), transforms.gram(pooled, last))


def test_selectivity_is_the_discrepancy_of_channels() -> None:
    t = maps(5, 2, 2)

    def channels(value: Tensor) -> list[list[list[float]]]:
        return [[unit(c) for c in sample.flatten(1).double().tolist()] for sample in value]

    expected = []
    for a, b in zip(channels(S), channels(t), strict=True):
        kernel = lambda one, other: sum(dot(x, y) ** 2 for x in one for y in other) / (len(one) * len(other))  # noqa: E731
        expected.append(kernel(b, b) + kernel(a, a) - 2 * kernel(a, b))
    close(method("selectivity", [S], [t]), expected)


def decomposed(value: Tensor) -> tuple[list[list[list[float]]], list[list[float]]]:
    """Right singular vectors, their largest component positive, and singular values of each sample's [positions, channels]."""
    vectors, values = [], []
    for sample in value.double():
        _, found, rows = torch.linalg.svd(sample.flatten(1).T, full_matrices=False)
        vectors.append([[v * math.copysign(1, max(row, key=abs)) for v in row] for row in rows.tolist()])
        values.append(found.tolist())
    return vectors, values


@pytest.mark.parametrize("count", [1, 2])
def test_svd_compares_how_singular_vectors_of_two_maps_lie_to_each_other(count: int) -> None:
    s, t = (maps(3, 2, 1), maps(3, 2, 2)), (maps(3, 2, 3), maps(3, 2, 4))
    expected = []
    sides = [(decomposed(a), decomposed(b)) for a, b in zip(s, t, strict=True)]
    for n in range(N):
        aligned = []
        for (own, _), (other, values) in sides:
            shares = unit(values[n][:count])
            pairs = []
            for j in range(count):
                best = max(own[n][: count + 3], key=lambda v, j=j, other=other: abs(dot(v, other[n][j])))  # type: ignore[misc]
                sign = math.copysign(1, dot(best, other[n][j]))
                pairs.append(([sign * shares[j] * v for v in best], [shares[j] * v for v in other[n][j]]))
            aligned.append(pairs)
        total = 0.0
        for j in range(count):
            (a, b), (c, d) = aligned[0][j], aligned[1][j]
            for x in range(3):
                for y in range(3):
                    total += (math.exp(-((a[x] - c[y]) ** 2) / 8) - math.exp(-((b[x] - d[y]) ** 2) / 8)) ** 2
        expected.append(total)
    found = distances.Radial(count)(transforms.singular_vectors(*s), transforms.singular_vectors(*t))
    close(found, expected)


def test_attention_and_relations_of_values_are_minilms() -> None:
    def attention(seed: int) -> Tensor:
        return drawn(N, 2, 3, 3, seed=seed).log_softmax(-1)

    def read(heads: Tensor, values: Tensor) -> list[list[list[float]]]:
        return [softmaxed.exp().flatten(0, 1).tolist() for softmaxed in transforms.value_relation(heads, values)]

    s, t, own, other = attention(1), attention(2), drawn(N, 2, 3, 5, seed=3), drawn(N, 2, 3, 7, seed=4)
    for n in range(N):
        for head in range(2):
            for i in range(3):
                scores = [dot(own[n, head, i].tolist(), own[n, head, j].tolist()) / math.sqrt(5) for j in range(3)]
                close(transforms.value_relation(s, own)[n, head, i].exp(), softmax(scores))
    for a, b in ((s, t), (transforms.value_relation(s, own), transforms.value_relation(t, other))):
        expected = []
        for n in range(N):
            pairs = zip(a[n].exp().flatten(0, 1).tolist(), b[n].exp().flatten(0, 1).tolist(), strict=True)
            expected.append(sum(divergence(q, p) for p, q in pairs) / 6)
        close(distances.relation(a, b), expected)


def test_tokens_that_are_masked_count_for_nothing() -> None:
    s, t = (drawn(N, 2, 3, 3, seed=seed) for seed in (1, 2))
    masked = [v.index_fill(3, torch.tensor([2]), -math.inf).log_softmax(-1) for v in (s, t)]
    visible = [v[..., :2].log_softmax(-1) for v in (s, t)]
    torch.testing.assert_close(distances.relation(*masked), distances.relation(*visible))


def test_the_class_token_is_compared_by_cosine() -> None:
    s, t = drawn(N, 4, 3), drawn(N, 4, 3, seed=1)
    expected = [1 - dot(unit(a), unit(b)) for a, b in zip(rows(s[:, :, 0]), rows(t[:, :, 0]), strict=True)]
    close(method("internal", [s], [t], 1), expected)


def test_gradients_by_the_inputs_are_compared() -> None:
    x = drawn(N, 3).requires_grad_()
    weights, others = drawn(5, 3, seed=1), drawn(5, 3, seed=2)
    s, t = (x @ weights.T).pow(2), (x @ others.T).pow(3)
    expected, random = [], []
    torch.manual_seed(3)
    directions = torch.randn_like(t)
    torch.manual_seed(3)
    found = distances.sobolev((s, x), (t, x))
    for n in range(N):
        row = x[n].tolist()

        def gradient(matrix: Tensor, power: int, c: int, row: list[float] = row) -> list[float]:
            inner = dot(matrix[c].tolist(), row)
            return [power * inner ** (power - 1) * w for w in matrix[c].tolist()]

        likeliest = max(range(5), key=lambda c: float(t[n, c]))
        one, other = unit(gradient(weights, 2, likeliest)), unit(gradient(others, 3, likeliest))
        expected.append(sum((a - b) ** 2 for a, b in zip(one, other, strict=True)))
        v = unit(directions[n].tolist())
        sums = [
            [sum(v[c] * gradient(matrix, power, c)[i] for c in range(5)) for i in range(3)]
            for matrix, power in ((weights, 2), (others, 3))
        ]
        random.append(sum((a - b) ** 2 for a, b in zip(*sums, strict=True)))
    close(distances.jacobian((s, x), (t, x)), expected)
    close(found, random)


def test_maps_of_two_resolutions_are_compared_at_the_smaller() -> None:
    large = maps(3, 4, 5)
    small = torch.nn.functional.avg_pool2d(large, 2)
    for name in ("attention", "similarity", "selectivity"):
        torch.testing.assert_close(method(name, [S], [large]), method(name, [S], [small]))
        torch.testing.assert_close(method(name, [large], [S]), method(name, [small], [S]))
