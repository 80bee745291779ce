"""Repeated layers that share their parameters: what repeats, whose weights they get, what follows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rewriting import apply, assert_close, capture
from torch import Tensor, nn

import graphopt
from graphopt.backends.onnxruntime import lower
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.passes.sharing import TieLayers
from graphopt.passes.sharing.tie_layers import stacks
from graphopt.passmanager import run
from graphopt.targets import find
from graphopt.utils.errors import InputError

WIDTH, DEPTH = 12, 6


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.thin = nn.Linear(WIDTH, 24), nn.Linear(24, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.thin(torch.relu(self.wide(x)))


class Network(nn.Module):
    def __init__(self, depth: int = DEPTH) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 3)
        self.body = nn.Module()
        self.body.layer = nn.ModuleList(Block() for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.body.layer:  # type: ignore[union-attr]
            x = block(x)
        return self.head(x)


BLOCK = sum(p.numel() for p in Block().parameters())
OTHERS = sum(p.numel() for p in Network().parameters()) - DEPTH * BLOCK


def inputs(count: int = 32) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(1))


def tied(model: nn.Module | None = None, **options: Any) -> Graph:
    graph = capture(model or Network(), inputs(2))
    run([TieLayers(**options)], graph)
    return graph


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_so_many_different_layers_stay(keep: int) -> None:
    graph = tied(keep=keep)
    assert cost.parameters(graph) == OTHERS + keep * BLOCK
    assert cost.macs(graph) == cost.macs(capture(Network(), inputs(2)))
    assert apply(TieLayers(keep), graph) == []


def test_it_computes_what_a_model_with_shared_modules_computes() -> None:
    model = Network()
    for number in range(DEPTH):
        model.body.layer[number] = model.body.layer[1 if number < 3 else 4]  # type: ignore[index, operator]
    assert_close(tied(keep=2)(inputs()), model(inputs()))


def test_layers_that_are_alike_already_lose_nothing() -> None:
    model = Network()
    for block in model.body.layer:  # type: ignore[union-attr]
        block.load_state_dict(model.body.layer[0].state_dict())  # type: ignore[index]
    assert_close(tied(model, data=[[inputs()]])(inputs()), model(inputs()))


def test_data_choose_whose_weights_change_the_output_least() -> None:
    model, x = Network(4), inputs(64)
    graph = capture(model, inputs(2))
    (step,) = run([TieLayers(1, data=[[x]])], graph)
    found = float((graph(x) - model(x)).detach().square().sum())
    errors = {}
    for chosen in (0, 1, 2, 3, None):
        other = Network(4)
        states = [block.state_dict() for block in Network(4).body.layer]  # type: ignore[union-attr]
        mean = {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
        for block in other.body.layer:  # type: ignore[union-attr]
            block.load_state_dict(mean if chosen is None else states[chosen])
        errors[chosen] = float((other(x) - model(x)).detach().square().sum())
    assert found == pytest.approx(min(errors.values()), rel=1e-4)
    best = min(errors, key=errors.__getitem__)
    assert step.changes[0][1].endswith("their mean" if best is None else f"those of {best}")


def test_shared_weights_train_together() -> None:
    model, x = Network(), inputs(256)
    graph, answers = tied(), model(x).detach()
    before = float((graph(x) - answers).square().mean().detach())
    graphopt.train(graph, (x, answers), loss="mse", epochs=10, batch_size=32, rate=3e-3)
    assert float((graph(x) - answers).square().mean().detach()) < 0.5 * before
    assert cost.parameters(graph) == OTHERS + BLOCK


def test_a_file_holds_shared_weights_once(tmp_path: Any) -> None:
    sizes = {keep: lower(tied(keep=keep), find("x86")).size_bytes for keep in (1, 5)}
    assert sizes[5] - sizes[1] > 3.9 * 4 * BLOCK
    graph = tied()
    graph.save(tmp_path / "tied.pt2")
    assert torch.equal(Graph.load(tmp_path / "tied.pt2")(inputs()), graph(inputs()))
    assert_close(torch.as_tensor(lower(graph, find("x86"))(inputs())), graph(inputs()))


def test_layers_of_other_shapes_are_not_in_a_stack() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 4))
    graph = capture(model, inputs(2))
    (stack,) = stacks(graph)
    assert (stack.name, sorted(stack.layers)) == ("", [1, 3])
    (step,) = run([TieLayers()], graph)
    assert step.changes == [("the model", "layers 1, 3 share their parameters, those of 1")]


def test_inner_layers_belong_to_the_outer_ones() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.outer = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for each in self.outer:
                x = each(x)
            return x

    (stack,) = stacks(capture(Nested(), inputs(2)))
    assert (stack.name, len(stack.layers), len(stack.layers[0])) == ("outer", 3, 4)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match=r"'encoder' matches no layers that repeat; there are: 'body\.layer'"):
        tied(layers="encoder")
    with pytest.raises(InputError, match="keep must be a whole number of at least 1"):
        TieLayers(0)
    assert TieLayers(layers="body.*")(tied(layers="body.*")) == []
