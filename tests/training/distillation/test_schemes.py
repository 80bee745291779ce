"""Chains, mutual learning, stage by stage, exits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from distilling import X, Y, convolutional, student

from graphopt.execution.executor import Executor
from graphopt.ir.graph import Graph
from graphopt.training import Response, Run, train
from graphopt.training.batches import Batch
from graphopt.training.distillation import Distill, Exits, Mutual, chain, stagewise
from graphopt.utils.errors import InputError

OPTIONS: dict[str, Any] = {"epochs": 2, "batch_size": 16, "rate": 1e-2}


def same(one: Graph, other: Graph) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_a_chain_is_one_training_after_another_with_the_last_graph_as_teacher() -> None:
    teacher = convolutional(8, seed=1)
    graphs, expected = ([student(0), student(1)] for _ in range(2))
    reports = chain(graphs, (X, Y), teacher=teacher, **OPTIONS)
    train(expected[0], (X, Y), compress=[Response(teacher)], **OPTIONS)
    train(expected[1], (X, Y), compress=[Response(expected[0])], **OPTIONS)
    assert len(reports) == 2
    assert all(same(a, b) for a, b in zip(graphs, expected, strict=True))


def test_generations_begin_with_the_targets_alone() -> None:
    graphs, first = [student(0), student(0)], student(0)
    chain(graphs, (X, Y), learn=lambda teacher: [Response(teacher), Distill(teacher, "attention")], **OPTIONS)
    train(first, (X, Y), **OPTIONS)
    assert same(graphs[0], first)
    assert not same(graphs[1], first)
    with pytest.raises(InputError, match="each of them once"):
        chain([first, first], (X, Y), **OPTIONS)


def test_mutual_learning_is_each_ones_own_loss_with_the_others_held() -> None:
    graphs, models = [student(0), student(1)], [convolutional(4, seed=seed).train() for seed in (0, 1)]
    batches = [(X[i : i + 16], Y[i : i + 16]) for i in range(0, 64, 16)]
    rates: dict[str, Any] = {"optimizer": "sgd", "rate": 0.05, "schedule": "constant", "warmup": 0, "decay": 0.0}
    train(graphs[0], batches, compress=[Mutual([graphs[1]])], **rates)
    optimizers = [torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, nesterov=True) for model in models]
    for x, y in batches:
        answers = [model(x) for model in models]
        for place, (own, optimizer) in enumerate(zip(answers, optimizers, strict=True)):
            other = answers[1 - place].detach().softmax(1)
            loss = F.cross_entropy(own, y) + (other * (other.log() - own.log_softmax(1))).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for graph, model in zip(graphs, models, strict=True):
        for name, value in model.state_dict().items():
            if "num_batches" not in name:
                torch.testing.assert_close(graph.state_dict()[name], value, rtol=1e-3, atol=1e-4)


def test_more_than_two_learn_from_each_other_and_none_from_itself() -> None:
    graphs = [student(seed) for seed in range(3)]
    before = [graph.clone() for graph in graphs]
    report = train(graphs[0], X, compress=[Mutual(graphs[1:])], **{**OPTIONS, "epochs": 6})
    assert all(not same(a, b) for a, b in zip(graphs, before, strict=True))
    assert report.epochs[-1].loss < report.epochs[1].loss  # type: ignore[operator]
    with pytest.raises(InputError, match="at least one other"):
        Mutual([])
    with pytest.raises(InputError, match="is among the others"):
        train(graphs[0], (X, Y), compress=[Mutual([graphs[0]])])


def test_stages_are_trained_one_after_another_and_then_the_rest_on_the_targets() -> None:
    teacher = Graph.capture(convolutional(8, seed=1), X[:2])
    train(teacher, (X, Y), epochs=5, batch_size=16, rate=1e-2)
    graph = student()
    start = {name: value.clone() for name, value in graph.named_parameters()}
    reports = stagewise(graph, (X, Y), teacher, epochs=[4, 3, 6], batch_size=16, rate=1e-2)
    assert [len(report.epochs) - 1 for report in reports] == [4, 3, 6]
    assert reports[0].epochs[-1].loss < reports[0].epochs[1].loss  # type: ignore[operator]
    assert reports[-1].epochs[-1].loss < reports[-1].epochs[1].loss  # type: ignore[operator]
    assert all(p.requires_grad for p in graph.parameters())
    assert all(not torch.equal(value, start[name]) for name, value in graph.named_parameters() if value.dim() > 1)

    early = student()
    stagewise(early, (X, Y), teacher, epochs=[4, 3, 1], batch_size=16, rate=1e-2)
    head = {"14.weight", "14.bias"}
    for name, value in graph.named_parameters():
        assert torch.equal(value, dict(early.named_parameters())[name]) == (name not in head), "what was trained stays"
    with pytest.raises(InputError, match="has 2 stages; epochs must be one number, or 3"):
        stagewise(graph, (X, Y), teacher, epochs=[1, 2])


def test_an_exit_learns_from_targets_and_from_the_end_of_the_network() -> None:
    graph, exits = student(), Exits(share=0.4, features=0.5, temperature=2.0, weight=3.0)
    exits.attach(graph)
    values = Executor(graph).run([*graph.results, *exits.watched(graph)], [X])
    logits = Executor(graph).nested(values)
    stage, last = (values[node] for node in exits.watched(graph))
    (module,) = exits.exits
    found = (stage * 1.0).permute(0, 2, 3, 1) @ module.bottleneck.weight[:, :, 0, 0].T + module.bottleneck.bias
    features = found.relu().mean((1, 2))
    answers = module.head(features)
    soft = (logits / 2).softmax(1)
    divergence = 4 * (soft * (soft.log() - (answers / 2).log_softmax(1))).sum(1).mean()
    expected = 0.6 * F.cross_entropy(answers, Y) + 0.4 * divergence + 0.5 * (features - last).pow(2).mean()
    torch.testing.assert_close(exits.loss(Run(Batch([X], Y), logits, values)), 3 * expected, rtol=1e-4, atol=1e-5)


def test_exits_are_thrown_away_and_need_stages() -> None:
    graph = student()
    names = set(graph.state_dict())
    report = train(graph, (X, Y), compress=[Exits()], epochs=6, batch_size=16, rate=1e-2)
    assert report.epochs[-1].loss < report.epochs[1].loss  # type: ignore[operator]
    assert set(graph.state_dict()) == names
    flat = Graph.capture(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3)).eval(), X[:2])
    with pytest.raises(InputError, match="two stages of convolutions"):
        train(flat, (X, Y), compress=[Exits()])
    for given in ({"share": 1.5}, {"weight": 0.0}, {"temperature": 0.0}):
        with pytest.raises(InputError):
            Exits(**given)
