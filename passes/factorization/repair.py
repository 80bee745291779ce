"""Fit factors, and every layer behind them, to what the original network gives on data, as
`graphopt.fitting.least_squares` orders them.

For each chain: the least-squares weight W of the layer it stands for, on the inputs it gets now; then the factors nearest to
W in the metric of those inputs (`graphopt.passes.factorization.fitting`); then the mean error into the bias.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from graphopt.analysis.im2col import BUDGET, Moments, moment_bytes, weight_matrix
from graphopt.fitting.least_squares import Pairs, fit, fits, least_squares
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.passes import Change
from graphopt.passes.factorization.chain import Chain
from graphopt.passes.factorization.fitting import Problem
from graphopt.passes.factorization.nonlinear import Activation, Fitted, Sample, Through
from graphopt.passes.factorization.site import Placed, Site, put, set_mean, with_bias
from graphopt.utils.progress import track

if TYPE_CHECKING:
    from graphopt.passes.factorization.method import Method, Ranks


UNTIMED = (math.nan, math.nan)


@dataclass
class Replaced:
    """A chain in a graph, in place of a layer.

    Attributes:
        name: of the layer.
        placed: in place of each layer that had the weight.
        error: the share of the weight's energy, or of the responses' power, that is lost.
        kept: multiply-accumulates left, of the layer's.
        fits: whether data can be fitted to.
        ms: milliseconds of the layer and of the chain, alone, where they were measured.
    """

    name: str
    method: Method
    ranks: Ranks
    chain: Chain
    placed: list[Placed]
    error: float
    kept: float
    fits: bool
    ms: tuple[float, float]

    @classmethod
    def put(
        cls, graph: Graph, site: Site, method: Method, ranks: Ranks, chain: Chain, ms: tuple[float, float] = UNTIMED
    ) -> Replaced:
        """Replace a site's layers in a graph; see `site.put`."""
        weight = site.weight(graph)
        lost = float((chain.dense() - weight).square().sum() / weight.square().sum().clamp(min=1e-30))
        kept = site.macs(chain) / site.macs(Chain.whole(site.layer))
        can_fit = fittable(site)
        placed = put(graph, site, [method.moved(layer, ranks, chain) for layer in site.layers])
        return cls(site.name, method, ranks, chain, placed, lost, kept, can_fit, ms)

    def change(self) -> Change:
        """What the report says."""
        what = f"{type(self.method).__name__} {self.chain}"
        time = "" if math.isnan(self.ms[1]) else f", {self.ms[0]:.3g} -> {self.ms[1]:.3g} ms"
        return Change(self.name, f"{what}, {self.kept:.2f} of the multiply-accumulates{time}, error {self.error:.2g}")


@dataclass(frozen=True)
class Refinement:
    """How far beyond least squares to go; see `graphopt.passes.factorization.nonlinear`."""

    nonlinear: bool = False
    refine_steps: int = 0

    @property
    def wanted(self) -> bool:
        return self.nonlinear or self.refine_steps > 0


def repair(
    original: Graph, graph: Graph, replaced: Sequence[Replaced], data: Iterable[list[Tensor]], options: Refinement
) -> None:
    """Fit chains and layers of `graph` in execution order, in place.

    Chains that are not `fittable` keep the factors of their weight.
    """
    for each in replaced:
        if each.fits:
            each.placed = [with_bias(graph, each.name, placed) for placed in each.placed]
    graph.refresh()
    chains = {placed.calls[0]: (each, placed) for each in replaced for placed in each.placed}
    stages = {call for _, placed in chains.values() for call in placed.calls}
    names = {placed.end.name: placed.before for _, placed in chains.values()}
    pairs = Pairs(original, graph, data, names)
    for node in track([n for n in graph.calls() if Layer.of(n)], "fitting factors"):
        if node in chains:
            each, placed = chains[node]
            if each.fits:
                _fit_chain(graph, each, placed, pairs, options)
        elif node not in stages:
            layer = Layer.of(node)
            assert layer is not None
            if fits(graph, layer) and pairs.source(node) is not None:
                moments = Moments(layer)
                for x, wanted in pairs(node, node):
                    moments.update(x, wanted)
                fit(graph, layer, moments)


def fittable(site: Site) -> bool:
    """Whether a chain at this site can be fitted to data: one layer, no groups, and moments that fit into memory."""
    return len(site.layers) == 1 and site.layer.groups == 1 and moment_bytes(site.layer) <= BUDGET


def _fit_chain(graph: Graph, each: Replaced, placed: Placed, pairs: Pairs, options: Refinement) -> None:
    source = pairs.source(placed.end)
    assert source is not None
    layer = Layer.of(source)
    assert layer is not None
    activation = Activation.behind(pairs.original, source, layer.out_channels) if options.wanted else None
    moments, sample = Moments(layer), Sample(layer, pairs.batches)
    for x, wanted in pairs(placed.start, placed.end):
        moments.update(x, wanted)
        if activation is not None:
            sample.update(x, wanted)
    old = pairs.original.tensor(layer.weight)
    problem = Problem(*least_squares(weight_matrix(layer, old), moments))
    chain = each.method.fit(layer, problem, each.ranks)
    found = Fitted(chain, moments.mean_t - chain.dense().flatten(1).double() @ moments.mean_x)
    if activation is not None:
        through = Through(sample, activation, found)
        if options.nonlinear:
            through.alternate(layer, each.method, each.ranks, problem)
        if options.refine_steps:
            through.descend_rows(options.refine_steps)
        found = through.best
    each.chain, each.error = found.chain, problem.error(found.chain)
    for call, stage in zip(placed.calls, each.chain.stages, strict=True):
        graph.put_constant(call.args[1], stage.native.to(old.dtype))  # type: ignore[arg-type]
    set_mean(graph, placed, found.bias)
