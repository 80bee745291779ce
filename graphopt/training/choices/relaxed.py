"""Weights of choices that are learned by gradient, together with the network or on other data than it: what all methods of
`learned.py` share.

In front of every step of the weights, alpha takes one on a batch of `validation`, by Adam. A budget adds what the expected cost
exceeds it by. `finish` leaves the probabilities as the weights of the choices:
`graphopt.ir.choices.assignment` has the likeliest options, and `graphopt.supernets.search` the likeliest within a budget.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.node import Node

from graphopt.analysis.choices import Costs, LiveTerm
from graphopt.execution.executor import Executor
from graphopt.ir.choices import CHOOSE, KEEP, WEIGHTS, LiveChoice, choices, one_hot
from graphopt.ir.graph import Graph
from graphopt.ir.passes import Change
from graphopt.training.batches import Batch, Batches
from graphopt.training.choices.adam import Adam
from graphopt.training.choices.expressions import Expression, Learned, softmax
from graphopt.training.compression import Compression
from graphopt.training.losses import Loss, loss_of
from graphopt.utils.errors import InputError

COUNTED = ("macs", "parameters")


class Relaxed(Compression):
    """What all of them share.

    Args:
        validation: batches that alpha learns from, as training data are given; others than those, as in the papers, or the same.
        rate: of alpha.
        budget: `macs` or `parameters`, as shares of the network with the first options; what the expected cost exceeds a limit
            by, as a share of it, is added to alpha's loss. None: accuracy alone.
        strictness: the weight of that.
        loss: of validation batches; see `graphopt.train`.
        delay: the share of the training before alpha begins to learn.
    """

    expression: Expression = staticmethod(softmax)
    start = 0.0  # of alpha
    kinds: tuple[str, ...] = ()  # of choices that are learned; none: all

    def __init__(
        self,
        *,
        validation: Any,
        rate: float = 0.01,
        budget: Mapping[str, float] | None = None,
        strictness: float = 2.0,
        loss: str | Loss | None = None,
        batch_size: int = 64,
        delay: float = 0.1,
    ) -> None:
        if not 0 < rate < math.inf:
            raise InputError(f"rate must be over 0, got {rate}")
        for name, share in (budget or {}).items():
            if name not in COUNTED or not 0 < share <= 1:
                raise InputError(
                    f"budget takes {' and '.join(COUNTED)}, shares over 0 and up to 1, got {name}: {share}"
                )
        if not 0 <= delay < 1:
            raise InputError(f"delay is a share of the training, at least 0 and under 1, got {delay}")
        self.validation, self.rate, self.budget, self.strictness = validation, rate, dict(budget or {}), strictness
        self.loss_of, self.batch_size, self.delay = loss_of(loss), batch_size, delay
        self.adam = Adam()
        self.known: list[LiveChoice] = []
        self.learned: list[tuple[Learned, Node]] = []
        self.stream: Iterator[Batch] | None = None

    # ---- Putting expressions into the graph, and taking them out ----------------------------------------------------

    def attach(self, graph: Graph) -> list[Change]:
        self.graph = graph
        self.known = [choice for choice in choices(graph) if not self.kinds or choice.kind in self.kinds]
        if not self.known:
            raise InputError(
                f"the graph has no choices{_of(self.kinds)} to learn; see graphopt.passes.elastic and graphopt.spaces"
            )
        self.everything = choices(graph)
        self.limits = self._limits(graph)
        self.learned = [self._insert(graph, choice) for choice in self.known]
        graph.refresh()
        self.batches = Batches(self.validation, graph, batch_size=self.batch_size)
        self.adam.hold(graph, [learned.alpha for learned, _ in self.learned])
        return [Change(choice.name, f"learned among {', '.join(choice.labels)}") for choice in self.known]

    def _limits(self, graph: Graph) -> list[tuple[list[LiveTerm], float]]:
        if not self.budget:
            return []
        costs = Costs(graph)
        first = [one_hot(0, len(choice)) for choice in costs.choices]
        found = []
        for name, share in self.budget.items():
            terms: list[LiveTerm] = getattr(costs, name)()
            found.append((terms, share * sum(float(term.of(first)) for term in terms)))
        return found

    def _insert(self, graph: Graph, choice: LiveChoice) -> tuple[Learned, Node]:
        """The expression in the place of a choice's weights; its constant holds alpha from now on."""
        readers = [reader for reader in choice.node.users if reader.target in (CHOOSE, KEEP)]
        learned, weights = type(self).expression(graph, choice.node, min(readers))
        for reader in readers:
            reader.update_arg(WEIGHTS, weights)
        with torch.no_grad():
            graph.parameter(choice.node).fill_(self.start)
        return learned, weights

    @torch.no_grad()
    def finish(self, graph: Graph) -> list[Change]:
        found = self.probabilities()
        for (_, weights), choice, share in zip(self.learned, self.known, found, strict=True):
            for reader in list(weights.users):
                reader.replace_input_with(weights, choice.node)
            graph.parameter(choice.node).copy_(share)
        graph.refresh()
        return [Change(c.name, ", ".join(_shares(c, share))) for c, share in zip(self.known, found, strict=True)]

    def probabilities(self) -> list[Tensor]:
        """Of the options of each choice, as far as they are learned."""
        return [torch.softmax(self.graph.tensor(choice.node), 0) for choice in self.known]

    # ---- A step -----------------------------------------------------------------------------------------------------

    def helpers(self) -> Sequence[nn.Module]:
        return [self.adam]

    def step(self, progress: float) -> None:
        if progress >= self.delay:
            self.sample(progress, weights=False)
            self._learn()
        self.sample(progress, weights=True)

    def sample(self, progress: float, *, weights: bool) -> None:
        """Draw what the expressions are computed with, for a step of the network's weights or of alpha."""

    def _learn(self) -> None:
        """One step of alpha."""
        self._update(self._slopes(self._batch()))

    def _slopes(self, batch: Batch) -> Sequence[Tensor | None]:
        """The gradients for all alphas of a batch of `validation`."""
        leaves = [value.detach().clone().requires_grad_() for value in self.alphas]
        return torch.autograd.grad(self._objective(batch, {}, leaves, limited=True), leaves, allow_unused=True)

    def _update(self, gradients: Sequence[Tensor | None]) -> None:
        self.adam.update(self.alphas, gradients, self.rate)

    @property
    def alphas(self) -> list[Tensor]:
        return [self.graph.parameter(learned.alpha) for learned, _ in self.learned]

    def _objective(
        self, batch: Batch, weights: Mapping[Node, Tensor], alphas: Sequence[Tensor], *, limited: bool
    ) -> Tensor:
        """The loss of a batch with these constants of the network, the others as they are; `limited`: and what the cost
        exceeds its limits by."""
        nodes = [learned.alpha for learned, _ in self.learned]
        constants = {**weights, **dict(zip(nodes, alphas, strict=True))}
        runner = Executor(self.graph, constants=constants, gradients=True, training=True)
        loss = self.loss_of(runner.nested(runner.run(self.graph.results, batch.inputs)), batch.targets)
        return loss + self.strictness * self.excess(runner) if limited and self.limits else loss

    def excess(self, runner: Executor) -> Tensor:
        """What the expected costs exceed their limits by, as shares of those."""
        nodes = [weights for _, weights in self.learned]
        values = runner.run(nodes, {})
        mine = {choice.node: values[node] for choice, node in zip(self.known, nodes, strict=True)}
        given = [mine.get(choice.node, self.graph.tensor(choice.node)) for choice in self.everything]
        over = [torch.stack([term.of(given) for term in terms]).sum() / limit - 1 for terms, limit in self.limits]
        return torch.stack(over).clamp(min=0).sum()

    def _batch(self) -> Batch:
        """The next one for alpha; the training's random numbers stay what they are."""
        if self.stream is None:
            self.stream = self._stream(self.adam.taken)
        with torch.random.fork_rng(devices=[]):
            return next(self.stream)

    def _stream(self, taken: int) -> Iterator[Batch]:
        """Batches for alpha behind those that it has taken already."""
        epoch, behind = divmod(taken, len(self.batches))
        while True:
            yield from islice(self.batches.epoch(epoch), behind, None)
            epoch, behind = epoch + 1, 0


def _of(kinds: Sequence[str]) -> str:
    return f" of the kinds {', '.join(kinds)}" if kinds else ""


def _shares(choice: LiveChoice, share: Tensor) -> list[str]:
    return [f"{label} {part:.0%}" for label, part in zip(choice.labels, share.tolist(), strict=True)]
