"""MetaPruning: weights made for the widths at hand, by the formula, and as an ordinary network when one is taken out."""

from pathlib import Path

import pytest
import torch
from choosing import X, Y, elastic
from torch import Tensor, nn

from graphopt import Graph, InputError, train
from graphopt.analysis.choices import Costs, extract
from graphopt.ir import cost
from graphopt.ir.choices import assign, choices, generated, one_hot
from graphopt.supernets import search
from graphopt.training.choices import GeneratedWeights, SinglePath


def loss(model: object) -> float:
    with torch.no_grad():
        return -float(nn.functional.cross_entropy(model(X), Y))  # type: ignore[operator]


@pytest.fixture(scope="module")
def trained() -> Graph:
    graph = elastic()
    train(graph, (X, Y), compress=[GeneratedWeights(8), SinglePath()], epochs=4, batch_size=32, rate=0.02)
    return graph


def test_at_first_the_answers_stay() -> None:
    graph = elastic()
    for options in ([0, 0, 0, 0], [2, 1, 1, 1]):
        options = [min(o, len(c) - 1) for o, c in zip(options, choices(graph), strict=True)]
        assign(graph, options)
        before = graph(X)
        attached = graph.clone()
        assert GeneratedWeights().attach(attached)
        torch.testing.assert_close(attached(X), before)
        assert GeneratedWeights().attach(attached) == []


def test_weights_are_those_of_the_formula(trained: Graph) -> None:
    values = {name: t.detach() for name, t in trained.state_dict().items()}
    options = [len(choice) - 1 for choice in choices(trained)]
    assign(trained, options)
    assert generated(trained)
    for node, constant in generated(trained):
        name = str(constant.target)
        shares = [values[key] for key in sorted(values) if key.startswith(f"{name}_shares_")]
        encoding = torch.tensor([[float(share[-1]) for share in shares]])
        inside = (encoding @ values[f"{name}_encoder"] + values[f"{name}_encoder_shift"]).clamp(min=0)
        wanted = values[name] + (inside @ values[f"{name}_generator"]).view_as(values[name])
        torch.testing.assert_close(trained.tensor(node), wanted)
        assert float((wanted - values[name]).abs().max()) > 1e-3
    assign(trained, [0] * len(options))


def test_each_network_is_an_ordinary_one(trained: Graph, tmp_path: Path) -> None:
    costs = Costs(trained)
    macs, parameters = costs.macs(), costs.parameters()
    trained.save(tmp_path / "trained.pt2")
    loaded = Graph.load(tmp_path / "trained.pt2")
    answers: list[Tensor] = []
    for options in ([0, 0, 0, 0], [1, 0, 1, 1], [9, 9, 9, 9]):
        options = [min(o, len(c) - 1) for o, c in zip(options, choices(trained), strict=True)]
        small = extract(trained, options)
        assign(loaded, options)
        answers.append(loaded(X))
        torch.testing.assert_close(small(X), answers[-1], rtol=1e-4, atol=1e-5)
        weights = [one_hot(o, len(c)) for o, c in zip(options, costs.choices, strict=True)]
        assert sum(float(term.of(weights)) for term in macs) == pytest.approx(cost.macs(small), rel=1e-6)
        assert sum(float(term.of(weights)) for term in parameters) <= cost.parameters(extract(elastic(), options)) + 1
        assert not [name for name in small.state_dict() if "generator" in name or "encoder" in name]
    assert not torch.allclose(answers[0], answers[-1])


def test_widths_are_searched_by_generated_weights(trained: Graph) -> None:
    found = search(trained, {"macs": 0.6}, evaluate=loss, data=[[X]], evaluations=8)
    assert found.score == pytest.approx(loss(found.graph.eval()), rel=1e-3)


def test_without_widths_it_says_so() -> None:
    plain = Graph.capture(nn.Linear(3, 2).eval(), (torch.randn(2, 3),))
    with pytest.raises(InputError, match="no layer has widths"):
        train(plain, (torch.randn(8, 3), torch.zeros(8).long()), compress=[GeneratedWeights()])
