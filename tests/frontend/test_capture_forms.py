"""Capturing: operators have few forms, and linear layers one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from capturing import aten, close, same
from torch import Tensor, nn
from torch.nn import functional as F

from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer

# ---- Normal forms ---------------------------------------------------------------------------------------------------


class Call(nn.Module):
    def __init__(self, body: Any) -> None:
        super().__init__()
        self.layer, self.body = nn.Conv2d(3, 4, 4, padding="same"), body

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


def no_grad_and_autocast(model: Call, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = x * 2
        with torch.enable_grad():
            x = x + 1
    with torch.autocast("cpu", enabled=False):
        return x - 1


def a_region_with_two_results(model: Call, x: Tensor) -> Tensor:
    with torch.no_grad():
        low, high = x * 2, x + 1
    return low - high


def autocast(model: Call, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return F.linear(x, torch.ones(2, 6))


@pytest.mark.parametrize(
    ("body", "calls"),
    [
        (lambda m, x: m.layer(x), "pad conv2d"),
        (lambda m, x: F.conv2d(x, torch.ones(2, 3, 3, 3), padding="same"), "ones conv2d"),
        (lambda m, x: F.conv2d(x, torch.ones(2, 3, 3, 3), padding="valid"), "ones conv2d"),
        (lambda m, x: F.pad(x, (0, 0, 0, 0)) + x.detach().to("cpu").float().clone(), "add"),
        (lambda m, x: x[:, :, 1:, :], "slice"),
        (lambda m, x: x.to(torch.float64), "to"),
        (lambda m, x: x.view(x.size(0), -1)[:], "sym_size reshape"),
        (no_grad_and_autocast, "mul add sub"),
        (a_region_with_two_results, "mul add sub"),
        (autocast, "ones to to linear"),
    ],
)
def test_operators_have_few_forms(body: Any, calls: str) -> None:
    model = Call(body).eval()
    graph = Graph.capture(model, torch.randn(2, 3, 6, 6))
    names = [n.target._schema.name.removeprefix("aten::") for n in graph.calls()]
    assert names == calls.split()
    assert not graph.calls(aten.conv2d.padding)
    same(graph, model, torch.randn(3, 3, 6, 6))


@pytest.mark.thorough
def test_a_decomposed_program_is_brought_back_to_readable_form() -> None:
    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.up = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 4, 2, stride=2)
            self.norm, self.group, self.fc = nn.LayerNorm(6), nn.GroupNorm(2, 4), nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = F.max_pool2d(F.relu(self.bn(self.conv(x))), 2)
            return F.softmax(self.fc(self.norm(self.group(self.up(x))).mean((1, 2))), -1)

    model, x = Blocks().eval(), torch.randn(2, 3, 8, 8)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("b")},))
    graph = Graph.capture(program.run_decompositions())
    names = [n.target._schema.name.removeprefix("aten::") for n in graph.calls()]
    assert names == [
        "conv2d", "batch_norm", "relu", "max_pool2d", "conv_transpose2d", "group_norm", "layer_norm", "mean", "linear",
        "softmax",
    ]  # fmt: skip
    assert graph.dynamic_batch
    for batch in (1, 3):
        x = torch.randn(batch, 3, 8, 8)
        torch.testing.assert_close(graph(x), model(x), rtol=0, atol=1e-6)


# ---- Linear layers in any spelling ----------------------------------------------------------------------------------

SPELLINGS: dict[str, Any] = {  # W: [in, out]
    "addmm": lambda x, w, b: torch.addmm(b, x.flatten(0, 1), w).unflatten(0, x.shape[:2]),
    "mm": lambda x, w, b: (x.flatten(0, 1).mm(w) + b).unflatten(0, x.shape[:2]),
    "matmul": lambda x, w, b: x @ w + b,
    "bias first": lambda x, w, b: b + torch.matmul(x, w),
    "einsum": lambda x, w, b: torch.einsum("bti,io->bto", x, w) + b,
    "einsum with an ellipsis": lambda x, w, b: torch.einsum("... a, a c -> ... c", x, w) + b,
    "a transpose of a transpose": lambda x, w, b: F.linear(x, w.T, b),
    "mT": lambda x, w, b: x @ w.T.mT + b,
}


class Spelled(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = SPELLINGS[how]
        self.w, self.b = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Any:
        return self.how(x, self.w, self.b)


@pytest.mark.parametrize("how", SPELLINGS)
def test_a_linear_layer_is_one_in_any_spelling(how: str) -> None:
    model, x = Spelled(how).eval(), torch.randn(2, 3, 4)
    graph = Graph.capture(model, x)
    close(graph, model, x)
    if "transpose" not in how and how != "mT":
        (layer,) = graph.calls(torch.ops.aten.linear.default)
        assert not graph.calls(torch.ops.aten.add.Tensor)
        assert tuple(layer.args[1].meta["val"].shape) == (6, 4)  # type: ignore[union-attr]
    other = Spelled(how).eval()
    graph.load_state_dict(other.state_dict())  # the model's own, whichever way round the graph holds the weight
    close(graph, other, x)


NOT_LINEAR: dict[str, Any] = {
    "two readers": lambda x, w, b: (y := x @ w, y + b),
    "a factor": lambda x, w, b: torch.addmm(b, x[0], w, alpha=2),
    "from the left": lambda x, w, b: torch.einsum("io,bto->bti", w, x @ w),
    "another dimension": lambda x, w, b: torch.einsum("bit,io->bot", x.mT, w),
    "an outer product": lambda x, w, b: torch.einsum("bti,oc->btioc", x, w),
    "a matrix as bias": lambda x, w, b: x @ w + w[:3],
}


@pytest.mark.parametrize("how", NOT_LINEAR)
def test_what_only_looks_like_one_keeps_its_answers(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SPELLINGS, how, NOT_LINEAR[how])
    model, x = Spelled(how).eval(), torch.randn(2, 3, 4)
    graph = Graph.capture(model, x)
    close(graph, model, x)
    layers = [layer for node in graph.calls() if (layer := Layer.of(node))]
    assert len(layers) == (how in ("two readers", "from the left", "a matrix as bias"))  # x @ w in front of the rest
    assert all(layer.bias is None for layer in layers)


@pytest.mark.parametrize("form", ["as it is", "transposed", "copied"])
def test_steps_in_memory_are_those_of_the_trace_in_any_layout(form: str) -> None:
    class Stepping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            y = y if form == "as it is" else y.transpose(1, 3)
            y = y.clone() if form == "copied" else y
            return torch.as_strided(y, (4, 5), (7, 2)) + torch.as_strided(y, (4, 5), (3, 1), 2)

    model, x = Stepping().eval(), torch.randn(2, 3, 6, 7)
    graph = Graph.capture(model, x)
    with torch.no_grad():
        torch.testing.assert_close(graph(x.contiguous(memory_format=torch.channels_last)), model(x))
