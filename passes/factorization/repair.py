"""Fit factors, and every layer behind them, to what the original network gives on data; see `graphopt.fitting.fit`.

For each chain: the least-squares weight W of the layer it stands for, on the inputs it gets now; then the factors nearest to
W in the metric of those inputs (`graphopt.passes.factorization.fitting`); then the mean error into the bias.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.im2col import weight_matrix
from graphopt.analysis.moments import BUDGET, Moments, moment_bytes
from graphopt.fitting.fit import Found, Parametrization, fit
from graphopt.fitting.least_squares import RIDGES, LayerWeights, gather, least_squares
from graphopt.fitting.region import Region
from graphopt.fitting.samples import Samples
from graphopt.ir.calls import operand
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.passes import Change
from graphopt.passes.factorization.chain import Chain
from graphopt.passes.factorization.fitting import Problem
from graphopt.passes.factorization.nonlinear import Activation, Fitted, Sample, Through
from graphopt.passes.factorization.site import Placed, Site, bias_of, put, shift_chain, with_bias

if TYPE_CHECKING:
    from graphopt.passes.factorization.method import Method, Ranks


UNTIMED = (math.nan, math.nan)


@dataclass
class Replaced:
    """A chain in a graph, in place of a layer.

    Attributes:
        name: of the layer.
        placed: in place of each layer that had the weight.
        error: the share of the weight's energy that is lost; once fitted, the share of the responses' power on samples held out.
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
        kept = site.macs(chain) / max(site.macs(Chain.whole(site.layer)), 1)  # of an empty value there are none
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


@dataclass(eq=False, kw_only=True)
class Factors(Parametrization):
    """The factors of a chain, and its bias.

    Attributes:
        chain: in the changed graph.
        layer: of the original, which the chain stands for.
        weight: of that layer, in the operator's own layout.
        activation: what is computed of each element of its result, where the fit goes through it.
    """

    makes_up: ClassVar[bool] = True

    chain: Replaced
    layer: Layer
    weight: Tensor
    activation: Activation | None
    options: Refinement

    @classmethod
    def of(cls, original: Graph, source: Node, chain: Replaced, options: Refinement) -> Factors:
        layer, (placed,) = Layer.of(source), chain.placed
        assert layer is not None
        return cls(
            region=Region.between([operand(placed.start)], placed.end),
            source=Region.of_layer(layer),
            channel_dim=-1 - layer.dims,
            chain=chain,
            layer=layer,
            weight=original.tensor(layer.weight),
            activation=Activation.behind(original, source, layer.out_channels) if options.wanted else None,
            options=options,
        )

    def solve(self, graph: Graph, samples: Samples) -> Iterator[Found]:
        moments, sample = Moments(self.layer), Sample(self.layer, len(samples.parts))
        gather(self.layer, samples, moments.update, *([sample.update] if self.activation is not None else []))
        for ridge in RIDGES:
            (weight,), (metric,) = least_squares(weight_matrix(self.layer, self.weight)[None], moments, ridge)
            found = self._fitted(Problem(weight, metric), moments, sample)
            yield {"weights": list(found.chain.weights), "bias": found.bias}

    def _fitted(self, problem: Problem, moments: Moments, sample: Sample) -> Fitted:
        """The chain nearest to a weight, then bettered through the activation."""
        method, ranks = self.chain.method, self.chain.ranks
        chain = method.fit(self.layer, problem, ranks)
        found = Fitted(chain, moments.mean_t[0] - chain.dense().flatten(1).double() @ moments.mean_x[0])
        if self.activation is None:
            return found
        through = Through(sample, self.activation, found)
        if self.options.nonlinear:
            through.alternate(self.layer, method, ranks, problem)
        if self.options.refine_steps:
            through.descend_rows(self.options.refine_steps)
        return through.best

    def constants(self, graph: Graph, found: Found) -> Mapping[Node, Any]:
        (placed,), chain = self.chain.placed, self.chain.chain.with_weights(found["weights"])
        pairs = zip(placed.calls, chain.stages, strict=True)
        return {operand(call, 1): stage.native.to(self.weight.dtype) for call, stage in pairs}

    def shift(self, graph: Graph, found: Found) -> Tensor:
        bias: Tensor = found["bias"]
        return bias if (old := bias_of(graph, self.region.output)) is None else bias - old.double()

    def seen(self, result: Tensor) -> Tensor:
        return result if self.activation is None else self.activation(result.movedim(self.channel_dim, -1))

    def store(self, graph: Graph, found: Found) -> None:
        shift = self.shift(graph, found)
        for constant, value in self.constants(graph, found).items():
            graph.put_constant(constant, value)
        shift_chain(graph, self.region.output, shift)
        self.chain.chain = self.chain.chain.with_weights(found["weights"])


def repair(
    original: Graph,
    graph: Graph,
    replaced: Sequence[Replaced],
    data: Iterable[list[Tensor]],
    options: Refinement,
    checkpoint: str | Path | None = None,
) -> None:
    """Fit chains and layers of `graph` in execution order, in place.

    Chains that are not `fittable` keep the factors of their weight.
    """
    for each in replaced:
        if each.fits:
            each.placed = [with_bias(graph, each.name, placed) for placed in each.placed]
    graph.refresh()
    placed = [(each, placed) for each in replaced for placed in each.placed]
    stages = {call.name for _, chain in placed for call in chain.calls}
    names = {chain.end.name: chain.before for _, chain in placed}
    sources = {node.name: node for node in original.nodes}
    factors = [Factors.of(original, sources[p.before], each, options) for each, p in placed if each.fits]
    layers = LayerWeights.all_of(graph, sources, only={node.name for node in graph.calls()} - stages)
    tasks = sorted([*factors, *layers], key=lambda task: task.region.first)
    how = f"{options} {[(type(each.method).__name__, each.ranks) for each in replaced]}"
    fits = fit(original, graph, data, tasks, "fitting factors", names=names, checkpoint=checkpoint, options=how)
    for task, found in zip(tasks, fits, strict=True):
        if isinstance(task, Factors):
            task.chain.error = found.error


def fittable(site: Site) -> bool:
    """Whether a chain at this site can be fitted to data: one layer, no groups, no computed bias, and moments that fit into
    memory."""
    layer, alone = site.layer, len(site.layers) == 1
    given = layer.bias is None or layer.bias.op == "get_attr"
    return alone and layer.groups == 1 and given and moment_bytes(layer) <= BUDGET
