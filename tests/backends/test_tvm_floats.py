"""Float graphs lowered to TVM, against torch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from blocks import BLOCKS, conv, images, model_of
from rewriting import Model, assert_close, randomised
from torch import Tensor, nn
from tvm_lowering import UNSIGNED, assert_identical, cleaned, quantized

from graphopt.passes.quantization import Quantize
from graphopt.passmanager.runner import run
from graphopt.targets import architecture

pytest.importorskip("tvm", reason="the TVM backend needs graphopt[tvm]")
pytestmark = pytest.mark.skipif(architecture() != "x86_64", reason="compiles for the x86-64 machine at hand")

from graphopt.backends.tvm import audit, lower
from graphopt.backends.tvm.build import Code
from graphopt.backends.tvm.lowering import compiled


@pytest.mark.thorough
@pytest.mark.parametrize("block", BLOCKS)
def test_a_float_block_answers_what_torch_answers(block: str) -> None:
    model, x = model_of(block), images(2, seed=3)
    artifact = lower(cleaned(model, x), UNSIGNED)
    with torch.no_grad():
        assert_close(artifact(x), model(x))
    assert audit(artifact).share == 0


def attention(m: Any, x: Tensor) -> Tensor:
    q, k, v = m.qkv(x.flatten(2).transpose(1, 2)).chunk(3, -1)
    y = F.layer_norm(F.softmax(q @ k.transpose(1, 2) / 2, -1) @ v, (4,))
    return m.head(y.mean(1))  # type: ignore[no-any-return]


def strange(m: Any, x: Tensor) -> Tensor:
    y = F.pad(m.up(x), (1, 0, 2, 1), value=0.5).permute(0, 2, 3, 1)[:, 1:7:2]
    z = torch.cat([y, F.gelu(y)], -1).permute(0, 3, 1, 2)
    return F.avg_pool2d(F.max_pool2d(z, 3, 2, 1, dilation=1, ceil_mode=True), 2, padding=1, count_include_pad=False) - 1


def gate(m: Any, x: Tensor) -> Tensor:
    """Elementwise operators, and sums along and across the channels, of sizes that fill no vector."""
    y = F.silu(m.a(x)) * torch.sigmoid(x.mean((2, 3), keepdim=True)) - F.hardswish(x)
    return torch.softmax(y, 1) + torch.softmax(y, 3) + y.mean(1, keepdim=True)


FLOATS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "attention": (lambda: Model(attention, qkv=nn.Linear(3, 12), head=nn.Linear(4, 2)), (3, 4, 4)),
    "moves and pools": (lambda: Model(strange, up=nn.ConvTranspose2d(3, 4, 2, stride=2)), (3, 5, 5)),
    "one dimension": (lambda: nn.Sequential(nn.Conv1d(3, 4, 3, 2), nn.BatchNorm1d(4), nn.MaxPool1d(2), nn.Flatten()), (3, 16)),
    "three dimensions": (lambda: nn.Sequential(nn.Conv3d(2, 4, 3), nn.ReLU()), (2, 5, 5, 5)),
    "elements and sums": (lambda: Model(gate, a=conv(6, 6)), (6, 5, 7)),
    "groups": (
        lambda: nn.Sequential(nn.Conv2d(6, 9, 3, groups=3, dilation=2, padding=(2, 1)), nn.Hardtanh(-0.2, 0.1)), (6, 7, 9),
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "function", [nn.SiLU(), nn.Sigmoid(), nn.Tanh(), nn.GELU(), nn.GELU("tanh"), nn.Softmax(1)], ids=str
)
def test_functions_in_vectors_are_those_of_torch_from_end_to_end_of_float32(function: nn.Module) -> None:
    ends = torch.tensor([-3e38, -100.0, 100.0, 3e38, -1e-6, 0.0])
    x = torch.cat([torch.linspace(-20, 20, 1021), ends]).expand(2, 3, -1)
    ours, exact = lower(cleaned(function, x), UNSIGNED)(x), function(x.double())
    unit = exact.abs().clamp(min=1)
    assert float(((ours - exact).abs() / unit).max()) < 5e-7


WIDE: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: F.softmax(x, -1),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "functions": lambda x: x.exp() + x.sigmoid() * x.tanh() - x.erf(),
    "activations": lambda x: F.silu(x) + F.gelu(x) * F.gelu(x, approximate="tanh"),
    "layer norm": lambda x: F.layer_norm(x, x.shape[-1:], eps=1e-3),
    "affine layer norm": lambda x: F.layer_norm(x, x.shape[1:], torch.arange(48.0).double().reshape(6, 8), None),
    "group norm": lambda x: F.group_norm(x, 3, torch.arange(6.0).double(), torch.arange(6.0).double() - 1),
}


@pytest.mark.parametrize("case", WIDE)
def test_operators_compute_in_float64_too(case: str) -> None:
    """As exactly as torch: float32's own functions, kernels and constants are no part of it."""
    model, x = Model(lambda m, x: WIDE[case](x.double() * 0.3)).eval(), torch.randn(2, 6, 8)
    found, expected = lower(cleaned(model, x), UNSIGNED)(x), model(x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.thorough
@pytest.mark.parametrize("case", FLOATS)
def test_float_operators_answer_what_torch_answers(case: str) -> None:
    make, shape = FLOATS[case]
    model, x = randomised(make()).eval(), torch.randn(2, *shape)
    with torch.no_grad():
        assert_close(lower(cleaned(model, x), UNSIGNED)(x), model(x))


def two_branches(m: Any, x: Tensor) -> Tensor:
    return F.relu(m.first(x) + m.second(x))


@pytest.mark.thorough
def test_of_two_layers_that_are_added_one_adds_and_both_are_our_kernels() -> None:
    model, x = Model(two_branches, first=conv(3, 8), second=conv(3, 8, 1)), images(2, seed=3)
    emitted = str(compiled(cleaned(model, x, dynamic_batch=False), Code.of(UNSIGNED.runtime)).module["main"])
    assert emitted.count("R.call_tir") == 2  # no sum, no clamp
    assert "R.nn" not in emitted
    with torch.no_grad():
        assert_close(lower(cleaned(model, x), UNSIGNED)(x), model(x))


ALIKE: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "a signal": (nn.Conv1d(4, 5, 3, padding=1), (4, 5)),
    "an image of one row": (nn.Conv2d(4, 3, 1), (4, 1, 3)),
    "a square image": (nn.Conv2d(4, 4, 1), (4, 4, 4)),
    "tokens": (nn.Linear(4, 4), (4, 4)),
}


@pytest.mark.thorough
@pytest.mark.parametrize("case", ALIKE)
def test_sizes_that_are_alike_are_not_taken_for_each_other(case: str) -> None:
    """One sample, and as many channels as positions: only the kind of layer says which dimension is which."""
    layer, shape = ALIKE[case]
    x = torch.randn(1, *shape)
    with torch.no_grad():
        assert_close(lower(cleaned(layer.eval(), x), UNSIGNED)(x), layer(x))
    model = nn.Sequential(layer, nn.Hardtanh(-1, 1), copy.deepcopy(layer) if case == "a square image" else nn.ReLU())
    assert_identical(quantized(model.eval(), UNSIGNED, x), UNSIGNED, x)


@pytest.mark.parametrize("steps", [8, 1], ids=["weights that float16 holds", "weights that it rounds"])
def test_an_input_in_float16_does_not_round_the_weights(steps: int) -> None:
    layer = randomised(nn.Conv2d(3, 4, 3, padding=1))
    if steps > 1:
        layer.weight.data = (layer.weight.data * steps).round() / steps
    model = Model(lambda m, x: m.layer(x.half().float()), layer=layer)
    x = images(2, seed=1)
    with torch.no_grad():
        assert_close(lower(cleaned(model, x), UNSIGNED)(x), model(x))


@pytest.mark.parametrize("number", [0.0, 0.5])
def test_a_pad_that_first_cuts_everything_off_is_all_padding(number: float) -> None:
    model = Model(
        lambda m, x: m.b(F.pad(m.a(x), (-1, 2, 0, 0), value=number)), a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 2, 1)
    )
    x = torch.randn(2, 3, 3, 3)
    with torch.no_grad():
        assert_close(lower(cleaned(model.eval(), x), UNSIGNED)(x), model(x))
    assert_identical(quantized(model.eval(), UNSIGNED, x), UNSIGNED, x)


ALONE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "layers": lambda m, x: m.b(F.relu(m.a(x[0]))),
    "a sum": lambda m, x: F.relu(m.b(m.a(x[0])) + m.a(x[1])),
    "a table": lambda m, x: m.b(F.silu(m.a(x[0]))),
    "a pad": lambda m, x: m.b(F.pad(m.a(x[0]), (1, 1))),
    "maxima": lambda m, x: m.largest(m.a(x[0])),
    "means": lambda m, x: m.mean(m.a(x[0])),
}


@pytest.mark.parametrize("case", ALONE)
@pytest.mark.parametrize("dims", [1, 2])
def test_layers_and_pools_take_an_image_without_a_batch(case: str, dims: int) -> None:
    layer = (nn.Conv1d, nn.Conv2d)[dims - 1]
    parts: dict[str, Any] = {
        "largest": (nn.MaxPool1d, nn.MaxPool2d)[dims - 1](2),
        "mean": (nn.AvgPool1d, nn.AvgPool2d)[dims - 1](2),
    }
    model = Model(ALONE[case], a=layer(3, 4, 3), b=layer(4, 4, 3, padding=1), **parts).eval()
    x = torch.randn(2, 3, 9, 7)[(..., *[0] * (2 - dims))]
    with torch.no_grad():
        assert_close(lower(cleaned(model, x, dynamic_batch=False), UNSIGNED)(x), model(x))
    graph = cleaned(model, x, dynamic_batch=False)
    run([Quantize(UNSIGNED, [[x]], estimator="minmax")], graph, verify=False)
    assert_identical(graph, UNSIGNED, x)
