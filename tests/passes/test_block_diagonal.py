"""Layers in blocks: that blocks are found, that orders fold, that fitting is least squares."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rewriting import apply, assert_close, capture
from torch import Tensor, nn

import graphopt
from graphopt.backends.onnxruntime import lower
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.passes import BlockDiagonal
from graphopt.passes.factorization.coclusters import balanced, coclusters
from graphopt.passmanager import run
from graphopt.targets import find
from graphopt.utils.errors import InputError

SELECT = torch.ops.aten.index_select.default


def hidden(rows: int, columns: int, blocks: int, noise: float = 0.0, seed: int = 0) -> Tensor:
    """A matrix of blocks whose rows and columns are out of order."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.zeros(blocks, rows // blocks, blocks, columns // blocks)
    own = torch.arange(blocks)
    matrix[own, :, own] = torch.randn(blocks, rows // blocks, columns // blocks, generator=generator)
    matrix = matrix.reshape(rows, columns) + noise * torch.randn(rows, columns, generator=generator)
    return matrix[torch.randperm(rows, generator=generator)][:, torch.randperm(columns, generator=generator)]


class Network(nn.Module):
    def __init__(self, noise: float = 0.0, behind: int = 12) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, behind, bias=False)
        self.a.weight.data, self.b.weight.data = hidden(24, 16, 4, noise), hidden(16, 24, 4, noise, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(F.gelu(self.a(x)))))


def inputs(*sizes: int, seed: int = 1) -> Tensor:
    return torch.randn(*sizes, 16, generator=torch.Generator().manual_seed(seed))


def blocked(model: nn.Module, x: Tensor, blocks: int = 4, **options: Any) -> Graph:
    graph = capture(model, x)
    run([BlockDiagonal(blocks, **options)], graph)
    return graph


@pytest.mark.parametrize("blocks", [2, 3, 4])
def test_blocks_out_of_order_are_found(blocks: int) -> None:
    mass = hidden(24, 36, blocks, noise=0.02).square()
    rows, columns = coclusters(mass, blocks)
    assert sorted(rows.tolist()) == list(range(24))
    assert sorted(columns.tolist()) == list(range(36))
    parts = mass[rows][:, columns].reshape(blocks, 24 // blocks, blocks, 36 // blocks)
    own = torch.arange(blocks)
    assert float(parts[own, :, own].sum() / mass.sum()) > 0.98


def test_groups_have_equal_sizes_whatever_they_gain() -> None:
    gains = torch.zeros(12, 3)
    gains[:, 1] = torch.arange(12.0)
    labels = balanced(gains)
    assert torch.bincount(labels).tolist() == [4, 4, 4]
    assert sorted(torch.nonzero(labels == 1).flatten().tolist()) == [8, 9, 10, 11]


@pytest.mark.parametrize("sizes", [(5,), (3, 7)])
def test_a_layer_that_is_in_blocks_loses_nothing(sizes: tuple[int, ...]) -> None:
    model, x = Network().eval(), inputs(*sizes)
    graph = blocked(model, x, layers={"c": None})
    assert_close(graph(x), model(x), 1e-5)
    assert cost.macs(graph) == cost.macs(capture(model, x)) - (16 * 24 * 2) * 3 // 4 * (7 if len(sizes) == 2 else 1)
    assert apply(BlockDiagonal(layers={"c": None}), graph) == []
    assert_close(torch.as_tensor(lower(graph, find("x86"))(x)), graph(x), 1e-5)


def test_orders_fold_into_what_is_in_front_and_behind() -> None:
    """a's inputs and the one between a and b are left; b's outputs are the columns of c. b alone: none is left."""
    model, x = Network().eval(), inputs(3, 7)
    graph = blocked(model, x, layers={"c": None})
    assert len(graph.calls(SELECT)) == 2
    alone = blocked(model, x, layers={"a": None, "c": None})
    assert alone.calls(SELECT) == []
    assert_close(alone(x), model(x), 1e-5)


def test_an_order_that_others_read_stays() -> None:
    class Twice(Network):
        def forward(self, x: Tensor) -> Tensor:
            y = self.b(F.gelu(self.a(x)))
            return self.c(torch.relu(y)) + y.sum(-1, keepdim=True) * y[..., :1]

    model, x = Twice().eval(), inputs(3, 7)
    assert_close(blocked(model, x, layers={"c": None})(x), model(x), 1e-5)


def test_fitted_blocks_are_least_squares() -> None:
    torch.manual_seed(2)
    model, x = nn.Sequential(nn.Linear(16, 24)).eval(), inputs(400)
    x = x @ torch.randn(16, 16)
    graph = blocked(model, x[:2], 4, data=[[x]])
    plain = blocked(model, x[:2], 4)
    wanted = model(x).detach()
    errors = [float((each(x) - wanted).square().sum().detach()) for each in (plain, graph)]
    assert errors[1] < 0.9 * errors[0]
    rows = torch.argsort(graph.state_dict()["0.outputs"]).reshape(4, 6)
    columns = graph.state_dict()["0.inputs"].reshape(4, 4)
    least = 0.0
    for r, c in zip(rows, columns, strict=True):
        design = torch.cat([x[:, c], torch.ones(len(x), 1)], 1)
        least += float((design @ torch.linalg.lstsq(design, wanted[:, r]).solution - wanted[:, r]).square().sum())
    assert errors[1] < 1.05 * least


def test_convolutions_and_training(tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.Conv2d(32, 8, 1), nn.Flatten(2)
    ).eval()
    x = torch.randn(64, 3, 8, 8)
    graph = blocked(model, x[:2], 4, data=[[x]])
    groups = [Layer.of(n).groups for n in graph.calls(torch.ops.aten.conv2d.default)]  # type: ignore[union-attr]
    assert groups == [1, 4, 4]
    answers = model(x).detach()
    before = float((graph(x) - answers).square().mean().detach())
    graphopt.train(graph, (x, answers), loss="mse", epochs=3, batch_size=16)
    assert float((graph(x) - answers).square().mean().detach()) < before
    assert_close(torch.as_tensor(lower(graph, find("x86"))(x)), graph(x), 1e-5)
    graph.save(tmp_path / "blocks.pt2")
    assert_close(Graph.load(tmp_path / "blocks.pt2")(x), graph(x), 1e-6)


def test_what_cannot_be_is_refused() -> None:
    x = inputs(3, 7)
    for options, said in (
        ({"blocks": 1}, "blocks must be a whole number of at least 2, got 1"),
        ({"layers": {"d": 2}}, "no layer matches 'd'"),
        ({"layers": {"c": 4}}, "c cannot be in blocks: no number up to 4 divides its channels, 16 and 7"),
    ):
        with pytest.raises(InputError, match=said):
            blocked(Network(behind=7).eval(), x, **options)  # type: ignore[arg-type]
    grouped = nn.Sequential(nn.Conv2d(8, 8, 1, groups=2)).eval()
    assert apply(BlockDiagonal(), capture(grouped, torch.ones(1, 8, 2, 2))) == []
    with pytest.raises(InputError, match="0 cannot be in blocks: it has groups already"):
        blocked(grouped, torch.ones(1, 8, 2, 2), layers={"0": 2})


@pytest.mark.parametrize("fitted", [False, True])
def test_convolutions_without_samples_are_put_in_blocks(fitted: bool) -> None:
    """[C, H, W], where height and channels are as many, so that an order of the one would fit the other."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 3)).eval()
    model[0].weight.data = hidden(8, 8, 2)[..., None, None]
    x = torch.randn(8, 8, 7)
    graph = capture(model, x)
    data = [[torch.randn(8, 8, 7)] for _ in range(4)] if fitted else None
    BlockDiagonal(2, layers={"2": None}, data=data)(graph)
    assert [layer.groups for node in graph.calls() if (layer := Layer.of(node))] == [2, 1]
    assert_close(graph(x), model(x), 1e-4)
