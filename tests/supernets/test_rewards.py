"""What networks are scored by without labels, and by what a teacher teaches them."""

import pytest
import torch
from choosing import X, Y, elastic
from torch import Tensor, nn

from graphopt import Graph, InputError, train
from graphopt.analysis.choices import extract
from graphopt.execution.executor import Executor
from graphopt.ir.choices import assign, assignment, choices
from graphopt.spaces import Choice, Zero
from graphopt.supernets import search
from graphopt.supernets.distilled import distilled
from graphopt.supernets.rotations import Rotations, rotation_accuracy, turned
from graphopt.training import Response
from graphopt.training.choices import SinglePath


def test_images_come_in_every_turn_with_its_number() -> None:
    x = torch.arange(8.0).view(2, 1, 2, 2)
    images, turns = turned(x)
    assert images[:2].equal(x)
    assert turns.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert images[2, 0].tolist() == [[1.0, 3.0], [0.0, 2.0]]  # counterclockwise
    for place, turn in enumerate(turns.tolist()):
        assert torch.rot90(images[place], -turn, (-2, -1)).equal(x[place % 2])
    data = Rotations(X, batch_size=40)
    assert [len(y) for _, y in data] == [160, 160, 64]
    assert len(data) == 3


def test_a_model_that_sees_the_turn_is_right() -> None:
    x = torch.rand(5, 1, 6, 6)
    x[:, :, :3, :3] += 10  # one bright corner

    def model(images: Tensor) -> Tensor:
        corners = [images[..., :3, :3], images[..., 3:, :3], images[..., 3:, 3:], images[..., :3, 3:]]
        return torch.stack([c.mean((1, 2, 3)) for c in corners], 1)

    assert rotation_accuracy(x, batch_size=2)(model) == 100
    assert rotation_accuracy(x)(lambda images: -model(images)) < 50


def test_the_operator_that_sees_turns_is_found_without_labels() -> None:
    torch.manual_seed(0)
    x = torch.randn(96, 2, 8, 8, generator=torch.Generator().manual_seed(2))
    x[:, :, :2] += 1.0  # brighter at the top
    options = [Zero(), nn.Conv2d(2, 4, 4, 4)]
    options[0] = nn.Sequential(Zero(4), nn.Conv2d(2, 4, 1))
    model = nn.Sequential(Choice(options), nn.ReLU(), nn.Flatten(), nn.Linear(16, 4))
    graph = Graph.capture(model.eval(), (x[:2],))
    train(graph, Rotations(x[:64]), compress=[SinglePath()], epochs=12, rate=0.02)
    found = search(graph, {"macs": 1e9}, evaluate=rotation_accuracy(x[64:]), data=[[x]], evaluations=4)
    assert found.options == (1,)
    assert found.score is not None
    assert found.score > 60


def test_bad_rotations_are_named() -> None:
    with pytest.raises(InputError, match="by half alone"):
        Rotations(torch.randn(4, 1, 5, 6))
    assert len(Rotations(torch.randn(4, 1, 5, 6), turns=(0, 2))) == 1
    with pytest.raises(InputError, match="different numbers"):
        rotation_accuracy(X, turns=(0, 0))
    with pytest.raises(InputError, match="are of images"):
        Rotations(torch.randn(4, 5))


class Mistaken(nn.Module):
    """A teacher that is sure of the wrong class."""

    def forward(self, x: Tensor) -> Tensor:
        level = 100 * x[:, :, ::2].mean((1, 2, 3))
        return torch.stack([level, -level], 1)


def test_a_student_is_scored_by_what_it_has_learned_from_the_teacher() -> None:
    graph, teacher = elastic(), Mistaken()
    options = (1, *[0] * (len(choices(graph)) - 1))
    assign(graph, options)

    def loss(model: object) -> float:
        with torch.no_grad():
            return -float(nn.functional.cross_entropy(model(X), Y))  # type: ignore[operator]

    before = {name: t.clone() for name, t in graph.state_dict().items()}
    found = distilled(teacher, (X, Y), loss, epochs=5, batch_size=16, rate=0.02)(Executor(graph))
    by_hand = extract(graph, options)
    train(by_hand, (X, Y), compress=[Response(teacher)], epochs=5, batch_size=16, rate=0.02)
    assert found == pytest.approx(loss(by_hand.eval()), rel=1e-6)
    alone = extract(graph, options)
    train(alone, (X, Y), epochs=5, batch_size=16, rate=0.02)
    assert found != pytest.approx(loss(alone.eval()), rel=1e-3)
    assert all(torch.equal(t, before[name]) for name, t in graph.state_dict().items())
    assert assignment(graph) == options
