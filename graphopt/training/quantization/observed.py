"""Ranges of activations that follow what batches hold, until they are frozen.

In the first part of a training the weights move, and with them the values behind them. The scale of a grid that no method learns
then follows a moving average of what it takes to cover a batch, from what calibration found, and stays from there on. Zero points
stay where they are.

Paper: Jacob et al. 2018, section 3.1 (exponential moving averages of ranges with a smoothing parameter close to 1).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.fx.node import Node

from graphopt.ir.graph import Graph
from graphopt.training.compression import Run
from graphopt.training.quantization.grids import Grid
from graphopt.training.quantization.scales import largest_power

SHARE = 0.01  # of a batch in the average


class Observer(nn.Module):
    """Follows one grid of activations; its scale stays below `largest`.

    Attributes:
        covering: the scale that covers the last batch, until the next step takes it in; 0: none. Kept in checkpoints.
    """

    covering: Tensor

    def __init__(self, graph: Graph, grid: Grid, largest: float) -> None:
        super().__init__()
        self.graph, self.grid, self.largest = graph, grid, largest
        self.register_buffer("covering", torch.zeros(()))

    @property
    def watched(self) -> list[Node]:
        return [quantizer.value for quantizer in self.grid.quantizers]

    @torch.no_grad()
    def observe(self, run: Run) -> None:
        """Look at a batch."""
        first = self.grid.quantizers[0]
        zero = int(self.graph.tensor(first.zero_point))
        needs = [_step(run.values[node], first.low - zero, first.high - zero) for node in self.watched]
        self.covering.copy_(torch.stack(needs).max().clamp(min=1e-12, max=self.largest))

    @torch.no_grad()
    def move(self) -> None:
        """Before the next batch: the scale takes in what was seen. (Gradients of that batch want the one that it had.)"""
        if self.covering > 0:
            self.graph.parameter(self.grid.scale).lerp_(self.covering, SHARE)
            self.covering.zero_()


def observers(graph: Graph, grids: Iterable[Grid]) -> list[Observer]:
    """Of the grids of activations whose scales may move and are no powers of two."""
    found = []
    for grid in grids:
        power = None if grid.of_weights else largest_power(graph, grid, powers=False)
        if power is not None:
            found.append(Observer(graph, grid, float(graph.tensor(grid.scale)) * 2.0**power))
    return found


def _step(value: Tensor, low: int, high: int) -> Tensor:
    """The scale whose codes, counted from zero, reach both ends of a value."""
    least, most = torch.aminmax(value.float())
    ends = [most / high] if high > 0 else []
    ends += [least / low] if low < 0 else []
    return torch.stack(ends).max()
