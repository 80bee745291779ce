"""Graphs lowered to TVM: integers against the simulation code by code, floats against torch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from blocks import BLOCKS, conv, images, model_of, simulated
from kernel_cases import CASES
from rewriting import Model, assert_close, capture, randomised
from torch import Tensor, nn

import graphopt
from graphopt.backends import onnxruntime
from graphopt.formats import Format
from graphopt.ir.graph import Graph
from graphopt.ir.structure import tensors
from graphopt.passes.cleanup.fold_batchnorm import FoldBatchNorm
from graphopt.passes.cleanup.simplify import Simplify
from graphopt.passes.quantization import Quantize
from graphopt.passmanager.runner import run
from graphopt.targets import Target, architecture, find
from graphopt.utils.errors import GraphoptError, InputError

pytest.importorskip("tvm", reason="the TVM backend needs graphopt[tvm]")
pytestmark = pytest.mark.skipif(architecture() != "x86_64", reason="compiles for the x86-64 machine at hand")

from graphopt.backends.tvm import TvmArtifact, audit, lower
from graphopt.backends.tvm.build import Code
from graphopt.backends.tvm.lowering import compiled
from graphopt.backends.tvm.static import fix_batch

UNSIGNED = find("tvm-x86")
SIGNED = UNSIGNED.replace(activations=replace(UNSIGNED.formats.activations, signed=True))
FORMATS = {"u8": UNSIGNED, "s8": SIGNED}


def quantized(model: nn.Module, target: Target, *inputs: Tensor, **options: Any) -> Graph:
    """Captured and quantized as it is, without what the recipe does before and behind."""
    graph = capture(model, *inputs)
    run([Quantize(target, [[*inputs]], estimator="minmax", **options)], graph, verify=False)
    return graph


def assert_identical(graph: Graph, target: Target, x: Tensor) -> TvmArtifact:
    """The artifact answers what the simulation answers, in every bit."""
    artifact = lower(graph, target)
    answers, expected = artifact(x), graphopt.simulate(graph, target)(x)
    for ours, theirs in zip(*map(torch.utils._pytree.tree_leaves, (answers, expected)), strict=True):
        assert ours.shape == theirs.shape
        assert torch.equal(ours, theirs)
    return artifact


# ---- Integers -------------------------------------------------------------------------------------------------------


SIGNED_TOO = ("residual", "plain", "relu6")  # between them, every kernel


@pytest.mark.thorough
@pytest.mark.parametrize(("block", "format"), [*((b, "u8") for b in BLOCKS), *((b, "s8") for b in SIGNED_TOO)])
def test_every_block_is_bit_identical_to_the_simulation(block: str, format: str) -> None:
    graph = simulated(model_of(block), FORMATS[format])
    artifact = assert_identical(graph, FORMATS[format], images(16, seed=3) * 1.5)
    found = audit(artifact)
    assert found.share == 1
    assert found.floating == []


@pytest.mark.thorough
@pytest.mark.parametrize("case", CASES)
def test_every_kernel_is_bit_identical_to_the_simulation(case: str) -> None:
    make, shape, *_ = CASES[case]
    graph = quantized(make(), UNSIGNED, torch.randn(4, *shape))
    assert_identical(graph, UNSIGNED, torch.randn(8, *shape) * 1.5)


@pytest.mark.thorough
def test_every_code_inside_a_network_is_the_simulated_one() -> None:
    graph = simulated(model_of("concat"), UNSIGNED)
    found = graphopt.simulate(graph, UNSIGNED).mismatches(lower(graph, UNSIGNED), images(4, seed=3))
    assert len(found) > 8
    assert [str(line) for line in found if line.differing] == []


@pytest.mark.thorough
@pytest.mark.parametrize("first", [True, False])
def test_a_sum_is_added_in_the_layer_that_is_its_either_operand(first: bool) -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        y = m.stem(x)
        z = m.second(y)
        return m.head(z + y if first else y + z)  # type: ignore[no-any-return]

    graph = quantized(Model(body, stem=conv(3, 8), second=conv(8, 8), head=conv(8, 4)), UNSIGNED, images(8))
    artifact = assert_identical(graph, UNSIGNED, images(4, seed=3) * 1.5)
    module = compiled(fix_batch(graph, 4), Code.of(UNSIGNED.runtime)).module
    kernels = {name.name_hint.rstrip("0123456789") for name in module.get_global_vars()}
    assert kernels == {"main", "conv", "planes", "dequantize"}
    found = graphopt.simulate(graph, UNSIGNED).mismatches(artifact, images(4, seed=3))
    assert [str(line) for line in found if line.differing] == []


def padded(m: Any, x: Tensor) -> Tensor:
    """Causal, around images, twice read, cut, and around channels, which a layer does not pad."""
    y = F.relu(m.causal(F.pad(F.relu(m.stem(x)), (2, 1, 0, 3))))
    y = m.down(F.pad(y, (0, 1, 0, 1)))
    z = F.pad(y, (1, 1))
    y = m.one(z) + m.other(z)
    y = m.more(F.pad(y, (-1, 1)))
    y = m.channels(F.pad(y, (1, 1, 1, 1, 1, 1)))
    return m.signal(F.pad(y.flatten(2), (4, 0)))  # type: ignore[no-any-return]


@pytest.mark.thorough
def test_padding_with_zeros_is_part_of_the_layer_behind_it() -> None:
    model = Model(
        padded, stem=conv(3, 5), causal=conv(5, 5), down=nn.Conv2d(5, 6, 3, stride=2), one=nn.Conv2d(6, 6, (1, 3)),
        other=nn.Conv2d(6, 6, (1, 3)), more=conv(6, 6), channels=nn.Conv2d(8, 4, 3), signal=nn.Conv1d(4, 3, 3, dilation=2),
    )  # fmt: skip
    graph = quantized(model, UNSIGNED, images(4))
    assert_identical(graph, UNSIGNED, images(4, seed=3) * 1.5)
    module = compiled(fix_batch(graph, 4), Code.of(UNSIGNED.runtime)).module
    assert str(module["main"]).count("R.nn.pad(") == 3, "what two layers read, what is cut, and what has more channels"


@pytest.mark.thorough
def test_codes_of_fewer_bits_are_clipped_at_their_own_ends() -> None:
    narrow = UNSIGNED.replace(activations=Format(4, signed=False, symmetric=False))
    assert_identical(simulated(model_of("plain"), narrow), narrow, images(8, seed=3) * 2)


@pytest.mark.thorough
@pytest.mark.parametrize("activation", [nn.Hardswish, nn.SiLU, nn.GELU, nn.Tanh, nn.Sigmoid, nn.LeakyReLU])
def test_a_function_of_one_value_becomes_a_table(activation: type[nn.Module]) -> None:
    graph = quantized(nn.Sequential(conv(3, 4), activation(), conv(4, 4)), UNSIGNED, images(8))
    artifact = assert_identical(graph, UNSIGNED, images(8, seed=3) * 2)
    assert audit(artifact).floating == []


@pytest.mark.thorough
def test_a_layer_left_in_float_is_counted_with_its_reason() -> None:
    model = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), conv(8, 4))
    graph = quantized(model, UNSIGNED, images(8), formats={"2": None})
    artifact, x = lower(graph, UNSIGNED), images(8, seed=3)
    step = float(graphopt.simulate(graph, UNSIGNED)(x).unique().diff().min())
    assert float((artifact(x) - graphopt.simulate(graph, UNSIGNED)(x)).abs().max()) <= 1.01 * step
    found = audit(artifact)
    assert [(f.site, f.operator) for f in found.floating] == [("2", "conv2d")]
    assert found.floating[0].reason
    assert found.floating[0].macs == 8 * 8 * 9 * 64
    assert found.share == pytest.approx(7 / 15)


@pytest.mark.thorough
def test_an_operator_without_integer_kernel_computes_in_float_between_codes() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        return m.b(y / (1 + y.abs().mean((2, 3), keepdim=True)))  # type: ignore[no-any-return]

    graph = quantized(Model(body, a=conv(3, 4), b=conv(4, 4)), UNSIGNED, images(8))
    artifact, x = lower(graph, UNSIGNED), images(8, seed=3)
    ours, theirs = artifact(x), graphopt.simulate(graph, UNSIGNED)(x)
    assert float((ours != theirs).float().mean()) < 0.01  # float sums are taken in another order
    assert {f.operator for f in audit(artifact).floating} >= {"div", "mean"}
    assert audit(artifact).share == 1


# ---- Floats ---------------------------------------------------------------------------------------------------------


def cleaned(model: nn.Module, *inputs: Tensor, **options: Any) -> Graph:
    graph = Graph.capture(model.eval(), inputs, **options)
    run([Simplify(), FoldBatchNorm(depthwise=True)], graph)
    return graph


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


@pytest.mark.parametrize("number", [0.0, 0.5])
def test_a_pad_that_first_cuts_everything_off_is_all_padding(number: float) -> None:
    model = Model(
        lambda m, x: m.b(F.pad(m.a(x), (-1, 2, 0, 0), value=number)), a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 2, 1)
    )
    x = torch.randn(2, 3, 3, 3)
    with torch.no_grad():
        assert_close(lower(cleaned(model.eval(), x), UNSIGNED)(x), model(x))
    assert_identical(quantized(model.eval(), UNSIGNED, x), UNSIGNED, x)


# ---- Errors ---------------------------------------------------------------------------------------------------------


def test_an_operator_that_tvm_lacks_is_named_with_its_place() -> None:
    model = Model(lambda m, x: m.a(x).logit(0.1).kthvalue(2, 1)[0], a=conv(3, 4))
    with pytest.raises(GraphoptError, match=r"a|kthvalue") as caught:
        lower(capture(model, images(2)), UNSIGNED)
    assert "node kthvalue" in str(caught.value)
    assert "use an ONNX Runtime target" in str(caught.value)


def test_weights_in_blocks_are_refused_with_what_to_do() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 8))
    with pytest.raises(InputError, match="leave out weight_only"):
        graphopt.optimize(model.eval(), images(1), target=UNSIGNED, weight_only=4, measure=False)


def test_an_integer_convolution_over_three_dimensions_says_how_to_leave_it_in_float() -> None:
    model = nn.Sequential(nn.Conv3d(2, 4, 3), nn.ReLU())
    graph = quantized(model, UNSIGNED, torch.randn(2, 2, 5, 5, 5))
    with pytest.raises(GraphoptError, match=r"formats=\{'0': None\}"):
        lower(graph, UNSIGNED)


# ---- Real networks --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_mobilenet_is_bit_identical_to_the_simulation_on_500_photographs(zoo: ModuleType) -> None:
    x, y = zoo.imagenette("val500")
    calibration = zoo.imagenette("train256")[0][:64]
    result = graphopt.optimize(zoo.mobilenet_v1(), x[:1], target=UNSIGNED, calibration=calibration, measure=False)
    simulation = graphopt.simulate(result.graph, UNSIGNED)
    answers = torch.cat([result.artifact(batch) for batch in x.split(50)])
    assert torch.equal(answers, torch.cat([simulation(batch) for batch in x.split(50)]))
    assert float((answers.argmax(1) == y).float().mean()) > 0.93


@pytest.mark.slow
def test_resnet20_is_bit_identical_to_the_simulation_on_2000_images(zoo: ModuleType) -> None:
    x, y = (t[:2000] for t in zoo.cifar10("test"))
    calibration = zoo.cifar10("train10k")[0][:256]
    result = graphopt.optimize(zoo.cifar_resnet(20), x[:1], target=UNSIGNED, calibration=calibration, measure=False)
    simulation = graphopt.simulate(result.graph, UNSIGNED)
    answers = torch.cat([result.artifact(batch) for batch in x.split(100)])
    assert torch.equal(answers, torch.cat([simulation(batch) for batch in x.split(100)]))
    assert float((answers.argmax(1) == y).float().mean()) > 0.91
    assert audit(result.artifact).share == 1  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (lambda m, x: x, "output 'output'"),
        (lambda m, x: {"same": x, "fixed": m.fixed}, "output 'fixed' and output 'same'"),
        (lambda m, x: x.reshape(3, 2), "output 'output'"),
    ],
)
def test_a_model_that_computes_nothing_is_told_so_by_its_outputs(body: Any, named: str) -> None:
    model = Model(body)
    model.register_buffer("fixed", torch.ones(2))
    graph = Graph.capture(model.eval(), torch.arange(6.0).reshape(2, 3), dynamic_batch=False)
    with pytest.raises(GraphoptError) as caught:
        lower(graph, find("tvm-x86"))
    message = str(caught.value)
    assert sorted(message.partition(" of the model")[0].split(" and ")) == sorted(named.split(" and "))
    assert "computes nothing" in message
    assert "use an ONNX Runtime target (arm, x86)" in message
    artifact = onnxruntime.lower(graph, find("x86"))  # the remedy
    for found, wanted in zip(tensors(artifact(*graph.example.args)), tensors(graph(*graph.example.args)), strict=True):
        assert torch.equal(torch.as_tensor(found), wanted)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_what_interrupts_python_that_tvm_calls_is_no_error_of_compilation(
    monkeypatch: pytest.MonkeyPatch, interruption: type[BaseException]
) -> None:
    def interrupted(*_: object) -> None:
        raise interruption

    monkeypatch.setattr("graphopt.backends.tvm.build.scheduled", interrupted)
    graph = Graph.capture(nn.Softmax(1).eval(), torch.randn(1, 8))
    with pytest.raises(interruption):
        lower(graph, find("tvm-x86"))
