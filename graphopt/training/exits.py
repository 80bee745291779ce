"""Train the exits of a graph (`graphopt.passes.AddExits`), which returns the answers of all of them, the network's own last.

    train_heads(graph, (images, labels), epochs=10)                    the heads alone: what they read is computed once
    graphopt.train(graph, data, loss=ExitLoss(), epochs=10)            all of it jointly

Each exit learns from the labels and from the last answer, with share a and temperature T:

    (1 - a) cross entropy(exit, labels) + a T^2 divergence(softmax(last / T), softmax(exit / T))

and jointly the losses of all answers are added up. Kaya et al. 2019, "Shallow-Deep Networks" (heads alone); Phuong and Lampert
2019, "Distillation-Based Training for Multi-Exit Architectures"; Zhang et al. 2019, "Be Your Own Teacher".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.node import Node

from graphopt.execution.executor import Executor
from graphopt.execution.subgraph import subgraph
from graphopt.ir.graph import Graph
from graphopt.ir.reading import leading
from graphopt.training.batches import Batches
from graphopt.training.report import TrainingReport
from graphopt.training.trainer import train
from graphopt.utils.errors import InputError
from graphopt.utils.progress import track

CHUNK = 100  # samples whose features are computed at once


class ExitLoss:
    """The loss of a graph with exits, for `graphopt.train(..., loss=ExitLoss())`.

    Args:
        share: a, of the divergence from the last answer. temperature: T.
        weights: of the losses of all answers, the last included; None: 1 each.

    Raises:
        InputError: a share that is none, or a temperature or a weight that is not over 0.
    """

    def __init__(self, *, share: float = 0.5, temperature: float = 3.0, weights: Sequence[float] | None = None) -> None:
        if not 0 <= share <= 1 or not temperature > 0:
            raise InputError(f"share is from 0 to 1 and temperature over 0, got {share} and {temperature}")
        if weights is not None and not all(weight > 0 for weight in weights):
            raise InputError(f"weights must be over 0, got {list(weights)}")
        self.share, self.temperature, self.weights = share, temperature, weights

    def __call__(self, outputs: Any, targets: Tensor) -> Tensor:
        """`outputs`: logits [N, classes] of each answer; `targets`: classes [N]."""
        if isinstance(outputs, Tensor) or len(outputs) < 2:
            raise InputError("the graph returns one answer, so it has no exits; apply AddExits first")
        weights = self.weights or [1.0] * len(outputs)
        if len(weights) != len(outputs):
            raise InputError(f"{len(weights)} weights for {len(outputs)} answers; give one for each, the last included")
        *exits, last = outputs
        losses = [self.of_exit(logits, last.detach(), targets) for logits in exits]
        losses.append(F.cross_entropy(last, targets.long()))
        return torch.stack([weight * loss for weight, loss in zip(weights, losses, strict=True)]).sum()

    def of_exit(self, logits: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        """Of one exit, with the answer that it learns from."""
        t = self.temperature
        wanted, found = (teacher / t).log_softmax(1), (logits / t).log_softmax(1)
        apart = F.kl_div(found, wanted, log_target=True, reduction="batchmean")
        return (1 - self.share) * F.cross_entropy(logits, targets.long()) + self.share * t * t * apart


def train_heads(
    graph: Graph, data: Any, *, loss: ExitLoss | None = None, batch_size: int = 64, **options: Any
) -> list[TrainingReport]:
    """Train the heads of exits and leave everything else as it is.

    What the heads read, and the last answer, are computed once for all samples and kept in float16: an epoch costs what the heads
    cost.

    Args:
        graph: float, changed in place.
        data: inputs and classes; see `graphopt.training.batches`.
        loss: how an exit learns; `weights` do not matter, for each has parameters of its own.
        options: of `graphopt.train`, such as `epochs`, `rate`, `seed`.

    Returns:
        What the training of each exit did.

    Raises:
        InputError: the graph has no exits, data have no targets, or options do not fit.
    """
    chosen, exits = loss or ExitLoss(), graph.outputs[:-1]
    if not exits:
        raise InputError("the graph returns one answer, so it has no exits; apply AddExits first")
    places = [_read(graph, exit) for exit in exits]
    features, wanted = _features(graph, places, Batches(data, graph, batch_size=CHUNK))

    def learned(logits: Tensor, targets: Tensor) -> Tensor:
        return chosen.of_exit(logits, targets[:, 1:], targets[:, 0])

    reports = []
    for place, exit in zip(places, exits, strict=True):
        head = subgraph(graph, {"features": place}, {"logits": exit})
        batches = _Half(features.pop(0), wanted, batch_size)
        reports.append(train(head, batches, loss=learned, **options))
        _take_over(graph, head)
    return reports


class _Half:
    """Batches of features that are kept in float16, in another order each time."""

    def __init__(self, features: Tensor, wanted: Tensor, size: int) -> None:
        self.features, self.wanted, self.size = features, wanted, size

    def __len__(self) -> int:
        return -(-len(self.features) // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.split(torch.randperm(len(self.features)), self.size):
            yield self.features[rows].float(), self.wanted[rows]


def _read(graph: Graph, exit: Node) -> Node:
    """The value that a head begins with: the last call of what leads to its answer that the network's own answer needs, too."""
    shared = leading(exit) & leading(graph.outputs[-1])
    return max(node for node in shared if node.op == "call_function")


def _features(graph: Graph, places: list[Node], data: Batches) -> tuple[list[Tensor], Tensor]:
    """What is read at the places, in float16, and for each sample its class and the last answer, float32 [N, 1 + classes]."""
    executor, found, wanted = Executor(graph), list[list[Tensor]](), list[Tensor]()
    answer = graph.outputs[-1]
    with torch.no_grad(), graph.evaluating():
        for batch in track(data.epoch(0), "features"):
            if not isinstance(batch.targets, Tensor):
                raise InputError("the training data has no classes, which exits learn; give (inputs, classes)")
            values = executor.run([*places, answer], batch.inputs)
            found.append([values[place].half() for place in places])
            wanted.append(torch.cat([batch.targets[:, None].float(), values[answer]], 1))
    return [torch.cat(parts) for parts in zip(*found, strict=True)], torch.cat(wanted)


@torch.no_grad()
def _take_over(graph: Graph, head: Graph) -> None:
    """Put what a head learned into the graph, where its constants do not share their memory."""
    known = graph.state_dict()
    for name, value in head.state_dict().items():
        if known[name].data_ptr() != value.data_ptr():
            known[name].copy_(value)
