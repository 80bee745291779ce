"""Who is learned from: one network or several, at several times, with other inputs, or on disk."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distilling import X, Y, convolutional, student
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from graphopt.execution.executor import Executor
from graphopt.ir.graph import Graph
from graphopt.training import Response, Run, train
from graphopt.training.batches import Batch
from graphopt.training.distillation import Cached, Distill, Ensemble, Network, Recorded, Route, record
from graphopt.utils.errors import InputError


def loss(method: Distill, graph: Graph, batch: Batch) -> float:
    values = Executor(graph).run([*graph.results, *method.watched(graph)], batch.inputs)
    found = method.loss(Run(batch, Executor(graph).nested(values), values))
    assert found is not None
    return float(found)


def attached(method: Distill, graph: Graph) -> Distill:
    method.attach(graph)
    return method


BATCH = Batch([X], Y)
FIRST, SECOND = convolutional(8, seed=1), convolutional(6, seed=2)


def test_a_module_stays_in_its_mode_and_without_gradients() -> None:
    teacher = convolutional(8, seed=1).train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    train(student(), X, batch_size=16, compress=[Distill(teacher, "hint"), Response(teacher)])
    assert all(module.training for module in teacher.modules())
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_a_module_and_its_graph_teach_the_same() -> None:
    graph = student()
    captured = Graph.capture(FIRST, X[:2])
    for name in ("response", "attention"):
        found = [loss(attached(Distill(each, name), graph), graph, BATCH) for each in (FIRST, captured)]
        assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_several_teachers_count_by_the_mean_of_their_losses() -> None:
    graph = student()
    for name in ("response", "attention"):
        one, other = (loss(attached(Distill(each, name), graph), graph, BATCH) for each in (FIRST, SECOND))
        both = loss(attached(Distill([FIRST, SECOND], name), graph), graph, BATCH)
        assert both == pytest.approx((one + other) / 2, rel=1e-5)


def test_the_mean_of_divergences_has_the_gradient_of_the_averaged_targets() -> None:
    logits = torch.randn(6, 5, requires_grad=True)
    teachers = [torch.randn(6, 5), torch.randn(6, 5)]
    targets = torch.stack([(t / 4).softmax(1) for t in teachers]).mean(0)
    averaged = -16 * (targets * (logits / 4).log_softmax(1)).sum(1).mean()
    from graphopt.training.distillation.distances import Divergence

    separate = torch.stack([Divergence(4.0)(logits, t).mean() for t in teachers]).mean()
    for a, b in zip(*(torch.autograd.grad(each, logits) for each in (averaged, separate)), strict=True):
        torch.testing.assert_close(a, b)


def test_confident_teachers_count_for_more_sample_by_sample() -> None:
    teachers = [torch.randn(4, 3) for _ in range(3)]
    classes = torch.tensor([0, 2, 1, 1])
    ensemble = Ensemble([FIRST, SECOND, FIRST], by="confidence")
    weights = ensemble.weights(teachers, Batch([X[:4]], classes))
    for n in range(4):
        losses = [-math.log(float(t[n].softmax(0)[classes[n]])) for t in teachers]
        total = sum(math.exp(value) for value in losses)
        expected = [3 * (1 - math.exp(value) / total) / 2 for value in losses]  # their mean over teachers is one
        assert [float(w[n]) for w in weights] == pytest.approx(expected, rel=1e-4)  # type: ignore[index]
    graph = student()
    method = attached(Response(Ensemble([FIRST, SECOND], by="confidence")), graph)
    assert loss(method, graph, BATCH) > 0
    with pytest.raises(InputError, match="wants classes as targets"):
        loss(method, graph, BATCH._replace(targets=None))


def test_one_of_several_is_drawn_for_each_step() -> None:
    graph = student()
    one, other = (loss(attached(Response(each), graph), graph, BATCH) for each in (FIRST, SECOND))
    method = attached(Response(Ensemble([FIRST, SECOND], by="random")), graph)
    found = {round(loss(method, graph, BATCH), 4) for _ in range(20)}
    assert found == {round(one, 4), round(other, 4)}


def test_a_route_goes_through_its_checkpoints(tmp_path: Path) -> None:
    model = convolutional(8, seed=1)
    torch.save(SECOND_STATE := convolutional(8, seed=2).state_dict(), tmp_path / "late.pt")
    graph = student()
    method = attached(Response(Route(model, [model.state_dict(), tmp_path / "late.pt"], at=[0.0, 0.7])), graph)
    late = convolutional(8, seed=2)
    late.load_state_dict(SECOND_STATE)
    expected = [loss(attached(Response(each), graph), graph, BATCH) for each in (model, late)]
    for progress, place in ((0.0, 0), (0.5, 0), (0.7, 1), (0.9, 1), (0.1, 0)):
        method.step(progress)
        assert loss(method, graph, BATCH) == pytest.approx(expected[place], rel=1e-5)
    stages = attached(Distill(Route(model, [model.state_dict()]), "attention"), graph)
    assert loss(stages, graph, BATCH) == pytest.approx(
        loss(attached(Distill(model, "attention"), graph), graph, BATCH), rel=1e-5
    )


def test_a_teacher_may_take_another_part_of_the_batch() -> None:
    class Wave(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3))

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.layers(x)
            return found

    teacher, wave = Wave().eval(), torch.randn(64, 10)
    batches = [{"input": X[i : i + 16], "wave": wave[i : i + 16], "labels": Y[i : i + 16]} for i in range(0, 64, 16)]
    learn = Network(teacher, inputs=lambda batch: batch["wave"], sample=wave[:2])
    report = train(student(), batches, compress=[Response(learn), Distill(learn, "relations")], epochs=4, rate=1e-2)
    assert report.epochs[-1].loss < report.epochs[1].loss  # type: ignore[operator]
    graph = student()
    method = attached(Response(learn), graph)
    direct = attached(Response(lambda x: teacher(wave)), graph)
    assert loss(method, graph, Batch([X], Y, given={"wave": wave})) == pytest.approx(
        loss(direct, graph, BATCH), rel=1e-5
    )
    with pytest.raises(InputError, match="sample=inputs to capture it with"):
        attached(Distill(Network(teacher, inputs=lambda batch: batch["wave"]), "relations"), graph)


# ---- Answers on disk ------------------------------------------------------------------------------------------------


def api(batch: Tensor) -> np.ndarray[Any, Any]:
    """Probabilities, as a service gives them."""
    with torch.no_grad():
        return FIRST(batch).softmax(1).numpy()  # type: ignore[no-any-return]


@pytest.mark.parametrize("form", ["tensors", "batches", "loader", "dictionaries"])
def test_recorded_answers_teach_what_their_teacher_teaches(form: str, tmp_path: Path) -> None:
    path = record(FIRST, X, tmp_path / "soft.npy", batch_size=10)
    order = torch.randperm(64)
    data: Any = {
        "tensors": (X, Y),
        "batches": [(X[i : i + 16], Y[i : i + 16]) for i in range(0, 64, 16)],
        "loader": DataLoader(TensorDataset(X, Y), batch_size=16),
        "dictionaries": [{"input": X[p], "labels": Y[p], "index": p} for p in order.split(16)],
    }[form]
    options: dict[str, Any] = {"batch_size": 16, "epochs": 2, "rate": 1e-2}
    graphs = [student(), student()]
    for graph, teacher in zip(graphs, (Recorded(path), FIRST), strict=True):
        train(graph, data, compress=[Response(teacher)], **options)
    for a, b in zip(*(graph.state_dict().values() for graph in graphs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_probabilities_of_a_service_are_softened_as_logits_are(tmp_path: Path) -> None:
    path = record(api, X, tmp_path / "soft.npy")
    graph = student()
    method = attached(Response(Recorded(path, kind="probabilities")), graph)
    batch = BATCH._replace(samples=torch.arange(64))
    assert loss(method, graph, batch) == pytest.approx(loss(attached(Response(FIRST), graph), graph, BATCH), rel=1e-3)
    assert isinstance(np.load(path, mmap_mode="r"), np.memmap)


def test_recorded_answers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = record(FIRST, X, tmp_path / "soft.npy")
    few = record(FIRST, X[:32], tmp_path / "few.npy")
    wide = record(convolutional(4, classes=5), X, tmp_path / "wide.npy")
    batches = [(X[i : i + 16], Y[i : i + 16]) for i in range(0, 64, 16)]
    shuffled = DataLoader(TensorDataset(X, Y), batch_size=16, shuffle=True)
    cases: list[tuple[Any, Any, str]] = [
        (few, (X, Y), "answers to 32 samples, the training data are 64; record them anew"),
        (few, batches, "there is none to number 47"),
        (wide, (X, Y), r"the teacher answers \[N, 5\], the graph \[N, 3\]"),
        (path, shuffled, "need to know which samples a batch has; .*'index'"),
    ]
    for file, data, says in cases:
        with pytest.raises(InputError, match=says):
            train(student(), data, batch_size=16, compress=[Response(Recorded(file))])
    with pytest.raises(InputError, match="a Recorded teacher has answers alone"):
        train(student(), (X, Y), compress=[Distill(Recorded(path), "hint")])
    with pytest.raises(InputError, match="does not hold probabilities"):
        Recorded(path, kind="probabilities")
    with pytest.raises(InputError, match=r"is no readable .npy file of recorded answers"):
        Recorded(tmp_path / "none.npy")
    with pytest.raises(InputError, match="kind must be one of logits, probabilities"):
        Recorded(path, kind="labels")
    with pytest.raises(InputError, match="there is nothing to record"):
        record(FIRST, [], tmp_path / "none.npy")
    with pytest.raises(InputError, match=r"the teacher answers \[4, 2\] after \[4, 3\]"):
        answers = iter([torch.zeros(4, 3), torch.zeros(4, 2)])
        record(lambda batch: next(answers), X[:8], tmp_path / "none.npy", batch_size=4)
    assert not (tmp_path / "none.npy").exists()


class Counts(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += len(x)
        found: Tensor = self.inner(x)
        return found


def test_cached_answers_are_asked_for_once_and_outlive_the_training(tmp_path: Path) -> None:
    graphs = [student(), student()]
    options: dict[str, Any] = {"batch_size": 16, "epochs": 3, "rate": 1e-2}
    counting = Counts(FIRST)
    train(graphs[0], (X, Y), compress=[Response(Cached(counting, tmp_path / "cache", samples=64))], **options)
    first = counting.calls
    assert first == 64 + 2, "each sample once, and the example"
    train(graphs[1], (X, Y), compress=[Response(FIRST)], **options)
    for a, b in zip(*(graph.state_dict().values() for graph in graphs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    train(student(), (X, Y), compress=[Response(Cached(counting, tmp_path / "cache", samples=64))], **options)
    assert counting.calls - first == 2
    train(student(), (X, Y), compress=[Response(Cached(Counts(SECOND), tmp_path / "cache", samples=64))], **options)
    assert len(list((tmp_path / "cache").iterdir())) == 2, "another teacher has another file"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Ensemble([FIRST]), "needs two teachers at least, got 1"),
        (lambda: Ensemble([FIRST, [FIRST, SECOND]]), "ensembles among its teachers; give their members"),
        (lambda: Ensemble([FIRST, SECOND], by="confident"), r"did you mean 'confidence'\?"),
        (lambda: Route(FIRST, []), "at least one checkpoint"),
        (lambda: Route(FIRST, [{}, {}], at=[0.0]), "one progress for each of the 2 checkpoints"),
        (lambda: Route(FIRST, [{}, {}], at=[0.1, 0.5]), "rising from 0"),
        (lambda: Response(FIRST, temperature=0.0), "temperature must be over 0"),
    ],
)
def test_teachers_that_cannot_be_are_refused(make: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        make()


def test_the_graph_that_is_trained_is_no_teacher() -> None:
    graph = student()
    with pytest.raises(InputError, match="give a clone of it"):
        train(graph, (X, Y), compress=[Response(graph)])
    with pytest.raises(InputError, match=r"there is no checkpoint .*none\.pt"):
        train(graph, (X, Y), compress=[Response(Route(FIRST, ["none.pt"]))])
    with pytest.raises(InputError, match="checkpoint 0 of the route does not fit its teacher"):
        train(graph, (X, Y), compress=[Response(Route(FIRST, [SECOND.state_dict()]))])
