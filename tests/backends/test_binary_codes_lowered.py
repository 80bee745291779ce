"""Binary codes on the runtimes: bytes equal to the graph's, where arithmetic is integer in every bit."""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from blocks import target_of
from rewriting import capture
from torch import Tensor, nn

import graphopt
from graphopt.backends.onnxruntime import lower
from graphopt.execution.executor import Executor
from graphopt.ir.graph import Graph
from graphopt.ir.packed_bits import packed_outputs
from graphopt.passes import BinaryCodes, FoldBatchNorm, Quantize, Simplify
from graphopt.passmanager import run

needs_tvm = pytest.mark.skipif(importlib.util.find_spec("tvm") is None, reason="the TVM backend needs graphopt[tvm]")
BITS = 24
TARGETS = [("x86", 50), pytest.param("tvm-x86", 1, marks=[pytest.mark.thorough, needs_tvm])]  # and samples at a call


class Features(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.norm, self.conv2 = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 40, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(torch.relu(self.norm(self.conv1(x)))).mean((2, 3))


def images(count: int, seed: int = 0) -> Tensor:
    coarse = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, size=10, mode="bilinear")


@cache
def coded(method: Any) -> Graph:
    graph = capture(Features(), images(2))
    run(
        [Simplify(), FoldBatchNorm(), BinaryCodes(BITS, [[part] for part in images(256).split(64)], method=method)],
        graph,
    )
    return graph


def lowered(graph: Graph, target: str) -> Any:
    if not target.startswith("tvm"):
        return lower(graph, target_of(target))
    from tvm_lowering import lower_through_tvm

    return lower_through_tvm(graph, target_of(target))


def answers(artifact: Any, x: Tensor, batch: int) -> Tensor:
    return torch.cat([torch.as_tensor(artifact(part)) for part in x.split(batch)])


@pytest.mark.parametrize("method", ["itq", "median"])
@pytest.mark.parametrize(("target", "batch"), TARGETS)
def test_integer_networks_give_the_bytes_of_their_simulation(target: str, batch: int, method: Any) -> None:
    graph, x = coded(method).clone(), images(100, 5)
    run([Quantize(target_of(target), [[images(256)]])], graph)
    artifact = lowered(graph, target)
    found = answers(artifact, x, batch)
    assert found.dtype == torch.uint8
    assert found.shape == (100, BITS // 8)
    assert torch.equal(found, graphopt.simulate(graph, target_of(target))(x))
    bits = np.unpackbits(found.numpy(), axis=1).mean(0)
    assert ((bits > 0.05) & (bits < 0.95)).all()


@pytest.mark.parametrize("method", ["itq", "median"])
@pytest.mark.parametrize(("target", "batch"), TARGETS)
def test_float_networks_give_the_bits_of_the_graph(target: str, batch: int, method: Any) -> None:
    """Sums in another order move scores by some 1e-6; a bit may differ where its score is as small, and nowhere else."""
    graph, x = coded(method), images(100, 5)
    (output,) = packed_outputs(graph)
    scores = Executor(graph).run([output.scores], [x])[output.scores]
    found, wanted = (
        np.unpackbits(each.numpy(), axis=1) for each in (answers(lowered(graph, target), x, batch), graph(x))
    )
    assert (wanted == (scores.numpy() > 0)).all()
    sure = np.abs(scores.numpy()) > 1e-5 * np.abs(scores.numpy()).max()
    assert (found == wanted)[sure].all()
    assert sure.mean() > 0.999


def test_optimize_reports_what_it_can_and_says_why_the_rest_is_missing() -> None:
    def passes(target: Any, data: Any) -> list[Any]:
        return [Simplify(), FoldBatchNorm(), BinaryCodes(BITS, data), Quantize(target, data)]

    done = graphopt.optimize(
        Features().eval(), images(1), target="x86", calibration=images(128), passes=passes, measure=False
    )
    assert torch.as_tensor(done.artifact(images(3))).shape == (3, BITS // 8)
    assert done.report.sqnr_db is None
    assert [step.sqnr_db is None for step in done.report.steps if step.name != "(original)"] == [
        False,
        False,
        True,
        True,
        True,
    ]
    assert "in the place of the original's outputs" in done.report.missing["agreement"]
    assert done.report.integer_macs is not None
    assert done.report.integer_macs > 0.9
