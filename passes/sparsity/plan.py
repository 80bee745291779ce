"""Which layers `Sparsify` masks, how far each has come, and the masks of every step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.ir.graph import Graph
from graphopt.ir.layer import WEIGHT, Layer
from graphopt.ir.masks import masks, put_mask, unmasked
from graphopt.ir.passes import Change
from graphopt.ir.quantizers import is_quantizer
from graphopt.passes.sparsity.choose import best_of_each, lowest
from graphopt.passes.sparsity.saliency import Criterion, Prepared
from graphopt.utils.checks import names_weight
from graphopt.utils.errors import InputError

if TYPE_CHECKING:
    from graphopt.passes.sparsity.sparsify import Sparsify


class Site(NamedTuple):
    """A weight and the first layer that reads it."""

    weight: Node
    layer: Layer


class Pool(NamedTuple):
    """Weights ranked together: the share of zeros to reach, and that at the start."""

    sites: list[Site]
    share: float
    start: float


@dataclass(frozen=True)
class SparsityPlan:
    """`pools`: what is masked, empty shares where the pattern decides. `dense`: layers left dense, and why."""

    pools: list[Pool]
    pattern: tuple[int, int] | None
    dense: dict[Node, str]

    @classmethod
    def of(cls, options: Sparsify, graph: Graph) -> SparsityPlan:
        """Raises `ValueError` where a name pattern matches nothing, or no layer is left."""
        sites, dense = _sites(graph)
        for pattern in options.layers:
            if not any(
                names_weight(pattern, _name(weight, graph)) for weight in [*(site.weight for site in sites), *dense]
            ):
                names = ", ".join(str(site.weight.target).removesuffix(".weight") for site in sites[:3])
                raise InputError(f"layers: no layer matches {pattern!r}; layers are named like {names}")
        named = {
            s: next((v for p, v in options.layers.items() if names_weight(p, str(s.weight.target))), 0.0) for s in sites
        }
        chosen = [site for site in sites if named[site] is not None]
        if options.pattern is not None:
            block = options.pattern[1]
            width = {s: s.layer.in_channels // s.layer.groups for s in chosen}
            dense |= {
                s.weight: f"{width[s]} input channels are no multiple of {block}" for s in chosen if width[s] % block
            }
            chosen = [site for site in chosen if site.weight not in dense]
        if not chosen:
            why = "; ".join(f"{_name(node, graph)}: {reason}" for node, reason in list(dense.items())[:3])
            raise InputError(
                f"no layer can be sparsified: {why or 'there is none with constant weights, or all are left out'}"
            )
        pooled = options.scope == "global"
        apart = [[site] for site in chosen if not pooled or named[site]]
        together = [site for site in chosen if pooled and not named[site]]
        groups = apart + ([together] if together else [])
        shares = [named[group[0]] or options.sparsity or 0.0 for group in groups]
        zeros = _zeros(graph)
        pools = [Pool(g, share, _share(g, zeros)) for g, share in zip(groups, shares, strict=True)]
        return cls(pools, options.pattern, dense)

    @property
    def sites(self) -> list[Site]:
        return [site for pool in self.pools for site in pool.sites]

    def grow(self, graph: Graph, criterion: Criterion | Prepared, ramp: float) -> bool:
        """Bring every mask to this share of its way; False where none had to change."""
        score = criterion.prepare(graph, [s.weight for s in self.sites]) if hasattr(criterion, "prepare") else criterion
        known = {found.weight: graph.tensor(found.mask) == 0 for found in masks(graph)}
        grown = False
        for pool in self.pools:
            scores = [_checked(criterion, score(graph, site.weight), graph.tensor(site.weight)) for site in pool.sites]
            gone = [
                known.get(s.weight, torch.zeros_like(v, dtype=torch.bool))
                for s, v in zip(pool.sites, scores, strict=True)
            ]
            scores = [v.masked_fill(g, -torch.inf) for v, g in zip(scores, gone, strict=True)]  # masks only grow
            for site, keep, old in zip(pool.sites, self._keep(pool, scores, ramp), gone, strict=True):
                keep = keep & ~old
                if not torch.equal(keep, ~old):
                    put_mask(graph, site.weight, keep)
                    grown = True
        return grown

    def _keep(self, pool: Pool, scores: Sequence[Tensor], ramp: float) -> list[Tensor]:
        if self.pattern is None:
            share = pool.start + (pool.share - pool.start) * ramp
            count = round(max(share, 0.0) * sum(s.numel() for s in scores))
            return lowest(scores, count)
        keep, block = self.pattern
        keep = block - round((block - keep) * ramp)
        layer = pool.sites[0].layer
        return [layer.native(best_of_each(layer.canonical(scores[0]), keep, block))]

    def masked(self, graph: Graph) -> dict[Node, int]:
        """How many weights of each site are masked."""
        zeros = _zeros(graph)
        return {site.weight: zeros.get(site.weight, 0) for site in self.sites}

    def changes(self, graph: Graph, before: Mapping[Node, int]) -> list[Change]:
        now, made = self.masked(graph), []
        text = f"{self.pattern[0]}:{self.pattern[1]}, " if self.pattern else ""
        for weight, layer in self.sites:
            if now[weight] != before[weight]:
                made.append(Change(graph.site(layer.node), f"{text}{100 * now[weight] / _size(weight):.1f} % zeros"))
        left = [
            Change(_name(node, graph).removesuffix(".weight"), f"stays dense: {why}")
            for node, why in self.dense.items()
        ]
        return made + left if made else []


def _sites(graph: Graph) -> tuple[list[Site], dict[Node, str]]:
    """Every weight that only layers read; and those that stay dense, with the reason."""
    found: dict[Node, Site] = {}
    dense: dict[Node, str] = {}
    for layer in (layer for node in graph.calls() if (layer := Layer.of(node))):
        weight = unmasked(graph, layer.weight)
        if weight in found or weight in dense:
            continue
        if not graph.is_constant(weight):
            if weight.op == "call_function" and not is_quantizer(weight):
                dense[weight] = "it is computed from other parameters; Simplify() in front makes it one of its own"
            continue
        others = [reader for reader in layer.weight.users if not _only_as_weight(reader, layer.weight)]
        others += [reader for reader in weight.users if layer.weight not in (weight, reader)]
        if others:
            dense[weight] = f"{others[0].name} reads the weight, too"
        else:
            found[weight] = Site(weight, layer)
    return list(found.values()), dense


def _name(weight: Node, graph: Graph) -> str:
    """A constant's own name; what is computed goes by its layer's."""
    reader = next(iter(weight.users), None)
    return str(weight.target) if graph.is_constant(weight) or reader is None else f"{graph.site(reader)}.weight"


def _only_as_weight(reader: Node, weight: Node) -> bool:
    return Layer.of(reader) is not None and [i for i, a in enumerate(reader.args) if a is weight] == [WEIGHT]


def _size(weight: Node) -> int:
    return int(weight.meta["val"].numel())


def _zeros(graph: Graph) -> dict[Node, int]:
    return {found.weight: int((graph.tensor(found.mask) == 0).sum()) for found in masks(graph)}


def _share(sites: list[Site], zeros: Mapping[Node, int]) -> float:
    return sum(zeros.get(s.weight, 0) for s in sites) / sum(_size(s.weight) for s in sites)


def _checked(criterion: object, scores: Tensor, weight: Tensor) -> Tensor:
    name = getattr(criterion, "__name__", type(criterion).__name__)
    if not isinstance(scores, Tensor) or scores.shape != weight.shape:
        came = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise InputError(f"criterion {name} must return one score per weight, {list(weight.shape)}, got {came}")
    if bool(torch.isnan(scores).any()):
        raise InputError(f"criterion {name} returned NaN; check the weights and the data")
    return scores.detach().double()
