"""What a single weight is worth.

A criterion is a function of the graph and a weight's constant that returns one score per weight, in its shape; the lowest go
first. Your own in two lines:

    def magnitude_times_fan_in(graph, weight):
        return graph.tensor(weight).abs() * graph.tensor(weight)[0].numel()
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.execution.executor import Executor
from graphopt.fitting.losses import Loss, own_labels
from graphopt.ir.batches import split
from graphopt.ir.graph import Graph
from graphopt.utils.errors import InputError
from graphopt.utils.progress import track

Criterion = Callable[[Graph, Node], Tensor]


class Prepared(Protocol):
    """A criterion that looks at data first: `prepare` goes through them once for all weights."""

    def prepare(self, graph: Graph, weights: list[Node]) -> Criterion: ...


def magnitude(graph: Graph, weight: Node) -> Tensor:
    """|w|. Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks", section 3."""
    return graph.tensor(weight).abs()


@dataclass(frozen=True)
class OptimalBrainDamage:
    """The rise of the loss when a weight is set to zero, to second order: h w^2 / 2, h the diagonal of the Hessian.

    h is the empirical Fisher information, the mean over samples of the squared gradient, summed sample by sample in constant
    memory (one number per weight). Where the batch size of the graph is fixed, a batch counts as one sample.

    LeCun, Denker & Solla 1989, "Optimal Brain Damage", section 2.2; the Fisher for the Hessian as in Theis et al. 2018,
    "Faster gaze prediction with dense networks and Fisher pruning", section 2.1.

    Attributes:
        data: batches: the inputs of the graph in order; what stands behind them, such as labels, is for the loss.
        loss: of the output and the batch, both cut to one sample, to a number. `own_labels`, the default, sees little where the
            network is sure of its classes, as it is on its training images; `own_outputs` sees all samples alike.
        seed: of random numbers the loss draws.

    Raises:
        InputError: the data are empty, or the loss is NaN or infinite on a sample.
    """

    data: Iterable[list[Tensor]] = field(repr=False)
    loss: Loss = own_labels
    seed: int = 0

    def prepare(self, graph: Graph, weights: list[Node]) -> Criterion:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return self._prepared(graph, weights)

    def _prepared(self, graph: Graph, weights: list[Node]) -> Criterion:
        leaves = {node: graph.tensor(node).clone().requires_grad_() for node in weights}
        squares = {str(node.target): torch.zeros_like(leaf, dtype=torch.float64) for node, leaf in leaves.items()}
        executor = Executor(graph, constants=leaves, gradients=True)
        seen = 0
        for sample in self.samples(graph):
            values = executor.run(graph.results, sample)
            with torch.enable_grad():
                loss = self.loss(executor.nested(values), sample)
            if not bool(torch.isfinite(loss)):
                raise InputError(
                    f"the loss on a sample is {float(loss.detach())}; check the data and the loss function"
                )
            slopes = torch.autograd.grad(loss, [*leaves.values()], allow_unused=True)
            for name, found in zip(squares, slopes, strict=True):
                if found is not None:
                    squares[name] += found.double() ** 2
            seen += 1
        if not seen:
            raise InputError("the data are empty; give at least one batch")
        return lambda graph, weight: squares[str(weight.target)] / seen * graph.tensor(weight).double() ** 2 / 2

    def samples(self, graph: Graph) -> Iterator[list[Tensor]]:
        for batch in track(self.data, "saliency"):
            yield from split(graph, batch, 1)
