"""Equalize the weight ranges of layers that share channels, so that one scale for a whole tensor fits every channel.

For s > 0 and an activation with f(s x) = s f(x), channel i of the value between two layers may be divided by any S_i > 0:

    W1'[i, :] = W1[i, :] / S_i      b1'[i] = b1[i] / S_i      W2'[:, i] = W2[:, i] * S_i
    S_i = sqrt(r1_i / r2_i) makes both ranges sqrt(r1_i r2_i),  r1_i = max |W1[i, :]|,  r2_i = max |W2[:, i]|

Here "two layers" are all producers and all readers of a channel group (`graphopt.analysis.channels`): residual sums,
concatenations, shuffles and depthwise layers (whose row is scaled from both sides) need no special cases. What is added on the
way, and the mean and bias of a batch norm that was not folded, is divided by S_i, too. Groups are visited in turn until no scale
moves by more than a thousandth.

A clip at an upper end (ReLU6) is not homogeneous: its end, too, is divided by S_i, and the clip gets an end per channel, which
keeps the pass exact. Integer kernels clip a whole tensor at one end only; how an end per channel is lowered to them without
losing accuracy is said in `graphopt.lowering.qdq`.

Needs:  batch norm folded; constant weights. Dead channels are best folded first (`FoldConstantChannels`).
Keeps:  outputs, up to float rounding.
Paper:  Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.channels import ScaleGroups, Site
from graphopt.ir.calls import operand, shape
from graphopt.ir.facts import MOMENTS, Moments
from graphopt.ir.graph import Graph
from graphopt.ir.layer import WEIGHT, Layer
from graphopt.ir.masks import bake
from graphopt.ir.ops import aten, clip_of, family
from graphopt.ir.passes import Change

Array = npt.NDArray[np.float64]
Groups = npt.NDArray[np.int64]
SETTLED = 1e-3  # the logarithm of a scale that no longer counts as moved


@dataclass(frozen=True)
class EqualizeChannels:
    """`iterations`: the most rounds over all groups; `clips`: whether they may get an end per channel."""

    exact: ClassVar[bool] = True

    iterations: int = 100
    clips: bool = True

    def __call__(self, graph: Graph) -> list[Change]:
        changes = bake(graph)
        groups = ScaleGroups.of(graph)
        if not self.clips:
            groups.pin(groups.clips, "a clip that keeps one end")
        work = _Equalizer(graph, groups)
        scale = work.solve(self.iterations)
        if np.abs(np.log(scale)).max(initial=0.0) < 10 * SETTLED:
            return changes
        return changes + work.apply(scale)


class _Equalizer:
    def __init__(self, graph: Graph, groups: ScaleGroups) -> None:
        self.graph, self.groups = graph, groups
        self.layers = [_layer(site.node) for site in groups.writes]
        self.reads = {site.node: site.labels for site in groups.reads}
        self.ranges = [self.weight_range(layer) for layer in self.layers]

    def weight_range(self, layer: Layer) -> Array:
        """max |w| over the kernel: [out, in / groups], float64."""
        weight = layer.canonical(self.graph.tensor(layer.weight)).abs().double()
        return weight.flatten(2).amax(2).numpy() if weight.dim() > 2 else weight.numpy()

    # ---- Scales -----------------------------------------------------------------------------------------------------

    def solve(self, iterations: int) -> Array:
        """Alternate over blocks of groups until nothing moves: S of each group."""
        count = self.groups.count
        scale = np.ones(count)
        blocks = [block[~self.groups.pinned[block]] for block in self.groups.blocks()]
        touching = self.layers_of([b for b in blocks if len(b)])
        for _ in range(iterations):
            moved = 0.0
            for block, layers in touching:
                written, read = np.zeros(count), np.zeros(count)
                for index in layers:
                    rows, columns = self.current(index, scale)
                    np.maximum.at(written, *rows)
                    np.maximum.at(read, *columns)
                r1, r2 = written[block], read[block]
                both = (r1 > 0) & (r2 > 0)
                wanted = scale[block] * np.sqrt(np.where(both, r1, 1.0) / np.where(both, r2, 1.0))
                moved = max(moved, float(np.abs(np.log(wanted / scale[block])).max(initial=0.0)))
                scale[block] = wanted
            if moved < SETTLED:
                break
        return scale

    def layers_of(self, blocks: list[Groups]) -> list[tuple[Groups, list[int]]]:
        """For every block the layers (indices into `layers`) that write or read one of its groups."""
        block_of = np.full(self.groups.count, -1)
        for number, block in enumerate(blocks):
            block_of[block] = number
        found: list[list[int]] = [[] for _ in blocks]
        for index, site in enumerate(self.groups.writes):
            touched = np.concatenate([site.labels, self.reads.get(site.node, site.labels)])
            for number in np.unique(block_of[touched[touched >= 0]]):
                if number >= 0:
                    found[number].append(index)
        return list(zip(blocks, found, strict=True))

    def current(self, index: int, scale: Array) -> tuple[tuple[Groups, Array], tuple[Groups, Array]]:
        """Ranges of one layer's rows and columns under the present scales, with the groups they belong to."""
        layer, written = self.layers[index], self.groups.writes[index].labels
        read = self.reads.get(layer.node)
        ranges = self.ranges[index] / _factors(written, scale)[:, None]
        if read is None:
            return (written, ranges.max(1)), (np.zeros(0, np.int64), np.zeros(0))
        into = _factors(read, scale).reshape(layer.groups, 1, -1)  # input channels of each group of the convolution
        ranges = ranges.reshape(layer.groups, -1, ranges.shape[1]) * into
        used = read >= 0
        return (written, ranges.max(2).flatten()), (read[used], ranges.max(1).flatten()[used])

    # ---- Rewriting --------------------------------------------------------------------------------------------------

    def apply(self, scale: Array) -> list[Change]:
        changes = []
        for layer, site in zip(self.layers, self.groups.writes, strict=True):
            read = self.reads.get(layer.node)
            out = _factors(site.labels, scale)
            into = np.ones(layer.in_channels) if read is None else _factors(read, scale)
            if np.allclose(out, 1.0, rtol=1e-12) and np.allclose(into, 1.0, rtol=1e-12):
                continue
            self.scale_layer(layer, torch.from_numpy(out), torch.from_numpy(into))
            moved = int((np.abs(np.log(out)) > 1e-3).sum())
            changes.append(Change(self.graph.site(layer.node), f"{moved} of {len(out)} output channels rescaled"))
        for sites, rescale in ((self.groups.parameters, self.scale_parameter), (self.groups.clips, self.scale_clip)):
            for site in sites:
                factor = _factors(site.labels, scale)
                if not np.allclose(factor, 1.0, rtol=1e-12):
                    rescale(site, torch.from_numpy(factor))
        return changes

    def scale_layer(self, layer: Layer, out: Tensor, into: Tensor) -> None:
        moments = self.graph.fact(layer.node, MOMENTS)
        weight = layer.canonical(self.graph.tensor(layer.weight))
        scaled = weight.double() / layer.over_outputs(out) * layer.over_inputs(into)
        self.graph.set_constant(layer.node, WEIGHT, layer.native(scaled.to(weight.dtype)))
        if layer.bias is not None:
            bias = self.graph.tensor(layer.bias)
            self.graph.set_bias(layer.node, (bias.double() / out).to(bias.dtype))
        if moments is not None:
            scaled_moments = Moments(*((m.double() / out).float() for m in moments))
            self.graph.set_fact(layer.node, MOMENTS, scaled_moments)

    def scale_parameter(self, site: Site, factor: Tensor) -> None:
        """A vector of batch norm, or a constant that lies as the value does."""
        constant = self.graph.tensor(operand(site.node, site.position))
        behind = 0 if family(site.node) == "batch_norm" else len(shape(site.node)) - 1 - site.dim
        scaled = constant.double() / factor.reshape(-1, *[1] * behind)
        self.graph.set_constant(site.node, site.position, scaled.to(constant.dtype))

    def scale_clip(self, site: Site, factor: Tensor) -> None:
        """relu6(x) -> clamp(relu(x), max=ends) with an end per channel."""
        graph, node = self.graph, site.node
        ends = clip_of(node)
        assert ends is not None
        positive = graph.call(aten.relu.default, node.args[0], before=node)
        lying = (ends[1] / factor).float().reshape([-1 if d == site.dim else 1 for d in range(1, len(shape(node)))])
        constant = graph.add_constant(f"{node.name}_ends", lying, before=node)
        positive.meta["val"] = node.meta["val"]
        graph.replace(node, graph.call(aten.clamp.Tensor, positive, None, constant, before=node))


def _layer(node: Node) -> Layer:
    layer = Layer.of(node)
    assert layer is not None
    return layer


def _factors(groups: Groups, scale: Array) -> Array:
    """The factor of each channel; 1 for those of no group."""
    return np.where(groups >= 0, scale[groups], 1.0)
