"""Exits: where they may be, what they answer, how they are trained, and that they end stages."""

from __future__ import annotations

from typing import Any

import pytest
import staging
import torch
from blocks import images as small
from rewriting import randomised
from small_models import MODELS
from torch import Tensor, nn

import graphopt
from graphopt import Cascade, Graph
from graphopt.execution.subgraph import subgraph
from graphopt.passes import AddExits, Simplify
from graphopt.passes.exits.sites import sites
from graphopt.targets import machine_here
from graphopt.training.exits import ExitLoss, train_heads
from graphopt.utils.errors import InputError

IMAGES = staging.images(64)


class Residual(nn.Module):
    """Two blocks, the second of half the size; a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1))
        self.down = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU())
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.block(x))
        found: Tensor = self.head(self.down(x).mean((2, 3)))
        return found


def captured(seed: int = 0) -> Graph:
    torch.manual_seed(seed)
    return Graph.capture(randomised(Residual()).eval(), IMAGES[:2])


def test_sites_are_where_everything_goes_through_one_value() -> None:
    graph = captured()
    found = sites(graph)
    assert [site.node.name for site in found] == ["relu", "relu_2", "relu_3"]  # none inside the residual branch
    work = [3 * 8 * 9 * 256, (8 * 8 * 9 + 8 * 8) * 256, 8 * 16 * 9 * 64]
    total = sum(work) + 16 * 5
    assert [site.share for site in found] == pytest.approx([sum(work[: n + 1]) / total for n in range(3)])


def test_the_last_answer_stays_and_exits_come_first() -> None:
    graph = captured()
    before = graph(IMAGES)
    changes = AddExits(count=2)(graph)
    *exits, last = graph(IMAGES)
    assert torch.equal(last, before)
    assert [tuple(answer.shape) for answer in exits] == [(64, 5), (64, 5)]
    assert graph.output_names == ["exit_0", "exit_1", "output"]
    assert [change.what.split(" behind")[0] for change in changes] == ["exit 0", "exit 1"]
    assert {name.split(".")[0] for name in graph.state_dict()} >= {"exit_0", "exit_1"}


def test_exits_are_saved_and_copied_with_the_graph(tmp_path: Any) -> None:
    graph = captured()
    AddExits(sites=["stem"])(graph)
    graph.save(tmp_path / "graph.pt2")
    for other in (Graph.load(tmp_path / "graph.pt2"), graph.clone()):
        assert all(torch.equal(a, b) for a, b in zip(other(IMAGES), graph(IMAGES), strict=True))


@pytest.mark.parametrize("head", ["linear", "conv", "own"])
def test_heads_of_maps(head: Any) -> None:
    if head == "own":
        head = lambda shape, classes: nn.Sequential(nn.Flatten(), nn.Linear(int(torch.tensor(shape).prod()), classes))  # noqa: E731
    graph = captured()
    AddExits(sites=["stem"], head=head)(graph)
    assert graph(IMAGES)[0].shape == (64, 5)
    convs = sum("convolution" in str(n.target) or "conv2d" in str(n.target) for n in graph.calls())
    assert convs == 4 + 2 * (head == "conv")  # of 16 x 16 positions one halves them, one looks at 8 x 8


def test_a_sequence_has_means_over_its_positions() -> None:
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.head(torch.relu(self.second(torch.relu(self.first(x)))).mean(1))
            return found

    x = torch.randn(4, 7, 4)
    graph = Graph.capture(Sequence().eval(), x)
    AddExits(count=1)(graph)
    weight, bias = (graph.state_dict()[f"exit_0.linear.{name}"] for name in ("weight", "bias"))
    first = next(n for n in graph.calls() if n.name == "relu")
    part = subgraph(graph, {"x": graph.inputs[0]}, {"y": first})
    assert torch.allclose(graph(x)[0], part(x).mean(1) @ weight.T + bias, atol=1e-6)


# ---- Training -------------------------------------------------------------------------------------------------------


def test_training_heads_leaves_the_network_and_teaches_the_exits() -> None:
    graph = captured()
    AddExits(count=2)(graph)
    labels = staging.classes(IMAGES)
    before = {name: value.clone() for name, value in graph.state_dict().items()}
    last = graph(IMAGES)[-1]
    agreed = [float((answer.argmax(1) == labels).double().mean()) for answer in graph(IMAGES)[:-1]]
    reports = train_heads(graph, (IMAGES, labels), loss=ExitLoss(share=0.0), epochs=30, batch_size=16, rate=0.02)
    assert len(reports) == 2
    assert torch.equal(graph(IMAGES)[-1], last)
    changed = {name for name, value in graph.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("exit_") for name in changed)
    now = [float((answer.argmax(1) == labels).double().mean()) for answer in graph(IMAGES)[:-1]]
    assert all(b > max(a, 0.5) for a, b in zip(agreed, now, strict=True)), (agreed, now)


def test_the_joint_loss_is_the_sum_that_its_head_states() -> None:
    torch.manual_seed(0)
    first, last, y = torch.randn(8, 5), torch.randn(8, 5, requires_grad=True), torch.randint(0, 5, (8,))
    found = ExitLoss(share=0.25, temperature=2.0, weights=[3.0, 1.0])((first, last), y)
    p, q = (last.detach() / 2).softmax(1), (first / 2).softmax(1)
    divergence = (p * (p.log() - q.log())).sum(1).mean()
    cross = nn.functional.cross_entropy
    expected = 3 * (0.75 * cross(first, y) + 0.25 * 4 * divergence) + cross(last, y)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_all_of_it_trains_jointly() -> None:
    graph = captured()
    AddExits(count=1)(graph)
    labels = torch.randint(0, 5, (64,))
    before = graph.state_dict()["stem.0.weight"].clone()
    report = graphopt.train(graph, (IMAGES, labels), loss=ExitLoss(), epochs=2, batch_size=16)
    losses = [epoch.loss for epoch in report.epochs if epoch.loss is not None]
    assert losses[-1] < losses[0]
    assert not torch.equal(graph.state_dict()["stem.0.weight"], before)


def test_exits_end_stages_in_int8() -> None:
    graph = captured()
    AddExits(count=2)(graph)
    train_heads(graph, (IMAGES, staging.classes(IMAGES)), epochs=10, batch_size=16, rate=0.02)
    result = graphopt.optimize(graph, target="x86", calibration=IMAGES, measure=False)
    whole, float_answers = result.artifact(IMAGES), graph(IMAGES)
    for ours, theirs in zip(whole, float_answers, strict=True):
        assert float((ours.argmax(1) == theirs.argmax(1)).double().mean()) > 0.9
    cascade = Cascade.of_exits(result.graph, target="x86").fit(IMAGES, max_drop=5.0)
    path = cascade.artifact.path(IMAGES)
    assert torch.equal(cascade(IMAGES), torch.stack([whole[k][i] for i, k in enumerate(path.tolist())]))
    simulation = cascade.simulate(machine=machine_here())
    assert torch.equal(simulation(IMAGES), cascade(IMAGES))
    assert torch.equal(simulation.path(IMAGES), path)


def test_a_part_of_a_graph_answers_what_it_answers_there() -> None:
    graph = captured()
    middle = next(n for n in graph.calls() if n.name == "relu_2")
    front = subgraph(graph, {"x": graph.inputs[0]}, {"features": middle})
    back = subgraph(graph, {"features": middle}, {"logits": graph.outputs[0]})
    assert torch.equal(back(front(IMAGES)), graph(IMAGES))
    with pytest.raises(InputError, match="the part needs the input 'x' of the network"):
        subgraph(graph, {"features": next(n for n in graph.calls() if n.name == "relu_3")}, {"y": middle})


# ---- What does not fit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AddExits(count=0), "count must be a whole number"),
        (lambda: AddExits(sites="layer1"), "sites are 'auto' or a list of module names, got 'layer1'"),
        (lambda: AddExits(count=9)(captured()), "the graph has 3 values that all of the answer goes through, for 9 exits"),
        (lambda: AddExits(sites=["block"])(captured()), "no exit can be at 'block': the answer has other ways than through"),
        (lambda: AddExits(sites=["bloc"])(captured()), "no module is called 'bloc'"),
        (lambda: AddExits(sites=["stem", "stem"])(captured()), "are one and the same value"),
        (lambda: AddExits(sites=["stem"], head="mlp")(captured()), "head must be 'linear', 'conv' or a function"),
        (
            lambda: AddExits(sites=["stem"], head=lambda shape, classes: nn.Conv2d(8, 5, 1))(captured()),
            r"the head at .* it must give \[N, 5\]",
        ),
        (lambda: AddExits()(Graph.capture(staging.Exiting().eval(), IMAGES[:2])), "logits of classes, .* alone"),
        (lambda: AddExits()(staging.optimized().graph.clone()), "the graph is quantized; add exits to the float graph"),
        (lambda: train_heads(captured(), (IMAGES, torch.zeros(64))), "it has no exits; apply AddExits first"),
        (lambda: ExitLoss(share=2.0), "share is from 0 to 1"),
        (lambda: ExitLoss(weights=[0.0]), "weights must be over 0"),
        (lambda: ExitLoss()(torch.zeros(2, 5), torch.zeros(2)), "the graph returns one answer"),
        (lambda: ExitLoss(weights=[1.0])([torch.zeros(2, 5)] * 2, torch.zeros(2)), "1 weights for 2 answers"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.thorough
@pytest.mark.parametrize("name", MODELS)
def test_every_small_classifier_has_exits_or_says_why_not(name: str) -> None:
    torch.manual_seed(0)
    graph = Graph.capture(randomised(MODELS[name]()).eval(), small(2))
    before, x = graph.clone(), small(3)
    if len(before(x).shape) == 2 and sites(before):
        AddExits(count=1)(graph)
        Simplify()(graph)
        assert torch.allclose(graph(x)[-1], before(x), atol=1e-5)
    else:
        with pytest.raises(InputError, match="exits"):
            AddExits(count=1)(graph)
        assert str(graph) == str(before)


class TokensFirst(nn.Module):
    """[N, T, 6] to logits, in between [T, N, 6] where `turned`."""

    def __init__(self, turned: bool) -> None:
        super().__init__()
        self.one, self.two, self.head, self.turned = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3), turned

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.one(x.transpose(0, 1) if self.turned else x).relu()).relu()
        found: Tensor = self.head((x.transpose(0, 1) if self.turned else x).mean(1))
        return found


def test_no_exit_is_where_the_first_dimension_counts_no_samples() -> None:
    x = torch.randn(3, 4, 6)
    names = [[site.name for site in sites(Graph.capture(TokensFirst(turned).eval(), x))] for turned in (False, True)]
    assert len(names[0]) == 2
    assert len(names[1]) == 1  # the last, turned back


def test_heads_of_exits_are_of_the_type_of_the_network() -> None:
    graph = Graph.capture(Residual().eval().double(), small(2).double())
    before = graph(small(2).double())
    AddExits(count=1)(graph)
    *_, last = graph(small(2).double())
    assert torch.equal(last, before)
