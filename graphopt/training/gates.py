"""Train gates (`graphopt.passes.AddGates`, `graphopt.analysis.gates`) together with the network, or alone.

    graphopt.train(graph, data, compress=[GumbelGates(rate=0.6)], epochs=10)      ConvNet-AIG: each gate opens for 60 %
    graphopt.train(graph, data, compress=[GumbelGates(work=0.65)], epochs=10)     all together, 65 % of the multiply-accumulates
    graphopt.train(graph, data, compress=[SkipGates(cost=0.5)], epochs=10)        SkipNet's supervised stage: each costs its work

While it trains, a gate is z = 1 where logits and noise are over 0 together, else 0, with the gradient of the sigmoid of
the logits (straight through), and what is behind it is closed + z (open - closed). Noise is logistic, the difference of two
of Gumbel's: that makes z a sample of the gate's two options. SkipNet's gates have none.

    GumbelGates   rate    weight * sum over gates of (mean over the batch of z - rate)^2           Veit and Belongie, eq. 6
                  work    weight * ((mean multiply-accumulates of a sample) / (those with all gates open) - work)^2
    SkipGates     cost * (mean multiply-accumulates that gates let run) / (those with all gates open)    Wang et al., eq. 4

Veit and Belongie 2018, "Convolutional Networks with Adaptive Inference Graphs"; Wang et al. 2018, "SkipNet", section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.gates import SIGNS, Gate, gates, saved_macs
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten
from graphopt.ir.passes import Change
from graphopt.training.compression import Compression, Run
from graphopt.utils.errors import InputError


@torch.library.custom_op("graphopt::open_gates", mutates_args=())
def open_gates(logits: Tensor, threshold: float, noise: Tensor) -> Tensor:
    """1 where logits are over the threshold, else 0; `noise`: a number that logistic noise is multiplied by, 0: none."""
    return _noisy(logits, threshold, noise).gt(0).to(logits.dtype)


def _noisy(logits: Tensor, threshold: float, noise: Tensor) -> Tensor:
    if not bool(noise):
        return logits - threshold
    return logits - threshold + noise * torch.rand_like(logits).clamp(1e-6, 1 - 1e-6).logit()


@open_gates.register_fake
def _(logits: Tensor, threshold: float, noise: Tensor) -> Tensor:
    return torch.empty_like(logits)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, ctx.threshold, _ = inputs
    ctx.save_for_backward(logits)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    (logits,) = ctx.saved_tensors
    p = torch.sigmoid(logits - ctx.threshold)
    return gradient * p * (1 - p), None, None


open_gates.register_autograd(_backward, setup_context=_save)
OPEN: Any = torch.ops.graphopt.open_gates.default


class Gates(Compression):
    """What both share; `penalty` says what is added to the loss.

    Args:
        noise: what logistic noise is multiplied by while the network trains.
    """

    def __init__(self, *, noise: float) -> None:
        self.noise_of = noise
        self.known: list[Gate] = []

    def penalty(self, rates: list[Tensor]) -> Tensor:
        """What is added to the loss, for the mean of each gate over the batch."""
        raise NotImplementedError

    def attach(self, graph: Graph) -> list[Change]:
        self.graph, self.known = graph, [gate for gate in gates(graph) if gate.test.target in SIGNS]
        if not self.known:
            raise InputError("the graph has no gates to train; add some first: graphopt.passes.AddGates()(graph)")
        self.macs, self.total = saved_macs(graph, self.known), cost.macs(graph)
        self.noise = graph.add_constant("gate_noise", torch.zeros(()), before=graph.nodes[0])
        self.tests = {gate.test: (gate.test.target, gate.test.args) for gate in self.known}
        for test, (_, args) in self.tests.items():
            test.target, test.args = OPEN, (args[0], float(args[1]), self.noise)  # type: ignore[arg-type]
        for gate in self.known:
            gate.select.target, gate.select.args = aten.lerp.Tensor, (gate.closed, gate.open, gate.condition)
        graph.refresh()
        return [Change(gate.name, "learns when to open") for gate in self.known]

    def watched(self, graph: Graph) -> Sequence[Node]:
        return [gate.condition for gate in self.known]

    def loss(self, run: Run) -> Tensor | None:
        return self.penalty([run.values[gate.condition].mean() for gate in self.known])

    def share(self, rates: list[Tensor]) -> Tensor:
        """Multiply-accumulates that gates let run, as a share of all with every gate open, nested gates as if they were not."""
        return torch.stack([rate * (macs / self.total) for rate, macs in zip(rates, self.macs, strict=True)]).sum()

    def step(self, progress: float) -> None:
        self._set(self.noise_of)

    def settle(self, graph: Graph) -> None:
        self._set(0.0)

    @torch.no_grad()
    def _set(self, noise: float) -> None:
        self.graph.parameter(self.noise).fill_(noise)

    def finish(self, graph: Graph) -> list[Change]:
        if not self.known:
            return []
        for gate in self.known:
            gate.select.target, gate.select.args = aten.where.self, (gate.condition, gate.open, gate.closed)
        for test, (target, args) in self.tests.items():
            test.target, test.args = target, args
        self.known = []
        graph.refresh()
        return []


class GumbelGates(Gates):
    """Gates that are drawn while the network trains; see the head of this file.

    Args:
        rate: of samples that each gate is to open for; a list: of each gate.
        work: the share of the multiply-accumulates that is to be left, in the mean. Give one of both.
        weight: of the penalty. noise: what noise is multiplied by; 1: samples of the two options.

    Raises:
        InputError: neither or both of them, or numbers outside of [0, 1].
    """

    def __init__(
        self,
        *,
        rate: float | Sequence[float] | None = None,
        work: float | None = None,
        weight: float | None = None,
        noise: float = 1.0,
    ) -> None:
        if (rate is None) == (work is None):
            raise InputError(
                "give one of rate (of samples that gates open for) and work (share of multiply-accumulates)"
            )
        wanted = [work] if rate is None else [rate] if isinstance(rate, (int, float)) else list(rate)
        if not all(share is not None and 0 <= share <= 1 for share in wanted):
            raise InputError(f"rates and work are from 0 to 1, got {', '.join(map(str, wanted))}")
        if not (weight is None or 0 < weight < math.inf) or not 0 <= noise < math.inf:
            raise InputError(f"weight must be over 0 and noise at least 0, got {weight} and {noise}")
        super().__init__(noise=noise)
        self.rate, self.work = rate, work
        self.weight = weight or (2.0 if work is None else 20.0)

    def attach(self, graph: Graph) -> list[Change]:
        changes = super().attach(graph)
        if isinstance(self.rate, Sequence) and len(self.rate) != len(self.known):
            count, known = len(self.rate), len(self.known)
            self.finish(graph)
            raise InputError(f"{count} rates for {known} gates; give one for each, or one number")
        fixed = 1 - sum(self.macs) / self.total
        if self.work is not None and self.work < fixed:
            self.finish(graph)
            raise InputError(
                f"outside of its gates the network has {fixed:.0%} of its multiply-accumulates, so work={self.work} cannot be"
            )
        return changes

    def penalty(self, rates: list[Tensor]) -> Tensor:
        if self.work is not None:
            left = 1 - sum(self.macs) / self.total + self.share(rates)
            return self.weight * (left - self.work).square()
        wanted = self.rate if isinstance(self.rate, Sequence) else [self.rate] * len(rates)
        apart = [(rate - goal).square() for rate, goal in zip(rates, wanted, strict=True)]  # type: ignore[operator]
        return self.weight * torch.stack(apart).sum()


class SkipGates(Gates):
    """Gates that are what they say from the beginning; each costs what it lets run.

    Args:
        cost: of all multiply-accumulates that gates can save, beside the loss.

    Raises:
        InputError: a cost that is under 0.
    """

    def __init__(self, cost: float = 0.5) -> None:
        if not 0 <= cost < math.inf:
            raise InputError(f"cost must be at least 0, got {cost}")
        super().__init__(noise=0.0)
        self.cost = cost

    def penalty(self, rates: list[Tensor]) -> Tensor:
        return self.cost * self.share(rates)
