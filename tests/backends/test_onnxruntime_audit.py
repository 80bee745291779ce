"""The audit of an artifact: what ONNX Runtime computes in integer, and what stays float."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from blocks import BLOCKS, conv, images, lowered, simulated
from onnx_files import X86, file, operators, quantized
from rewriting import Model, assert_close, capture
from torch import nn

import graphopt
from graphopt.backends.onnxruntime import Audit, audit, lower
from graphopt.targets import machine_here


@pytest.mark.thorough
@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_is_integer_from_end_to_end(block: str) -> None:
    found = audit(lowered(block, "x86").artifact)
    assert found.floating == []
    assert found.share == 1.0
    assert found.integer_macs == found.total_macs > 0


@pytest.mark.thorough
def test_global_average_pooling_has_its_integer_kernel() -> None:
    assert "GlobalAveragePool" in operators(file(lowered("residual", "x86").artifact))
    assert "ReduceMean" not in operators(file(lowered("squeeze-excite linear", "x86").artifact))
    assert audit(lowered("residual", "x86").artifact).operators["QLinearGlobalAveragePool"] == 1


@pytest.mark.thorough
def test_a_convolution_without_bias_is_integer() -> None:
    layers = [
        conv(3, 8),
        nn.ReLU(),
        conv(8, 8, bias=False),
        nn.AvgPool2d(2),
        conv(8, 4, groups=4, bias=False),
        conv(4, 4),
    ]
    found = audit(lower(simulated(nn.Sequential(*layers), X86), X86))
    assert found.floating == []
    assert found.integer == ["0", "2", "4", "5"]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (lambda m, x: F.adaptive_avg_pool2d(x, 1), "ReduceMean"),
        (lambda m, x: F.adaptive_avg_pool2d(F.relu(m.conv(x)), 1), "GlobalAveragePool"),
        (lambda m, x: F.adaptive_avg_pool2d(torch.cat([m.conv(x).sigmoid(), m.conv(x)], 1), 1), "GlobalAveragePool"),
    ],
)
def test_a_float_pool_reads_blocks_of_channels_only_where_a_convolution_left_them(body: Any, kind: str) -> None:
    model = Model(body, conv=conv(3, 8)).eval()
    artifact, x = lower(capture(model, images(2)), X86), images(5)
    assert {"ReduceMean", "GlobalAveragePool"} & set(operators(file(artifact))) == {kind}
    assert_close(artifact(x), model(x), 1e-5)


@pytest.mark.thorough
def test_a_layer_left_in_float_is_named_with_its_work() -> None:
    model = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), conv(8, 4)).eval()
    graph = quantized(model, images(2), formats={"2": None})
    found = audit(lower(graph, X86))
    assert [f.site for f in found.floating] == ["2"]
    assert found.floating[0].macs == 8 * 8 * 9 * 64
    assert found.integer == ["0", "4"]
    assert found.share == pytest.approx(1 - found.floating[0].macs / found.total_macs)


def test_an_empty_audit_has_no_share() -> None:
    assert Audit().share == 0.0


@pytest.mark.parametrize("target", ["x86", "arm"])
@pytest.mark.parametrize("shape", [(3, 16), (3, 5, 16)])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_layers_without_a_bias_count_as_those_with_one(target: str, shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Linear(16, 16, bias=bias), nn.ReLU(), nn.Linear(16, 8, bias=bias)).eval(),
        torch.randn(shape),
    )
    done = graphopt.optimize(model, x, target=target, calibration=x, measure=False)
    found = audit(done.artifact)
    assert found.integer == ["0", "2"]
    assert found.share == 1
    simulation = graphopt.simulate(done.graph, target, machine=machine_here())
    assert not [m for m in simulation.mismatches(done.artifact, x) if m.differing]
