"""Every method from end to end: its loss falls, its gradient reaches the student, it goes on where it was interrupted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from distilling import TOKENS, Transformer, X, Y, convolutional, student
from torch import Tensor, nn
from training import Stops

from graphopt.data import Calibration
from graphopt.execution.executor import Executor
from graphopt.ir.graph import Graph
from graphopt.passes.cleanup import FoldBatchNorm
from graphopt.passes.quantization import Quantize
from graphopt.passmanager import run
from graphopt.targets import find
from graphopt.training import Response, Run, train
from graphopt.training.batches import Batch
from graphopt.training.distillation import METHODS, Distill, Ensemble, Term
from graphopt.training.distillation.distances import squared
from graphopt.training.distillation.learned import Adapter
from graphopt.utils.errors import InputError

TRANSFORMERS = ("minilm", "internal")
AGAINST_DISCRIMINATORS = ("adversarial", "meal")  # whose loss is no measure: both sides learn
WITHOUT_DISTANCE_TO_ITSELF = (
    "response", "attention", "flow", "selectivity", "jacobian", "sobolev", "svd", "similarity", "relations", "instances",
)  # fmt: skip
CONVOLUTIONAL = [name for name in METHODS if name not in TRANSFORMERS]


def quick(names: Sequence[str], *first: str) -> list[Any]:
    """All of them, of which a quick run takes the first alone."""
    return [name if name in first else pytest.param(name, marks=pytest.mark.thorough) for name in names]


@pytest.fixture(scope="module")
def teacher() -> Graph:
    graph = Graph.capture(convolutional(8, seed=1), X[:2])
    train(graph, (X, Y), epochs=5, batch_size=16, rate=1e-2)
    return graph.eval()


def distill(name: str, teacher: Graph) -> Distill:
    return Distill([teacher, convolutional(6, seed=2)] if name == "dissimilarity" else teacher, name)


def loss(distill: Distill, graph: Graph, x: Tensor = X) -> Tensor:
    """Of one step, as the trainer computes it."""
    batch = distill.batch(Batch([x], None))
    learned = {n: graph.parameter(n) for n in graph.nodes if n.op == "get_attr"}
    executor = Executor(graph, constants=learned, gradients=True, training=True)
    values = executor.run([*graph.results, *distill.watched(graph)], batch.inputs)
    found = distill.loss(Run(batch, executor.nested(values), values))
    assert found is not None
    return found


@pytest.mark.many
@pytest.mark.parametrize("name", quick(CONVOLUTIONAL, "hint", "relations", "meal", "jacobian"))
def test_the_loss_of_a_method_falls_and_its_gradient_reaches_the_student(name: str, teacher: Graph) -> None:
    graph = student()
    method = distill(name, teacher)
    method.attach(graph)
    loss(method, graph).backward()
    first = next(p for p in graph.parameters() if p.dim() == 4)
    assert first.grad is not None
    assert float(first.grad.abs().max()) > 0
    assert all(p.grad is not None for module in method.helpers() for p in module.parameters()), "helpers learn, too"
    assert all(p.grad is None for p in teacher.parameters())

    graph = student()
    report = train(graph, X, compress=[distill(name, teacher)], epochs=8, batch_size=16, rate=1e-2, warmup=0.0)
    losses = [epoch.loss for epoch in report.epochs[1:]]
    if name not in AGAINST_DISCRIMINATORS:
        assert losses[-1] < 0.98 * losses[0]  # type: ignore[operator]


@pytest.mark.parametrize("name", [*TRANSFORMERS, "response", "relations"])
def test_methods_of_transformers(name: str) -> None:
    graph, big = (Graph.capture(Transformer(size, seed).eval(), TOKENS[:2]) for size, seed in ((8, 0), (16, 1)))
    method = Distill(big, name)
    method.attach(graph)
    loss(method, graph, TOKENS).backward()
    assert any(p.grad is not None and float(p.grad.abs().max()) > 0 for p in graph.parameters())
    graph = Graph.capture(Transformer(8, 0).eval(), TOKENS[:2])
    report = train(graph, TOKENS, compress=[Distill(big, name)], epochs=8, batch_size=16, rate=1e-2, warmup=0.0)
    assert report.epochs[-1].loss < 0.9 * report.epochs[1].loss  # type: ignore[operator]


@pytest.mark.parametrize("name", quick(WITHOUT_DISTANCE_TO_ITSELF, "attention", "svd"))
def test_a_network_that_is_its_teacher_has_no_distance_to_it(name: str) -> None:
    graph = student()
    method = Distill(graph.clone(), name)
    method.attach(graph)
    batch = method.batch(Batch([X], None))
    executor = Executor(graph, gradients=True)
    values = executor.run([*graph.results, *method.watched(graph)], batch.inputs)
    found = method.loss(Run(batch, executor.nested(values), values))
    assert found is not None
    assert float(found.detach()) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.many
@pytest.mark.parametrize("name", quick(CONVOLUTIONAL, "margin", "meal"))
def test_a_training_that_goes_on_ends_bit_for_bit_where_it_would_have(
    name: str, teacher: Graph, tmp_path: Path
) -> None:
    def once(graph: Graph, stop: int | None, folder: Path | None) -> tuple[list[Tensor], list[Tensor]]:
        method = distill(name, teacher)
        if name == "meal":
            method = Distill(Ensemble([teacher, convolutional(6, seed=2)], by="random"), name)
        train(
            graph, (X, Y), compress=[method, Stops(stop)], epochs=3, batch_size=16, rate=1e-2, accumulate=2, average=0.9,
            checkpoint=folder,
        )  # fmt: skip
        return list(graph.state_dict().values()), [t for m in method.helpers() for t in m.state_dict().values()]

    expected = once(student(), None, None)
    with pytest.raises(KeyboardInterrupt):
        once(student(), 5, tmp_path)
    found = once(student(), None, tmp_path)
    for ours, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_checkpoint_with_other_helpers_is_refused(teacher: Graph, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(
            student(),
            (X, Y),
            compress=[Distill(teacher, "hint"), Stops(3)],
            epochs=2,
            batch_size=16,
            checkpoint=tmp_path,
        )
    with pytest.raises(InputError, match="other adapters or discriminators"):
        train(student(), (X, Y), compress=[Distill(teacher, "factor")], epochs=2, batch_size=16, checkpoint=tmp_path)


def test_helpers_are_trained_and_thrown_away(teacher: Graph) -> None:
    graph = student()
    before = set(graph.state_dict())
    method = Distill(teacher, "hint")
    method.attach(graph)
    start = [p.detach().clone() for m in method.helpers() for p in m.parameters()]
    train(graph, (X, Y), compress=[method], epochs=2, batch_size=16)
    end = [p for m in method.helpers() for p in m.parameters()]
    assert len(start) == len(end) == 4
    assert all(not torch.equal(a, b) for a, b in zip(start, end, strict=True))
    assert set(graph.state_dict()) == before


def test_what_learns_along_is_drawn_from_the_seed_and_nothing_else(teacher: Graph) -> None:
    def adapter(seed: int, noise: int) -> Tensor:
        torch.manual_seed(noise)
        method = Distill(teacher, "hint", seed=seed)
        method.attach(student())
        return next(method.helpers()[0].parameters()).detach()

    assert torch.equal(adapter(0, 1), adapter(0, 2))
    assert not torch.equal(adapter(0, 1), adapter(1, 1))


def test_a_term_of_ones_own_at_named_places(teacher: Graph) -> None:
    term = Term(squared, adapt=lambda own, other: Adapter(own, other, normed=True))
    method = Distill(teacher, term, places=[("2", "5")], weight=0.5)
    graph = student()
    method.attach(graph)
    found = loss(method, graph)
    (ours,) = (p for p, _ in method.comparisons[0][0].pairs)
    values = Executor(graph, training=True).run(ours.nodes, [X])
    (theirs,) = (p for _, p in method.comparisons[0][0].pairs)
    expected = (
        method.comparisons[0][0].adapters[0][0](values[ours.nodes[0]])
        - Executor(teacher).run(theirs.nodes, [X])[theirs.nodes[0]]
    )
    assert float(found) == pytest.approx(0.5 * float(expected.pow(2).mean()), rel=1e-4)


def test_a_quantized_student_follows_its_float_self() -> None:
    graph = student()
    teacher = graph.clone()
    run([FoldBatchNorm(), Quantize(find("x86"), Calibration(X[:16], graph))], graph)
    method = Distill(teacher, "hint", places="common")
    report = train(graph, X, compress=[method], epochs=5, batch_size=16, rate=3e-3, warmup=0.0)
    assert len(method.comparisons[0][0].pairs) == 5
    assert report.epochs[-1].loss < report.epochs[1].loss  # type: ignore[operator]


@pytest.mark.parametrize("inside", [(0.0, 0.5), (0.5, 1.0)])
def test_a_loss_counts_during_its_part_of_the_training_alone(inside: tuple[float, float], teacher: Graph) -> None:
    method = Response(teacher, during=inside)
    graph = student()
    method.attach(graph)
    seen = []
    for progress in (0.0, 0.25, 0.5, 0.75):
        method.step(progress)
        values = Executor(graph).run(graph.results, [X])
        answer = Executor(graph).nested(values)
        seen.append(method.loss(Run(Batch([X], None), answer, values)) is not None)
    assert seen == ([True, True, False, False] if inside[0] == 0 else [False, False, True, True])


class Half(nn.Module):
    """Maps of half the size."""

    def __init__(self) -> None:
        super().__init__()
        self.body = convolutional(4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.body(nn.functional.avg_pool2d(x, 2))
        return found


@pytest.mark.many
@pytest.mark.parametrize(
    "name",
    quick(
        ("attention", "hint", "margin", "adversarial", "variational", "factor", "svd", "instances"), "hint", "factor"
    ),
)
def test_a_teacher_of_another_resolution_is_met_at_the_smaller_one(name: str) -> None:
    graph = student()
    method = Distill(Half().eval(), name)
    train(graph, X, compress=[method], epochs=2, batch_size=16)
    places = [pair for comparison in method.comparisons[0] for pair in comparison.pairs]
    maps = [(own.shapes[0], other.shapes[0]) for own, other in places if len(own.shapes[0]) == 3]
    assert maps
    assert all(own[1] == 2 * other[1] for own, other in maps)


NAMES: Sequence[tuple[Any, dict[str, Any], str]] = [
    (convolutional(4, classes=5), {"method": "response"}, r"the teacher answers \[N, 5\], the graph \[N, 3\]"),
    (convolutional(4, classes=5), {"method": "meal"}, r"the teacher answers \[N, 5\]"),
    (convolutional(4), {"method": "atention"}, r"unknown method 'atention'; did you mean 'attention'\?"),
    (convolutional(4), {"method": "hint", "places": ["layer"]}, "the student has no place 'layer'"),
    (convolutional(4), {"method": "hint", "places": "stage"}, r"did you mean 'stages'"),
    (convolutional(4), {"method": "minilm"}, "the student has no last_attention"),
    (convolutional(4), {"method": "svd", "places": ["5"]}, "two by two, and there is 1"),
    (convolutional(8), {"method": Term(squared)}, r"the student has \[16, 4, 8, 8\], the teacher \[16, 8, 8, 8\]"),
    (convolutional(8), {"method": Term(squared, equal=True, adapt=False)}, "4 channels at '5', the teacher 8"),
    (convolutional(4), {"method": "hint", "weight": 0.0}, "weight must be over 0"),
    (convolutional(4), {"method": "hint", "during": (0.5, 0.5)}, "during is from and to a progress"),
    (lambda x: x.mean((2, 3)), {"method": "hint"}, "the teacher is a function, which has no places inside"),
    (3, {"method": "hint"}, "the teacher is a int; give a module"),
]  # fmt: skip


@pytest.mark.many
@pytest.mark.parametrize(("teacher", "given", "says"), NAMES, ids=[str(i) for i in range(len(NAMES))])
def test_what_does_not_fit_is_refused_before_any_step(teacher: Any, given: dict[str, Any], says: str) -> None:
    graph = student()
    before = {name: value.clone() for name, value in graph.state_dict().items()}
    with pytest.raises(InputError, match=says):
        train(graph, (X, Y), batch_size=16, compress=[Distill(teacher, **given)])
    assert all(torch.equal(value, before[name]) for name, value in graph.state_dict().items() if "running" not in name)


def test_methods_of_transformers_want_as_many_heads() -> None:
    graph = Graph.capture(Transformer(8).eval(), TOKENS[:2])
    teacher = Transformer(8).eval()
    for attention in teacher.attentions:
        attention.heads = 4
    with pytest.raises(InputError, match=r"the student has \[16, 2, 5, 5\], the teacher \[16, 4, 5, 5\]"):
        train(graph, TOKENS, batch_size=16, compress=[Distill(teacher, "minilm")])
