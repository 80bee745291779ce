"""Sparse structure selection: steps by the paper's formula, and what has a scale of zero is removed without a change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from training import Stops, X, Y

from graphopt import Graph, InputError, train
from graphopt.analysis.branches import branches
from graphopt.ir import cost
from graphopt.training.structures import SelectStructures, accelerated


class Block(nn.Module):
    def __init__(self, n: int, groups: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(n, n, 3, padding=1, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(n)
        self.last = nn.Conv2d(n, n, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.last(torch.relu(self.norm(self.first(x)))))


def graph() -> Graph:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), Block(8), Block(8, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    return Graph.capture(nn.Sequential(*layers).eval(), X[:2])


def test_a_step_is_that_of_the_paper() -> None:
    scale, gradient, velocity = torch.tensor([1.0, 0.01, -0.3]), torch.tensor([0.5, 0.0, -1.0]), torch.zeros(3)
    wanted, momentum = scale.clone(), torch.zeros(3)
    for _ in range(3):
        z = wanted - 0.1 * gradient
        shrunk = torch.nn.functional.softshrink(z, 0.1 * 0.2)
        momentum = shrunk - wanted + 0.9 * momentum
        wanted = shrunk + 0.9 * momentum
        accelerated(scale, gradient, velocity, 0.1, 0.2, 0.9)
        torch.testing.assert_close(scale, wanted)
    for _ in range(100):
        accelerated(scale, torch.zeros(3), velocity, 0.1, 0.2, 0.9)
    assert scale.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("options", [{}, {"channels": True}, {"channels": True, "blocks": False}])
def test_attached_and_finished_the_answers_stay(options: dict[str, bool]) -> None:
    found = graph()
    method = SelectStructures(0.1, **options)  # type: ignore[arg-type]
    before = found(X)
    method.attach(found)
    torch.testing.assert_close(found(X), before)
    kinds = {each.name for each in method.scaled}
    with torch.no_grad():
        for number, each in enumerate(method.scaled):
            scale = found.parameter(each.scale)
            scale.copy_(torch.linspace(0.5, 1.5, len(scale)))
            if len(scale) > 2:
                scale[1] = 0.0
            elif not number:
                scale.zero_()
    scaled, macs = found(X), cost.macs(found)
    assert float((scaled - before).abs().max()) > 1e-3
    changes = method.finish(found)
    assert {change.site for change in changes} == kinds
    torch.testing.assert_close(found(X), scaled, rtol=1e-4, atol=1e-5)
    assert cost.macs(found) < macs
    assert not [node for node in found.nodes if "scale" in str(node.target)]
    assert len(branches(found)) == (2 if options.get("blocks") is False else 1)


def test_what_does_not_help_is_gone_after_a_training() -> None:
    sizes = []
    for strength in (0.0, 3.0):
        found = graph()
        method = SelectStructures(strength, channels=True, rate=0.05)
        train(found, (X, Y), compress=[method], epochs=8, batch_size=16, optimizer="adamw", decay=0.1)
        sizes.append(cost.macs(found))
        assert found(X[:2]).shape == (2, 4)
    assert sizes[0] == cost.macs(graph())
    assert sizes[1] < 0.7 * sizes[0]


def test_an_interrupted_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def trained(folder: Path | None, stop: int | None) -> dict[str, Tensor]:
        found = graph()
        compress = [Stops(stop), SelectStructures(0.5, channels=True)]
        train(found, (X, Y), compress=compress, epochs=2, batch_size=16, checkpoint=folder)
        return found.state_dict()

    whole = trained(None, None)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, 4)
    again = trained(tmp_path, None)
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_bad_options_are_named() -> None:
    with pytest.raises(InputError, match="strength is at least 0"):
        SelectStructures(-1.0)
    with pytest.raises(InputError, match="no residual branches"):
        train(graph(), (X, Y), compress=[SelectStructures(1.0, layers=["nothing"])])
