"""Audits of files that others made: every reason is found where it was planted, and every fix answers the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from file_auditing import IMAGE, example, float_between, rules, spatial_mean
from qdq import Body, File, after_conv, dropped_mean, residual, symmetric_relu
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import graphopt
from graphopt.targets import machine_here

HERE = "x86-avx2" if machine_here() == "avx2" else "x86"  # of these two, whose kernels answer here


def answer(path: Path, x: Any, *, exact: bool = False) -> Any:
    """What ONNX Runtime computes; `exact`: as the file says, without rewriting."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if exact:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def moves_in_float(f: File, x: str) -> str:
    pooled = f.op("MaxPool", f.op("Relu", f.conv(x)), kernel_shape=[2, 2], strides=[2, 2])
    # Another fix makes the pool's grid begin at zero, in half its steps: its values move by 3/4 of a step at most, times the
    # weights, of which no 36 add up to more than 0.6.
    return f.on_grid(f.conv(f.on_grid(pooled), step=1 / 4000))


def average_without_quantizer(f: File, x: str) -> str:
    return f.on_grid(f.op("Conv", f.op("GlobalAveragePool", f.on_grid(f.conv(x))), f.weight(4, 4, 1, 1)))


def gate_without_quantizer(f: File, x: str) -> str:
    y = f.on_grid(f.conv(x))
    return f.on_grid(f.op("Mul", y, f.op("Sigmoid", y)))


def float_weight(f: File, x: str) -> str:
    return f.on_grid(f.op("Conv", x, f.constant(f.random(4, 4, 3, 3) * 0.3), f.bias(4), pads=[1, 1, 1, 1]))


def float_bias(f: File, x: str) -> str:
    bias = f.constant(f.random(4) * 0.1)
    return f.on_grid(f.op("Conv", x, f.weight(4, 4, 3, 3, axis=0), bias, pads=[1, 1, 1, 1]))


def bias_on_another_grid(f: File, x: str) -> str:
    return f.on_grid(f.op("Conv", x, f.weight(4, 4, 3, 3), f.bias(4, 0.001), pads=[1, 1, 1, 1]))


def constant_behind_matmul(f: File, x: str) -> str:
    return f.on_grid(f.op("Add", f.op("MatMul", x, f.weight(8, 6)), f.constant(f.random(6))), 0.05)


def split_activation(f: File, x: str) -> str:
    return f.on_grid(f.conv(f.on_grid(f.op("Relu", f.on_grid(f.conv(x))), 0.01, -128)))


def read_both_ways(f: File, x: str) -> str:
    y = f.conv(x)
    return f.on_grid(f.op("Add", f.on_grid(f.conv(f.on_grid(y, 0.15))), y), 0.06)


def mixed_signs(f: File, x: str) -> str:
    y = f.on_grid(f.conv(x), dtype=np.uint8)
    return f.on_grid(f.op("Add", y, x), 0.06)


def float_answer(f: File, x: str) -> str:
    return f.conv(x)


CURED: dict[str, tuple[str, Body, str, float]] = {
    # rule, file, fix, largest difference in steps of the answer
    "signed values with several readers": ("signed-values", residual, "signs", 1),
    "types that differ": ("mixed-signs", mixed_signs, "signs", 1),
    "a mean that keeps its dimensions": ("reduce-mean", spatial_mean, "means", 1),
    "a mean that drops its dimensions": ("reduce-mean", dropped_mean, "means", 1),
    "hard-swish": ("no-kernel", after_conv("HardSwish"), "gates", 3),
    "hard-sigmoid": ("no-kernel", after_conv("HardSigmoid", 1 / 127, alpha=1 / 6), "gates", 1),
    "hard-sigmoid with other numbers": (
        "no-kernel",
        after_conv("HardSigmoid", 1 / 127, alpha=0.3, beta=0.4),
        "gates",
        1,
    ),
    "swish": ("no-kernel", after_conv("Swish"), "gates", 3),
    "tanh": ("no-kernel", after_conv("Tanh", 1 / 127), "gates", 1),
    "a move in front of its quantizer": ("no-quantizer", moves_in_float, "moves", 1),
    "an average that nothing quantizes again": ("no-quantizer", average_without_quantizer, "moves", 1),
    "a sigmoid without quantizer": ("no-quantizer", gate_without_quantizer, "moves", 1),
    "a float weight": ("float-weight", float_weight, "weights", 2),
    "a bias on another grid": ("bias", bias_on_another_grid, "biases", 1),
    "a constant behind a product": ("bias-behind-matmul", constant_behind_matmul, "sums", 1),
    "an activation apart from its layer": ("split-activation", split_activation, "splits", 1),
    "a grid with codes for what an activation never gives": ("activation-grid", symmetric_relu, "ends", 1),
    "a value read as codes and as floats": ("read-in-float", read_both_ways, "readers", 3),
    "a result in float": ("no-quantizer", float_between, "ranges", 4),
}


@pytest.mark.parametrize("case", CURED)
def test_a_planted_reason_is_found_and_its_cure_answers_the_same(case: str, tmp_path: Path) -> None:
    rule, body, fix, steps = CURED[case]
    shape = (1, 3, 8) if "product" in case else IMAGE
    dtype = np.uint8 if fix in ("weights", "biases", "moves", "sums", "ranges", "readers") else np.int8
    f = File("batch", *shape[1:], dtype=dtype, opset=24 if case == "swish" else 21)
    path = f.save(tmp_path / "model.onnx", body(f, f.on_grid("x")))
    found = graphopt.audit(path, HERE)
    assert rule in rules(found)
    assert fix in {reason.fix for region in found.float_regions for reason in region.reasons}
    calibration = [example(*shape, seed=s) for s in range(20)] if fix == "ranges" else None
    x = example(*shape)
    done = found.fix(tmp_path / "fixed.onnx", calibration=calibration, example=x, measure=False)
    assert fix in {name for name, _ in done.applied}
    assert rules(done.after) == []
    assert done.after.share == 1.0 or done.after.total_macs == 0
    assert done.after.conversions <= found.conversions
    ((largest, unit),) = done.difference.values()
    assert unit == "steps"
    assert largest <= steps + 1e-3
    truth, now = answer(path, x, exact=True), answer(tmp_path / "fixed.onnx", x)
    assert np.abs(truth - now).max() <= (steps + 1.001) * 0.06


def partial_mean(f: File, x: str) -> str:
    return f.on_grid(f.op("ReduceMean", f.on_grid(f.conv(x)), f.constant([3], np.int64)))


def batch_norm(f: File, x: str) -> str:
    numbers = [f.constant(np.abs(f.random(4)) + 0.5) for _ in range(4)]
    return f.on_grid(f.op("BatchNormalization", f.on_grid(f.conv(x)), *numbers))


def wide(f: File, x: str) -> str:
    return f.on_grid(f.conv(f.on_grid(f.conv(x), 1e-4, dtype=np.uint16)))


def other_axis(f: File, x: str) -> str:
    return f.on_grid(f.op("Gemm", f.on_grid(f.op("Flatten", x)), f.weight(256, 5, axis=0)))


def moved_to_another_grid(f: File, x: str) -> str:
    pooled = f.op("MaxPool", f.on_grid(f.conv(x)), kernel_shape=[2, 2])
    return f.on_grid(f.conv(f.on_grid(pooled, 0.02)))


def rounded_twice(f: File, x: str) -> str:
    y = f.on_grid(f.conv(x))
    return f.on_grid(f.op("Add", f.conv(f.on_grid(y, 0.05)), y))


def run_time_scale(f: File, x: str) -> str:
    scale = f.op("Reciprocal", f.op("ReduceMax", f.op("Abs", "x"), keepdims=0))
    point = f.constant(128, np.uint8)
    codes = f.op("QuantizeLinear", f.conv(x), scale, point)
    return f.on_grid(f.conv(f.op("DequantizeLinear", codes, scale, point)))


def values_per_channel(f: File, x: str) -> str:
    grid = f.constant([0.02, 0.03, 0.04, 0.05]), f.constant([128] * 4, np.uint8)
    codes = f.op("QuantizeLinear", f.conv(x), *grid, axis=1)
    return f.on_grid(f.conv(f.op("DequantizeLinear", codes, *grid, axis=1)))


INCURABLE: dict[str, Body] = {
    "reduce-mean": partial_mean,
    "no-kernel": after_conv("Gelu"),
    "batch-norm": batch_norm,
    "16-bit": wide,
    "per-channel-weights": other_axis,
    "per-channel-values": values_per_channel,
    "moved-grid": moved_to_another_grid,
    "rounded-twice": rounded_twice,
    "dynamic": run_time_scale,
    "answer": float_answer,
}


@pytest.mark.parametrize("rule", INCURABLE)
def test_what_no_rewrite_cures_is_named_with_what_to_do(rule: str, tmp_path: Path) -> None:
    f = File(*IMAGE, dtype=np.uint8)
    found = graphopt.audit(f.save(tmp_path / "model.onnx", INCURABLE[rule](f, f.on_grid("x"))), "x86")
    reasons = [reason for region in found.float_regions for reason in region.reasons if reason.rule == rule]
    assert reasons
    assert reasons[0].remedy
    assert not reasons[0].fix or reasons[0].fix == "ranges"
    assert f"[{rule}]" in str(found)


def test_unsigned_weights_beside_signed_values_are_named_on_arm(tmp_path: Path) -> None:
    f = File(*IMAGE, dtype=np.int8)
    x = f.on_grid("x")
    codes = f.constant(f.generator.integers(0, 128, (4, 4, 3, 3)), np.uint8)
    weight = f.op("DequantizeLinear", codes, f.constant(0.01), f.constant(64, np.uint8))
    path = f.save(tmp_path / "model.onnx", f.on_grid(f.op("Conv", x, weight, pads=[1, 1, 1, 1])))
    found = graphopt.audit(path, "arm")
    assert found.share == 0
    (reason,) = [reason for region in found.float_regions for reason in region.reasons]
    assert (reason.rule, "uint8 weights" in reason.why, "int8, 128 codes lower" in reason.remedy) == (
        "mixed-signs", True, True,
    )  # fmt: skip


def test_a_file_that_is_integer_throughout_has_no_island_and_nothing_to_cure(tmp_path: Path) -> None:
    f = File(*IMAGE, dtype=np.uint8)
    found = graphopt.audit(f.save(tmp_path / "model.onnx", residual(f, f.on_grid("x"))), "x86")
    assert (found.float_regions, found.share, found.conversions) == ([], 1.0, 2)
    done = found.fix(tmp_path / "fixed.onnx", measure=False)
    assert done.applied == []
    assert "nothing to fix" in str(done)


def test_operators_without_names_are_told_apart(tmp_path: Path) -> None:
    f = File(*IMAGE)
    path = f.save(tmp_path / "model.onnx", spatial_mean(f, f.on_grid("x")))
    known = graphopt.audit(path, "x86")
    model = onnx.load(path)
    for node in model.graph.node:
        node.name = ""
    onnx.save(model, tmp_path / "nameless.onnx")
    found = graphopt.audit(tmp_path / "nameless.onnx", "x86")
    assert (found.integer_macs, found.total_macs) == (known.integer_macs, known.total_macs)
    assert rules(found) == rules(known)


@pytest.mark.thorough
def test_work_is_counted_as_torch_counts_it(tmp_path: Path) -> None:
    layers = [
        nn.Conv2d(4, 8, 3, 2, groups=2),
        nn.ConvTranspose2d(8, 6, 3, 2, groups=2),
        nn.Flatten(2),
        nn.Linear(49, 5),
    ]
    model = nn.Sequential(*layers).eval()
    torch.onnx.export(model, (torch.randn(IMAGE),), str(tmp_path / "m.onnx"), dynamo=True, verbose=False)
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(IMAGE))
    assert graphopt.audit(tmp_path / "m.onnx", "x86").total_macs == counter.get_total_flops() // 2


def test_codes_are_shifted_bit_for_bit(tmp_path: Path) -> None:
    f = File(*IMAGE)
    path = f.save(tmp_path / "model.onnx", residual(f, f.on_grid("x", 0.03, -7)))
    graphopt.audit(path, "x86").fix(tmp_path / "fixed.onnx", measure=False)
    x = example(*IMAGE)
    assert np.array_equal(answer(path, x, exact=True), answer(tmp_path / "fixed.onnx", x, exact=True))


def test_integer_operators_are_read_and_cured_too(tmp_path: Path) -> None:
    f = File(*IMAGE)
    codes, scale, zero = f.quantize("x"), f.constant(0.03), f.constant(0, np.int8)
    padded = f.op("Pad", codes, f.constant([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
    weight = f.constant(f.generator.integers(-90, 90, (4, 4, 3, 3)), np.int8), f.constant(0.01), f.constant(0, np.int8)
    layer = f.op("QLinearConv", padded, scale, zero, *weight, scale, zero)
    total = f.op("QLinearAdd", layer, scale, zero, codes, scale, zero, scale, zero, domain="com.microsoft")
    path = f.save(tmp_path / "model.onnx", f.dequantize(total))
    found = graphopt.audit(path, "x86")
    assert found.share == 1.0
    assert found.total_macs == 64 * 4 * 4 * 9
    done = found.fix(tmp_path / "fixed.onnx", measure=False)
    assert {name for name, _ in done.applied} == {"signs"}
    points = {t.name: t for t in onnx.load(tmp_path / "fixed.onnx").graph.initializer}
    fixed = next(n for n in onnx.load(tmp_path / "fixed.onnx").graph.node if n.op_type == "QLinearAdd")
    assert points[fixed.input[2]].data_type == onnx.TensorProto.UINT8
    x = example(*IMAGE)
    assert np.array_equal(answer(path, x, exact=True), answer(tmp_path / "fixed.onnx", x, exact=True))


@pytest.mark.thorough
def test_a_float_file_says_so_and_is_quantized_where_there_is_data(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)).eval()
    torch.onnx.export(model, (torch.randn(IMAGE),), str(tmp_path / "float.onnx"), dynamo=True, verbose=False)
    found = graphopt.audit(tmp_path / "float.onnx", HERE)
    assert found.share == 0
    assert found.total_macs == 8 * 36 * 36 + 288 * 5
    assert rules(found)[0] == "not-quantized"
    done = found.fix(tmp_path / "int8.onnx", calibration=[torch.randn(IMAGE) for _ in range(20)], measure=False)
    assert done.after.share == 1.0
    ((largest, unit),) = done.difference.values()
    assert unit == "of the largest value"
    assert largest < 0.05


def test_a_float_bias_becomes_what_the_kernel_adds(tmp_path: Path) -> None:
    """The runtime of today does it by itself when it loads the file; that of yesterday leaves the layer in float."""
    f = File(*IMAGE, dtype=np.uint8)
    path = f.save(tmp_path / "model.onnx", float_bias(f, f.on_grid("x")))
    done = graphopt.audit(path, "x86").fix(tmp_path / "fixed.onnx", measure=False)
    assert [name for name, _ in done.applied] == ["biases"]
    assert done.after.share == 1.0
    stored = [t for t in onnx.load(tmp_path / "fixed.onnx").graph.initializer if t.data_type == onnx.TensorProto.INT32]
    assert len(stored) == 2  # codes and zero points
    x = example(*IMAGE)
    assert np.abs(answer(path, x, exact=True) - answer(tmp_path / "fixed.onnx", x)).max() <= 0.0301


def test_products_of_tokens_become_gemm(tmp_path: Path) -> None:
    f = File(2, 3, 8, dtype=np.uint8)
    path = f.save(tmp_path / "model.onnx", constant_behind_matmul(f, f.on_grid("x")))
    done = graphopt.audit(path, "x86").fix(tmp_path / "fixed.onnx", measure=False)
    assert done.before.total_macs == done.after.total_macs == 2 * 3 * 8 * 6
    assert done.after.share == 1.0
    x = example(2, 3, 8)
    assert np.abs(answer(path, x) - answer(tmp_path / "fixed.onnx", x)).max() <= 0.0501
