"""Train sparsely gated mixtures of experts (`graphopt.passes.AddExperts`) together with the network: noisy top-k gating.

    graphopt.train(graph, data, compress=[NoisyTopK()], epochs=10)

While it trains, the experts of a sample are chosen by noisy scores, by which all experts get samples, and become different ones:

    H(x) = h(x) + n softplus(V x)     n ~ N(0, 1)        V: [E, channels], learned, zero at the beginning          eq. 4
    G(x) = softmax of the k largest of H(x), 0 for the others                                                     eq. 3, 5

The gates of one expert alone are 1 and 0, which say nothing about its score: where k = 1, the gradient is that of softmax(H)
(straight through). Two losses keep the router from choosing always the same:

    importance * sum over mixtures of CV(sum over x of G(x))^2                                                    eq. 6, 7
    load       * sum over mixtures of CV(sum over x of P(x))^2                                                    eq. 8 to 11
    P(x)_e = Phi((h(x)_e - kth largest of H(x) without e) / softplus(V x)_e)

CV is the deviation over the mean; P is how likely e would be taken if its noise were drawn anew, by which the number of samples
of each expert has a gradient. All experts compute all samples while training; batch norms in them see all samples, too.

Shazeer et al. 2017, "Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer", sections 2.1 and 4,
appendix A.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.experts import Mixture, mixtures
from graphopt.analysis.gates import Gate, gates
from graphopt.ir.calls import operand, shape, value
from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten
from graphopt.ir.passes import Change
from graphopt.ir.selecting import spread
from graphopt.training.compression import Compression, Run
from graphopt.utils.errors import InputError

SMALL = 1e-10  # of a mean that is divided by


@torch.library.custom_op("graphopt::one_expert", mutates_args=())
def one_expert(number: Tensor, numbers: Tensor, scores: Tensor) -> Tensor:
    """1 for the expert of this number, else 0, [..., E]; with the gradient of softmax(scores)."""
    return (number == numbers).to(scores.dtype)


@one_expert.register_fake
def _(number: Tensor, numbers: Tensor, scores: Tensor) -> Tensor:
    return torch.empty_like(scores)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[2])


def _backward(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor]:
    p = ctx.saved_tensors[0].softmax(-1)
    return None, None, p * (gradient - (gradient * p).sum(-1, keepdim=True))


one_expert.register_autograd(_backward, setup_context=_save)
ONE: Any = torch.ops.graphopt.one_expert.default


class _Noisy(NamedTuple):
    """A mixture while it trains: clean scores, the deviation of their noise, and noisy scores."""

    mixture: Mixture
    clean: Node
    deviation: Node
    noisy: Node


class NoisyTopK(Compression):
    """See the head of this file.

    Args:
        importance: weight of the loss of unequal gates. load: of unequal numbers of samples; the paper has 0.1 and 0.01.

    Raises:
        InputError: a weight that is under 0; when training begins, a graph without mixtures, or with fewer experts than it had.
    """

    def __init__(self, importance: float = 0.1, load: float = 0.1) -> None:
        if not 0 <= importance < math.inf or not 0 <= load < math.inf:
            raise InputError(f"importance and load must be at least 0, got {importance} and {load}")
        self.importance, self.load = importance, load
        self.known: list[_Noisy] = []

    def attach(self, graph: Graph) -> list[Change]:
        found = mixtures(graph)
        if not found:
            raise InputError("the graph has no mixtures of experts; apply graphopt.passes.AddExperts first")
        chosen = {mixture.taken: _selects(graph, mixture) for mixture in found}
        for mixture in found:
            if len(chosen[mixture.taken]) != mixture.experts - (mixture.take == 1):
                raise InputError(
                    f"experts of {mixture.name!r} were removed, so it cannot be trained on; train it before that"
                )
        self.graph = graph
        self.noise = graph.add_constant("experts_noise", torch.zeros(()), before=graph.nodes[0])
        self.known = [self._noisy(graph, mixture) for mixture in found]
        self.tests = [(mixture.taken, mixture.taken.args) for mixture in found if mixture.take == 1]
        self.selects: list[tuple[Node, tuple[Any, ...]]] = []
        for each in self.known:
            if each.mixture.take == 1:
                self._summed(graph, each, chosen[each.mixture.taken])
        graph.refresh()
        return [Change(mixture.name, f"{mixture.experts} experts and their router learn") for mixture in found]

    def _noisy(self, graph: Graph, mixture: Mixture) -> _Noisy:
        """Let what chooses, and what weights, read noisy scores."""
        clean, readers = mixture.scores, list(mixture.scores.users)
        pooled, behind = operand(mixture.router), graph.after(clean)

        def call(target: object, *args: object) -> Node:
            return graph.call(target, *args, before=behind, like=clean)  # type: ignore[arg-type]

        zeros = torch.zeros(mixture.experts, int(shape(pooled)[-1]), dtype=value(clean).dtype)
        weight = graph.add_constant(f"{mixture.router.name}.noise", zeros, before=behind)
        graph.make_parameter(weight)
        deviation = call(aten.softplus.default, call(aten.linear.default, pooled, weight))
        drawn = call(aten.mul.Tensor, call(aten.randn_like.default, deviation), self.noise)
        noisy = call(aten.add.Tensor, clean, call(aten.mul.Tensor, drawn, deviation))
        for reader in readers:
            reader.replace_input_with(clean, noisy)
        return _Noisy(mixture, clean, deviation, noisy)

    def _summed(self, graph: Graph, each: _Noisy, chosen: list[Gate]) -> None:
        """Of one expert: a sum of all, by gates of 1 and 0, in the place of choices."""
        taken, (first, *_) = each.mixture.taken, chosen
        taken.target, taken.args = ONE, (*taken.args, each.noisy)
        gate = graph.call(aten.slice.Tensor, taken, -1, 0, 1, before=first.select, like=taken)
        dims = value(each.clean).dim()
        gate = spread(graph, gate, dims, value(first.select).dim(), before=first.select)
        total = graph.call(aten.mul.Tensor, first.closed, gate, before=first.select, like=first.closed)
        for number, choice in enumerate(chosen):
            select = choice.select
            self.selects.append((select, select.args))
            select.target = aten.addcmul.default
            select.args = (choice.closed if number else total, choice.open, choice.condition)

    def watched(self, graph: Graph) -> Sequence[Node]:
        return [node for each in self.known for node in each[1:]]

    def loss(self, run: Run) -> Tensor | None:
        found = []
        for each in self.known:
            clean, deviation, noisy = (run.values[node].flatten(0, -2).float() for node in each[1:])
            given = gates_of(noisy, each.mixture.take).sum(0)
            likely = load_of(clean, deviation, noisy, each.mixture.take).sum(0)
            found.append(self.importance * variation(given) + self.load * variation(likely))
        return torch.stack(found).sum()

    def step(self, progress: float) -> None:
        self._set(1.0)

    def settle(self, graph: Graph) -> None:
        self._set(0.0)

    @torch.no_grad()
    def _set(self, noise: float) -> None:
        self.graph.parameter(self.noise).fill_(noise)

    def finish(self, graph: Graph) -> list[Change]:
        if not self.known:
            return []
        for select, args in self.selects:
            select.target, select.args = aten.where.self, args
        for taken, args in self.tests:
            taken.target, taken.args = aten.eq.Tensor, args
        for each in self.known:
            for reader in list(each.noisy.users):
                reader.replace_input_with(each.noisy, each.clean)
        self.known = []
        graph.refresh()
        return []


def _selects(graph: Graph, mixture: Mixture) -> list[Gate]:
    """The choices of a mixture's experts, in order."""
    return [gate for gate in gates(graph) if gate.test is mixture.taken]


def gates_of(noisy: Tensor, take: int) -> Tensor:
    """G, [N, E], of noisy scores [N, E]."""
    if take == 1:
        numbers = torch.arange(noisy.shape[-1], device=noisy.device)
        found: Tensor = one_expert(noisy.argmax(-1, keepdim=True), numbers, noisy)
        return found
    best, places = noisy.topk(take, -1)
    return torch.zeros_like(noisy).scatter(-1, places, best.softmax(-1))


def load_of(clean: Tensor, deviation: Tensor, noisy: Tensor, take: int) -> Tensor:
    """P, how likely each expert would be among the `take` best if its own noise were drawn anew, [N, E]; all of that shape."""
    best = noisy.topk(take + 1, -1).values
    last, next_one = best[..., take - 1 : take], best[..., take:]
    # Without e, where that is in, the next one takes its place.
    threshold = torch.where(noisy > next_one, next_one, last)
    found: Tensor = torch.special.ndtr((clean - threshold) / deviation)
    return found


def variation(values: Tensor) -> Tensor:
    """The squared coefficient of variation of [E], a scalar."""
    return values.var(correction=0) / (values.mean().square() + SMALL)
