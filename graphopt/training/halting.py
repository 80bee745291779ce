"""Train stages that stop early (`graphopt.passes.AddHalting`) together with the network: what is computed has a price.

    graphopt.train(graph, data, compress=[Ponder(0.01)], epochs=10)

The loss has beside the task's

    cost * sum over stages of mean over samples (and positions) of (blocks that ran + remainder)

of which the remainder has a gradient: larger h in front of the last block make it smaller, until one block less runs.
Figurnov et al. 2017, "Spatially Adaptive Computation Time for Residual Networks", eq. 10 and 11.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.halting import halting_stages
from graphopt.ir.graph import Graph
from graphopt.ir.passes import Change
from graphopt.training.compression import Compression, Run
from graphopt.utils.errors import InputError


class Ponder(Compression):
    """See the head of this file.

    Args:
        cost: of a block, beside the loss of the task; the paper has 0.001 to 0.01.

    Raises:
        InputError: a cost that is under 0; when training begins, a graph without stages that stop early.
    """

    def __init__(self, cost: float = 0.01) -> None:
        if not 0 <= cost < math.inf:
            raise InputError(f"cost must be at least 0, got {cost}")
        self.cost = cost

    def attach(self, graph: Graph) -> list[Change]:
        self.stages = halting_stages(graph)
        if not self.stages:
            raise InputError("no stage of the graph stops early; apply graphopt.passes.AddHalting first")
        return [Change(stage.name, "learns when to stop") for stage in self.stages]

    def watched(self, graph: Graph) -> Sequence[Node]:
        return [rest for stage in self.stages for rest in stage.rests]

    def loss(self, run: Run) -> Tensor | None:
        costs = [(stage.blocks(run.values) + stage.remainder(run.values)).mean() for stage in self.stages]
        return self.cost * torch.stack(costs).sum()
