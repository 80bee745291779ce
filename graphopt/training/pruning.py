"""Pruning that trains: weights or channels become weak while the network learns to do without them.

    train(graph, loader, compress=[GradualSparsity(0.8)])       single weights, masked more and more
    train(graph, loader, compress=[SoftPrune(0.5)])             channels set to zero after each epoch, and trained on
    train(graph, loader, compress=[Penalty(slimming, 1e-4)])    a penalty, such as those of `graphopt.passes.pruning`

    GradualSparsity   Zhu and Gupta 2018, "To Prune, or Not to Prune", equation 1
    SoftPrune         He et al. 2018, "Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks", algorithm 1
    Penalty           with `slimming`: Liu et al. 2017, "Network Slimming"; with a weight that grows: Wang et al. 2021, "Neural
                      Pruning via Growing Regularization"

Channels are removed afterwards, by `Prune(data=...)`: of those that training has left at zero, batch norms answer constants,
which biases behind them take over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.channels.groups import Group, groups
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.masks import masks, put_mask, unmasked
from graphopt.ir.passes import Change
from graphopt.training.compression import Compression, Run
from graphopt.utils.checks import check_share
from graphopt.utils.errors import InputError

T = TypeVar("T")

LOOKS = 100  # at which masks are chosen anew, over the training


class Penalty(Compression):
    """Adds a penalty to the loss.

    Args:
        term: of the graph, a scalar with gradient, such as `graphopt.passes.pruning.slimming`.
        weight: of it; or a function of the progress, 0 to 1.
    """

    def __init__(self, term: Callable[[Graph], Tensor], weight: float | Callable[[float], float]) -> None:
        if not callable(term):
            raise InputError(f"term is a function of the graph that gives a scalar, got {term!r}")
        self.term, self.weight, self.now = term, weight, 0.0

    def attach(self, graph: Graph) -> list[Change]:
        self.graph = graph
        return []

    def step(self, progress: float) -> None:
        self.now = self.weight(progress) if callable(self.weight) else self.weight

    def loss(self, run: Run) -> Tensor | None:
        return self.now * self.term(self.graph) if self.now else None


class GradualSparsity(Compression):
    """Masks the smallest weights of each layer, more of them as training goes on:

        share(t) = share (1 - (1 - t)^3)         t: from 0 at `begin` to 1 at `end`

    A weight that is masked and grows comes back while the share still rises. The masks stay behind (`graphopt.ir.masks`).

    Args:
        share: of the weights, over 0 and under 1, that are zero in the end.
        layers: name pattern -> another share, or None to leave a layer alone; the first match counts.
        begin, end: the progress, 0 to 1, between which the share rises.
    """

    def __init__(
        self, share: float, *, layers: Mapping[str, float | None] | None = None, begin: float = 0.0, end: float = 0.75
    ) -> None:
        check_share("share", share)
        if not 0 <= begin < end <= 1:
            raise InputError(f"begin and end are a progress, 0 <= begin < end <= 1, got {begin} and {end}")
        self.share, self.layers, self.begin, self.end = share, dict(layers or {}), begin, end
        self.masked: list[tuple[Node, Node, float]] = []
        self.looked = -1

    def attach(self, graph: Graph) -> list[Change]:
        self.graph, self.looked = graph, -1
        shares = weights_to_mask(graph, self._share)
        known = {found.weight for found in masks(graph)}
        for weight in shares:
            if weight not in known:
                put_mask(graph, weight, torch.ones_like(graph.tensor(weight), dtype=torch.bool))
        graph.refresh()
        self.masked = [(f.weight, f.mask, shares[f.weight]) for f in masks(graph) if f.weight in shares]
        return [Change(str(weight.target), f"{share:.0%} masked in the end") for weight, _, share in self.masked]

    def _share(self, name: str) -> float | None:
        return next((share for pattern, share in self.layers.items() if fnmatchcase(name, pattern)), self.share)

    @torch.no_grad()
    def step(self, progress: float) -> None:
        t = min(1.0, max(0.0, (progress - self.begin) / (self.end - self.begin)))
        if (look := int(t * LOOKS)) == self.looked:
            return
        self.looked = look
        for weight, mask, share in self.masked:
            values, kept = self.graph.parameter(weight).abs(), self.graph.parameter(mask)
            gone = int(share * (1 - (1 - t) ** 3) * values.numel())
            kept.fill_(1.0)
            if gone:
                kept.view(-1)[values.flatten().topk(gone, largest=False).indices] = 0.0


class SoftPrune(Compression):
    """After each epoch, sets the weakest channels of every group to zero: they are trained on, and may become strong again.

    Args:
        keep: the share of each group's units, over 0 and under 1, that is left.
        layers: name patterns of the layers that make the channels.
    """

    def __init__(self, keep: float, *, layers: Sequence[str] = ("*",)) -> None:
        check_share("keep", keep)
        self.keep, self.layers = keep, tuple(layers)
        self.groups: list[Group] = []

    def attach(self, graph: Graph) -> list[Change]:
        wanted = [g for g in groups(graph) if len(g.free) and any(fnmatchcase(g.name, p) for p in self.layers)]
        if not wanted:
            raise InputError("the graph has no channels that can be pruned, or layers= names none of them")
        self.groups = wanted
        return [Change(group.name, f"{self.keep:.0%} of {len(group)} {group.kind} kept") for group in wanted]

    @torch.no_grad()
    def settle(self, graph: Graph) -> None:
        for group in self.groups:
            order = group.removable(torch.argsort(strength(graph, group), stable=True).tolist())
            gone = torch.tensor(order[: len(group) - max(1, round(len(group) * self.keep))], dtype=torch.int64)
            for member in group.writers:
                which = torch.isin(torch.from_numpy(member.units), gone)
                graph.parameter(member.node).movedim(member.dim, 0)[which] = 0.0


def weights_to_mask(graph: Graph, of: Callable[[str], T | None]) -> dict[Node, T]:
    """The constant weights of layers, each with what `of` says of its layer's name; None: it is left alone.

    Raises:
        InputError: there are none.
    """
    found: dict[Node, T] = {}
    for node in graph.calls():
        layer = Layer.of(node)
        weight = unmasked(graph, layer.weight) if layer else None
        said = of(graph.site(node))
        if weight is not None and graph.is_constant(weight) and said is not None:
            found.setdefault(weight, said)
    if not found:
        raise InputError("no layer has weights to mask: they are no constants, or layers= leaves them all alone")
    return found


def strength(graph: Graph, group: Group) -> Tensor:
    """The L2 norm of everything that makes each unit: [units]."""
    squares = torch.zeros(len(group))
    for member in group.writers:
        rows = graph.tensor(member.node).movedim(member.dim, 0).flatten(1).square().sum(1)
        units = torch.from_numpy(member.units)
        squares.index_add_(0, units[units >= 0], rows[units >= 0])
    return squares.sqrt()
