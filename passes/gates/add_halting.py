"""Let stages of residual blocks stop where a sample has had enough of them: adaptive computation time (ACT).

    AddHalting()                          each sample stops by itself
    AddHalting(what="positions")          each position does (SACT); simulated, for no dense runtime saves time by it

    x_1 = f_1(x), x_2 = x_1 + f_2(x_1), ...     ->     sum over l of p_l x_l

A stage is a row of residual blocks of one shape; the first always runs. Behind each block a head says how much of the answer is
decided, h_l; once 1 - h_1 - ... - h_l is at most `threshold`, the blocks behind do not run (`graphopt.analysis.halting`). Heads
know nothing yet, and begin with a small h (`start`), so that all blocks run: train them together with the network
(`graphopt.training.halting.Ponder`). The blocks are gates as those of `AddGates` are, and lower like them.

Needs:  a float graph whose inputs have a batch, and two or more residual blocks of one shape in a row.
Paper:  Figurnov et al. 2017, "Spatially Adaptive Computation Time for Residual Networks", sections 3.1 and 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.blocks import Block, blocks
from graphopt.analysis.gates import gates as gates_of
from graphopt.analysis.halting import halting_stages
from graphopt.execution.executor import Executor
from graphopt.ir.calls import value
from graphopt.ir.facts import HALTING
from graphopt.ir.graph import Graph
from graphopt.ir.inline import inline
from graphopt.ir.layer import channels_last
from graphopt.ir.ops import aten
from graphopt.ir.passes import Change, in_eval_mode
from graphopt.ir.quantizers import quantizers
from graphopt.ir.selecting import spread
from graphopt.networks.heads import halting_head
from graphopt.passes.gates.selecting import gate_block, result_of
from graphopt.utils.checks import matching
from graphopt.utils.errors import InputError

NAME = "halting"  # begins the names of heads


@dataclass(frozen=True)
class AddHalting:
    """See the head of this file.

    Attributes:
        stages: patterns of the modules of stages' first blocks; `auto`: all stages.
        what: `samples`, or `positions` of maps [N, C, ...] and tokens [N, T, C].
        threshold: epsilon, up to which the rest of a sample counts as decided.
        start: the logit of h before training; the paper has -3.
        seed: of the heads.

    Raises:
        InputError: the graph is quantized, has gates already, or no such stages, or none of these names; or an option is none.
    """

    exact: ClassVar[bool] = False

    stages: str | Sequence[str] = "auto"
    what: str = "samples"
    threshold: float = 0.01
    start: float = -3.0
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.stages, str) and self.stages != "auto":
            raise InputError(f"stages are 'auto' or a list of patterns, got {self.stages!r}")
        if self.what not in ("samples", "positions"):
            raise InputError(f"what stops is 'samples' or 'positions', got {self.what!r}")
        if not 0 < self.threshold < 1:
            raise InputError(f"threshold is between 0 and 1, got {self.threshold}")

    @in_eval_mode
    def __call__(self, graph: Graph) -> list[Change]:
        if quantizers(graph):
            raise InputError(
                "the graph is quantized; add halting to the float graph, train it, and quantize afterwards"
            )
        if gates_of(graph) or halting_stages(graph):
            raise InputError("the graph has gates already; add halting to a graph without")
        chosen = self._chosen(_stages(graph))
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            values = Executor(graph).run([result_of(stage[0]) for stage in chosen], graph.example.tensors())
            heads = [self._head(graph, stage, values[result_of(stage[0])]) for stage in chosen]
            for number, (stage, parts) in enumerate(zip(chosen, heads, strict=True)):
                _Rewriting(graph, stage, parts, self.threshold, f"{NAME}_{number}").run()
        graph.refresh()
        each = "sample" if self.what == "samples" else "position"
        return [
            Change(stage[0].name, f"{len(stage)} blocks, of which each {each} takes as many as it needs")
            for stage in chosen
        ]

    def _chosen(self, known: list[list[Block]]) -> list[list[Block]]:
        if not known:
            raise InputError("the graph has no two residual blocks of one shape in a row, so no stage could stop early")
        return matching(known, self.stages, lambda stage: stage[0].name, "no stage begins at", "stages")

    def _head(self, graph: Graph, stage: list[Block], example: Tensor) -> list[Graph]:
        """A head for each block but the last."""
        found, last = [], channels_last(result_of(stage[0]))
        for _ in stage[1:]:
            module = halting_head(example, self.what == "positions", self.start, stage[0].name, last=last)
            module = module.eval().to(example.dtype)
            found.append(Graph.capture(module, torch.cat([example] * 2)[:2], dynamic_batch=graph.dynamic_batch))
        return found


def _stages(graph: Graph) -> list[list[Block]]:
    """Rows of blocks, each of which reads what the one in front of it gives, in one shape."""
    rows: list[list[Block]] = []
    for block in blocks(graph):
        row = rows[-1] if rows else []
        follows = row and block.entry is result_of(row[-1]) and block.shortcut is block.entry
        if follows and str(value(block.total).shape) == str(value(block.entry).shape):
            row.append(block)
        else:
            rows.append([block])
    return [row for row in rows if len(row) > 1]


class _Rewriting:
    """One stage, block by block. `dims`: of what heads give."""

    def __init__(self, graph: Graph, stage: list[Block], heads: list[Graph], threshold: float, name: str) -> None:
        self.graph, self.stage, self.heads, self.threshold, self.name = graph, stage, heads, threshold, name
        self.dims = heads[0].outputs[0].meta["val"].dim()
        self.whole = value(stage[0].total).dim()

    def run(self) -> None:
        graph, now = self.graph, result_of(self.stage[0])
        behind = list(result_of(self.stage[-1]).users)
        rest, stopped, total = self._number(1.0, now), None, None
        for number, block in enumerate(self.stage):
            if stopped is not None:
                runs = graph.call(aten.gt.Scalar, rest, self.threshold, before=stopped, like=rest)
                now = gate_block(graph, block._replace(entry=now, shortcut=now), runs, self.dims)
            at = graph.after(now)
            part, stopped_here = rest, None
            if number < len(self.heads):
                h = inline(graph, self.heads[number], now, f"{self.name}.{number}", before=at)
                left = graph.call(aten.sub.Tensor, rest, h, before=at, like=h)
                graph.set_fact(left, HALTING, self.stage[0].name)
                # Not the same comparison turned around: what is chosen by that one is a gate, which shares of answers are not.
                stopped_here = graph.call(aten.le.Scalar, left, self.threshold, before=at, like=h)
                part = graph.call(aten.where.self, stopped_here, rest, h, before=at, like=h)
                rest = left
            if stopped is not None:
                part = graph.call(aten.where.self, stopped, self._number(0.0, at), part, before=at, like=now)
            stopped = stopped_here
            total = self._added(total, now, part, at)
        for reader in behind:
            reader.replace_input_with(now, total)  # type: ignore[arg-type]

    def _added(self, total: Node | None, now: Node, part: Node, at: Node) -> Node:
        share = spread(self.graph, part, self.dims, self.whole, before=at)
        scaled = self.graph.call(aten.mul.Tensor, now, share, before=at, like=now)
        return scaled if total is None else self.graph.call(aten.add.Tensor, total, scaled, before=at, like=now)

    def _number(self, number: float, at: Node) -> Node:
        tensor = torch.full((), number, dtype=value(self.stage[0].total).dtype)
        return self.graph.add_constant(f"{self.name}.{'one' if number else 'zero'}", tensor, before=at)
