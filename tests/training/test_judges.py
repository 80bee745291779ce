"""What judges a training by: mixtures of inputs that were held out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from training import X, network

from graphopt.training import Unseen
from graphopt.training.judges import mixtures
from graphopt.utils.errors import InputError


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(v) for v in row]
    return [p / sum(powers) for p in powers]


def test_the_score_is_the_mean_of_logarithms_of_divergences_on_mixtures() -> None:
    model, reference, x = network(), nn.Sequential(nn.Flatten(), nn.Linear(108, 3)), X[:5]
    score = Unseen(x, reference, batch_size=2)(model)
    logarithms = []
    for mix in (lambda a, b: (a + b) / 2, lambda a, b: torch.cat([a[..., :3], b[..., 3:]], -1)):
        losses = []
        for i in range(5):
            mixed = mix(x[i], x[4 - i])[None].double()
            with torch.no_grad():
                p, q = (softmax(each.double()(mixed)[0].tolist()) for each in (model, reference))
            losses.append(sum(b * math.log(b / a) for a, b in zip(p, q, strict=True)))
        logarithms.append(math.log10(sum(losses) / 5))
    assert score == pytest.approx(-10 * sum(logarithms) / 2, rel=1e-4)


def test_numbers_are_compared_by_their_power_and_the_reference_itself_is_the_best() -> None:
    judge = Unseen(X, network(), classes=False)
    assert judge(network()) == 200.0

    def half(x: Tensor) -> Tensor:
        found: Tensor = network()(x) / 2
        return found

    assert judge(half) == pytest.approx(-10 * math.log10(0.25))


def test_what_cannot_be_mixed_is_taken_as_it_is() -> None:
    tokens = torch.arange(6).reshape(2, 3)
    assert [view.tolist() for view in mixtures(tokens)] == [tokens.tolist()]
    assert len(mixtures(torch.randn(4))) == 1
    assert len(mixtures(torch.randn(4, 1))) == 1
    assert len(mixtures(torch.randn(4, 2))) == 2


def test_one_input_makes_no_mixture() -> None:
    with pytest.raises(InputError, match="two inputs at least, got 1"):
        Unseen(X[:1], network())


def test_a_reference_is_asked_in_eval_mode_and_left_in_its_own() -> None:
    reference = network().train()
    before = {name: t.clone() for name, t in reference.state_dict().items()}
    assert Unseen(X, reference)(network()) == 200.0
    assert reference.training
    assert all(torch.equal(before[name], t) for name, t in reference.state_dict().items())
