"""Capturing: wrong arguments and models that cannot be captured are explained."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from capturing import Nested, small
from torch import Tensor, nn

from graphopt.ir.graph import Graph
from graphopt.utils.errors import CaptureError, InputError, NonFiniteError

# ---- Wrong arguments ------------------------------------------------------------------------------------------------


def test_a_model_in_training_mode_is_refused() -> None:
    message = (
        "Sequential is in training mode, so batch norm and dropout would be captured with training behaviour; "
        "call model.eval() first"
    )
    with pytest.raises(InputError, match=re.escape(message)):
        Graph.capture(small().train(), torch.randn(2, 3, 6, 6))
    model = small()
    model[1].train()
    with pytest.raises(InputError, match=r"'1' \(BatchNorm2d\) of Sequential is in training mode"):
        Graph.capture(model, torch.randn(2, 3, 6, 6))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((torch.randn(2, 4, 6, 6),), r"Sequential fails on the example inputs \(input: f32\[2, 4, 6, 6\]\).*channels"),
        ((torch.zeros(2, 3, 6, 6, dtype=torch.int64),), r"input: i64\[2, 3, 6, 6\]"),
        (
            (torch.randn(2, 3, 6, 6), torch.zeros(2)),
            r"Sequential.forward takes 1 input \(input\), got 2.*without labels",
        ),
        ((), r"Sequential.forward takes 1 input \(input\), got 0"),
        ((np.zeros((2, 3, 6, 6), np.float32),), "needs example inputs|from_numpy"),
        ((torch.randn(0, 3, 6, 6),), r"empty \(f32\[0, 3, 6, 6\]\)"),
        ((torch.randn(2, 3, 6, 6, device="meta"),), "example input is on device 'meta'"),
    ],
)
def test_wrong_inputs_are_named(args: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Graph.capture(small(), args)
    assert "\n" not in str(caught.value)


def test_a_model_elsewhere_broken_or_of_another_kind_is_refused() -> None:
    x = torch.randn(2, 3, 6, 6)
    with pytest.raises(InputError, match=r"'0.weight' of Sequential is on device 'meta'.*model.cpu\(\)"):
        Graph.capture(small().to("meta"), x)
    broken = small()
    with torch.no_grad():
        broken[4].weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"'4.weight' of Sequential holds NaN or infinity in 1 of 720 elements"):
        Graph.capture(broken, x)
    with pytest.raises(InputError, match=r"must be an nn.Module.* got function"):
        Graph.capture(lambda x: x, x)
    with pytest.raises(CaptureError, match="TorchScript"):
        Graph.capture(torch.jit.trace(small(), x), x)
    with pytest.raises(InputError, match="lazy module"):
        Graph.capture(nn.LazyLinear(3).eval(), torch.randn(2, 3))
    with pytest.raises(InputError, match=r"pass model.module"):
        Graph.capture(nn.DataParallel(small()).eval(), x)


def test_wrong_calls_of_a_graph_are_named() -> None:
    graph = Graph.capture(Nested("one").eval(), (torch.randn(2, 3), {"shift": (torch.randn(2, 3), 7)}, 2.0))
    shift = {"shift": (torch.randn(2, 3), 7)}
    for args, message in [
        ((torch.randn(2, 4), shift, 2.0), r"input 'x' must be f32\[batch, 3\], got f32\[2, 4\]"),
        ((torch.randn(2, 3).double(), shift, 2.0), r"input 'x' must be f32\[batch, 3\], got f64\[2, 3\]"),
        ((torch.randn(4, 3), shift, 2.0), "'batch' is 4 by .* input 'x' and 2 by .* input 'extra_shift_0'"),
        ((torch.randn(2, 3), shift, 3.0), "argument 'scale' was captured as 2.0, got 3.0"),
        ((torch.randn(2, 3), shift), "takes 3 positional inputs"),
        ((torch.randn(2, 3), {}, 2.0), "argument 'extra' must be nested like the example"),
        (("x", shift, 2.0), "input 'x' must be a tensor, got str"),
    ]:
        with pytest.raises(InputError, match=message):
            graph(*args)


# ---- Models that cannot be captured ---------------------------------------------------------------------------------


def halved(y: Tensor) -> Tensor:
    return y / 2 if y.max() > 0 else y


class Failing(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer, self.how = nn.Linear(3, 3), how

    def forward(self, x: Tensor) -> Any:
        y = self.layer(x)
        match self.how:
            case "helper":
                return halved(y)
            case "branch":
                return y if y.sum() > 0 else -y
            case "loop":
                while y.norm() > 0.1:
                    y = y / 2
                return y
            case "item":
                return x * int(y.sum().item())
            case "list":
                return x * sum(y[0].tolist())
            case "numpy":
                return torch.from_numpy(np.tanh(y.detach().numpy()))
            case "format":
                return y * len(f"{y.max():.3f}")
            case "select":
                return y[y > 0]
            case "data":
                self.layer.weight.data.mul_(0.5)
                return self.layer(x)
            case "grad":
                with torch.enable_grad():
                    z = x.clone().requires_grad_()
                    return torch.autograd.grad(self.layer(z).sum(), z)[0]
            case "object":
                return iter([y])
            case "assertion":
                assert y.max() < 100
                return y
            case "cond":
                return torch.cond(y.sum() > 0, lambda v: v + 1, lambda v: v - 1, (y,))
            case "nothing":
                return 3
        raise AssertionError(self.how)


@pytest.mark.parametrize(
    ("how", "code", "why", "remedy"),
    [
        ("helper", "if y.max() > 0 else y", "decides on the value of a tensor", "torch.where"),
        ("branch", "y.sum() > 0", "decides on the value of a tensor", "torch.where"),
        ("loop", "while y.norm() > 0.1:", "decides on the value of a tensor", "torch.where"),
        ("item", "y.sum().item()", "turned into a Python number", "keep it a tensor"),
        ("list", "y[0].tolist()", "turned into a Python number", "keep it a tensor"),
        ("numpy", ".numpy()", "converted to NumPy", "torch function of the same name"),
        ("format", ":.3f", "formatted for printing", "remove the print"),
        ("select", "y[y > 0]", "size of this result depends on the values", "mask of fixed size"),
        ("data", "def forward", "behind the graph's back", "register_buffer"),
        ("grad", "def forward", "behind the graph's back", "ordinary operators"),
        ("object", None, "returns a list_iterator|tuple_iterator|list", "return tensors"),
        ("assertion", "assert y.max() < 100", "decides on the value of a tensor", "torch.where"),
        ("cond", "torch.cond", "graph within the graph", "plain tensor operators"),
        ("nothing", None, "returns no tensor", "return the result of forward"),
    ],
)
def test_a_model_that_cannot_be_captured_is_explained(how: str, code: str | None, why: str, remedy: str) -> None:
    with pytest.raises(CaptureError) as caught:
        Graph.capture(Failing(how).eval(), torch.randn(2, 3))
    message = str(caught.value)
    assert "\n" not in message
    assert re.search(why, message), message
    assert remedy in message
    if code is not None:
        assert re.search(rf"cannot capture Failing at .*test_capture_errors.py:\d+: `.*{re.escape(code)}", message), (
            message
        )


@pytest.mark.parametrize("error", [RecursionError("maximum recursion depth exceeded"), MemoryError()])
def test_running_out_of_stack_or_memory_is_not_blamed_on_the_model(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr(torch.export, "export", fail)
    with pytest.raises(CaptureError, match=f"ran out of stack or memory.*{type(error).__name__}") as caught:
        Graph.capture(nn.Linear(3, 2).eval(), torch.randn(2, 3))
    assert "rewrite" not in str(caught.value)


def test_capture_leaves_no_trace_in_the_process(capfd: pytest.CaptureFixture[str]) -> None:
    import logging

    model = Failing("branch").eval()
    seed, fast = torch.get_rng_state(), torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(CaptureError):
        Graph.capture(model, torch.ones(2, 3))
    assert torch.equal(torch.get_rng_state(), seed)
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert logging.root.manager.disable == 0
    assert capfd.readouterr() == ("", "")
