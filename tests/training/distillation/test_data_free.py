"""Learning from a teacher without data: the generator's loss, what it makes, and what the student learns of it."""

from __future__ import annotations

import math

import pytest
import torch
from distilling import X, Y, convolutional, student
from torch import Tensor, nn

from graphopt.ir.graph import Graph
from graphopt.training import train
from graphopt.training.distillation import DataFree, Generator, data_free
from graphopt.utils.errors import InputError


def test_the_generators_loss_is_that_of_the_paper() -> None:
    logits, features = torch.randn(6, 4).double(), torch.randn(6, 5).double()
    shares = [[math.exp(v) / sum(math.exp(w) for w in row) for v in row] for row in logits.tolist()]
    one_hot = -sum(math.log(max(row)) for row in shares) / 6
    activation = -sum(abs(v) for row in features.tolist() for v in row) / 30
    means = [sum(row[c] for row in shares) / 6 for c in range(4)]
    entropy = sum(m * math.log(m) for m in means)
    scheme = DataFree(convolutional(4), one_hot=0.5, activation=0.2, entropy=3.0)
    found = scheme.generators(logits, features)
    assert float(found) == pytest.approx(0.5 * one_hot + 0.2 * activation + 3.0 * entropy)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 5, 7), (4, 9), (6,), (2, 4, 4, 4)])
def test_a_generator_makes_normalized_inputs_of_any_shape(shape: tuple[int, ...]) -> None:
    made = Generator(10, shape, width=4)(torch.randn(16, 10))
    assert made.shape == (16, *shape)
    channels = made.transpose(0, 1).flatten(1)
    torch.testing.assert_close(channels.mean(1), torch.zeros(shape[0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(channels.std(1, correction=0), torch.ones(shape[0]), atol=1e-2, rtol=0)


def taught() -> Graph:
    teacher = Graph.capture(convolutional(8, seed=1), X[:2])
    train(teacher, (X, Y), epochs=20, batch_size=16, rate=1e-2)
    return teacher.eval()


def test_a_student_learns_a_teachers_classes_without_data() -> None:
    teacher, graph = taught(), student()
    before = {name: t.clone() for name, t in teacher.state_dict().items()}

    def agreement(model: Graph) -> float:
        with torch.no_grad():
            return 100 * float((model(X).argmax(1) == teacher(X).argmax(1)).double().mean())

    first = agreement(graph.eval())
    report = data_free(graph, teacher, steps=150, batch_size=32, rate=1e-2)
    assert report.steps == 150
    assert agreement(graph.eval()) > first + 20
    assert all(torch.equal(before[name], t) for name, t in teacher.state_dict().items())


def test_the_student_does_not_teach_the_generator_and_the_generator_learns() -> None:
    class Fixed(nn.Module):
        """Inputs that are parameters."""

        def __init__(self) -> None:
            super().__init__()
            self.made = nn.Parameter(X[:8].clone())

        def forward(self, noise: Tensor) -> Tensor:
            return self.made

    teacher, one, other = taught(), Fixed(), Fixed()
    for generator, graph in ((one, student(0)), (other, student(5))):
        data_free(graph, teacher, steps=3, batch_size=8, generator=generator, rate=1e-2)
    assert torch.equal(one.made, other.made)
    assert not torch.equal(one.made, X[:8])


def test_what_cannot_be_generated_is_refused() -> None:
    graph = student()
    with pytest.raises(InputError, match="a function, which has no places inside"):
        data_free(graph, lambda x: x, steps=1)
    with pytest.raises(InputError, match="from one teacher, got 2"):
        DataFree([convolutional(4), convolutional(4)])
    with pytest.raises(InputError, match="steps must be at least 1, batch_size at least 2, got 0 and 64"):
        data_free(graph, convolutional(4), steps=0)
    with pytest.raises(InputError, match="the temperature is over 0"):
        DataFree(convolutional(4), temperature=0)
    tokens = Graph.capture(
        nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 3)).eval(), torch.tensor([[1, 2, 3]] * 2)
    )
    with pytest.raises(InputError, match="a model of one floating-point input"):
        data_free(tokens, convolutional(4), steps=1)
