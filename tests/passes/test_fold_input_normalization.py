"""What a model does to pixels becomes part of its first layers: the same answers, from bytes that go in as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rewriting import Model, assert_close
from torch import Tensor, nn

from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten
from graphopt.lowering.qdq import deploy
from graphopt.passes.cleanup import FoldInputNormalization
from graphopt.passes.quantization import Quantize
from graphopt.targets import find

MEAN, STD = (
    torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1),
    torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1),
)


MEANS, STDS = MEAN.reshape(3), STD.reshape(3)


def normal(x: Tensor) -> Tensor:
    return (x.float() / 255 - MEAN) / STD


Case = tuple[Callable[[Any, Tensor], Any], dict[str, nn.Module], tuple[int, ...], int]
CASES: dict[str, Case] = {  # network, its layers, input, layers that take pixels as they are
    "padded": (lambda m, x: m.c(normal(x)), {"c": nn.Conv2d(3, 8, 3, 2, 1)}, (2, 3, 9, 12), 1),
    "not padded": (lambda m, x: m.c(normal(x)), {"c": nn.Conv2d(3, 8, 3, bias=False)}, (2, 3, 9, 12), 1),
    "dilated": (lambda m, x: m.c(normal(x)), {"c": nn.Conv2d(3, 8, 3, padding=2, dilation=2)}, (2, 3, 9, 12), 1),
    "padded by a call": (lambda m, x: m.c(F.pad(normal(x), (0, 1, 2, 1))), {"c": nn.Conv2d(3, 8, 3, 2)}, (2, 3, 9, 12), 1),
    "read twice": (
        lambda m, x: (lambda y: m.c(y) + m.d(y) + y.mean())(normal(x)),
        {"c": nn.Conv2d(3, 8, 3, padding=1), "d": nn.Conv2d(3, 8, 5, padding=2)}, (2, 3, 8, 8), 2,
    ),
    "promoted": (lambda m, x: m.c(x / 255), {"c": nn.Conv2d(3, 8, 3, padding=1)}, (1, 3, 8, 8), 1),
    "channels last": (
        lambda m, x: m.c((x.permute(0, 3, 1, 2) / 255 - MEAN) / STD), {"c": nn.Conv2d(3, 8, 3, padding=1)}, (2, 9, 12, 3), 1,
    ),
    "permuted behind": (
        lambda m, x: m.c(((x.float() - MEANS) * STDS).permute(0, 3, 1, 2)),
        {"c": nn.Conv2d(3, 8, 3, padding=1)}, (2, 9, 12, 3), 1,
    ),
    "linear": (lambda m, x: m.c(((x.float() - 3) * 0.5).flatten(1)), {"c": nn.Linear(300, 4)}, (2, 3, 10, 10), 1),
    "one dimension": (lambda m, x: m.c(x.float() * 0.5 + 1), {"c": nn.Conv1d(3, 8, 3, padding=1)}, (2, 3, 20), 1),
    "number first": (lambda m, x: m.c(torch.sub(MEAN, x.float())), {"c": nn.Conv2d(3, 8, 3, padding=1)}, (2, 3, 8, 8), 1),
    "groups": (lambda m, x: m.c(normal(x)), {"c": nn.Conv2d(3, 6, 3, padding=1, groups=3)}, (2, 3, 8, 8), 0),
    "computed behind padding": (
        lambda m, x: m.c(F.pad(x.float(), (1, 1, 1, 1)) / 255 - MEAN), {"c": nn.Conv2d(3, 8, 3)}, (2, 3, 8, 8), 0,
    ),
    "padded with ones": (
        lambda m, x: m.c(F.pad(normal(x), (1, 1, 1, 1), value=1.0)), {"c": nn.Conv2d(3, 8, 3)}, (2, 3, 8, 8), 0,
    ),
    "a number for each pixel": (
        lambda m, x: m.c(x.float() - torch.arange(8.0)), {"c": nn.Conv2d(3, 8, 3, padding=1)}, (2, 3, 8, 8), 0,
    ),
    "one over pixels": (lambda m, x: m.c(1 / (x.float() + 1)), {"c": nn.Conv2d(3, 8, 3)}, (2, 3, 8, 8), 0),
    "clipped": (lambda m, x: m.c((x.float() / 255).clamp(0.1, 0.9)), {"c": nn.Conv2d(3, 8, 3)}, (2, 3, 8, 8), 0),
    "without a batch": (lambda m, x: m.c(x.float() / 255 - 0.5), {"c": nn.Conv2d(3, 8, 3, padding=1)}, (3, 8, 8), 0),
    "joined": (
        lambda m, x: m.c(torch.cat([x.float() / 255, x.float() * 2], 1)), {"c": nn.Conv2d(6, 8, 3)}, (2, 3, 8, 8), 0,
    ),
    "made of nothing": (lambda m, x: m.c(torch.ones(2, 3, 8, 8)) + x.float().mean(), {"c": nn.Conv2d(3, 8, 3)}, (2, 3, 8, 8), 0),
    "split": (lambda m, x: m.c((x.float() / 255).chunk(3, 1)[1]), {"c": nn.Conv2d(1, 8, 3)}, (2, 3, 8, 8), 0),
    "a transposed convolution": (
        lambda m, x: m.c(normal(x)), {"c": nn.ConvTranspose2d(3, 8, 3, 2, 1)}, (2, 3, 8, 8), 0,
    ),
}  # fmt: skip


def captured(case: Case) -> tuple[nn.Module, Graph, Tensor]:
    body, layers, shape, _ = case
    model, x = Model(body, **layers).eval(), torch.randint(0, 256, shape, dtype=torch.uint8)
    return model, Graph.capture(model, x), x


@pytest.mark.parametrize("name", CASES)
def test_answers_stay(name: str) -> None:
    model, graph, x = captured(CASES[name])
    changes = FoldInputNormalization()(graph)
    graph.refresh()
    assert len(changes) == CASES[name][-1]
    with torch.no_grad():
        for pixels in (x, torch.zeros_like(x), torch.full_like(x, 255)):
            assert_close(graph(pixels), model(pixels), 1e-4)
    assert not FoldInputNormalization()(graph)


def test_nothing_is_left_to_compute_in_front_of_the_layer() -> None:
    _, graph, _ = captured(CASES["padded"])
    FoldInputNormalization()(graph)
    graph.refresh()
    assert not list(graph.calls(aten.div.Tensor, aten.sub.Tensor, aten.mul.Tensor))


def test_a_weight_that_others_read_is_copied() -> None:
    shared = nn.Conv2d(3, 8, 3, padding=1)
    case: Case = (lambda m, x: m.c(normal(x)) + m.c(x.flip(1).float().sin()), {"c": shared}, (2, 3, 8, 8), 1)
    model, graph, x = captured(case)
    assert len(FoldInputNormalization()(graph)) == 1
    graph.refresh()
    with torch.no_grad():
        assert_close(graph(x), model(x), 1e-4)


def test_a_quantized_graph_stays() -> None:
    _, graph, x = captured(CASES["padded"])
    Quantize(find("x86"), [[x]])(graph)
    graph.refresh()
    assert not FoldInputNormalization()(graph)


@pytest.mark.parametrize("name", ["padded", "groups", "read twice", "joined"])
def test_runtimes_in_float16_take_pixels_too(name: str) -> None:
    """Where the rest is in float16, deploying casts values that are cast once more in front of a layer."""
    model, graph, x = captured(CASES[name])
    FoldInputNormalization()(graph)
    graph.refresh()
    Quantize(find("nvidia"), [[x]])(graph)
    with torch.no_grad():
        assert_close(deploy(graph, half=True)(x), model(x), 0.03)
