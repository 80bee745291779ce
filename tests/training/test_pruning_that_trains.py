"""Pruning that trains: schedules by their formulas, and what is left is what was asked for."""

import pytest
import torch
from torch import nn
from training import X, Y, network

from graphopt import Graph, InputError, train
from graphopt.ir.masks import masks
from graphopt.passes.pruning import Prune, l2_norm, slimming
from graphopt.training.pruning import GradualSparsity, Penalty, SoftPrune, strength


def graph() -> Graph:
    return Graph.capture(network(), X[:2])


def test_the_share_of_masked_weights_rises_with_the_cube() -> None:
    method, found = GradualSparsity(0.8, begin=0.2, end=0.7, layers={"7": None, "3": 0.5}), graph()
    method.attach(found)
    (first, second) = method.masked
    for progress, t in ((0.0, 0.0), (0.2, 0.0), (0.45, 0.5), (0.7, 1.0), (1.0, 1.0)):
        method.step(progress)
        for (_, mask, _), share in ((first, 0.8), (second, 0.5)):
            zeros = 1 - float(found.tensor(mask).mean())
            assert zeros == pytest.approx(share * (1 - (1 - t) ** 3), abs=0.01)


def test_masked_weights_are_the_smallest_and_stay_masked() -> None:
    found = graph()
    train(found, (X, Y), compress=[GradualSparsity(0.7)], epochs=6, batch_size=16, rate=0.01)
    for mask in masks(found):
        kept = found.tensor(mask.mask) == 1
        assert 1 - float(kept.double().mean()) == pytest.approx(0.7, abs=0.02)


def test_a_masked_weight_that_grows_comes_back() -> None:
    method, found = GradualSparsity(0.5), graph()
    method.attach(found)
    method.step(0.5)
    weight, mask, _ = method.masked[0]
    place = int((found.tensor(mask).flatten() == 0).nonzero()[0])
    with torch.no_grad():
        found.parameter(weight).view(-1)[place] = 10.0
    method.step(1.0)
    assert float(found.tensor(mask).flatten()[place]) == 1


def test_soft_pruned_channels_can_be_removed_for_nothing() -> None:
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    found = Graph.capture(nn.Sequential(*layers).eval(), X[:2])
    method = SoftPrune(0.5, layers=["0"])
    train(found, (X, Y), compress=[method], epochs=4, batch_size=16, rate=0.01)
    (group,) = [g for g in method.groups if g.name == "0"]
    norms = strength(found, group)
    assert int((norms == 0).sum()) == len(group) // 2
    # their batch norms still answer constants, which the layer behind reads: its bias takes them over
    before = found.eval()(X)
    Prune(criterion=l2_norm, layers={"0": 0.5}, data=[[X]])(found)
    torch.testing.assert_close(found(X), before, rtol=1e-3, atol=1e-4)


def test_a_penalty_weighs_as_its_schedule_says() -> None:
    norms = []
    for weight in (0.0, 1.0):
        found = graph()
        train(
            found,
            (X, Y),
            compress=[Penalty(slimming, lambda progress, w=weight: w * progress)],
            epochs=6,
            batch_size=16,
            rate=0.05,
        )
        norms.append(float(slimming(found)))
    assert norms[1] < 0.7 * norms[0]


def test_bad_options_are_named() -> None:
    with pytest.raises(InputError, match="share"):
        GradualSparsity(1.5)
    with pytest.raises(InputError, match="begin and end"):
        GradualSparsity(0.5, begin=0.8, end=0.3)
    with pytest.raises(InputError, match="no layer has weights"):
        train(graph(), (X, Y), compress=[GradualSparsity(0.5, layers={"*": None})])
    with pytest.raises(InputError, match="no channels"):
        train(graph(), (X, Y), compress=[SoftPrune(0.5, layers=["nothing"])])
    with pytest.raises(InputError, match="term is a function"):
        Penalty(3.0, 1.0)  # type: ignore[arg-type]
