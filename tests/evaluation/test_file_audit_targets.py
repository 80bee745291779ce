"""Audits of files that others made: each target judges by kernels of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from blocks import images, lowered
from file_auditing import IMAGE, rules, spatial_mean
from qdq import Body, File, residual

import graphopt
from graphopt.backends.onnxruntime import audit as audit_artifact
from graphopt.targets import machine_here


def test_signed_codes_are_an_island_on_x86_and_none_on_arm(tmp_path: Path) -> None:
    f = File(*IMAGE)
    path = f.save(tmp_path / "model.onnx", residual(f, f.on_grid("x")))
    assert graphopt.audit(path, "x86").share < 1
    arm = graphopt.audit(path, "arm")
    assert (arm.share, arm.float_regions) == (1.0, [])
    assert "64-bit ARM" in arm.how


def test_a_cure_says_which_layers_saturate_without_vnni(tmp_path: Path) -> None:
    """Signed values are exact there, as they stay in float; the unsigned ones of the fix are not."""
    f = File(*IMAGE, weight_bits=8)
    found = graphopt.audit(f.save(tmp_path / "model.onnx", residual(f, f.on_grid("x"))), "x86-avx2")
    done = found.fix(tmp_path / "fixed.onnx", measure=False)
    convolutions = [n.name for n in onnx.load(tmp_path / "model.onnx").graph.node if n.op_type == "Conv"]
    assert len(found.saturating) < len(convolutions)
    assert done.after.saturating == convolutions
    assert "2 layers can saturate on CPUs without VNNI" in str(done)
    assert done.to_dict()["after"]["saturating"] == convolutions
    assert all(name in str(graphopt.audit(tmp_path / "fixed.onnx", "x86-avx2")) for name in convolutions)
    here = convolutions if machine_here() == "avx2" else []
    assert graphopt.audit(tmp_path / "fixed.onnx", "x86").saturating == here
    assert graphopt.audit(tmp_path / "fixed.onnx", "arm").saturating == []


def depthwise(f: File, x: str) -> str:
    return f.on_grid(f.op("Conv", x, f.weight(4, 1, 3, 3), group=4))


def products(f: File, x: str) -> str:
    return f.on_grid(f.op("MatMul", x, f.weight(8, 6)))


def convolution(f: File, x: str) -> str:
    return f.on_grid(f.conv(x))


def linear(f: File, x: str) -> str:
    return f.on_grid(f.op("Gemm", f.on_grid(f.op("Flatten", x)), f.weight(256, 5), f.bias(5)))


def linear_transposed(f: File, x: str) -> str:
    return f.on_grid(f.op("Gemm", f.on_grid(f.op("Flatten", x)), f.weight(5, 256), f.bias(5), transB=1))


@pytest.mark.parametrize(
    ("body", "bits", "saturates"),
    [
        (convolution, 8, True),
        (products, 8, True),
        (linear, 8, True),
        (linear_transposed, 8, True),
        (depthwise, 8, False),
        (convolution, 7, False),
        (linear, 7, False),
    ],
)
def test_layers_saturate_that_add_pairs_of_wide_products(
    body: Body, bits: int, saturates: bool, tmp_path: Path
) -> None:
    f = File(*IMAGE, dtype=np.uint8, weight_bits=bits)
    found = graphopt.audit(f.save(tmp_path / "model.onnx", body(f, f.on_grid("x"))), "x86-avx2")
    assert found.share == 1.0
    assert bool(found.saturating) == saturates
    assert ("VNNI" in str(found)) == saturates


def test_neighbours_of_a_pair_are_channels_of_one_place(tmp_path: Path) -> None:
    """Large weights in every second channel have a small neighbour, those of one place have not."""
    for row, saturates in (([127, 1, 127, 1], False), ([127, 127, 1, 1], True), ([127, -127, 127, -127], False)):
        f = File(*IMAGE, dtype=np.uint8)
        codes = np.tile(np.reshape(row, (1, 4, 1, 1)), (4, 1, 3, 3))
        weight = f.op("DequantizeLinear", f.constant(codes, np.int8), f.constant(0.01), f.constant(0, np.int8))
        path = f.save(tmp_path / "model.onnx", f.on_grid(f.op("Conv", f.on_grid("x"), weight)))
        assert bool(graphopt.audit(path, "x86-avx2").saturating) == saturates


def test_vendors_hardware_is_judged_by_what_quantizers_declare(tmp_path: Path) -> None:
    f = File(*IMAGE)
    path = f.save(tmp_path / "model.onnx", spatial_mean(f, f.on_grid("x")))
    found = graphopt.audit(path, "nvidia")
    assert rules(found) == ["reduce-mean"]
    assert "declare" in found.how
    done = found.fix(tmp_path / "fixed.onnx")
    assert done.after.float_regions == []
    assert done.milliseconds is None
    assert "not measured" in done.note


@pytest.mark.thorough
def test_a_file_and_an_artifact_are_read_alike() -> None:
    artifact = lowered("residual", "x86").artifact
    ours, anyones = audit_artifact(artifact), graphopt.audit(artifact.folder, "x86", shapes=[images(1).shape])
    assert anyones.share == ours.share == 1.0
    assert anyones.operators["QGemm"] == ours.operators["QGemm"]
    assert anyones.float_regions == []
