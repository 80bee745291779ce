import math
import time
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.ao.quantization.fx._decomposed
from torch import Tensor, nn

from graphopt.ir import cost
from graphopt.ir.graph import Graph


def capture(model: nn.Module, *args: Tensor, dynamic: bool = True) -> Graph:
    return Graph.capture(model.eval(), args, dynamic_batch=dynamic)


class Attention(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(q, k, v)


class Einsum(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.einsum("...qd,...kd->...qk", x, y)


class Product(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x @ y


class Folded(nn.Module):
    """Moves space into the batch, as window attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.reshape(-1, 4))


@pytest.mark.parametrize(
    "model, shapes, expected",
    [
        (nn.Conv1d(3, 8, 5), [(2, 3, 20)], 8 * 16 * 3 * 5),
        (nn.Conv2d(4, 8, 3, stride=2, padding=1), [(2, 4, 8, 8)], 8 * 4 * 4 * 4 * 9),
        (nn.Conv2d(4, 8, 3, padding="same"), [(2, 4, 8, 8)], 8 * 8 * 8 * 4 * 9),
        (nn.Conv2d(4, 8, 3, groups=4), [(2, 4, 8, 8)], 8 * 6 * 6 * 1 * 9),
        (nn.Conv3d(2, 3, 2), [(2, 2, 4, 4, 4)], 3 * 27 * 2 * 8),
        (nn.ConvTranspose2d(4, 6, 3, stride=2), [(2, 4, 5, 5)], 4 * 25 * 6 * 9),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), [(2, 4, 5, 5)], 4 * 25 * 3 * 9),
        (nn.Linear(7, 5), [(2, 3, 7)], 3 * 7 * 5),
        (Folded(), [(2, 6, 4)], 6 * 4 * 5),
        (Product(), [(2, 3, 4), (2, 4, 5)], 3 * 4 * 5),
        (Einsum(), [(2, 3, 4), (2, 5, 4)], 3 * 4 * 5),
        (Attention(), [(2, 4, 6, 8), (2, 4, 7, 8), (2, 4, 7, 9)], 4 * 6 * 7 * (8 + 9)),
        (nn.ReLU(), [(2, 3)], 0),
    ],
)
def test_macs_per_sample(model: nn.Module, shapes: list[tuple[int, ...]], expected: int) -> None:
    graph = capture(model, *[torch.randn(s) for s in shapes])
    assert cost.macs(graph) == expected


def test_a_fixed_batch_counts_as_it_is() -> None:
    assert cost.macs(capture(nn.Linear(7, 5), torch.randn(4, 7), dynamic=False)) == 4 * 35


def test_recurrent_layers_count_their_matrices_per_step() -> None:
    graph = capture(nn.LSTM(4, 6, batch_first=True), torch.randn(1, 5, 4), dynamic=False)
    assert cost.macs(graph) == 5 * (4 * 6 * 4 + 4 * 6 * 6)


def test_macs_are_told_per_layer() -> None:
    graph = capture(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(2, 3))
    assert [(graph.site(n), c) for n, c in cost.layer_macs(graph).items()] == [("0", 12), ("2", 8)]


def test_parameters_and_bytes_count_shared_weights_once() -> None:
    layer = nn.Linear(4, 4)
    graph = capture(nn.Sequential(layer, nn.ReLU(), layer), torch.randn(2, 4))
    assert cost.parameters(graph) == 20
    assert cost.weight_bytes(graph) == 80


def test_statistics_are_bytes_but_no_parameters() -> None:
    graph = capture(nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4)), torch.randn(2, 1, 4, 4))
    assert cost.parameters(graph) == 4 + 4 + 8
    assert cost.weight_bytes(graph) == (4 + 4 + 8 + 8) * 4


def test_integer_codes_stay_parameters() -> None:
    torch.ops.load_library if False else __import__("torch.ao.quantization.fx._decomposed")
    graph = capture(nn.Linear(4, 3, bias=False), torch.randn(2, 4))
    (linear,) = graph.calls()
    codes = graph.set_constant(linear, 1, torch.ones(3, 4, dtype=torch.int8))
    arguments = (1.0, 0, -128, 127, torch.int8)
    dequantize = torch.ops.quantized_decomposed.dequantize_per_tensor.default
    linear.update_arg(1, graph.call(dequantize, codes, *arguments, before=linear))
    graph.refresh()
    assert (cost.parameters(graph), cost.weight_bytes(graph), cost.macs(graph)) == (12, 12, 12)


def test_sqnr_in_decibels() -> None:
    x = torch.tensor([3.0, 4.0])
    assert cost.sqnr(x, x * 1.1) == pytest.approx(20.0, abs=1e-4)
    assert cost.sqnr(x, x) == math.inf
    assert cost.sqnr({"a": x, "b": [x]}, {"a": x * 1.1, "b": [x * 1.01]}) == pytest.approx(20.0, abs=1e-4)
    assert math.isnan(cost.sqnr([x, x], [x * 1.1, x * math.nan]))
    assert cost.sqnr(torch.zeros(2), x) == -math.inf
    assert cost.sqnr(torch.tensor([1]), torch.tensor([2])) == math.inf  # only floating-point outputs have noise


def test_agreement_is_the_share_of_equal_predictions() -> None:
    a = torch.tensor([[1.0, 2], [2, 1], [1, 2], [1, 2]])
    b = torch.tensor([[0.0, 2], [2, 1], [2, 1], [1, 9]])
    assert cost.agreement(a, b) == 0.75
    assert cost.agreement(a.T[None, :, :, None], b.T[None, :, :, None]) == 0.75  # segmentation
    assert cost.agreement((a[None], 1), (b[None], 1)) == 0.75  # a sequence


def test_timing_takes_turns_and_gives_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    now = 0  # nanoseconds on a clock that only the calls move

    def call(name: str, *milliseconds: int) -> None:
        nonlocal now
        now += 1_000_000 * milliseconds[order.count(name) % len(milliseconds)]
        order.append(name)

    clock = SimpleNamespace(perf_counter=lambda: now / 1e9, perf_counter_ns=lambda: now)
    monkeypatch.setattr(cost, "time", clock)
    calls = {"slow": lambda: call("slow", 90, 8, 4, 8), "fast": lambda: call("fast", 70, 2, 4, 2)}
    taken = cost.timings(calls, 3, 1, in_a_row=1)
    assert order == ["slow", "fast"] * 4
    assert taken.ms == {"slow": [8.0, 4.0, 8.0], "fast": [2.0, 4.0, 2.0]}  # without the warm-up
    assert taken.median("slow") == 8
    assert taken.speedup("slow", "fast") == 4
    assert cost.latency({"a": lambda: call("a", 3)}, 3, 0) == {"a": 3.0}
    order.clear()
    calls = {"slow": lambda: call("slow", 90, 8, 4, 12), "fast": lambda: call("fast", 70, 2, 4, 2)}
    taken = cost.timings(calls, 2, 0, in_a_row=4)
    assert order == (["slow"] * 4 + ["fast"] * 4) * 2
    assert taken.ms == {"slow": [8.0, 8.0], "fast": [2.0, 2.0]}  # of a turn, the median without its first call


def test_timing_reads_a_clock() -> None:
    assert cost.latency({"a": lambda: time.sleep(0.001)}, 3, 0)["a"] >= 1


def test_a_time_budget_ends_the_rounds_but_not_before_five() -> None:
    assert len(cost.timings({"a": lambda: None}, 100, 0, budget_seconds=0).ms["a"]) == 5


def test_the_host_is_described() -> None:
    assert "core" in cost.host_cpu()


@pytest.mark.thorough
def test_published_networks_have_their_published_size(zoo: ModuleType) -> None:
    """He et al. 2016 give ResNet-20 0.27 M parameters; Howard et al. 2017 MobileNet about 569 M multiply-adds at 224.

    The MobileNet here ends two layers earlier and has ten classes, so it is a little below that.
    """
    graph = capture(zoo.cifar_resnet(20), torch.randn(1, 3, 32, 32))
    assert cost.parameters(graph) == 269_722
    assert cost.macs(graph) == 40_551_040
    mobilenet = capture(zoo.mobilenet_v1(), torch.randn(1, 3, 224, 224))
    assert 500e6 < cost.macs(mobilenet) < 569e6
