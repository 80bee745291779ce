"""CondConv: kernels that are sums of experts, as a convolution of weighted copies and as one with a computed kernel."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gated
import pytest
import torch
from rewriting import apply, randomised
from torch import Tensor, nn
from torch.nn import functional as F

import graphopt
from graphopt import Graph
from graphopt.backends.onnxruntime import lower
from graphopt.ir.cost import macs
from graphopt.ir.ops import aten
from graphopt.passes import CondConv, FoldBatchNorm, MixKernels, Quantize
from graphopt.targets import find
from graphopt.training import QuantizationAware
from graphopt.utils.errors import InputError

LAYERS = {
    "plain": nn.Conv2d(4, 6, 3),
    "without bias": nn.Conv2d(4, 6, 3, bias=False),
    "strides": nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0)),
    "dilation": nn.Conv2d(4, 6, 3, padding=2, dilation=2),
    "grouped": nn.Conv2d(4, 6, 3, groups=2, bias=False),
    "depthwise": nn.Conv2d(4, 4, 3, padding=1, groups=4),
    "depthwise, twice the channels": nn.Conv2d(4, 8, 3, groups=4),
    "one dimension": nn.Conv1d(4, 6, 5, padding="same"),
    "three dimensions": nn.Conv3d(4, 6, 3, groups=2),
}


def values_for(layer: nn.Module, count: int = 5) -> Tensor:
    dims = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}[type(layer)]  # type: ignore[index]
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 4, *[9, 7, 8][:dims], generator=generator) + torch.randn(
        count, 4, *[1] * dims, generator=generator
    )


def made(layer: nn.Module, x: Tensor, *, trained: bool = True, batch: bool = True, **options: Any) -> Graph:
    graph = Graph.capture(nn.Sequential(layer).eval(), x, dynamic_batch=batch)
    CondConv(**options)(graph)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in graph.named_parameters() if trained else ():
            if name.startswith("kernels_0"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return graph


def papers(graph: Graph, layer: Any, x: Tensor, experts: int) -> Tensor:
    """Sample by sample, the kernel summed first: section 3.1 of the paper."""
    state, answers = {name.replace("0.", "", 1): value for name, value in graph.state_dict().items()}, []
    weights = dict(graph.named_parameters())
    for sample in x.split(1):
        pooled = sample.flatten(2).mean(2)
        routed = torch.sigmoid(pooled @ weights["kernels_0.scores.weight"].t() + weights["kernels_0.scores.bias"])[0]
        kernels = weights["0.weight"].chunk(experts, 1)
        kernel = sum(r * w for r, w in zip(routed, kernels, strict=True))
        convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[x.dim() - 2]
        answers.append(
            convolve(sample, kernel, state.get("bias"), layer.stride, layer.padding, layer.dilation, layer.groups)
        )
    return torch.cat(answers)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("experts", [2, 4])
def test_it_begins_as_the_layer_and_is_the_papers_sum(name: str, experts: int) -> None:
    layer = LAYERS[name].eval()
    x = values_for(layer)
    torch.testing.assert_close(made(layer, x, trained=False, experts=experts)(x), layer(x), rtol=1e-4, atol=1e-5)
    graph = made(layer, x, experts=experts)
    torch.testing.assert_close(graph(x), papers(graph, layer, x, experts), rtol=1e-4, atol=1e-5)
    assert float((graph(x) - layer(x)).detach().norm() / layer(x).detach().norm()) > 0.01


@pytest.mark.parametrize("name", LAYERS)
def test_kernels_summed_in_front_give_the_same_for_the_work_of_one(name: str) -> None:
    layer = LAYERS[name].eval()
    x = values_for(layer, 1)
    graph = made(layer, x, batch=False, experts=3)
    expected, plain = graph(x), Graph.capture(nn.Sequential(layer).eval(), x, dynamic_batch=False)
    (change,) = MixKernels()(graph)
    assert change.what == "3 kernels are summed in front of the convolution"
    torch.testing.assert_close(graph(x), expected, rtol=1e-4, atol=1e-5)
    weight = layer.weight.numel()  # type: ignore[union-attr, operator]
    assert macs(graph) == macs(plain) + 3 * 4 + 3 * weight
    assert MixKernels()(graph) == []


def test_experts_begin_different_around_the_weight_and_learn_different_things() -> None:
    layer = LAYERS["plain"].eval()
    x = values_for(layer, 8)
    graph = made(layer, x, trained=False, spread=0.5)
    kernels = dict(graph.named_parameters())["0.weight"].unflatten(1, (4, 4))
    torch.testing.assert_close(kernels.mean(1), layer.weight, rtol=1e-4, atol=1e-6)  # type: ignore[arg-type]
    assert float((kernels - kernels.mean(1, keepdim=True)).std() / layer.weight.std()) == pytest.approx(0.43, abs=0.05)  # type: ignore[operator]
    bias = dict(graph.named_parameters())["kernels_0.scores.bias"]
    torch.testing.assert_close(bias.detach(), torch.full((4,), -math.log(3)))
    graph(x).square().sum().backward()
    gradients = dict(graph.named_parameters())["kernels_0.scores.weight"].grad
    assert gradients is not None
    assert len({round(float(row.norm()), 4) for row in gradients}) == 4


class Net(nn.Module):
    """A stem with a batch norm, depthwise and grouped layers, a layer that is called twice, two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.depthwise, self.grouped = (
            nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8),
            nn.Conv2d(8, 12, 3, groups=2),
        )
        self.shared, self.head = nn.Conv2d(12, 12, 1), nn.Linear(12, 5)

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)) + shift)
        x = torch.relu(self.grouped(torch.relu(self.depthwise(x))))
        x = torch.relu(self.shared(torch.relu(self.shared(x))))
        found: Tensor = self.head(x.mean((2, 3)))
        return found


def inputs(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 17, 15, generator=generator), torch.randn(count, 8, 1, 1, generator=generator)


def network(*, batch: bool = True, **options: Any) -> tuple[nn.Module, Graph]:
    torch.manual_seed(0)
    model = randomised(Net()).eval()
    graph = Graph.capture(model, inputs(2 if batch else 1), dynamic_batch=batch)
    CondConv(**options)(graph)
    return model, graph


def routed(graph: Graph) -> Graph:
    with torch.no_grad():
        for name, parameter in graph.named_parameters():
            if "scores" in name:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    return graph


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_network_answers_as_before_and_its_batch_norms_fold(dtype: torch.dtype) -> None:
    model = randomised(Net()).eval().to(dtype)
    x = [each.to(dtype) for each in inputs(5)]
    graph = Graph.capture(model, tuple(x))
    assert [change.site for change in CondConv()(graph)] == ["stem", "depthwise", "grouped", "shared", "shared"]
    torch.testing.assert_close(graph(*x), model(*x), rtol=1e-4, atol=1e-5)
    apply(FoldBatchNorm(), graph)
    assert not graph.calls(aten.batch_norm.default)
    torch.testing.assert_close(graph(*(each[:1] for each in x)), model(*(each[:1] for each in x)), rtol=1e-4, atol=1e-5)


def test_it_trains_and_a_saved_graph_answers_the_same(tmp_path: Path) -> None:
    x, y = gated.images(48), torch.arange(48) % 5
    graph = gated.residual()
    CondConv(layers=["blocks.*.two"], experts=3)(graph)
    before = {name: value.clone() for name, value in graph.state_dict().items()}
    report = graphopt.train(graph, (x, y), epochs=4, rate=0.02, seed=0)
    losses = [epoch.loss for epoch in report.epochs if epoch.loss is not None]
    assert losses[-1] < losses[0]
    learned = [
        name
        for name, value in graph.state_dict().items()
        if "scores.weight" in name and not torch.equal(value, before[name])
    ]
    assert len(learned) == 3
    graph.save(tmp_path / "graph.pt2")
    torch.testing.assert_close(Graph.load(tmp_path / "graph.pt2")(x), graph(x), rtol=1e-5, atol=1e-6)


# ---- Lowered --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["x86", "tvm-x86"])
@pytest.mark.parametrize("batch", [1, 2])
def test_copies_are_integer_and_simulated_bit_for_bit(target: str, batch: int) -> None:
    _, graph = network(batch=batch > 1, layers=["depthwise", "grouped"] if target == "tvm-x86" else "auto")
    routed(graph)
    data = [[*each] for each in zip(*(t.split(batch) for t in inputs(16)), strict=True)]
    result = graphopt.optimize(
        graph, tuple(data[0]), target=target, calibration=data, measure=False, dynamic_batch=batch > 1
    )
    assert result.report.integer_macs == 1.0
    simulation = graphopt.simulate(result.graph, target=target)
    for part in zip(*(t.split(batch) for t in inputs(4, seed=7)), strict=True):
        assert not [line for line in simulation.mismatches(result.artifact, *part) if line.differing]
        expected = graph(*part).detach()
        assert float((result.artifact(*part) - expected).norm() / expected.norm()) < 0.05


def test_quantizers_train() -> None:
    x, y = gated.images(32), torch.arange(32) % 5
    graph = gated.residual()
    CondConv(experts=2)(graph)
    apply(FoldBatchNorm(), graph)
    apply(Quantize(find("x86"), [[x]]), graph)
    graphopt.train(graph, (x, y), compress=[QuantizationAware()], epochs=1)
    artifact = lower(graph, find("x86"))
    assert not [line for line in graphopt.simulate(graph, target="x86").mismatches(artifact, x[:4]) if line.differing]


@pytest.mark.parametrize("target", ["x86", "tvm-x86"])
def test_computed_kernels_stay_float_and_the_report_says_so(target: str) -> None:
    _, graph = network(batch=False, layers=["stem", "depthwise", "grouped"])
    routed(graph)
    apply(FoldBatchNorm(), graph)
    assert len(MixKernels()(graph)) == 3
    data = [[*each] for each in zip(*(t.split(1) for t in inputs(8)), strict=True)]
    result = graphopt.optimize(
        graph, tuple(data[0]), target=target, calibration=data, measure=False, dynamic_batch=False
    )
    assert result.report.integer_macs is not None
    assert result.report.integer_macs < 0.5
    floats = str(result.report).partition("stays float")[2]
    assert (
        all(f"{name}.conv2d" in floats for name in ("stem", "depthwise", "grouped"))
        or "computed by the graph" in floats
    )
    simulation = graphopt.simulate(result.graph, target=target)
    for part in zip(*(t.split(1) for t in inputs(3, seed=7)), strict=True):
        assert not [line for line in simulation.mismatches(result.artifact, *part) if line.differing]
        torch.testing.assert_close(result.artifact(*part), graph(*part).detach(), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("target", ["x86", "tvm-x86"])
def test_computed_kernels_in_float_runtimes(target: str) -> None:
    _, graph = network(batch=False, layers=["stem", "depthwise", "grouped"])
    routed(graph)
    MixKernels()(graph)
    x = inputs(1, seed=3)
    if target == "x86":
        artifact: Any = lower(graph, find("x86"))
    else:
        from graphopt.backends.tvm.lowering import lower as lower_tvm

        artifact = lower_tvm(graph, find("tvm-x86"))
    torch.testing.assert_close(artifact(*x), graph(*x).detach(), rtol=1e-3, atol=1e-4)


# ---- Refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"experts": 1}, "at least 2"), ({"spread": 0.0}, "spread must be over 0"), ({"spread": math.nan}, "over 0"),
        ({"layers": "stem"}, "'auto' or a list of patterns"), ({"layers": ["steem"]}, "no layer is called 'steem'; did you mean"),
        ({"layers": ["head"]}, "'head' cannot have experts: it is no convolution"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        network(**options)


class Unfit(nn.Module):
    """A kernel made of the input, and convolutions that see a batch as one image."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.over = nn.Linear(3, 12), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.make(x.mean((0, 2, 3))).reshape(4, 3, 1, 1))
        found: Tensor = self.over(y.transpose(0, 1).flatten(1, 2)[None])
        return found


def test_what_cannot_be_mixed_is_refused_with_the_reason() -> None:
    x = gated.images(3)
    graph = Graph.capture(Unfit().eval(), x)
    with pytest.raises(InputError, match=r"its weights are computed by the graph.*does not count samples"):
        CondConv()(graph)
    with pytest.raises(
        InputError, match="'over' cannot have experts: the first dimension of its values does not count samples"
    ):
        CondConv(layers=["over"])(graph)
    with pytest.raises(InputError, match="no dimension of samples"):
        CondConv()(Graph.capture(nn.Conv2d(3, 3, 1).eval(), x[0], dynamic_batch=False))
    _, graph = network()
    with pytest.raises(InputError, match="its kernel is a sum of experts already"):
        CondConv()(graph)
    with pytest.raises(InputError, match="'stem', and the graph takes batches of them; capture it for one"):
        MixKernels()(graph)
    graph = Graph.capture(randomised(Net()).eval(), inputs(4), dynamic_batch=False)
    CondConv(layers=["shared"])(graph)
    with pytest.raises(InputError, match="the graph takes 4 of them"):
        MixKernels()(graph)
    _, graph = network(batch=False)
    apply(FoldBatchNorm(), graph)
    Quantize(find("x86"), [[*inputs(1)]])(graph)
    with pytest.raises(InputError, match="is quantized"):
        CondConv()(graph)
    assert MixKernels()(gated.residual()) == []
