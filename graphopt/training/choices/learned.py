"""Methods that learn the weights of choices by gradient.

    graphopt.train(graph, loader, compress=[Gumbel(validation=held_out, budget={"macs": 0.5})], epochs=10)

    Softmax    the options mixed by softmax(alpha)                            DARTS, first and second order, Liu et al. 2019
    Gumbel     noise added, a temperature that falls: nearly one option        SNAS, Xie et al. 2019; FBNet, Wu et al. 2019
    Binary     one option runs, two where alpha learns: memory of two          ProxylessNAS, Cai et al. 2019
    Markov     chances to widen, step by step, for widths                      DMCP, Guo et al. 2020

`Softmax` on a space with partial channels (`graphopt.spaces.darts_cell(partial=4)`) is PC-DARTS, Xu et al. 2020.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from graphopt.execution.executor import Executor
from graphopt.training.batches import Batch
from graphopt.training.choices.expressions import binary, gumbel, markov
from graphopt.training.choices.relaxed import Relaxed
from graphopt.training.choices.unrolled import Objective, unrolled_gradient
from graphopt.utils.errors import InputError


class Softmax(Relaxed):
    """All options are computed in every step, mixed by softmax(alpha).

    Args:
        unrolled: the rate xi of a step of the weights that alpha's gradient looks behind, such as the rate of the training:
            DARTS of second order, five gradients in a step in place of two (`unrolled.py`). 0: the weights are taken as they
            are, first order.
    """

    def __init__(self, *, unrolled: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        if not 0 <= unrolled < math.inf:
            raise InputError(f"unrolled is the rate of a step, at least 0, got {unrolled}")
        self.unrolled, self.learns = unrolled, False

    def step(self, progress: float) -> None:
        if self.unrolled:
            self.learns = progress >= self.delay  # from the batch that this step trains on
        else:
            super().step(progress)

    def batch(self, batch: Batch) -> Batch:
        if self.learns:
            self._update(self._unrolled(batch, self._batch()))
        return batch

    def _unrolled(self, training: Batch, validation: Batch) -> list[Tensor]:
        parameters = {n: self.graph.parameter(n) for n in self.graph.nodes if n.op == "get_attr"}
        learned = {n: p for n, p in parameters.items() if isinstance(p, nn.Parameter) and p.requires_grad}

        def objective(batch: Batch, limited: bool) -> Objective:
            return lambda weights, alphas: self._objective(
                batch, dict(zip(learned, weights, strict=True)), alphas, limited=limited
            )

        return unrolled_gradient(
            objective(training, False), objective(validation, True), list(learned.values()), self.alphas, self.unrolled
        )


class Gumbel(Relaxed):
    """softmax((alpha + noise) / temperature), with noise of Gumbel's distribution and a temperature that falls geometrically.

    Args:
        temperatures: at the beginning and at the end.
    """

    expression = staticmethod(gumbel)

    def __init__(self, *, temperatures: tuple[float, float] = (5.0, 0.3), **options: Any) -> None:
        super().__init__(**options)
        if not all(t > 0 for t in temperatures):
            raise InputError(f"temperatures must be over 0, got {temperatures}")
        self.temperatures = temperatures

    @torch.no_grad()
    def sample(self, progress: float, *, weights: bool) -> None:
        first, last = self.temperatures
        for learned, _ in self.learned:
            assert learned.noise is not None
            assert learned.temperature is not None
            noise, temperature = self.graph.parameter(learned.noise), self.graph.parameter(learned.temperature)
            noise.copy_(-torch.log(-torch.log(torch.rand(noise.shape).clamp(min=1e-20, max=1 - 1e-7))))
            temperature.fill_(first * (last / first) ** progress)


class Binary(Relaxed):
    """One option runs, drawn by softmax(alpha); where alpha learns, two do, and the one that is drawn of them counts. Gradients
    reach alpha as those of the shares that the two would have."""

    expression = staticmethod(binary)

    @torch.no_grad()
    def sample(self, progress: float, *, weights: bool) -> None:
        for (learned, _), share in zip(self.learned, self.probabilities(), strict=True):
            assert learned.gate is not None
            assert learned.hard is not None
            gate, hard = self.graph.parameter(learned.gate), self.graph.parameter(learned.hard)
            paths = torch.multinomial(share, 1 if weights else min(2, len(share)))
            gate.zero_().index_fill_(0, paths, 1.0)
            hard.zero_().index_fill_(0, paths[torch.multinomial(share[paths], 1)], 1.0)


class Markov(Relaxed):
    """Of widths, from the narrowest on, the chances to be wider by one option; what is kept of a unit is the chance of all the
    steps up to it."""

    expression = staticmethod(markov)
    kinds = ("width",)
    start = 2.0  # wide, at first

    def probabilities(self) -> list[Tensor]:
        nodes = [weights for _, weights in self.learned]
        values = Executor(self.graph).run(nodes, {})
        return [values[node].detach() for node in nodes]
