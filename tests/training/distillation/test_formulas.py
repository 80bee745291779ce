"""What each method computes, against the formula of its paper written as loops over numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from distilling import computed
from torch import Tensor

from graphopt.training.distillation import METHODS, distances, transforms
from graphopt.training.distillation.learned import Adversary, AnswerAdversary, Contrast, Factor, Margin, Variational

N = 4


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def maps(channels: int, size: int, seed: int) -> Tensor:
    return drawn(N, channels, size, size, seed=seed)


S, T = maps(3, 2, 1), maps(3, 2, 2)


def rows(value: Tensor) -> list[list[float]]:
    """Each sample as a list of numbers."""
    return value.double().flatten(1).tolist()  # type: ignore[no-any-return]


def norm(values: list[float]) -> float:
    return math.sqrt(sum(v * v for v in values))


def unit(values: list[float]) -> list[float]:
    return [v / norm(values) for v in values]


def dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def mean_squared(one: list[float], other: list[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) / len(one)


def softmax(values: list[float]) -> list[float]:
    powers = [math.exp(v) for v in values]
    return [p / sum(powers) for p in powers]


def divergence(teacher: list[float], student: list[float]) -> float:
    return sum(p * math.log(p / q) for p, q in zip(teacher, student, strict=True))


def method(name: str, student: Any, teacher: Any, term: int = 0) -> Tensor:
    return computed(METHODS[name].terms[term], student, teacher)


def close(found: Tensor, expected: Any) -> None:
    torch.testing.assert_close(found.double(), torch.tensor(expected).double(), rtol=1e-4, atol=1e-6)


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


def test_variational_is_the_gaussians_negative_logarithm() -> None:
    module = Variational((3, 2, 2), (3, 2, 2))
    close(torch.nn.functional.softplus(module.scale) + 1e-5, [5.0] * 3)
    with torch.no_grad():
        module.scale.copy_(torch.tensor([0.1, 1.0, -2.0]))
    predicted = module.regressor(S)
    expected = []
    for p, t in zip(predicted.double(), T.double(), strict=True):
        total, scales = 0.0, module.scale.tolist()
        for c in range(3):
            variance = math.log1p(math.exp(scales[c])) + 1e-5
            for a, b in zip(p[c].flatten().tolist(), t[c].flatten().tolist(), strict=True):
                total += math.log(variance) / 2 + (b - a) ** 2 / (2 * variance)
        expected.append(total / 12)
    close(module(S, T), expected)


def test_boundary_wants_the_teachers_side_by_a_margin() -> None:
    expected = []
    for a, b in zip(rows(S), rows(T), strict=True):
        wanted = [max(0.0, 1 - x) if y > 0 else max(0.0, 1 + x) for x, y in zip(a, b, strict=True)]
        expected.append(sum(w * w for w in wanted) / len(wanted))
    close(distances.Boundary()(S, T), expected)


def test_margin_replaces_what_is_below_the_mean_of_negatives_and_lets_go_of_the_rest() -> None:
    margin = Margin((3, 2, 2), (3, 2, 2))
    margin(S)
    found = margin(T)
    for c in range(3):
        negative = [v for value in (S, T) for v in value[:, c].flatten().tolist() if v < 0]
        m = sum(negative) / len(negative)
        close(found[:, c].flatten(), [max(v, m) for v in T[:, c].flatten().tolist()])
    expected = []
    for a, b in zip(rows(S), rows(T), strict=True):
        expected.append(sum(0.0 if x <= y <= 0 else (x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a))
    close(distances.partial(S, T), expected)


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


def test_factors_of_norm_one_are_compared_and_the_paraphraser_rebuilds() -> None:
    module = Factor((3, 2, 2), (4, 2, 2))
    t = maps(4, 2, 3)
    mine, theirs = module.translator(S), module.encoder(t)
    assert theirs.shape[1] == 2
    expected = []
    for a, b, r, o in zip(rows(mine), rows(theirs), rows(module.decoder(theirs)), rows(t), strict=True):
        expected.append(sum(abs(x - y) for x, y in zip(unit(a), unit(b), strict=True)) / len(a) + mean_squared(r, o))
    close(module(S, t), expected)


def test_contrast_is_the_critics_loss() -> None:
    s, t = drawn(N, 6), drawn(N, 5, seed=1)
    module = Contrast((6,), (5,), size=3, temperature=0.5, ratio=0.25)
    one, other = (
        [unit(row) for row in rows(layer(value))] for layer, value in ((module.student, s), (module.teacher, t))
    )

    def h(i: int, j: int) -> float:
        power = math.exp(dot(one[i], other[j]) / 0.5)
        return power / (power + 0.25)

    expected = []
    for i in range(N):
        others = [j for j in range(N) if j != i]
        first = -math.log(h(i, i)) - sum(math.log(1 - h(i, j)) for j in others)
        second = -math.log(h(i, i)) - sum(math.log(1 - h(j, i)) for j in others)
        expected.append(first + second)
    close(module(s, t), expected)


def test_discriminators_learn_one_thing_and_students_another() -> None:
    s, t = drawn(N, 5).requires_grad_(), drawn(N, 5, seed=1)
    meal, adversary = AnswerAdversary((5,), (5,)), Adversary((3, 2, 2), (3, 2, 2))
    own, other = (torch.sigmoid(meal.discriminator(v)).flatten().tolist() for v in (s, t))
    close(meal(s, t), [-math.log(b) - math.log(1 - a) + math.log(1 - a) for a, b in zip(own, other, strict=True)])
    own, other = (adversary.discriminator(v).flatten().tolist() for v in (S, T))
    close(adversary(S, T), [(1 - b) ** 2 + a**2 + (1 - a) ** 2 for a, b in zip(own, other, strict=True)])

    meal(s, t).sum().backward()
    (toward,) = torch.autograd.grad(-torch.nn.functional.softplus(meal.discriminator(s)).sum(), s)
    torch.testing.assert_close(s.grad, toward, msg="the student learns to be taken for the teacher")
    learned = torch.nn.functional.softplus(-meal.discriminator(t)) + torch.nn.functional.softplus(
        meal.discriminator(s.detach())
    )
    expected = torch.autograd.grad(learned.sum(), list(meal.parameters()))
    for parameter, gradient in zip(meal.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, msg="the discriminator learns to tell them apart")


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


def test_maps_of_two_resolutions_are_compared_at_the_smaller() -> None:
    large = maps(3, 4, 5)
    small = torch.nn.functional.avg_pool2d(large, 2)
    for name in ("attention", "similarity", "selectivity"):
        torch.testing.assert_close(method(name, [S], [large]), method(name, [S], [small]))
        torch.testing.assert_close(method(name, [large], [S]), method(name, [small], [S]))
