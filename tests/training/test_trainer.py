"""The trainer: what it learns, what it keeps, where it goes on, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rewriting import randomised
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from training import Stops

import graphopt
from graphopt.ir.facts import FLOAT_REFERENCE
from graphopt.ir.graph import Graph
from graphopt.targets import machine_here
from graphopt.training import Response, train
from graphopt.utils.errors import InputError, NonFiniteError

X = torch.randn(48, 3, 6, 6, generator=torch.Generator().manual_seed(1))
Y = (X.mean((1, 2, 3)) > 0).long() + (X[:, 0].mean((1, 2)) > 0).long()


def network(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(8 * 16, 3)
    )


def captured(dropout: float = 0.0) -> Graph:
    return Graph.capture(network(dropout).eval(), X[:2])


def accuracy(model: Callable[[Tensor], Tensor]) -> float:
    return 100 * float((model(X).argmax(1) == Y).double().mean())


def test_it_computes_what_a_loop_of_plain_torch_computes() -> None:
    batches = [(X[i : i + 16], Y[i : i + 16]) for i in range(0, 48, 16)]
    graph, model = captured(), network().train()
    train(graph, batches, optimizer="sgd", rate=0.05, schedule="constant", warmup=0, decay=0.0, epochs=2)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, nesterov=True)
    for _ in range(2):
        for x, y in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    for name, value in model.state_dict().items():
        if name in graph.state_dict():
            torch.testing.assert_close(graph.state_dict()[name], value, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(graph(X), model.eval()(X), atol=1e-4, rtol=1e-4)


def test_it_learns_and_says_what_it_gained() -> None:
    graph = captured()
    before = accuracy(graph)
    report = train(graph, (X, Y), epochs=8, batch_size=16, rate=1e-2, evaluate=accuracy)
    assert report.gain is not None
    assert accuracy(graph) == pytest.approx(before + report.gain)
    assert report.gain > 20
    assert [epoch.number for epoch in report.epochs] == list(range(9))
    assert report.steps == 8 * 3
    assert "kept" in str(report)


@pytest.mark.many
@pytest.mark.parametrize("at", [5, *(pytest.param(at, marks=pytest.mark.thorough) for at in (0, 2, 7, 11))])
@pytest.mark.parametrize("kind", ["tensors", "loader"])
def test_a_training_that_goes_on_ends_bit_for_bit_where_it_would_have(at: int, kind: str, tmp_path: Path) -> None:
    def run(graph: Graph, stop: int | None, folder: Path | None) -> Any:
        loader = DataLoader(TensorDataset(X, Y), batch_size=16, shuffle=True)
        return train(
            graph, (X, Y) if kind == "tensors" else loader, epochs=4, batch_size=16, accumulate=2, average=0.9,
            clip=1.0, evaluate=accuracy, checkpoint=folder, compress=[Stops(stop)],
        )  # fmt: skip

    whole, parts = captured(0.3), captured(0.3)
    expected = run(whole, None, None)
    with pytest.raises(KeyboardInterrupt):
        run(parts, at, tmp_path)
    fresh = captured(0.3)
    found = run(fresh, None, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), fresh.state_dict().values(), strict=True))
    assert [(e.loss, e.score) for e in found.epochs] == [(e.loss, e.score) for e in expected.epochs]
    assert (found.kept, found.steps) == (expected.kept, expected.steps)
    assert not list(tmp_path.iterdir()), "nothing is left of a training that has ended"


@pytest.mark.thorough
def test_functions_among_the_options_are_known_by_name_in_another_process(tmp_path: Path) -> None:
    def constant(progress: float) -> float:
        return 1.0

    def once(stop: int | None) -> None:
        def same(progress: float) -> float:
            return constant(progress)

        train(captured(), (X, Y), checkpoint=tmp_path, epochs=2, batch_size=16, schedule=same, compress=[Stops(stop)])

    with pytest.raises(KeyboardInterrupt):
        once(4)
    once(None)


def test_the_graph_never_ends_below_where_it_began() -> None:
    graph = captured()
    train(graph, (X, Y), epochs=6, rate=1e-2, evaluate=accuracy)
    good, state = accuracy(graph), {k: v.clone() for k, v in graph.state_dict().items()}
    report = train(graph, (X, Y), epochs=2, optimizer="sgd", rate=3.0, clip=1e6, evaluate=accuracy, warmup=0)
    assert accuracy(graph) >= good
    assert report.kept == 0
    assert all(torch.equal(value, state[name]) for name, value in graph.state_dict().items())


def test_a_loss_that_is_no_number_names_the_step_and_leaves_the_last_good_state() -> None:
    graph = captured()
    state = {k: v.clone() for k, v in graph.state_dict().items()}
    with pytest.raises(NonFiniteError, match=r"at step \d+ \(epoch 1, batch \d\); .*try a lower rate, or clip=1.0"):
        train(graph, (X, Y), loss=lambda out, y: out.mean() / 0.0, batch_size=16)
    assert all(torch.equal(value, state[name]) for name, value in graph.state_dict().items())


def test_modes_and_random_numbers_are_left_as_they_were() -> None:
    graph = captured(0.5)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    train(graph, (X, Y))
    assert not graph.training
    assert torch.equal(before, torch.get_rng_state())
    train(graph.train(), (X, Y))
    assert graph.training


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(5, 3)

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        return {"logits": self.left(a) + self.right(b), "hidden": self.left(a)}


A, B, C = torch.randn(12, 4), torch.randn(12, 5), torch.arange(12) % 3


@pytest.mark.parametrize(
    "data",
    [
        [{"a": A, "b": B, "labels": C}],
        [(A, B, C)],
        [((A, B), C)],
        [({"a": A, "b": B}, C)],
        lambda: iter([(A, B, C)]),
    ],
)
def test_batches_have_many_forms(data: Any) -> None:
    torch.manual_seed(0)
    graph = Graph.capture(Several().eval(), (A[:2], B[:2]))
    report = train(graph, data, epochs=30, rate=0.03)
    losses = [epoch.loss for epoch in report.epochs[1:]]
    assert losses[-1] < 0.8 * losses[0]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"data": iter([(X, Y)])}, "empty after one epoch"),
        ({"data": []}, "the training data is empty"),
        ({"data": (X, Y[:5])}, "48 inputs and 5 targets"),
        ({"data": 3}, "the training data is a int"),
        ({"data": X}, "has no targets, which the loss wants"),
        ({"data": (X[:, :1], Y)}, "does not fit the model"),
        ({"data": (X, Y + 3)}, "a target is class 5, the model has 3: 0 to 2"),
        ({"loss": "mse"}, r"targets \[48\] do not have the outputs' shape \[48, 3\]"),
        ({"loss": "cross_entropie"}, "did you mean 'cross_entropy'"),
        ({"optimizer": "adam"}, "unknown optimizer 'adam'"),
        ({"schedule": "cos"}, "unknown schedule 'cos'"),
        ({"warmup": 1.0}, "warmup is a share"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"rate": -1.0}, "rate must be over 0"),
        ({"average": 1.0}, "decay of the average"),
        ({"evaluate": lambda model: math.nan}, "evaluate returned nan"),
        (
            {"compress": [Response(lambda x: x.mean((2, 3)).repeat(1, 2))]},
            r"the teacher answers \[N, 6\], the graph \[N, 3\]",
        ),
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, Any], says: str) -> None:
    graph = captured()
    state = {k: v.clone() for k, v in graph.state_dict().items()}
    arguments = {"data": (X, Y)} | given
    with pytest.raises(InputError, match=says):
        train(graph, arguments.pop("data"), **arguments)
    if "evaluate" not in given:
        assert all(torch.equal(v, state[k]) for k, v in graph.state_dict().items() if "num_batches" not in k)


def test_an_unknown_option_is_a_mistake_of_python() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'epoch'; known: epochs"):
        train(captured(), (X, Y), epoch=3)


@pytest.mark.thorough
def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(captured(), (X, Y), checkpoint=tmp_path, epochs=2, batch_size=16, compress=[Stops(4)])
    with pytest.raises(InputError, match="is of another training"):
        train(captured(), (X, Y), checkpoint=tmp_path, epochs=3, batch_size=16)
    (tmp_path / "training.pt").write_bytes(b"nothing")
    with pytest.raises(InputError, match="is damaged"):
        train(captured(), (X, Y), checkpoint=tmp_path, epochs=3, batch_size=16)


@pytest.mark.thorough
def test_a_teacher_is_followed_without_any_target() -> None:
    teacher = randomised(network()).train()
    graph = captured()

    def same(model: Callable[[Tensor], Tensor]) -> float:
        return float((model(X).argmax(1) == teacher.eval()(X).argmax(1)).double().mean())

    before = same(graph)
    teacher.train()
    report = train(graph, X, epochs=25, batch_size=16, rate=1e-2, compress=[Response(teacher)])
    assert all(module.training for module in teacher.modules())
    assert same(graph) > max(0.9, before)
    assert report.epochs[-1].loss < 0.3 * report.epochs[1].loss  # type: ignore[operator]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_response_loss_is_hintons(temperature: float) -> None:
    from graphopt.training.batches import Batch
    from graphopt.training.compression import Run

    torch.manual_seed(0)
    student, teacher = torch.randn(5, 7), torch.randn(5, 7)
    response = Response(lambda x: teacher, temperature=temperature, weight=0.5)
    response.attach(Graph.capture(nn.Linear(7, 7).eval(), student))
    found = response.loss(Run(Batch([student], None), student))
    expected = 0.0
    for s, t in zip(student.double(), teacher.double(), strict=True):
        p, q = (torch.exp(v / temperature) / torch.exp(v / temperature).sum() for v in (t, s))
        expected += float(sum(a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist(), strict=True)))
    assert float(found) == pytest.approx(0.5 * temperature**2 * expected / 5, rel=1e-5)


def test_a_quantized_graph_trains_and_its_artifact_answers_what_its_simulation_answers() -> None:
    result = graphopt.optimize(network().eval(), X[:1], target="x86-avx2", calibration=[X], measure=False)
    before = accuracy(result.graph)
    report = train(result.graph, (X, Y), epochs=6, batch_size=16, rate=5e-3, evaluate=accuracy)
    assert accuracy(result.graph) > before
    weights = [n for n in result.graph.nodes if n.op == "get_attr" and result.graph.tensor(n).dim() == 4]
    assert weights
    assert not any(FLOAT_REFERENCE.name in n.meta for n in weights), "the reference is the network that was trained"
    again = graphopt.optimize(result.graph, target="x86-avx2", passes=[], measure=False)
    simulation = graphopt.simulate(again.graph, "x86-avx2", machine=machine_here())  # where nothing saturates
    assert not [m for m in simulation.mismatches(again.artifact, X) if m.differing]
    assert report.gain is not None
