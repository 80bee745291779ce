"""Weights in blocks: the pass, its packed form, and what ONNX Runtime makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from blocks import target_of
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, DefaultWeightOnlyQuantizer
from rewriting import Model, apply, assert_close, capture, names
from torch import Tensor, nn
from weights_in_blocks import EXACT, X86, perceptron, quantized, tokens

import graphopt
from graphopt.backends.onnxruntime import audit, lower, simulate
from graphopt.backends.onnxruntime.artifact import MODEL
from graphopt.formats import FAKE_QUANTIZE, fake_quantize
from graphopt.formats.blocks import BLOCKS, block_grid, dequantize_blocks, pack, pack_weight, unpack
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.lowering.qdq import deploy
from graphopt.passes.quantization import Quantize
from graphopt.passes.quantization.quantize_weights import QuantizeWeights
from graphopt.targets import machine_here
from graphopt.utils.errors import InputError, NonFiniteError


def deployed_bytes(graph: Graph) -> int:
    return cost.weight_bytes(deploy(graph))


# ---- Grids and codes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BLOCKS)
def test_codes_are_those_of_onnx_runtimes_own_quantizer(bits: int, symmetric: bool) -> None:
    weight = torch.randn(24, 128)
    weight[0, :32], weight[1], weight[2] = 0.0, weight[1].abs(), -weight[2].abs()
    theirs = DefaultWeightOnlyQuantizer(DefaultWeightOnlyQuantConfig(32, is_symmetric=symmetric, bits=bits))
    packed, scales, points = theirs.qbits_block_quant(np.ascontiguousarray(weight.T.numpy()))
    scale, zero_point = block_grid(weight, bits, 32, symmetric=symmetric, estimator="minmax")
    codes, ours = pack_weight(weight, scale, zero_point, bits, 32)
    alive = torch.from_numpy(
        np.abs(scales.reshape(24, 4)) > 0
    )  # where all weights are zero they choose a scale of zero
    assert int((~alive).sum()) == 1
    same = codes == torch.from_numpy(packed.reshape(codes.shape))
    assert bool(same[alive].all())
    torch.testing.assert_close(scale[alive], torch.from_numpy(scales.reshape(24, 4))[alive], rtol=2e-7, atol=0)
    if symmetric:
        assert ours is None
    else:
        assert ours is not None
        assert np.array_equal(
            unpack(ours, bits)[1:].numpy(), unpack(torch.from_numpy(points.reshape(24, -1)), bits)[1:]
        )


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BLOCKS)
@pytest.mark.parametrize("columns", [64, 72, 200, 5])
def test_the_packed_weight_is_the_simulated_one(bits: int, symmetric: bool, columns: int) -> None:
    weight = torch.randn(6, columns)
    scale, zero_point = block_grid(weight, bits, 64, symmetric=symmetric, estimator="mse")
    simulated = fake_quantize(weight, scale, zero_point, 0, 2**bits - 1, 1, 64)
    codes, points = pack_weight(weight, scale, zero_point, bits, 64)
    assert codes.shape == (6, -(-columns // 64), 64 * bits // 8)
    assert torch.equal(dequantize_blocks(codes, scale, points, bits, columns), simulated)


@pytest.mark.parametrize("bits", BLOCKS)
def test_packing_keeps_every_code_and_puts_the_first_lowest(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (3, 16))
    packed = pack(codes, bits)
    assert torch.equal(unpack(packed, bits), codes.to(torch.uint8))
    assert int(packed[0, 0]) % 2**bits == int(codes[0, 0])


def test_the_error_of_a_weight_is_at_most_half_a_step_of_its_block() -> None:
    weight = torch.randn(8, 96)
    scale, zero_point = block_grid(weight, 4, 32, symmetric=False, estimator="minmax")
    error = (fake_quantize(weight, scale, zero_point, 0, 15, 1, 32) - weight).abs()
    step = scale.repeat_interleave(32, 1)
    assert bool((error <= step * 1.001).all())  # half for its rounding, and half for that of the zero point
    assert float((error > 0.5001 * step).double().mean()) < 0.05


def test_the_mse_estimator_loses_less_than_minmax() -> None:
    weight = torch.randn(16, 128)
    lost = {}
    for estimator in ("minmax", "mse"):
        grid = block_grid(weight, 4, 32, symmetric=True, estimator=estimator)
        lost[estimator] = float((fake_quantize(weight, *grid, 0, 15, 1, 32) - weight).square().sum())
    assert lost["mse"] < 0.95 * lost["minmax"]


def test_the_gradient_of_a_block_is_that_of_one_scale_alone() -> None:
    weight, scale = torch.randn(2, 6), torch.tensor([[0.2, 0.3], [0.1, 0.4]])
    zero_point, up = torch.tensor(8, dtype=torch.int32), torch.randn(2, 6)
    blocked = scale.clone().requires_grad_()
    fake_quantize(weight, blocked, zero_point, 0, 15, 1, 4).backward(up)
    for row in range(2):
        for number, part in enumerate((slice(0, 4), slice(4, 6))):
            alone = scale[row, number].clone().requires_grad_()
            fake_quantize(weight[row, part], alone, zero_point, 0, 15, -1).backward(up[row, part])
            assert alone.grad is not None
            assert blocked.grad is not None
            elements = (
                part.stop - part.start
            )  # the gradient is divided by the root of the elements per scale, here 3 on average
            torch.testing.assert_close(blocked.grad[row, number], alone.grad * (elements / 3) ** 0.5)


# ---- The pass -------------------------------------------------------------------------------------------------------


def test_every_linear_layer_reads_a_rounded_weight() -> None:
    graph = quantized(perceptron(), tokens())
    assert names(graph) == [
        "fake_quantize",
        "linear",
        "gelu",
        "fake_quantize",
        "linear",
        "tanh",
        "fake_quantize",
        "linear",
    ]
    assert "fake_quantize(f32[40, 72], f32[40, 3], i32[], quant_min=0, quant_max=15, axis=1, block=32)" in str(graph)
    assert apply(QuantizeWeights(), graph) == []


@pytest.mark.thorough
def test_products_with_a_constant_matrix_become_linear_layers() -> None:
    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.bias = nn.Parameter(torch.randn(16, 12)), nn.Parameter(torch.randn(12))
            self.second, self.third = nn.Parameter(torch.randn(12, 8)), nn.Parameter(torch.randn(8, 4))

        def forward(self, x: Tensor) -> Tensor:
            y = torch.mm(torch.addmm(self.bias, x, self.first).relu(), self.second)
            return torch.matmul(y.reshape(-1, 1, 8), self.third)

    model, x = Products(), torch.randn(5, 16)
    graph = quantized(model, x, by=QuantizeWeights(8, block=16))
    assert names(graph).count("linear") == 3
    assert {n: tuple(p.shape) for n, p in graph.named_parameters()}["first"] == (12, 16)
    assert_close(graph(x), model(x), 0.03)
    assert_close(lower(graph, EXACT)(x), graph(x))


def test_a_product_of_two_values_stays_what_it_is() -> None:
    model = Model(lambda m, x: m.head(x) @ x.transpose(1, 2), head=nn.Linear(8, 8))
    assert "matmul" in names(quantized(model, torch.randn(2, 4, 8)))


def test_layers_are_chosen_by_name() -> None:
    graph = quantized(perceptron(), tokens(), by=QuantizeWeights(layers={"4": None, "2.weight": 8}))
    last = {str(n.args[0].target): n.args[4] for n in graph.calls(FAKE_QUANTIZE)}
    assert last == {"0.weight": 15, "2.weight": 255}


@pytest.mark.thorough
def test_a_shared_weight_is_stored_once() -> None:
    layer = nn.Linear(64, 64)
    model = Model(lambda m, x: m.layer(m.layer(x).relu()), layer=layer)
    graph = quantized(model, tokens(features=64))
    assert len(graph.calls(FAKE_QUANTIZE)) == 2
    assert deployed_bytes(graph) == 64 * 64 // 2 + 64 * 2 * 4 + 64 * 4
    artifact, x = lower(graph, EXACT), tokens(features=64)
    assert_close(artifact(x), graph(x))
    assert len(onnx.load(str(artifact.folder / MODEL)).graph.initializer) == 3


@pytest.mark.thorough
def test_weights_stay_trainable_and_are_saved(tmp_path: Path) -> None:
    graph, x = quantized(perceptron(), tokens()), tokens()
    assert "0.weight" in dict(graph.named_parameters())
    graph(x).square().sum().backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in graph.parameters())
    graph.save(tmp_path / "graph.pt2")
    again = Graph.load(tmp_path / "graph.pt2")
    assert torch.equal(again(x), graph(x))
    assert str(again) == str(graph)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"bits": 3}, "have 2, 4, 8 bits in ONNX Runtime, got 3"),
        ({"block": 48}, "4-bit weights come in blocks of 16, 32, 64, 128, 256, got 48"),
        ({"bits": 2, "block": 16}, "2-bit weights come in blocks of 32, 64, 128, got 16"),
        ({"layers": {"head": 5}}, "got 5"),
        ({"estimator": "entropy"}, "minmax, mse"),
    ],
)
def test_formats_without_a_kernel_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantizeWeights(**options)  # type: ignore[arg-type]


def test_mistakes_are_named() -> None:
    graph = capture(perceptron(), tokens())
    with pytest.raises(InputError, match=r"'haed' matches no linear layer; their weights are 0.weight, 2.weight"):
        QuantizeWeights(layers={"haed": None})(graph)
    assert QuantizeWeights()(capture(nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8))) == []
    broken = perceptron()
    with torch.no_grad():
        broken[2].weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"2\.weight"):
        QuantizeWeights()(capture(broken, tokens()))
    with pytest.raises(InputError, match="block_products"):
        X86.replace(block_products="int4")  # type: ignore[arg-type]


# ---- The artifact ---------------------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("bits, block, symmetric", [(2, 64, True), (4, 16, True), (4, 32, False), (8, 32, False)])
def test_the_artifact_answers_what_the_graph_answers(bits: int, block: int, symmetric: bool) -> None:
    graph = quantized(perceptron(), tokens(), by=QuantizeWeights(bits, block, symmetric))
    exact, fast = lower(graph, EXACT), lower(graph, X86)
    for x in (tokens(1), tokens(5)):
        assert_close(exact(x), graph(x), 1e-5)
        assert cost.sqnr(graph(x).detach(), fast(x)) > 30


@pytest.mark.thorough
def test_rows_and_vectors_are_taken_as_well() -> None:
    for x in (torch.randn(4, 24), torch.randn(2, 3, 5, 24)):
        graph = quantized(nn.Linear(24, 8), x)
        assert_close(lower(graph, EXACT)(x), graph(x), 1e-5)


def test_the_file_is_as_small_as_its_codes_and_scales() -> None:
    model, x = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512)), torch.randn(1, 512)
    graph = quantized(model, x)
    codes = 2 * (512 * 512 // 2 + 512 * 16 * 4 + 512 * 4)
    assert deployed_bytes(graph) == codes
    artifact = lower(graph, X86)
    assert codes < (artifact.folder / MODEL).stat().st_size < codes + 4000
    assert cost.parameters(deploy(graph)) == cost.parameters(graph) == 2 * (512 * 512 + 512)


@pytest.mark.thorough
def test_the_audit_counts_them_as_neither_integer_nor_float() -> None:
    graph = quantized(perceptron(), tokens(), by=QuantizeWeights(layers={"2": 8, "4": None}))
    found = audit(lower(graph, X86))
    assert found.weight_only == ["0", "2"]
    assert found.weight_only_macs == {4: 7 * 72 * 40, 8: 7 * 40 * 24}
    assert found.integer_macs == 0
    assert "MatMulNBits" not in {f.operator for f in found.floating}
    assert sum(found.weight_only_shares.values()) == pytest.approx(1 - 7 * 24 * 5 / found.total_macs)


@pytest.mark.thorough
def test_convolutions_are_integer_beside_them() -> None:
    model = Model(
        lambda m, x: m.head(m.mix(m.conv(x).relu().mean((2, 3))).tanh()), conv=nn.Conv2d(3, 16, 3), mix=nn.Linear(16, 32),
        head=nn.Linear(32, 5),
    )  # fmt: skip
    x = torch.randn(4, 3, 12, 12)
    here, float_head = target_of("x86"), {"mix": None, "head": None}
    for passes in (
        [QuantizeWeights(), Quantize(here, [[x]])],
        [Quantize(here, [[x]], formats=float_head), QuantizeWeights()],
    ):
        graph = capture(model, x)
        for transform in passes:
            assert apply(transform, graph)
        assert apply(passes[0], graph) == apply(passes[1], graph) == []
        artifact = lower(graph, EXACT)
        found = audit(artifact)
        assert found.integer == ["conv"]
        assert found.weight_only == ["mix", "head"]
        assert cost.sqnr(graph(x).detach(), artifact(x)) > 35
        assert cost.sqnr(simulate(graph, EXACT, machine_here())(x), artifact(x)) > 100


def test_there_is_nothing_to_simulate_where_only_weights_are_quantized() -> None:
    with pytest.raises(InputError, match="values stay float"):
        graphopt.simulate(quantized(perceptron(), tokens()), X86)
