"""What all factorizations have in common: options, the choice of ranks, groups, and the way into the graph.

A method is the maths of one paper for one weight without groups:

    refuses(layer)               why the maths does not hold for a layer, or None
    full(layer)                  the ranks at which it is exact
    shapes(layer, ranks)         of each stage's weight
    geometry(layer, ranks)       how each stage moves over its input
    factor(weight, ranks)        the stages' weights
    unfoldings(weight)           the matrices whose ranks `Energy` and `EVBMF` choose

A layer with groups is factorized group by group, with the same ranks; its stages have groups, too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from graphopt.ir.calls import value
from graphopt.ir.constants import constant_weights
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.passes import Change
from graphopt.passes.factorization.chain import Chain, Geometry, Stage
from graphopt.passes.factorization.fitting import Problem, descend, level
from graphopt.passes.factorization.ranks import EVBMF, Energy, Rank, check_rank, rounded, spectrum
from graphopt.passes.factorization.repair import Refinement, Replaced, repair
from graphopt.passes.factorization.site import Site, check_named, sites
from graphopt.utils.checks import check_count, check_repeatable, names_weight
from graphopt.utils.errors import InputError

Ranks = tuple[int, ...]


@dataclass(frozen=True)
class Method(ABC):
    """Replace layers by chains of smaller ones.

    Attributes:
        rank: what is kept; see `graphopt.passes.factorization.ranks`. Where groups are factorized, that of each group.
        layers: name pattern -> a rank of its own, or None to leave the layer alone. The first match counts.
        data: batches of inputs (see `graphopt.data.Calibration`) to fit the factors to what the layers answer, instead of to
            their weights alone.
        round_to: ranks are multiples of this where `rank` does not name them, as the kernels of a target like
            (`Kernels.channel_multiple`).
        nonlinear: with data, fit through the activation behind a layer.
        refine_steps: with data, that many steps of gradient descent on the factors of each layer, through its activation.
        checkpoint: a folder that remembers which layers are fitted, so that the same call goes on where it was interrupted.

    Raises:
        InputError: a rank is no rank, or above the full one; a pattern matches no layer; a layer is named that the method
            does not apply to.
    """

    exact: ClassVar[bool] = False

    rank: Rank = 0.5
    layers: Mapping[str, Rank | None] = field(default_factory=dict)
    data: Iterable[list[Tensor]] | None = field(default=None, repr=False)
    round_to: int = 1
    nonlinear: bool = False
    refine_steps: int = 0
    checkpoint: str | Path | None = None

    def __post_init__(self) -> None:
        check_rank("rank", self.rank)
        for pattern, rank in self.layers.items():
            if rank is not None:
                check_rank(f"layers[{pattern!r}]", rank)
        check_count("round_to", self.round_to)
        check_count("refine_steps", self.refine_steps, least=0)
        check_repeatable(self.data)

    # ---- The maths --------------------------------------------------------------------------------------------------

    @abstractmethod
    def refuses(self, layer: Layer) -> str | None:
        """Why the method does not apply to a layer; None where it does."""

    @abstractmethod
    def full(self, layer: Layer) -> Ranks:
        """The ranks of one group from which on the chain computes the same."""

    @abstractmethod
    def shapes(self, layer: Layer, ranks: Ranks) -> list[tuple[int, ...]]:
        """Of the weight of each stage, for one group: [out, in / groups, *kernel]."""

    @abstractmethod
    def geometry(self, layer: Layer, ranks: Ranks) -> list[Geometry]:
        """How each stage moves over its input, for one group."""

    @abstractmethod
    def factor(self, weight: Tensor, ranks: Ranks) -> list[Tensor]:
        """The stages' weights nearest to one group's weight [out, in, *kernel]."""

    def unfoldings(self, weight: Tensor) -> list[Tensor]:
        """The matrix of each rank, for one group's weight; none where the ranks are not those of matrices."""
        return []

    # ---- Ranks ------------------------------------------------------------------------------------------------------

    def skeleton(self, layer: Layer, ranks: Ranks) -> Chain:
        """The chain without numbers."""
        return self._chain(layer, ranks, [torch.empty(shape, device="meta") for shape in self._spread(layer, ranks)])

    def _spread(self, layer: Layer, ranks: Ranks) -> list[tuple[int, ...]]:
        return [(shape[0] * layer.groups, *shape[1:]) for shape in self.shapes(layer, ranks)]

    def _chain(self, layer: Layer, ranks: Ranks, weights: Sequence[Tensor]) -> Chain:
        moves = [replace(g, groups=g.groups * layer.groups) for g in self.geometry(layer, ranks)]
        return Chain(tuple(Stage(w, g) for w, g in zip(weights, moves, strict=True)), layer.groups)

    def decompose(self, layer: Layer, weight: Tensor, ranks: Ranks) -> Chain:
        """The chain nearest to a layer's weight [out, in / groups, *kernel], in its type; computed in float64."""
        parts = [self.factor(part, ranks) for part in weight.double().chunk(layer.groups)]
        return self._chain(layer, ranks, [torch.cat(stage).to(weight.dtype) for stage in zip(*parts, strict=True)])

    def moved(self, layer: Layer, ranks: Ranks, chain: Chain) -> Chain:
        """The same factors with the stride, padding and dilation of another layer."""
        return self._chain(layer, ranks, chain.weights)

    def fit(self, layer: Layer, problem: Problem, ranks: Ranks, start: Chain | None = None, steps: int = 60) -> Chain:
        """The chain with the least error on data, for a layer without groups; searched for in `steps` from `start`, or from
        the factors of the wanted weight."""
        if start is None:
            start = self.decompose(layer, problem.weight.reshape(Chain.whole(layer).weights[0].shape), ranks)
        return level(descend(start, problem, steps), problem.metric)

    def estimate(self, layer: Layer, weight: Tensor, ranks: Sequence[Ranks]) -> list[float]:
        """The share of a weight's energy that is lost at each of these ranks, or the theory's bound for it; by trial where there
        is none."""
        total = float(weight.double().square().sum().clamp(min=1e-30))
        parts = [self.unfoldings(part) for part in weight.double().chunk(layer.groups)]
        if not parts[0]:
            return [self._lost(layer, weight.double(), chosen) / total for chosen in ranks]
        spectra = [[spectrum(matrix) ** 2 for matrix in matrices] for matrices in zip(*parts, strict=True)]
        dropped = [sum(float(s[r:].sum()) for f, r in zip(spectra, chosen, strict=True) for s in f) for chosen in ranks]
        return [min(1.0, lost / total) for lost in dropped]

    def _lost(self, layer: Layer, weight: Tensor, ranks: Ranks) -> float:
        return float((self.decompose(layer, weight, ranks).dense() - weight).square().sum())

    def at_share(self, layer: Layer, share: float, round_to: int = 1) -> Ranks | None:
        """The largest ranks, all the same part of the full ones, that leave at most this share of a layer's work."""
        full, limit = self.full(layer), share * Chain.whole(layer).macs(layer)
        low, high = 0.0, 1.0
        for _ in range(24):
            middle = (low + high) / 2
            ranks = _scaled(full, middle, round_to)
            low, high = (middle, high) if self.skeleton(layer, ranks).macs(layer) <= limit else (low, middle)
        ranks = _scaled(full, low, round_to)
        return ranks if self.skeleton(layer, ranks).macs(layer) <= limit else None

    def by_rule(self, layer: Layer, weight: Tensor, rule: Energy | EVBMF) -> Ranks:
        """The ranks that a rule finds in a layer's weight [out, in / groups, *kernel]; of groups, the largest."""
        parts = [self.unfoldings(part) for part in weight.double().chunk(layer.groups)]
        if parts[0]:
            return tuple(max(map(rule, matrices)) for matrices in zip(*parts, strict=True))
        if isinstance(rule, Energy):
            return self._keeping(layer, weight.double(), rule.share)
        raise InputError(
            f"{type(self).__name__} has ranks of no matrix, which EVBMF needs; give numbers, a share or Energy"
        )

    def _keeping(self, layer: Layer, weight: Tensor, share: float) -> Ranks:
        """The smallest ranks, all the same part of the full ones, that keep a share of the weight's energy; by trial."""
        full, allowed = self.full(layer), (1 - share) * float(weight.square().sum())
        low, high = 0, max(full)  # the largest of the ranks: too few, enough
        while high - low > 1:
            middle = (low + high) // 2
            enough = self._lost(layer, weight, _scaled(full, middle / max(full), 1)) <= allowed
            low, high = (low, middle) if enough else (middle, high)
        return _scaled(full, high / max(full), 1)

    def choose(self, name: str, layer: Layer, weight: Tensor, rank: Rank) -> Ranks | None:
        """The ranks that a rule or a number means for a layer; None where a rule finds none that saves anything."""
        full = self.full(layer)
        if isinstance(rank, float):
            return self.at_share(layer, rank, self.round_to)
        if isinstance(rank, (Energy, EVBMF)):
            found = self.by_rule(layer, weight, rank)
            ranks = tuple(rounded(r, most, self.round_to) for r, most in zip(found, full, strict=True))
            return ranks if self.skeleton(layer, ranks).macs(layer) < Chain.whole(layer).macs(layer) else None
        named = rank if isinstance(rank, tuple) else (rank,) * len(full)
        if len(named) != len(full):
            raise InputError(f"{name}: {type(self).__name__} has {len(full)} ranks, got {rank!r}")
        if any(r > most for r, most in zip(named, full, strict=True)) and (
            isinstance(rank, tuple) or min(named) > max(full)
        ):
            raise InputError(f"{name}: rank {rank!r} is above the full rank {full if len(full) > 1 else full[0]}")
        return tuple(min(r, most) for r, most in zip(named, full, strict=True))

    # ---- The pass ---------------------------------------------------------------------------------------------------

    def __call__(self, graph: Graph) -> list[Change]:
        changes = constant_weights(graph)
        found = list(sites(graph))
        check_named(self.layers, found)
        chosen = [(site, ranks) for site in found if (ranks := self._ranks(graph, site)) is not None]
        original = graph.clone(share_weights=True) if self.data is not None else graph
        done = []
        for site, ranks in chosen:
            chain = self.decompose(site.layer, site.weight(graph), ranks)
            done.append(Replaced.put(graph, site, self, ranks, chain))
        if done:
            graph.refresh()
        if self.data is not None and done:
            refinement = Refinement(self.nonlinear, self.refine_steps)
            repair(original, graph, done, self.data, refinement, self.checkpoint)
        return changes + [each.change() for each in done]

    def _ranks(self, graph: Graph, site: Site) -> Ranks | None:
        match = next((p for p in self.layers if names_weight(p, f"{site.name}.weight")), None)
        rank = self.layers[match] if match is not None else self.rank
        if rank is None:
            return None
        reason = next((why for layer in site.layers if (why := self.refuses(layer))), None)
        if reason is not None:
            if match in (site.name, f"{site.name}.weight"):
                raise InputError(f"{type(self).__name__} does not apply to {site.name}: {reason}")
            return None
        return self.choose(site.name, site.layer, site.weight(graph), rank)


def kernel_of(layer: Layer) -> torch.Size:
    """The kernel; empty for a linear layer."""
    return torch.Size(value(layer.weight).shape[2:])


def _scaled(full: Ranks, part: float, round_to: int) -> Ranks:
    return tuple(rounded(max(1, round(part * most)), most, round_to) for most in full)
