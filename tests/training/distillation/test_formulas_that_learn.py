"""What methods compute that learn along, or want a side or a margin, against the formula of each paper as loops over numbers."""

from __future__ import annotations

import math

import torch
from formulas import N, S, T, close, dot, drawn, maps, mean_squared, rows, unit

from graphopt.training.distillation import distances
from graphopt.training.distillation.learned import Adversary, AnswerAdversary, Contrast, Factor, Margin, Variational


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
