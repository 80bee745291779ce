"""Capturing: inputs and outputs of every form, the free batch, weights, normal forms, training, and errors."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections import namedtuple
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.nn import functional as F

from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.program import to_exported_program
from graphopt.utils.errors import CaptureError, InputError, NonFiniteError

aten = torch.ops.aten


def small() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 5)
    )
    for name, buffer in model[1].named_buffers():
        if name != "num_batches_tracked":
            buffer.uniform_(0.5, 1.5)
    return model.eval()


def same(graph: Graph, model: nn.Module, *args: Any, **kwargs: Any) -> None:
    """The graph returns exactly what the model returns, in the same structure."""
    with torch.no_grad():
        found, expected = graph(*args, **kwargs), model(*args, **kwargs)
    assert pytree.tree_structure(found) == pytree.tree_structure(expected)
    for a, b in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
        assert torch.equal(a, b) if isinstance(b, Tensor) else a == b


# ---- The graph ------------------------------------------------------------------------------------------------------


def test_a_small_network_reads_like_its_source() -> None:
    model, x = small(), torch.randn(1, 3, 6, 6)
    graph = Graph.capture(model, x)
    assert str(graph) == dedent("""\
        graph(input_1: f32[N, 3, 6, 6])
          %0 = conv2d(input_1, f32[4, 3, 3, 3], f32[4], padding=[1, 1]) : f32[N, 4, 6, 6]
          %1 = batch_norm(%0, f32[4], f32[4], f32[4], f32[4], training=False, momentum=0.1, eps=1e-05, cudnn_enabled=False) : f32[N, 4, 6, 6]
          %2 = relu(%1) : f32[N, 4, 6, 6]
          %3 = flatten(%2, start_dim=1) : f32[N, 144]
          %4 = linear(%3, f32[5, 144], f32[5]) : f32[N, 5]
          return %4""")  # noqa: E501
    assert (graph.input_names, graph.output_names, graph.notes) == (["input"], ["output"], [])
    assert [graph.site(n) for n in graph.calls()] == ["0", "1", "2", "3", "4"]
    for batch in (1, 2, 7):
        same(graph, model, torch.randn(batch, 3, 6, 6))


def test_the_example_is_the_callers_own_detached_and_copied() -> None:
    x = torch.randn(1, 3, 6, 6, requires_grad=True)
    graph = Graph.capture(small(), x)
    (kept,) = graph.example.tensors()
    assert torch.equal(kept, x)
    assert not kept.requires_grad
    assert kept.data_ptr() != x.data_ptr()


Pair = namedtuple("Pair", "mean deviation")


@dataclasses.dataclass
class Result:
    scores: Tensor
    parts: list[Tensor]
    loss: Tensor | None = None


class Nested(nn.Module):
    def __init__(self, returns: str) -> None:
        super().__init__()
        self.returns = returns

    def forward(self, x: Tensor, extra: Mapping[str, Any], scale: float = 1.0, *, mask: Tensor | None = None) -> Any:
        y = x * scale + extra["shift"][0]
        y = y if mask is None else y * mask
        match self.returns:
            case "dict":
                return {"y": y, "more": [y + 1, (y + 2,)], "scale": scale}
            case "namedtuple":
                return Pair(y.mean(-1), y.std(-1))
            case "dataclass":
                return Result(y, [y + 1, y + 2])
            case "clash":
                return {"x": y, "extra": y, "output": x}
            case "same":
                return x, y, y
        return y


@pytest.mark.parametrize(
    ("returns", "names"),
    [
        ("one", ["output"]),
        ("dict", ["y", "more_0", "more_1_0"]),
        ("namedtuple", ["mean", "deviation"]),
        ("dataclass", ["scores", "parts_0", "parts_1"]),
        ("clash", ["x_1", "extra", "output"]),
        ("same", ["output_0", "output_1", "output_2"]),
    ],
)
def test_nested_inputs_and_outputs_keep_their_structure_and_get_names(returns: str, names: list[str]) -> None:
    model = Nested(returns).eval()
    x, extra, mask = torch.randn(2, 3), {"shift": (torch.randn(2, 3), 7)}, torch.ones(2, 3)
    graph = Graph.capture(model, (x, extra, 2.0), {"mask": mask})
    assert graph.input_names == ["x", "extra_shift_0", "mask"]
    assert graph.output_names == names
    same(graph, model, x, extra, 2.0, mask=mask)
    three = {"shift": (torch.randn(3, 3), 7)}
    same(graph, model, torch.randn(3, 3), three, 2.0, mask=torch.randn(3, 3))
    assert len(graph.inputs) == 3
    assert len(graph.placeholders) == 5


def test_keywords_may_come_in_any_order_and_positional_ones_by_name() -> None:
    model = Nested("one").eval()
    x, extra, mask = torch.randn(2, 3), {"shift": [torch.randn(2, 3)]}, torch.rand(2, 3)
    graph = Graph.capture(model, (), {"mask": mask, "extra": extra, "x": x})
    same(graph, model, mask=mask, extra=extra, x=x)
    same(graph, model, x=x, mask=mask, extra=extra)
    assert graph.input_names == ["x", "extra_shift_0", "mask"]


def test_variadic_arguments() -> None:
    class Variadic(nn.Module):
        def forward(self, *xs: Tensor, **named: Tensor) -> Tensor:
            return torch.cat([*xs, *named.values()], dim=1)

    model = Variadic().eval()
    a, b, c = torch.randn(2, 1), torch.randn(2, 2), torch.randn(2, 3)
    graph = Graph.capture(model, (a, b), {"last": c})
    assert graph.input_names == ["xs_0", "xs_1", "last"]
    same(graph, model, a, b, last=c)


class Sum(nn.Module):
    def forward(self, first: Any, *more: Any) -> Any:
        for value in more:
            first = first + value
        return first


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize(
    ("shapes", "free"),
    [
        ([("b", 4)], [True]),
        ([("b", 4), ("b", 4)], [True, True]),
        ([("b", 4), (4,)], [True, False]),
        ([("b", 4), ()], [True, False]),
        ([("b", 5, 4), (5, 4)], [True, False]),
        ([(), ("b", 4)], [False, True]),
    ],
)
def test_the_batch_is_found_among_several_inputs(shapes: list[tuple[Any, ...]], free: list[bool], batch: int) -> None:
    def inputs(size: int) -> list[Tensor]:
        return [torch.randn([size if s == "b" else s for s in shape]) for shape in shapes]

    model = Sum().eval()
    graph = Graph.capture(model, tuple(inputs(batch)))
    assert graph.dynamic_batch
    assert [isinstance(n.meta["val"].dim() and n.meta["val"].shape[0], torch.SymInt) for n in graph.inputs] == free
    for size in (1, 2, 5):
        same(graph, model, *inputs(size))


class Fixed(nn.Module):
    """Ways to need one batch size."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        match self.how:
            case "number":
                return x.view(int(x.shape[0]), -1) * torch.ones(int(x.shape[0]), 1)
            case "even":
                return x.view(x.shape[0] // 2, 2, -1).sum(1)
            case "constant":
                return x + torch.arange(4).view(4, 1)
        return x * 2 if x.shape[0] == 4 else x * 3


@pytest.mark.thorough
@pytest.mark.parametrize("how", ["number", "even", "constant", "branch"])
def test_a_fixed_batch_is_noted_with_the_reason(how: str) -> None:
    model, x = Fixed(how).eval(), torch.randn(4, 3)
    graph = Graph.capture(model, x)
    assert not graph.dynamic_batch
    assert graph.notes[0].startswith("the batch is fixed at 4: ")
    same(graph, model, x)
    with pytest.raises(InputError, match=re.escape("input 'x' must be f32[4, 3], got f32[2, 3]")):
        graph(torch.randn(2, 3))


def test_the_note_names_the_line() -> None:
    note = Graph.capture(Fixed("number").eval(), torch.randn(4, 3)).notes[0]
    assert re.search(r"uses it as a plain number at .*test_capture.py:\d+: `return x.view\(int\(x.shape\[0\]\)", note)


def test_a_fixed_batch_on_demand() -> None:
    graph = Graph.capture(small(), torch.randn(2, 3, 6, 6), dynamic_batch=False)
    assert not graph.dynamic_batch
    assert graph.notes == []
    assert "f32[2, 3, 6, 6]" in str(graph)


# ---- Weights --------------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.layer = nn.Linear(4, 4)
        self.again = self.layer
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("offset", torch.randn(4), persistent=False)
        self.layer.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.again(self.layer(self.embed(x)) + self.offset))


def test_names_kinds_and_sharing_of_weights_survive() -> None:
    model, x = Tied().eval(), torch.randint(7, (2, 3))
    graph = Graph.capture(model, x)
    assert {n: p.requires_grad for n, p in graph.named_parameters()} == {
        "embed.weight": True, "layer.weight": True, "layer.bias": False
    }  # fmt: skip
    assert [n for n, _ in graph.named_buffers()] == ["offset"]
    readers = {str(n.target): len(n.users) for n in graph.nodes if n.op == "get_attr"}
    assert readers == {"embed.weight": 2, "layer.weight": 2, "layer.bias": 2, "offset": 1}
    same(graph, model, torch.randint(7, (5, 3)))


def test_an_exported_program_keeps_weights_shared() -> None:
    x = torch.randint(7, (2, 3))
    graph = Graph.capture(torch.export.export(Tied().eval(), (x,)))
    assert sorted(len(n.users) for n in graph.nodes if n.op == "get_attr") == [1, 2, 2, 2]


def frozen_state(model: nn.Module) -> dict[str, Any]:
    return {
        "tensors": {k: (v, v.detach().clone(), v._version) for k, v in model.state_dict(keep_vars=True).items()},
        "modes": [m.training for m in model.modules()],
        "hooks": [len(m._forward_hooks) for m in model.modules()],
        "attributes": [sorted(m.__dict__) for m in model.modules()],
    }


class Stubborn(nn.Module):
    """Changes itself in forward, and may not be copied."""

    def __init__(self, fails: bool, copies: bool) -> None:
        super().__init__()
        self.fails, self.copies = fails, copies
        self.layer = nn.Linear(3, 3)
        self.register_buffer("seen", torch.zeros(()))
        self.calls = 0
        self.register_forward_hook(lambda *_: None)

    def __deepcopy__(self, memo: dict[int, Any]) -> Stubborn:
        if not self.copies:
            raise RuntimeError("holds a lock")
        new = Stubborn(self.fails, self.copies).eval()
        new.load_state_dict(self.state_dict())
        return new

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x
        self.seen += 1
        y = self.layer(x)
        return y if not self.fails or y.sum() > 0 else -y


@pytest.mark.parametrize("copies", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_the_callers_model_stays_as_it_was(fails: bool, copies: bool) -> None:
    model = Stubborn(fails, copies).eval()
    before = frozen_state(model)
    if fails:
        with pytest.raises(CaptureError):
            Graph.capture(model, torch.randn(2, 3))
    else:
        graph = Graph.capture(model, torch.randn(2, 3))
        for parameter in graph.parameters():
            parameter.data.zero_()
    after = frozen_state(model)
    for name, (tensor, values, _) in before["tensors"].items():
        assert after["tensors"][name][0] is tensor
        assert torch.equal(tensor.detach(), values)
    assert {k: v for k, v in before.items() if k != "tensors"} == {k: v for k, v in after.items() if k != "tensors"}
    assert model.calls == 0


def test_a_clone_is_independent() -> None:
    graph = Graph.capture(small(), torch.randn(2, 3, 6, 6))
    other, text = graph.clone(), str(graph)
    before = {name: value.clone() for name, value in graph.state_dict().items()}
    for parameter in other.parameters():
        parameter.data.zero_()
    other.replace(other.calls(aten.relu.default)[0], other.calls(aten.batch_norm.default)[0])
    other.refresh()
    assert str(graph) == text != str(other)
    assert all(torch.equal(value, before[name]) for name, value in graph.state_dict().items())


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


# ---- Other kinds of model -------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_programs_their_files_and_traced_modules_can_be_captured(tmp_path: Path) -> None:
    model, x = small(), torch.randn(2, 3, 6, 6)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("b")},))
    torch.export.save(program, tmp_path / "model.pt2")
    fixed = torch.export.export(model, (x,))
    expected = str(Graph.capture(model, x))
    sources = (
        program,
        tmp_path / "model.pt2",
        str(tmp_path / "model.pt2"),
        fixed,
        program.module(),
        torch.compile(model),
    )
    for source in sources:
        graph = Graph.capture(source, x) if isinstance(source, nn.Module) else Graph.capture(source)
        assert str(graph) == expected
        assert set(graph.state_dict()) == {k for k in model.state_dict() if "num_batches" not in k}
        same(graph, model, torch.randn(3, 3, 6, 6))
    assert str(Graph.capture(torch.fx.symbolic_trace(model), x)) == expected


def test_a_program_exported_in_training_mode_is_refused() -> None:
    program = torch.export.export(small().train(), (torch.randn(2, 3, 6, 6),))
    for source in (program, program.run_decompositions({})):
        with pytest.raises(InputError, match=r"was exported in training mode.*export model.eval\(\)"):
            Graph.capture(source)


def test_a_captured_graph_exports_again() -> None:
    model = Nested("dict").eval()
    args = (torch.randn(1, 3), {"shift": (torch.randn(1, 3), 7)}, 2.0)
    graph = Graph.capture(model, args)
    program = to_exported_program(graph)
    assert list(program.graph_signature.user_inputs) == ["x", "extra_shift_0"]
    x, shift = torch.randn(5, 3), torch.randn(5, 3)
    found = program.module()(x, shift)
    expected = pytree.tree_leaves(graph(x, {"shift": (shift, 7)}, 2.0))[:3]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_an_edited_graph_exports_again() -> None:
    graph = Graph.capture(small(), torch.randn(1, 3, 6, 6))
    conv = graph.calls(aten.conv2d.default)[0]
    graph.set_constant(conv, 1, graph.tensor(conv.args[1]) * 2)  # type: ignore[arg-type]
    graph.refresh()
    x = torch.randn(3, 3, 6, 6)
    (found,) = to_exported_program(graph).module()(x)
    assert torch.equal(found, graph(x))
    with pytest.raises(InputError, match="training mode"):
        to_exported_program(graph.train())


# ---- Training -------------------------------------------------------------------------------------------------------


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(True), nn.Dropout(0.5), nn.InstanceNorm2d(8), nn.Flatten(),
        nn.Linear(128, 4),
    ).eval()  # fmt: skip


def test_training_mode_trains_like_the_original() -> None:
    model, x = network(), torch.randn(6, 3, 6, 6)
    graph, target = Graph.capture(model, x).train(), torch.randint(4, (6,))
    assert graph.training
    model.train()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (model, graph)]
    losses = []
    for step in range(5):
        for m, optimizer in zip((model, graph), optimizers, strict=True):
            torch.manual_seed(step)
            optimizer.zero_grad()
            loss = F.cross_entropy(m(x), target)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[0::2] == losses[1::2]
    assert losses[-1] < losses[0]
    state = graph.state_dict()
    for name, value in model.state_dict().items():
        if "num_batches" not in name:
            assert torch.equal(state[name], value), name
    same(graph.eval(), model.eval(), x)
    assert "training=True" not in str(graph.eval())


def test_gradients_equal_the_originals() -> None:
    model, x = network(), torch.randn(2, 3, 6, 6)
    graph = Graph.capture(model, x)
    model(x).square().sum().backward()
    graph(x).square().sum().backward()
    expected = dict(model.named_parameters())
    for name, parameter in graph.named_parameters():
        assert torch.equal(parameter.grad, expected[name].grad)  # type: ignore[arg-type]


def test_layers_that_always_train_keep_doing_so() -> None:
    class Always(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(3, track_running_stats=False)

        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(self.bn(x), 0.5, training=True)

    model, x = Always().eval(), torch.randn(4, 3)
    graph = Graph.capture(model, x)
    text = str(graph)
    assert text.count("True") >= 2
    assert str(graph.train().eval()) == text


def test_cumulative_running_statistics_are_noted() -> None:
    assert "momentum=None" in Graph.capture(nn.BatchNorm1d(3, momentum=None).eval(), torch.randn(2, 3)).notes[0]


def test_a_stopped_gradient_is_noted() -> None:
    class Stop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).detach() * x.detach()

    assert "gradients are not stopped" in Graph.capture(Stop().eval(), torch.randn(2, 3)).notes[0]


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
        assert re.search(rf"cannot capture Failing at .*test_capture.py:\d+: `.*{re.escape(code)}", message), message


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


@pytest.fixture(autouse=True)
def _deterministic() -> None:
    torch.manual_seed(0)


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


def test_deep_copies_of_the_example_are_not_needed() -> None:
    graph = Graph.capture(small(), torch.randn(1, 3, 6, 6))
    assert copy.deepcopy(graph).example is graph.example


def test_sizes_that_a_program_leaves_free_stay_free() -> None:
    x, layer = torch.randn(4, 3, 8, 8), nn.Conv2d(3, 4, 3).eval()
    sizes = {0: torch.export.Dim("n"), 3: torch.export.Dim("w", min=4, max=64)}
    program = torch.export.export(layer, (x,), dynamic_shapes=(sizes,))
    graph = Graph.capture(program, x)
    assert graph(torch.randn(2, 3, 8, 11)).shape == (2, 4, 6, 9)
    with pytest.raises(InputError, match=r"dimension 3 of input 'input' is 65, but 'input_3' goes from 4 to 64"):
        graph(torch.randn(2, 3, 8, 65))
    fixed = Graph.capture(program.module(), x)
    with pytest.raises(InputError, match=r"must be f32\[batch, 3, 8, 8\]"):
        fixed(torch.randn(2, 3, 8, 11))
    only_batch = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("n")},))
    assert Graph.capture(only_batch, x).dynamic_batch


def test_groups_that_follow_the_batch_fix_it() -> None:
    class Own(nn.Module):
        """Every sample has kernels of its own."""

        def __init__(self) -> None:
            super().__init__()
            self.kernels = nn.Linear(3, 27)

        def forward(self, x: Tensor) -> Tensor:
            batch, channels, height, width = x.shape
            weight = self.kernels(x.mean((2, 3))).view(batch * channels, 1, 3, 3)
            y = F.conv2d(x.reshape(1, batch * channels, height, width), weight, padding=1, groups=batch * channels)
            return y.view(batch, channels, height, width)

    model, x = Own().eval(), torch.randn(4, 3, 8, 8)
    graph = Graph.capture(model, x)
    assert re.search(r"the batch is fixed at 4: the groups of the convolution 'conv2d' follow it", graph.notes[0])
    same(graph, model, x)


# ---- Linear layers in any spelling -----------------------------------------------------------------------------------

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


def close(graph: Graph, model: nn.Module, x: Tensor) -> None:
    """Sums of another order: equal but for rounding."""
    for ours, theirs in zip(*(pytree.tree_leaves(f(x)) for f in (graph, model)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


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


# ---- Checkpoints and frozen weights ----------------------------------------------------------------------------------


class Kept(nn.Module):
    """A tied weight, a buffer that nothing reads, a matrix read both ways round, batch norm's counter, a constant of the code."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        self.head.weight = self.table.weight
        self.norm, self.w = nn.BatchNorm1d(4), nn.Parameter(torch.randn(4, 4))
        self.register_buffer("unread", torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.table(x).mean(1)) @ self.w * torch.tensor([1.0, 2.0, 3.0, 4.0])
        return self.head(y + self.w[0])


def test_the_models_own_checkpoint_loads_whole(tmp_path: Path) -> None:
    x = torch.randint(6, (3, 5))
    graph = Graph.capture(Kept().eval(), x)
    graph.save(tmp_path / "graph.pt2")
    other = Kept()
    nn.init.normal_(other.norm.running_mean)  # type: ignore[arg-type]
    other.eval()
    for known in (graph, graph.clone(), Graph.load(tmp_path / "graph.pt2")):
        found = known.load_state_dict(other.state_dict())
        assert not found.missing_keys
        assert not found.unexpected_keys
        close(known, other, x)
        known.load_state_dict(known.state_dict())
        close(known, other, x)
    with pytest.raises(RuntimeError, match=r"Missing key\(s\).*norm.weight"):
        graph.load_state_dict({k: v for k, v in other.state_dict().items() if k != "norm.weight"})


def test_keywords_that_forward_collects_do_not_fix_the_batch() -> None:
    class Keywords(nn.Module):
        def forward(self, x: Tensor, *, scale: Tensor, **others: Any) -> Tensor:
            return x * scale * others["mask"] + others["shift"]["by"]

    x = torch.randn(3, 4)
    graph = Graph.capture(Keywords().eval(), x, {"scale": x, "mask": x, "shift": {"by": x}})
    assert graph.dynamic_batch
    x = torch.randn(7, 4)
    assert torch.equal(graph(x, scale=x, mask=x, shift={"by": x}), x * x * x + x)
