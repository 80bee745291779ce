"""The ONNX files themselves, read with the onnx package, and what ONNX Runtime computes from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from blocks import conv, images, lowered, model_of, simulated, target_of
from onnx import numpy_helper
from onnx_files import X86, file, operators, quantized
from rewriting import Model, apply, assert_close, assert_equal_but_for_ties, capture
from torch import nn
from uneven import PER_TENSOR, uneven

import graphopt
from graphopt.backends.onnxruntime import audit, lower
from graphopt.compiler.optimize import load
from graphopt.formats import Format
from graphopt.ir.cost import sqnr
from graphopt.ir.graph import Graph
from graphopt.lowering.qdq import deploy
from graphopt.passes.cleanup.fold_batchnorm import FoldBatchNorm
from graphopt.passes.equalization.equalize_channels import EqualizeChannels
from graphopt.passes.quantization import Quantize
from graphopt.targets import machine_here
from graphopt.utils.errors import ArtifactError, GraphoptError, InputError


def initializers(model: Any) -> dict[str, np.ndarray[Any, Any]]:
    return {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}


@pytest.mark.thorough
def test_the_file_holds_8_bit_weights_and_32_bit_biases() -> None:
    model = file(lowered("plain", "x86").artifact)
    onnx.checker.check_model(model, full_check=True)
    held = initializers(model)
    assert [held[name].shape for name in sorted(held) if held[name].dtype == np.int8 and held[name].ndim > 1] == [
        (8, 4, 3, 3), (5, 32), (8, 8, 3, 3),  # the first with a fourth channel, of zeros
    ]  # fmt: skip
    assert sorted(a.shape for a in held.values() if a.dtype == np.int32 and a.any()) == [(5,), (8,), (8,)]
    assert not [name for name, a in held.items() if a.dtype == np.float32 and a.ndim > 1]


@pytest.mark.thorough
def test_codes_keep_the_models_own_names() -> None:
    held = initializers(file(lowered("plain", "x86").artifact))
    assert {"first.0.weight_codes", "second.0.weight_codes", "head.weight_codes"} <= set(held)


@pytest.mark.thorough
def test_the_batch_stays_free_and_names_stay_the_models_own() -> None:
    artifact = lowered("residual", "x86").artifact
    model = file(artifact)
    (source,), (result,) = model.graph.input, model.graph.output
    assert source.name == artifact.manifest.inputs[0].name == "inputs_0"
    assert source.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert result.type.tensor_type.shape.dim[0].dim_param == "batch"
    session = ort.InferenceSession(str(artifact.folder / "model.onnx"), providers=["CPUExecutionProvider"])
    for count in (1, 5):
        x = images(count, seed=9)
        (found,) = session.run(None, {source.name: x.numpy()})
        assert_close(torch.from_numpy(found), artifact(x), 1e-6)


@pytest.mark.thorough
def test_a_fixed_batch_stays_fixed() -> None:
    graph = Graph.capture(nn.Sequential(conv(3, 4)).eval(), images(2), dynamic_batch=False)
    artifact = lower(graph, X86)
    assert file(artifact).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
    with pytest.raises(InputError, match="must be"):
        artifact(images(3))


class TwoIn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = conv(3, 4), conv(3, 4)

    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
        joined = F.relu(self.left(image) * 1.5 + self.right(mask))
        return {"sum": joined, "parts": (joined.mean((2, 3)), [self.left(mask)])}


@pytest.mark.thorough
def test_several_inputs_and_nested_outputs_keep_names_and_structure() -> None:
    model, one, other = TwoIn().eval(), images(2), images(2, seed=2)
    artifact = lower(quantized(model, one, other), X86)
    assert [i.name for i in file(artifact).graph.input] == ["image", "mask"]
    expected, found = model(one, other), artifact(image=one, mask=other)
    assert set(found) == {"sum", "parts"}
    assert isinstance(found["parts"], tuple)
    assert isinstance(found["parts"][1], list)
    assert sqnr(expected, found) > 25
    assert sqnr(found, artifact(one, other)) == float("inf")


@pytest.mark.thorough
def test_an_output_that_is_the_input_and_a_constant_output() -> None:
    model = Model(lambda m, x: (x, m.a(x), m.a.bias), a=conv(3, 4)).eval()
    x = images(2)
    found = lower(capture(model, x), X86)(x)
    assert_close(found, model(x), 1e-5)


@pytest.mark.thorough
def test_an_input_that_nobody_reads() -> None:
    model = Model(lambda m, x, y: m.a(x), a=conv(3, 4)).eval()
    x = images(2)
    assert_close(lower(capture(model, x, images(2, seed=2)), X86)(x, x), model(x, x), 1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("block", ["residual", "squeeze-excite linear"])
def test_a_float_graph_lowers_too(block: str) -> None:
    model = model_of(block)
    graph = capture(model, images(2))
    apply(FoldBatchNorm(), graph)
    artifact = lower(graph, X86)
    assert_close(artifact(images(8, seed=3)), model(images(8, seed=3)), 1e-5)
    found = audit(artifact)
    assert found.share == 0
    assert {"first.0" if block == "residual" else "down", "head"} <= {f.site for f in found.floating}
    assert sum(f.macs for f in found.floating) == found.total_macs > 0


@pytest.mark.thorough
@pytest.mark.parametrize("bits", [4, 16])
def test_other_widths(bits: int) -> None:
    model = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4)).eval()
    values = Format(bits, signed=False, symmetric=False)
    graph = quantized(model, images(8), weights=Format(min(bits, 8), per_channel=True), activations=values)
    artifact = lower(graph, X86)
    x = images(16, seed=3)
    kinds = operators(file(artifact))
    assert ("Clip" in kinds) == (bits == 4)
    assert file(artifact).opset_import[0].version == (21 if bits == 16 else 18)
    step = float(graph.tensor(graph.outputs[0].args[1]))  # type: ignore[arg-type]
    with torch.no_grad():
        # float32 sums are off by about 1e-7: 0.5 % of a step of 16 bits here
        assert_equal_but_for_ties(deploy(graph)(x), graph(x), step, share=1e-2 if bits == 16 else 1e-3)
        assert sqnr(graph(x), artifact(x)) > 12 + 6 * bits * 0.5


@pytest.mark.thorough
def test_weights_of_16_bits() -> None:
    model = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4)).eval()
    graph = quantized(model, images(8), weights=Format(16), activations=Format(16, signed=False, symmetric=False))
    assert sqnr(model(images(8)), lower(graph, X86)(images(8))) > 70


@pytest.mark.thorough
@pytest.mark.parametrize("target", ["x86", "arm"])
def test_ends_per_channel_equal_the_simulation(target: str) -> None:
    chosen = target_of(target)
    graph = capture(uneven(), images(2))
    assert apply(EqualizeChannels(), graph)
    weights = Format(min(PER_TENSOR.bits, chosen.formats.weights.bits))
    apply(Quantize(chosen, [[images(16) * 4]], estimator="minmax", weights=weights), graph)
    artifact, x = lower(graph, chosen), images(32, seed=3) * 6
    with torch.no_grad():
        simulation, runtime = graph(x), artifact(x)
    step = float(graph.tensor(graph.outputs[0].args[1]))  # type: ignore[arg-type]
    assert float((simulation - runtime).abs().max()) <= step * 1.001
    assert float((simulation != runtime).double().mean()) < 0.01
    found = audit(artifact)
    assert found.share == 1.0
    assert found.floating == []


@pytest.mark.thorough
def test_a_saved_artifact_answers_the_same(tmp_path: Path) -> None:
    artifact = lowered("residual", "x86").artifact
    again = load(artifact.save(tmp_path / "out"))
    assert torch.equal(again(images(4)), artifact(images(4)))
    assert audit(again).share == 1.0  # type: ignore[arg-type]


def test_a_file_the_runtime_refuses_is_an_error_in_one_sentence(tmp_path: Path) -> None:
    from graphopt.backends.onnxruntime.artifact import open_session

    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(ArtifactError, match=r"ONNX Runtime .* cannot load model.onnx: .*") as caught:
        open_session(tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)


@pytest.mark.thorough
def test_an_operator_without_onnx_form_is_named() -> None:
    model = Model(lambda m, x: torch.special.zeta(m.a(x).abs() + 2, x[:, :1].abs() + 1), a=conv(3, 4))
    with pytest.raises(GraphoptError, match=r"cannot be written as ONNX: .*zeta") as caught:
        lower(capture(model, images(2)), X86)
    assert "\n" not in str(caught.value)


@pytest.mark.thorough
def test_threads_may_be_set_between_calls() -> None:
    artifact = lowered("plain", "x86").artifact
    before = artifact(images(4))
    artifact.set_threads(2)
    assert torch.equal(artifact(images(4)), before)
    artifact.set_threads(1)


@pytest.mark.thorough
def test_what_is_simulated_is_what_is_lowered_also_with_the_default_estimator() -> None:
    model = model_of("plain")
    graph = simulated(model, X86, estimator="mse")
    x = images(32, seed=3)
    with torch.no_grad():
        assert sqnr(graph(x), lower(graph, X86)(x)) > sqnr(model(x), graph(x))


@pytest.mark.thorough
@pytest.mark.parametrize(
    "shape, mask, causal",
    [
        ((2, 3, 4, 5, 6), None, False),
        ((2, 3, 4, 5, 6), (5, 5), False),
        ((2, 3, 2, 4, 5, 6), None, True),
        ((2, 5, 6), None, False),
        ((2, 5, 6), (1, 5, 5), False),
    ],
)
def test_attention_of_any_rank_is_lowered_with_a_free_batch(
    shape: tuple[int, ...], mask: tuple[int, ...] | None, causal: bool
) -> None:
    chosen = None if mask is None else torch.randn(mask)
    model = Model(lambda m, x: F.scaled_dot_product_attention(x, 2 * x, x + 1, attn_mask=chosen, is_causal=causal))
    artifact = lower(capture(model, torch.randn(shape)), X86)
    x = torch.randn(5, *shape[1:])
    assert_close(torch.as_tensor(artifact(x)), model(x))


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2, "stride": (2, 3), "padding": 1},
        {"kernel_size": (2, 3), "stride": 2, "dilation": 2},
        {"kernel_size": 3, "stride": 3, "padding": 1},
    ],
    ids=str,
)
def test_pools_that_round_their_size_up_have_torchs_size(options: dict[str, Any]) -> None:
    """A last window that would begin in the padding is none. Maximum is an operator whose shapes the runtime compares."""

    def body(m: Any, x: torch.Tensor) -> torch.Tensor:
        pooled = F.max_pool2d(m.conv(x), ceil_mode=True, **options)
        return torch.maximum(pooled, pooled * 0.5)

    for size in ((9, 9), (7, 8), (6, 5)):
        model, x = Model(body, conv=conv(3, 3, 1)).eval(), torch.randn(2, 3, *size)
        with torch.no_grad():
            assert_close(lower(capture(model, x), X86)(x), model(x))
        graph = quantized(model, x)
        assert sqnr(graph(x), lower(graph, X86)(x)) > 30


@pytest.mark.thorough
@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("divisor", [None, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2, "stride": 2, "padding": 1},
        {"kernel_size": 3, "stride": (3, 2), "padding": 1},
        {"kernel_size": (2, 3), "stride": (2, 1), "padding": 1},
        {"kernel_size": (3, 2), "stride": 2, "padding": (1, 0)},
    ],
    ids=str,
)
def test_averages_that_round_their_size_up_have_torchs_size_for_the_runtimes_plan(
    options: dict[str, Any], divisor: int | None, include: bool
) -> None:
    """In float and between codes; what reads the pool has values of the size that a window too many would give."""

    def body(m: Any, x: torch.Tensor) -> torch.Tensor:
        pooled = F.avg_pool2d(m.conv(x), ceil_mode=True, count_include_pad=include, divisor_override=divisor, **options)
        return F.tanhshrink(m.wider(pooled) * 2)

    for size in ((1, 1), (9, 9), (7, 8), (6, 5)):
        model = Model(body, conv=conv(3, 3, 1), wider=nn.ConvTranspose2d(3, 3, 2)).eval()
        x = torch.randn(2, 3, *size)
        with torch.no_grad():
            assert_close(lower(capture(model, x), X86)(x), model(x))
        graph = quantized(model, x)
        artifact = lower(graph, X86)
        inferred = onnx.shape_inference.infer_shapes(onnx.load(artifact.folder / "model.onnx"), strict_mode=True)
        found = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim[2:]] for v in inferred.graph.value_info}
        assert found["avg_pool2d"] == list(F.avg_pool2d(x, ceil_mode=True, **options).shape[2:])
        assert not any(
            m.differing for m in graphopt.simulate(graph, X86, machine=machine_here()).mismatches(artifact, x)
        )
