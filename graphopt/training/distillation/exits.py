"""A network that is its own teacher: classifiers at the ends of its stages learn from the last one, and so do the stages.

    train(graph, (images, labels), compress=[Exits()])

Zhang et al. 2019, "Be Your Own Teacher". An exit is a 1x1 convolution to the width of the features in front of the last layer,
their mean over positions, and a linear layer. With share a, of features f and classes p softened by a temperature T, each exit
adds

    (1 - a) cross entropy(p, targets) + a T^2 divergence(p_last, p) + b |f - f_last|^2 / features

The exits are thrown away: the graph stays what it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.node import Node

from graphopt.ir.graph import Graph
from graphopt.ir.passes import Change
from graphopt.training.compression import Compression, Run
from graphopt.training.distillation.distances import Divergence
from graphopt.training.distillation.learned import Shape, projection
from graphopt.training.distillation.places import Place, features, stages
from graphopt.training.losses import Loss, loss_of, output
from graphopt.utils.errors import InputError


class Exits(Compression):
    """See the head of this file.

    Args:
        share: a, of the divergence; targets have the rest.
        features: b.
        temperature: T.
        loss: of the task; as for `graphopt.train`.
        weight: of all exits beside the task's loss.
        seed: of the exits.

    Raises:
        InputError: a share that is none, a weight that is not over 0; with the graph: fewer than two stages, or a last layer that
            reads something else than features [N, features].
    """

    def __init__(
        self,
        *,
        share: float = 0.3,
        features: float = 0.03,
        temperature: float = 3.0,
        loss: str | Loss | None = None,
        weight: float = 1.0,
        seed: int = 0,
    ) -> None:
        if not 0 <= share <= 1 or not features >= 0:
            raise InputError(f"share is from 0 to 1, features at least 0, got {share} and {features}")
        if not weight > 0 or not temperature > 0:
            raise InputError(f"weight and temperature must be over 0, got {weight} and {temperature}")
        self.share, self.features, self.weight, self.seed = share, features, weight, seed
        self.task, self.divergence = loss_of(loss), Divergence(temperature)
        self.places: list[Place] = []
        self.exits: list[_Exit] = []

    def attach(self, graph: Graph) -> list[Change]:
        last, ends = features(graph), stages(graph)[:-1]
        if not ends or not last or len(last[0].shapes[0]) != 1:
            raise InputError(
                "exits want two stages of convolutions at least, and a last layer that reads [N, features]"
            )
        with torch.random.fork_rng(devices=[]), torch.no_grad(), graph.evaluating():
            torch.manual_seed(self.seed)
            classes = output(graph(*graph.example.args, **graph.example.kwargs)).shape[1]
            self.exits = [_Exit(end.shapes[0], last[0].shapes[0][0], classes) for end in ends]
        self.places = [*ends, *last]
        return []

    def helpers(self) -> Sequence[nn.Module]:
        return self.exits

    def watched(self, graph: Graph) -> Sequence[Node]:
        return [node for place in self.places for node in place.nodes if isinstance(node, Node)]

    def loss(self, run: Run) -> Tensor:
        answer = output(run.outputs).detach()
        *ends, last = (place.values(run.values)[0] for place in self.places)
        parts = []
        for each, end in zip(self.exits, ends, strict=True):
            logits, found = each(end)
            parts.append(self._of(logits, found, last.detach(), answer, run.batch.targets))
        return self.weight * torch.stack(parts).sum()

    def _of(self, logits: Tensor, found: Tensor, last: Tensor, answer: Tensor, targets: Any) -> Tensor:
        """Of one exit; without targets the divergence has all of it."""
        divergence, apart = self.divergence(logits, answer).mean(), F.mse_loss(found, last)
        if targets is None:
            return divergence + self.features * apart
        return (1 - self.share) * self.task(logits, targets) + self.share * divergence + self.features * apart


class _Exit(nn.Module):
    """From a map to logits and features."""

    def __init__(self, shape: Shape, width: int, classes: int) -> None:
        super().__init__()
        self.bottleneck, self.head = projection(shape, width), nn.Linear(width, classes)

    def forward(self, value: Tensor) -> tuple[Tensor, Tensor]:
        found = self.bottleneck(value).relu().flatten(2).mean(2)
        return self.head(found), found
