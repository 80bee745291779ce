"""Quantized graphs lowered to TVM, against the simulation, code by code; what is refused; real networks."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from blocks import BLOCKS, conv, images, model_of, simulated
from kernel_cases import CASES
from rewriting import Model, capture
from torch import Tensor, nn
from tvm_lowering import FORMATS, UNSIGNED, assert_identical, quantized

import graphopt
from graphopt.backends import onnxruntime
from graphopt.formats import Format
from graphopt.ir.graph import Graph
from graphopt.ir.structure import tensors
from graphopt.targets import architecture, find
from graphopt.utils.errors import GraphoptError, InputError

pytest.importorskip("tvm", reason="the TVM backend needs graphopt[tvm]")
pytestmark = pytest.mark.skipif(architecture() != "x86_64", reason="compiles for the x86-64 machine at hand")

from graphopt.backends.tvm import audit, lower
from graphopt.backends.tvm.build import Code
from graphopt.backends.tvm.lowering import compiled
from graphopt.lowering.static_batch import fix_batch

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
def test_codes_of_what_is_computed_of_constants_are_compared_too() -> None:
    graph = quantized(
        Model(lambda m, x: m.conv(x) + (torch.arange(4)[:, None, None] + 0.5), conv=conv(3, 4)), UNSIGNED, images(4)
    )
    found = graphopt.simulate(graph, UNSIGNED).mismatches(lower(graph, UNSIGNED), images(4, seed=3))
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
