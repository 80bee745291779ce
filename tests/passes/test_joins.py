"""Values of very different size, joined."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from rewriting import capture
from torch import Tensor, nn

import graphopt
from graphopt.execution.executor import Executor
from graphopt.formats import Format
from graphopt.ir.cost import sqnr
from graphopt.ir.facts import LEFT
from graphopt.ir.graph import Graph
from graphopt.passes.quantization import Quantize
from graphopt.passes.quantization.balance import Peaks, balance
from graphopt.passes.quantization.joins import joins
from graphopt.passes.quantization.placement import place
from graphopt.targets import find

Function = Callable[[Tensor], Tensor]


class Head(nn.Module):
    def __init__(self, pixels: float, *, behind: bool = False) -> None:
        super().__init__()
        self.pixels, self.stem = pixels, nn.Conv2d(3, 8, 3)
        self.boxes, self.scores = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 6, 1)
        self.behind = nn.Conv2d(10, 4, 1) if behind else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).relu()
        joined = torch.cat([self.boxes(y).sigmoid() * self.pixels, self.scores(y).sigmoid()], 1)
        return self.behind(joined).flatten(2)


def quantized(model: nn.Module, x: Tensor, **options: object) -> tuple[Tensor, list[str]]:
    graph = capture(model.eval(), x)
    changes = Quantize(**{"target": find("x86"), "calibration": [[x]], **options})(graph)  # type: ignore[arg-type]
    return graph(x), [change.what for change in changes if "differ in size" in change.what]


@pytest.mark.parametrize("estimator", ["mse", "minmax"])
@pytest.mark.parametrize("target", ["x86", "arm", "tvm-x86", "hexagon", "nvidia", "sigmastar"])
def test_a_join_that_drowns_a_part_stays_float_and_says_so(target: str, estimator: str) -> None:
    torch.manual_seed(0)
    model, x = Head(640), torch.rand(4, 3, 12, 12)
    answer, said = quantized(model, x, target=find(target), estimator=estimator)
    assert sqnr(model(x)[:, 4:], answer[:, 4:]) > 25
    assert len(said) == 1
    assert "would keep" in said[0]


def test_a_join_of_values_of_one_size_stays_integer() -> None:
    torch.manual_seed(0)
    assert quantized(Head(1), torch.rand(4, 3, 12, 12))[1] == []


def test_a_join_that_an_integer_layer_reads_stays_integer() -> None:
    torch.manual_seed(0)
    assert quantized(Head(640, behind=True), torch.rand(4, 3, 12, 12))[1] == []


class Read(nn.Module):
    """Two parts, one of them `size` times as large, which the weights of the layer that reads them make up for."""

    def __init__(self, size: float, join: str, function: Function = torch.relu, *, readers: int = 1) -> None:
        super().__init__()
        self.size, self.join, self.function = size, join, function
        self.stem, self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 1)
        self.readers = nn.ModuleList(nn.Conv2d(12, 5, 3) for _ in range(readers))
        with torch.no_grad():
            for tensor in (self.one.weight, self.one.bias):
                tensor.mul_(size)
            self.readers[0].weight[:, :6] /= size * (1000 if join == "pad" else 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.stem(x).relu()
        one, two = self.one(y), self.two(y)
        if self.join == "pad":
            joined = F.pad(two, (0, 0, 0, 0, 6, 0), value=self.size)
        elif self.join == "stack":
            joined = torch.stack([self.function(one), self.function(two)], 1).flatten(1, 2)
        elif self.join == "sum":  # the larger part is a residual stream, whose every member is scaled
            joined = torch.cat([(one + self.one(x.repeat(1, 3, 1, 1)[:, :8, 2:, 2:])).relu(), two.relu()], 1)
        else:
            joined = torch.cat([self.function(one), self.function(two)], 1)
        if self.join == "pool":
            joined = F.max_pool2d(joined, 2)
        return [reader(joined) for reader in self.readers]


def report(model: nn.Module, x: Tensor, target: str) -> tuple[list[float], list[str], Graph]:
    graph = capture(model.eval(), x)
    said = [c.what for c in Quantize(find(target), [[x]])(graph) if "stays float" in c.what]
    return [sqnr(t, a) for t, a in zip(model(x), graph(x), strict=True)], said, graph


@pytest.mark.thorough
@pytest.mark.parametrize("size", [100.0, 0.01])
@pytest.mark.parametrize("target", ["arm", "tvm-x86", "hexagon", "sigmastar"])
@pytest.mark.parametrize("join", ["cat", "pool", "sum"])
def test_parts_that_an_integer_layer_reads_are_brought_to_one_size(join: str, target: str, size: float) -> None:
    """8-bit weights have some 45 dB; those of the sum, whose terms are random, somewhat less."""
    torch.manual_seed(0)
    found, said, _ = report(Read(size, join), torch.rand(8, 3, 12, 12), target)
    assert min(found) > 28
    assert said == []


@pytest.mark.parametrize("function", [F.relu6, F.leaky_relu, torch.relu])
def test_parts_are_brought_to_one_size_exactly(function: Function) -> None:
    torch.manual_seed(0)
    model, x = Read(100.0, "cat", function).eval(), torch.rand(8, 3, 12, 12)
    graph, target = capture(model, x), find("arm")
    before = graph(x)
    plan = place(graph, target.kernels, target.formats.weights, target.formats.activations, {})
    assert balance(graph, joins(graph, plan), [[x]])
    graph.refresh()
    assert sqnr(before, graph(x)) > 100
    (join,) = [node for node in graph.calls() if node.target is torch.ops.aten.cat.default]
    parts = Executor(graph).run(join.all_input_nodes, [x])
    sizes = [float(part.abs().max()) for part in parts.values()]
    assert 1 / 3.2 < sizes[0] / sizes[1] < 3.2
    assert balance(graph, joins(graph, plan), [[x]]) == []


@pytest.mark.thorough
@pytest.mark.parametrize("target", ["arm", "tvm-x86", "hexagon"])
@pytest.mark.parametrize(("join", "function"), [("stack", torch.relu), ("cat", torch.tanh), ("pad", torch.relu)])
def test_parts_that_keep_their_size_leave_the_layer_that_reads_them_in_float(
    join: str, function: Function, target: str
) -> None:
    torch.manual_seed(0)
    size = 100.0 if join == "pad" else 0.01
    found, said, _ = report(Read(size, join, function), torch.rand(8, 3, 12, 12), target)
    assert min(found) > 28
    assert any("whose parts differ in size" in what for what in said)
    assert all("dB" in what for what in said)


@pytest.mark.thorough
def test_a_layer_that_bears_the_common_grid_stays_integer_beside_one_that_does_not() -> None:
    """The second reader's weights are even: what drowns is small in its answer, too."""
    torch.manual_seed(0)
    model, x = Read(0.01, "cat", torch.tanh, readers=2), torch.rand(8, 3, 12, 12)
    found, _, graph = report(model, x, "arm")
    assert min(found) > 35
    left = [graph.site(node) for node in graph.calls() if graph.fact(node, LEFT) is not None]
    assert "readers.0" in left
    assert "readers.1" not in left


@pytest.mark.parametrize(("target", "join"), [("arm", "cat"), ("tvm-x86", "pool"), ("arm", "stack")])
def test_the_artifact_answers_what_balanced_parts_and_float_joins_simulate(target: str, join: str) -> None:
    if target.startswith("tvm"):
        pytest.importorskip("tvm", reason="needs graphopt[tvm]")
    torch.manual_seed(0)
    model, x = Read(0.01, join).eval(), torch.rand(8, 3, 12, 12)
    result = graphopt.optimize(model, x, target=target, calibration=x, measure=False)
    (answer,) = result.artifact(x)
    assert sqnr(model(x)[0], torch.as_tensor(answer)) > 35
    assert sqnr(result.graph(x)[0], torch.as_tensor(answer)) > 45
    assert (result.report.integer_macs == 1) == (join != "stack")
    assert (join == "stack") == any("whose parts differ in size" in w for w in result.report.warnings)


def test_sixteen_bits_hold_what_eight_do_not() -> None:
    torch.manual_seed(0)
    wide = find("hexagon").replace(activations=Format(16, signed=False, symmetric=False))
    assert quantized(Head(64), torch.rand(4, 3, 12, 12), target=wide)[1] == []


def test_peaks_of_values_of_one_dimension() -> None:
    peaks = Peaks(0)
    peaks.update(torch.tensor([1.0, -3.0]))
    peaks.update(torch.tensor([-2.0, 0.5]))
    assert peaks.largest.tolist() == [2.0, 3.0]
