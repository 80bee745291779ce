"""Spaces: captured with their choices, and each network of theirs is an ordinary one."""

import random

import pytest
import torch
from torch import nn

from graphopt import Graph, InputError, train
from graphopt.analysis.choices import Costs, extract
from graphopt.ir import cost
from graphopt.ir.choices import CHOOSE, assign, choices, one_hot, transfer
from graphopt.passes.elastic import Elastic
from graphopt.spaces import Choice, EdgeChoice, PartialChoice, darts_cell, mobile, resolutions
from graphopt.supernets import search
from graphopt.training.choices import Softmax

X = torch.randn(2, 1, 40, 51)


SPACES = {
    "mobile": lambda: mobile(1, 10),
    "cells": lambda: darts_cell(1, 10, channels=4, cells=2),
    "partial cells": lambda: darts_cell(1, 10, channels=4, cells=2, partial=2),
}


@pytest.mark.parametrize("make", SPACES.values(), ids=SPACES)
def test_each_network_of_a_space_is_an_ordinary_one(make: object) -> None:
    torch.manual_seed(0)
    graph = Graph.capture(make().eval(), (X,))  # type: ignore[operator]
    costs, drawn = Costs(graph), random.Random(0)
    macs = costs.macs()
    for _ in range(4):
        chosen = tuple(drawn.randrange(len(choice)) for choice in choices(graph))
        assign(graph, chosen)
        small = extract(graph)
        assert not small.calls(CHOOSE)
        torch.testing.assert_close(small(X), graph(X), rtol=1e-5, atol=1e-6)
        weights = [one_hot(o, len(c)) for o, c in zip(chosen, costs.choices, strict=True)]
        assert sum(float(term.of(weights)) for term in macs) == pytest.approx(cost.macs(small), rel=1e-6)


def test_cells_choose_alike() -> None:
    model = darts_cell(1, 10, channels=4, cells=3, nodes=2)
    graph = Graph.capture(model.eval(), (X,))
    assert len(choices(graph)) == 3
    assert len(graph.calls(CHOOSE)) == 9


def test_a_choice_is_a_module() -> None:
    choice = Choice([nn.Identity(), nn.ReLU()])
    x = torch.randn(4)
    assert torch.equal(choice(x), x)
    choice.choose(1)
    assert torch.equal(choice(x), x.relu())
    with pytest.raises(InputError, match="at least one option"):
        Choice([])
    with pytest.raises(InputError, match="equally many"):
        Choice([nn.ReLU()], like=choice)
    with pytest.raises(InputError, match="odd"):
        mobile(kernels=(2,))


def test_the_size_of_the_input_is_a_choice() -> None:
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3, 2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    ).eval()  # fmt: skip
    graph = Graph.capture(resolutions(body, (1.0, 0.5)).eval(), (X,))
    assert len(graph.calls(CHOOSE)) == 1
    (choice,) = choices(graph)
    assert len(set(choice.labels)) == 2
    costs = Costs(graph)
    spent = []
    for option, expected in enumerate([body(X), body(nn.functional.interpolate(X, (20, 26), mode="bilinear"))]):
        small = extract(graph, [option])
        torch.testing.assert_close(small(X), expected, rtol=1e-5, atol=1e-6)
        spent.append(cost.macs(small))
        counted = sum(float(term.of([one_hot(option, 2)])) for term in costs.macs())
        assert counted == pytest.approx(spent[-1], rel=1e-6)
    assert spent[1] < 0.3 * spent[0]
    Elastic(widths=(0.5,))(small)  # what is extracted is an ordinary network
    with pytest.raises(InputError, match="each once"):
        resolutions(body, (1.0, 1.0))


def test_partial_channels_pass_by_a_choice_and_are_shuffled() -> None:
    options: list[nn.Module] = [nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, 2, 1)]
    x = torch.randn(3, 8, 5, 5)
    for number, passing in enumerate((x[:, 2:], torch.nn.functional.max_pool2d(x[:, 2:], 2, ceil_mode=True))):
        y = PartialChoice([options[number]], 4)(x)
        joined = torch.cat([options[number](x[:, :2]), passing], 1)
        torch.testing.assert_close(y, joined[:, [0, 2, 4, 6, 1, 3, 5, 7]])
    with pytest.raises(InputError, match="equal parts"):
        PartialChoice(options, 3)(x)
    with pytest.raises(InputError, match="equal parts"):
        darts_cell(channels=6, partial=4)


def test_what_partial_channels_have_learned_is_for_a_network_of_all() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(32, 1, 12, 11), torch.randint(0, 3, (32,))
    searched = Graph.capture(darts_cell(1, 3, channels=4, cells=2, partial=2).eval(), (x[:2],))
    kinds = [choice.kind for choice in choices(searched)]
    assert kinds.count("edge") == 2
    assert kinds.count("operator") == 6
    train(searched, (x, y), compress=[Softmax(validation=(x, y), rate=0.1, delay=0.0)], epochs=2, batch_size=16)
    whole = Graph.capture(darts_cell(1, 3, channels=4, cells=2).eval(), (x[:2],))
    transfer(searched, whole)
    given = {c.name: searched.tensor(c.node) for c in choices(searched)}
    assert all(torch.equal(whole.tensor(c.node), given[c.name]) for c in choices(whole))
    found = search(whole, {"macs": 1e9}, data=[[x]])
    assert found.options == tuple(int(given[c.name].argmax()) for c in choices(whole))
    with pytest.raises(InputError, match="no counterpart"):
        transfer(whole, searched)


def test_nodes_weigh_their_edges_by_a_softmax() -> None:
    edges, values = EdgeChoice(3), torch.randn(3, 4)
    beta = torch.tensor([0.3, -1.0, 2.0])
    edges.get_buffer("edge_choice").copy_(beta.softmax(0))
    torch.testing.assert_close(edges(*values), (beta.exp() / beta.exp().sum()) @ values)
