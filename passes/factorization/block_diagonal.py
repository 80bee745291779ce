"""Block-diagonal layers: inputs and outputs in another order, and blocks on the diagonal alone, from a dense layer.

    y = Q^T diag(W_1 .. W_b) P x + c         P, Q: orders of inputs and outputs     W_i: [out / b, in / b]

    BlockDiagonal(4, data=images)            a quarter of weights and multiply-accumulates

1. Orders are found that leave much of the weight's mass in the blocks (`coclusters.py`); with data, of what the layer adds up:
   W_oj^2 E[x_j^2].
2. The blocks are one convolution with groups (a kernel of 1 for linear layers, tokens along its length).
3. With data, blocks and bias are fitted by least squares to what the layer gave, layer by layer (`graphopt.fitting`).
4. An order is folded into the layer in front or behind where nothing but functions of single values is between, two orders that
   meet become one; what is left is an index by channels.

Needs:  a float graph; layers without groups whose channels the number of blocks divides, linear ones on [N, in] or
        [N, tokens, in]. Masks are baked in.
Paper:  Dhillon 2001, "Co-clustering Documents and Words Using Bipartite Spectral Graph Partitioning"; Zhang et al. 2017,
        "Interleaved Group Convolutions", for convolutions with groups and permutations.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.moments import Moments, input_moments
from graphopt.execution.executor import Executor
from graphopt.fitting.fit import Fit, Found, fit
from graphopt.fitting.least_squares import LayerWeights, outputs, shift_output
from graphopt.fitting.region import Region
from graphopt.fitting.samples import Samples
from graphopt.ir.build import Build
from graphopt.ir.calls import shape, value
from graphopt.ir.constants import constant_weights
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer, convolution
from graphopt.ir.ops import aten
from graphopt.ir.passes import Change, in_eval_mode
from graphopt.passes.factorization.coclusters import coclusters
from graphopt.passes.factorization.orders import fold_orders
from graphopt.passes.factorization.site import Site, check_named, sites
from graphopt.utils.checks import check_count, check_repeatable, names_weight
from graphopt.utils.errors import InputError
from graphopt.utils.progress import track


@dataclass(frozen=True)
class BlockDiagonal:
    """Put blocks on the diagonal in the place of dense layers.

    Attributes:
        blocks: of each layer; where they do not divide its channels, the largest smaller number that does.
        layers: name pattern -> blocks of its own, or None to leave the layer alone. The first match counts.
        data: batches of inputs; None: the weights alone decide, and nothing is fitted.
        seed: of the clustering.

    Raises:
        InputError: an option does not fit, a pattern matches no layer, or a layer is named that cannot be in blocks.
    """

    exact: ClassVar[bool] = False

    blocks: int = 4
    layers: Mapping[str, int | None] = field(default_factory=dict)
    data: Iterable[list[Tensor]] | None = field(default=None, repr=False)
    seed: int = 0

    def __post_init__(self) -> None:
        for blocks in [self.blocks, *(b for b in self.layers.values() if b is not None)]:
            check_count("blocks", blocks, least=2)
        check_repeatable(self.data)

    @in_eval_mode
    def __call__(self, graph: Graph) -> list[Change]:
        baked = constant_weights(graph)
        found = self._sites(graph)
        powers = self._powers(graph, [site for site, _ in found])
        original = graph.clone(share_weights=True)
        placed = [
            _place(graph, site, blocks, powers.get(site), self.seed)
            for site, blocks in track(found, "blocks of layers")
        ]
        graph.refresh()
        fits = self._fit(original, graph, placed) if self.data is not None and placed else {}
        changes = [each.change(fits.get(each.before)) for each in placed]
        fold_orders(graph)
        return baked + changes

    def _sites(self, graph: Graph) -> list[tuple[Site, int]]:
        """Those to be changed, each with its blocks."""
        every = list(sites(graph))
        check_named(self.layers, every) if every else None
        found = []
        for site in every:
            pattern = next((p for p in self.layers if names_weight(p, f"{site.name}.weight")), None)
            most = self.blocks if pattern is None else self.layers[pattern]
            reason = None if most is None else _refuses(site)
            if reason is not None and pattern in (site.name, f"{site.name}.weight"):
                raise InputError(f"{site.name} cannot be in blocks: {reason}")
            if most is None or reason is not None:
                continue
            channels = math.gcd(site.layer.out_channels, site.layer.in_channels)
            blocks = max(n for n in range(1, most + 1) if channels % n == 0)
            if blocks > 1:
                found.append((site, blocks))
            elif pattern in (site.name, f"{site.name}.weight"):
                sizes = f"{site.layer.in_channels} and {site.layer.out_channels}"
                raise InputError(
                    f"{site.name} cannot be in blocks: no number up to {most} divides its channels, {sizes}"
                )
        return found

    def _powers(self, graph: Graph, found: Sequence[Site]) -> dict[Site, Tensor]:
        """E[x_j^2] of each input and place of a kernel, [in, *kernel]; nothing without data."""
        if self.data is None or not found:
            return {}
        by_layer = {site.layer: site for site in found}
        moments = input_moments(graph, list(by_layer), self.data)
        return {
            by_layer[layer]: (each.xx.diagonal(dim1=1, dim2=2)[0] + each.mean_x[0].square()).reshape(
                value(layer.weight).shape[1:]
            )
            for layer, each in moments
        }

    def _fit(self, original: Graph, graph: Graph, placed: Sequence[_Placed]) -> dict[str, Fit]:
        assert self.data is not None
        sources = {node.name: node for node in original.nodes}
        tasks = []
        for each in placed:
            source = Layer.of(sources[each.before])
            assert source is not None
            if each.layer.bias is None or graph.is_constant(each.layer.bias):
                region, wanted = Region.between([each.input], each.end), Region.of_layer(source)
                dim = -1 - source.dims
                tasks.append(Blocks(region=region, source=wanted, channel_dim=dim, layer=each.layer, placed=each))
        tasks.sort(key=lambda task: task.region.first)
        found = fit(original, graph, self.data, tasks, "fitting blocks")
        return {task.placed.before: each for task, each in zip(tasks, found, strict=True)}


@dataclass(frozen=True)
class _Placed:
    """A layer in blocks. `before`: the call it stands for. `rows`: the outputs in the order of the blocks. `held`: the share of
    the mass that lies in them."""

    name: str
    before: str
    input: Node
    layer: Layer
    end: Node
    rows: Tensor
    held: float

    def change(self, found: Fit | None) -> Change:
        fitted = "" if found is None else f", error {found.before:.3g} -> {found.error:.3g}"
        return Change(self.name, f"{self.layer.groups} blocks, which hold {self.held:.0%} of the mass{fitted}")


@dataclass(eq=False, kw_only=True)
class Blocks(LayerWeights):
    """Blocks and bias of a layer; results are in the order of the original's outputs."""

    placed: _Placed

    def moments(self, graph: Graph, samples: Samples) -> Moments:
        found, executor, source = Moments(self.layer), Executor(graph), Layer.of(self.source.output)
        assert source is not None
        for part in samples.batches():
            x = executor.run([self.layer.input], {self.placed.input: part.inputs[0]})[self.layer.input]
            found.update(x, outputs(source, part.wanted)[..., self.placed.rows])
        return found

    def shift(self, graph: Graph, found: Found) -> Tensor:
        return super().shift(graph, found)[torch.argsort(self.placed.rows)]

    def store(self, graph: Graph, found: Found) -> None:
        shift = super().shift(graph, found)
        graph.put_constant(self.layer.weight, found["weight"])
        shift_output(graph, self.layer, shift)


def _refuses(site: Site) -> str | None:
    """Why a layer cannot be in blocks; None where it can."""
    if any(layer.groups > 1 for layer in site.layers):
        return "it has groups already"
    if site.layer.kind == "conv_transpose":
        return "it is a transposed convolution"
    if len(site.layers) > 1:
        return "several layers share its weight"
    if site.layer.kind == "linear" and len(shape(site.layer.node)) not in (2, 3):
        return f"its input has {len(shape(site.layer.node))} dimensions, not 2 or 3"
    return None


def _place(graph: Graph, site: Site, blocks: int, power: Tensor | None, seed: int) -> _Placed:
    """Put the blocks in the place of a layer."""
    layer, weight = site.layer, site.weight(graph)
    mass = weight.double().square() if power is None else weight.double().square() * power
    mass = mass.reshape(*weight.shape[:2], -1).sum(-1)
    rows, columns = coclusters(mass, blocks, seed)
    kept = weight[rows][:, columns].reshape(blocks, len(rows) // blocks, blocks, len(columns) // blocks, -1)
    own = torch.arange(blocks)
    parts = kept[own, :, own].reshape(len(rows), len(columns) // blocks, *(weight.shape[2:] or (1,)))
    held = mass[rows][:, columns].reshape(blocks, len(rows) // blocks, blocks, -1)[
        own, :, own
    ].sum() / mass.sum().clamp(min=1e-30)
    constants = {
        "weight": graph.add_constant(f"{site.name}.blocks", parts.contiguous(), before=layer.node, like=[layer.weight]),
        "inputs": graph.add_constant(f"{site.name}.inputs", columns, before=layer.node),
        "outputs": graph.add_constant(f"{site.name}.outputs", torch.argsort(rows), before=layer.node),
    }
    if layer.bias is not None and graph.is_constant(layer.bias):
        bias = graph.tensor(layer.bias)[rows]
        constants["bias"] = graph.add_constant(f"{site.name}.bias", bias, before=layer.node, like=[layer.bias])
    build, before, source = Build(graph, layer.node, constants), layer.node.name, layer.input
    convolved, end = _emit(build, layer, blocks)
    end.meta["val"] = value(layer.node)
    graph.replace(layer.node, end)
    changed = Layer.of(convolved)
    assert changed is not None
    return _Placed(site.name, before, source, changed, end, rows, float(held))


def _emit(build: Build, layer: Layer, blocks: int) -> tuple[Node, Node]:
    """The convolution, and what gives what the layer gave."""
    rank, bias = len(shape(layer.node)), "bias" if "bias" in build.constants else None
    dim = layer.channel_dim
    x = build.call(aten.index_select.default, layer.input, dim, "inputs")
    if layer.kind == "linear":
        x = build.call(aten.unsqueeze.default, x, -1) if rank == 2 else build.call(aten.transpose.int, x, 1, 2)
        found = build.call(aten.conv1d.default, x, "weight", bias, [1], [0], [1], blocks)
        y = build.call(aten.squeeze.dim, found, -1) if rank == 2 else build.call(aten.transpose.int, found, 1, 2)
    else:
        target, moves = convolution(layer.dims), (layer.stride, layer.padding, layer.dilation)
        y = found = build.call(target, x, "weight", bias, *(list(each) for each in moves), blocks)
    return found, build.call(aten.index_select.default, y, dim, "outputs")
