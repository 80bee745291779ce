"""Training of weights and values that are signs: the papers' formulas, and what is left behind."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from rewriting import apply, capture, randomised
from torch import Tensor, nn

import graphopt
from graphopt.backends.tvm import lower
from graphopt.formats import FAKE_QUANTIZE_SIGNS, Binary, Ternary
from graphopt.formats.signs import TWN_THRESHOLD
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.quantizers import is_signs, quantizer_of
from graphopt.passes.binary import Binarize
from graphopt.passes.cleanup.fold_batchnorm import FoldBatchNorm
from graphopt.passes.quantization import Quantize
from graphopt.targets import find
from graphopt.training import QuantizationAware
from graphopt.training.quantization.methods import METHODS
from graphopt.training.quantization.sign_surrogate import SIGNS_IN_TRAINING
from graphopt.utils.errors import InputError

TARGET = find("tvm-x86")
OF_SIGNS = [name for name, method in METHODS.items() if method.signs.name]
BINARY = [name for name in OF_SIGNS if METHODS[name].signs.levels == 2]
TERNARY = ["twn", "ttq", "lsq", "ste"]
X = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = (X.mean((1, 2, 3)) * 40).round().long().clamp(-2, 2) + 2


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Hardtanh(), nn.Conv2d(8, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8), nn.Hardtanh(), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Hardtanh(),
        )  # fmt: skip
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.layers(x).mean((2, 3)))
        return y


def with_signs(weights: Any, *, values: bool = True) -> Graph:
    torch.manual_seed(3)
    graph = capture(randomised(Small()), X[:2])
    apply(FoldBatchNorm(), graph)
    apply(Quantize(TARGET, [[X]], estimator="minmax"), graph)
    apply(Binarize(weights, activations=Binary() if values else None, calibration=[[X]]), graph)
    return graph


def weights_of(method: str) -> Any:
    return Ternary(per_channel=True, two_scales=method == "ttq") if method in TERNARY else Binary(per_channel=True)


def layers(graph: Graph) -> list[Layer]:
    return [layer for node in graph.calls() if (layer := Layer.of(node)) and is_signs(layer.weight)]


def call(
    x: Tensor, scale: Any, gradient: str, *, threshold: float = 0.0, unit: float = 1.0, t: float = 1.0, **more: Any
) -> Tensor:
    ends = more.get("below", torch.ones(())), more.get("above", torch.ones(()))
    scale = torch.as_tensor(scale)
    result: Tensor = SIGNS_IN_TRAINING(
        x, scale, torch.tensor(threshold), *ends, torch.tensor(unit), torch.tensor(t), -1, gradient, more.get("chance", False),
        more.get("training", True),
    )  # fmt: skip
    return result


U = torch.tensor([-3.0, -1.0, -0.7, -0.2, 0.0, 0.2, 0.7, 1.0, 3.0])


@pytest.mark.parametrize(
    ("gradient", "wanted"),
    [
        ("straight", lambda u: 1.0),
        ("clipped", lambda u: float(abs(u) <= 1)),
        ("polynomial", lambda u: 2 + 2 * u if -1 <= u < 0 else 2 - 2 * u if 0 <= u < 1 else 0.0),
        ("tanh", lambda u: 2.0 * (1 - math.tanh(2.0 * u) ** 2)),
    ],
)
def test_gradients_are_those_of_the_papers(gradient: str, wanted: Any) -> None:
    x = (U * 0.5).requires_grad_()
    call(x, 0.25, gradient, unit=0.5, t=2.0).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == pytest.approx([0.25 / 0.5 * wanted(u) for u in U.tolist()], abs=1e-6)


def test_early_on_the_gradient_of_irnet_is_the_identitys() -> None:
    x = U.clone().requires_grad_()
    call(x, 1.0, "tanh", t=1e-3).sum().backward()
    torch.testing.assert_close(x.grad, torch.ones_like(x), rtol=0, atol=1e-4)


def test_trained_ternary_numbers_have_the_gradients_of_equation_8() -> None:
    """W_p for what is above the threshold, 1 between, W_n below; W_p gets the sum above it, W_n minus that below."""
    x = torch.tensor([-0.9, -0.5, -0.1, 0.1, 0.6, 0.8]).requires_grad_()
    scale, low, high = 0.01, torch.tensor(40.0, requires_grad=True), torch.tensor(100.0, requires_grad=True)
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    y = call(x, scale, "scaled", threshold=0.3, below=low, above=high)
    assert y.tolist() == pytest.approx([-0.4, -0.4, 0, 0, 1.0, 1.0])
    (y * weights).sum().backward()
    assert x.grad.tolist() == pytest.approx([0.4, 0.8, 3, 4, 5, 6])  # type: ignore[union-attr]
    assert float(high.grad) == pytest.approx(scale * 11)  # type: ignore[arg-type]
    assert float(low.grad) == pytest.approx(scale * -3)  # type: ignore[arg-type]


def test_chance_rounds_up_as_often_as_the_hard_sigmoid_says_and_only_in_training() -> None:
    torch.manual_seed(0)
    for x, wanted in ((-2.0, 0.0), (-0.5, 0.25), (0.0, 0.5), (0.8, 0.9), (1.5, 1.0)):
        drawn = call(torch.full((20_000,), x), 1.0, "straight", chance=True) > 0
        assert float(drawn.double().mean()) == pytest.approx(wanted, abs=0.015)
        assert call(torch.tensor(x), 1.0, "straight", chance=True, training=False) == (1.0 if x >= 0 else -1.0)


def test_eval_mode_answers_what_the_graphs_own_quantizer_answers() -> None:
    x, one = torch.randn(500), torch.ones((), dtype=torch.int32)
    for threshold in (0.0, 0.4):
        wanted = FAKE_QUANTIZE_SIGNS(x, torch.tensor(0.3), torch.tensor(threshold), one, one, 2, -1)
        assert torch.equal(call(x, 0.3, "clipped", threshold=threshold, training=False), wanted)


@pytest.mark.many
@pytest.mark.parametrize("method", [*OF_SIGNS, "lsq", "ste"])
def test_what_is_left_answers_as_it_did_and_is_plain(method: str) -> None:
    graph = with_signs(weights_of(method))
    learned = QuantizationAware(method)
    learned.sees([[X]])
    learned.attach(graph)
    optimizer = torch.optim.Adam([p for p in graph.parameters() if p.requires_grad], 3e-3)
    graph.train()
    for step in range(4):
        learned.step(step / 4)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(graph(X), Y).backward()
        optimizer.step()
    graph.eval()
    with torch.no_grad():
        before = graph(X)
        learned.finish(graph)
        assert [n for n in graph.calls() if n.target is SIGNS_IN_TRAINING] == []
        assert len(layers(graph)) == 2
        after = graph(X)
    largest = float(before.abs().max())
    torch.testing.assert_close(after, before, rtol=0, atol=0.05 * largest)  # codes of 8 bits in the middle between two
    simulation, artifact = graphopt.simulate(graph, TARGET.name), lower(graph, TARGET)
    assert torch.equal(simulation(X[:2]), torch.as_tensor(artifact(X[:2])))
    assert [m for m in simulation.mismatches(artifact, X[:2]) if m.differing] == []
    with torch.no_grad():
        torch.testing.assert_close(simulation(X), after, rtol=0, atol=0.05 * largest)


def trained(method: str, **options: Any) -> tuple[Graph, list[Tensor]]:
    """A graph that has trained without batch norms, and the weights that its signs were taken of."""
    graph = with_signs(weights_of(method), values=False)
    learned = QuantizationAware(method, batch_norms=False)
    weights: list[Tensor] = []

    class Kept(QuantizationAware):
        def finish(self, graph: Graph) -> Any:
            weights.extend(graph.tensor(each.source).clone() for each in learned.signs)
            return learned.finish(graph)

        attach, step, loss, sees = (getattr(learned, name) for name in ("attach", "step", "loss", "sees"))

    graphopt.train(graph, (X, Y), compress=[Kept()], epochs=2, batch_size=32, rate=3e-3, schedule="constant", **options)
    return graph, weights


def rows(weight: Tensor) -> list[list[float]]:
    found: list[list[float]] = weight.flatten(1).tolist()
    return found


def test_irnet_leaves_centred_weights_of_deviation_1_and_scales_that_are_powers_of_two() -> None:
    graph, weights = trained("irnet")
    for layer, weight in zip(layers(graph), weights, strict=True):
        scale = quantizer_of(graph, layer.weight).parameters[0].tolist()
        for row, found, signs in zip(rows(weight), scale, rows(graph.tensor(layer.weight)), strict=True):
            mean = sum(row) / len(row)
            deviation = math.sqrt(sum((w - mean) ** 2 for w in row) / (len(row) - 1))
            unit = [(w - mean) / deviation for w in row]
            wanted = 2.0 ** round(math.log2(sum(map(abs, unit)) / len(unit)))
            assert found == wanted
            assert [math.copysign(1, s) for s in signs] == [1.0 if u >= 0 else -1.0 for u in unit]


@pytest.mark.parametrize("method", ["xnor", "twn"])
def test_scales_follow_the_weights(method: str) -> None:
    graph, weights = trained(method)
    for layer, weight in zip(layers(graph), weights, strict=True):
        for row, rounded in zip(rows(weight), rows(graph.tensor(layer.weight)), strict=True):
            sizes = [abs(w) for w in row]
            delta = TWN_THRESHOLD * sum(sizes) / len(sizes) if method == "twn" else 0.0
            beyond = [size for size in sizes if size >= delta]
            alpha = sum(beyond) / len(beyond)
            wanted = [0.0 if abs(w) < delta else alpha if w >= 0 else -alpha for w in row]
            assert rounded == pytest.approx(wanted, rel=1e-4)


def test_the_two_scales_of_ttq_are_learned_apart_and_whole_multiples_of_one() -> None:
    start = with_signs(weights_of("ttq"), values=False)
    graph, _ = trained("ttq")
    moved = 0
    for before, layer in zip(layers(start), layers(graph), strict=True):
        scale, _, below, above = quantizer_of(graph, layer.weight).parameters
        assert bool((torch.maximum(below, above) == 127).all())
        old = quantizer_of(start, before.weight).parameters
        moved += int((scale * below != old[0] * old[2]).sum()) + int((scale * above != old[0] * old[3]).sum())
    assert moved > 16


def test_binaryconnect_keeps_weights_between_the_ends() -> None:
    graph, _ = trained("binaryconnect")
    for layer in layers(graph):
        scale = quantizer_of(graph, layer.weight).parameters[0]
        weight = graph.tensor(layer.weight.all_input_nodes[0])
        step = 3e-3 * 1.5  # the last one is not clipped any more
        assert bool((weight.abs() <= scale[:, None, None, None] + step).all())


def test_the_pull_is_that_of_tang_et_al() -> None:
    graph = with_signs(weights_of("tang"), values=False)
    learned = QuantizationAware("tang", batch_norms=False)
    learned.attach(graph)
    wanted = 0.0
    for each in learned.signs:
        scale = graph.tensor(each.parameters[0])
        for row, s in zip(rows(graph.tensor(each.source)), scale.tolist(), strict=True):
            wanted += 5e-7 * sum(1 - (w / s) ** 2 for w in row)
    found = learned.loss(None)  # type: ignore[arg-type]
    assert float(found) == pytest.approx(wanted, rel=1e-4)  # type: ignore[arg-type]
    found.backward()  # type: ignore[union-attr]
    assert all(graph.parameter(each.source).grad is not None for each in learned.signs)


def test_methods_for_other_numbers_are_refused_before_anything_changes() -> None:
    graph = with_signs(weights_of("twn"), values=False)
    text = str(graph)
    with pytest.raises(InputError, match="is in Ternary, and the method 'irnet' is for Binary numbers"):
        QuantizationAware("irnet", data=[[X]]).attach(graph)
    with pytest.raises(InputError, match="is in Binary, and the method 'ttq' is for Ternary numbers"):
        QuantizationAware("ttq", data=[[X]]).attach(with_signs(weights_of("irnet"), values=False))
    assert str(graph) == text


def test_training_learns() -> None:
    torch.manual_seed(0)
    graph = with_signs(weights_of("irnet"))
    report = graphopt.train(graph, (X, Y), compress=[QuantizationAware("irnet")], epochs=25, batch_size=16, rate=2e-2)
    losses = [epoch.loss for epoch in report.epochs if epoch.loss is not None]
    assert losses[-1] < 0.8 * losses[0]
