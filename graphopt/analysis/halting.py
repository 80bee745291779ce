"""Stages that stop where a sample, or a position, has had enough of their blocks (adaptive computation time).

    r_0 = 1,  r_l = r_(l-1) - h_l               h_l: what a head says behind block l, from 0 to 1
    block l + 1 runs where r_l > epsilon
    y = sum over l of p_l x_l                   p_l = h_l where block l + 1 runs, r_(l-1) where block l is the last, 0 behind it

What is computed for a sample costs the number of blocks that ran, and the remainder p of the last: the ponder cost.
`graphopt.passes.AddHalting` makes them.

Graves 2016, "Adaptive Computation Time for Recurrent Neural Networks"; Figurnov et al. 2017, "Spatially Adaptive Computation Time
for Residual Networks", section 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.execution.executor import Executor
from graphopt.ir.facts import HALTING
from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten
from graphopt.ir.quantizers import is_quantizer
from graphopt.utils.errors import InputError


class HaltingStage(NamedTuple):
    """Attributes:
    name: of the module of its first block. rests: r_1, r_2, ... of each block but the last, [N, 1] or of positions.
    threshold: epsilon. positions: whether each position stops by itself.
    """

    name: str
    rests: list[Node]
    threshold: float
    positions: bool

    def blocks(self, values: Mapping[Node, Any]) -> Tensor:
        """How many blocks run, as [N, 1] or for each position, float."""
        return 1 + torch.stack([(values[rest] > self.threshold).to(values[rest].dtype) for rest in self.rests]).sum(0)

    def remainder(self, values: Mapping[Node, Any]) -> Tensor:
        """p of the last block that ran, of the same shape; differentiable."""
        before = [torch.ones_like(values[self.rests[0]]), *(values[rest] for rest in self.rests)]
        runs = [torch.ones_like(before[0], dtype=torch.bool), *(value > self.threshold for value in before[1:])]
        last = [now & ~behind for now, behind in zip(runs, [*runs[1:], torch.zeros_like(runs[0])], strict=True)]
        return torch.stack([torch.where(each, rest, 0) for each, rest in zip(last, before, strict=True)]).sum(0)


def halting_stages(graph: Graph) -> list[HaltingStage]:
    """The stages of a graph that stop early, in execution order."""
    found: dict[str, list[Node]] = {}
    for node in graph.calls():
        if (name := graph.fact(node, HALTING)) is not None:
            found.setdefault(name, []).append(node)
    return [_stage(name, rests) for name, rests in found.items()]


def _stage(name: str, rests: list[Node]) -> HaltingStage:
    tests = [_test(rest) for rest in rests]
    compared: list[Node] = [test.args[0] for test in tests]  # type: ignore[misc]
    return HaltingStage(name, compared, float(tests[0].args[1]), rests[0].meta["val"].dim() > 2)  # type: ignore[arg-type]


def _test(rest: Node) -> Node:
    """Whether the next block runs; quantizers may be in between."""
    todo = [rest]
    for node in todo:
        for reader in node.users:
            if reader.target is aten.gt.Scalar:
                return reader
            todo += [reader] if is_quantizer(reader) else []
    raise AssertionError("something is always compared with the threshold")


def blocks_run(graph: Graph, data: Iterable[list[Tensor]]) -> dict[str, float]:
    """How many blocks of each stage run in the mean over samples, and positions.

    Args:
        data: batches of input tensors.

    Raises:
        InputError: the graph has no such stages, or the data are empty.
    """
    stages = halting_stages(graph)
    if not stages:
        raise InputError("no stage of the graph stops early; apply graphopt.passes.AddHalting first")
    executor, totals, count = Executor(graph), dict.fromkeys((stage.name for stage in stages), 0.0), 0
    wanted = [rest for stage in stages for rest in stage.rests]
    with torch.no_grad():
        for batch in data:
            values = executor.run(wanted, batch)
            size = len(values[wanted[0]])
            for stage in stages:
                totals[stage.name] += float(stage.blocks(values).mean()) * size
            count += size
    if not count:
        raise InputError("the data have no samples to count blocks on")
    return {name: total / count for name, total in totals.items()}
