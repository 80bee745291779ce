"""Lottery tickets: how much is masked in which round, and which values the kept weights begin again with."""

from __future__ import annotations

import pytest
import torch
from training import X, Y, accuracy, network

from graphopt import Graph, InputError
from graphopt.ir.masks import masks
from graphopt.training.lottery import Remember, lottery_ticket, mask_smallest
from graphopt.training.pruning import weights_to_mask
from graphopt.training.trainer import train


def graph() -> Graph:
    return Graph.capture(network(), X[:2])


def masked(found: Graph) -> torch.Tensor:
    return torch.cat([found.tensor(mask.mask).flatten() == 0 for mask in masks(found)])


def test_the_smallest_of_all_layers_are_masked_and_stay_so() -> None:
    found = graph()
    weights = list(weights_to_mask(found, lambda name: name))
    sizes = torch.cat([found.tensor(w).abs().flatten() for w in weights])
    mask_smallest(found, weights, 0.5)
    gone = masked(found)
    assert int(gone.sum()) == round(0.5 * len(sizes))
    assert float(sizes[gone].max()) <= float(sizes[~gone].min())
    with torch.no_grad():
        for w in weights:
            found.parameter(w).mul_(torch.where(found.parameter(w).abs() > sizes.median(), 1e-3, 100.0))
    mask_smallest(found, weights, 0.75)
    assert bool(masked(found)[gone].all())
    assert int(masked(found).sum()) == round(0.75 * len(sizes))


def test_kept_weights_go_back_to_early_values() -> None:
    found, method = graph(), Remember(0.5)
    train(found, (X, Y), compress=[method], epochs=2, batch_size=16, rate=0.01)
    half = graph()
    train(half, (X, Y), epochs=2, batch_size=16, rate=0.01, optimizer=lambda parts: Stops(torch.optim.AdamW(parts), 3))
    trained = found.state_dict()["0.weight"].clone()
    method.restore(found)
    assert all(torch.equal(t, half.state_dict()[n]) for n, t in found.state_dict().items() if "running" not in n)
    assert not torch.equal(found.state_dict()["0.weight"], trained)


class Stops(torch.optim.Optimizer):
    """Another optimizer for so many steps."""

    def __init__(self, other: torch.optim.Optimizer, steps: int) -> None:
        super().__init__(other.param_groups, {})
        self.other, self.left = other, steps
        other.param_groups = self.param_groups

    def step(self, closure: object = None) -> None:
        self.left -= 1
        if self.left >= 0:
            self.other.step()


@pytest.mark.parametrize("rewind", [0.0, 0.1, None])
def test_a_ticket_is_as_sparse_as_was_asked_for_and_learns(rewind: float | None) -> None:
    found = graph()
    reports = lottery_ticket(
        found, (X, Y), share=0.7, rounds=2, rewind=rewind, epochs=20, batch_size=16, rate=0.02, layers=["0", "3"]
    )
    assert len(reports) == 3
    assert len(masks(found)) == 2
    assert float(masked(found).double().mean()) == pytest.approx(0.7, abs=0.01)
    assert accuracy(found.eval()) > 60


def test_bad_options_are_named() -> None:
    with pytest.raises(InputError, match="rewind is a progress"):
        lottery_ticket(graph(), (X, Y), share=0.5, rewind=1.0)
    with pytest.raises(InputError, match="keeps no checkpoint"):
        lottery_ticket(graph(), (X, Y), share=0.5, checkpoint="folder")
    with pytest.raises(InputError, match="no layer has weights"):
        lottery_ticket(graph(), (X, Y), share=0.5, layers=["nothing"])
