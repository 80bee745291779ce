"""Equalize the weight ranges of layers that share channels, so that one scale for a whole tensor fits every channel.

For s > 0 and an activation with f(s x) = s f(x), channel i of the value between two layers may be divided by any S_i > 0:

    W1'[i, :] = W1[i, :] / S_i      b1'[i] = b1[i] / S_i      W2'[:, i] = W2[:, i] * S_i
    S_i = sqrt(r1_i / r2_i) makes both ranges sqrt(r1_i r2_i),  r1_i = max |W1[i, :]|,  r2_i = max |W2[:, i]|

Here "two layers" are all producers and all readers of a channel group: residual sums, concatenations and depthwise layers
(whose row is scaled from both sides) need no special cases. Groups are visited in turn until no scale moves by more than
a thousandth.

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

from graphopt.analysis.channels.scales import Channels, Slot
from graphopt.ir.facts import MOMENTS, Moments
from graphopt.ir.graph import Graph
from graphopt.ir.layer import WEIGHT, Layer
from graphopt.ir.masks import bake
from graphopt.ir.ops import aten, clip_of, family, operand, shape
from graphopt.ir.passes import Change

Array = npt.NDArray[np.float64]
SETTLED = 1e-3  # the logarithm of a scale that no longer counts as moved


@dataclass(frozen=True)
class EqualizeChannels:
    """`iterations`: the most rounds over all groups; `clips`: whether they may get an end per channel."""

    exact: ClassVar[bool] = True

    iterations: int = 100
    clips: bool = True

    def __call__(self, graph: Graph) -> list[Change]:
        changes = bake(graph)
        channels = Channels.of(graph)
        for _, groups in () if self.clips else channels.clips:
            channels.pinned[groups[groups >= 0]] = True
        work = _Equalizer(graph, channels)
        scale = work.solve(self.iterations)
        if np.abs(np.log(scale)).max(initial=0.0) < 10 * SETTLED:
            return changes
        return changes + work.apply(scale)


class _Equalizer:
    def __init__(self, graph: Graph, channels: Channels) -> None:
        self.graph, self.channels = graph, channels
        self.reads = {slot.layer.node: slot for slot in channels.reads}
        self.ranges = [self.weight_range(slot) for slot in channels.writes]

    def weight_range(self, slot: Slot) -> Array:
        """max |w| over the kernel: [out, in / groups], float64."""
        if not self.graph.is_constant(slot.layer.weight):
            self.channels.pinned[slot.groups] = True
            if (read := self.reads.pop(slot.layer.node, None)) is not None:
                self.channels.pinned[read.groups[read.groups >= 0]] = True
            return np.ones((slot.layer.out_channels, 1))
        weight = slot.layer.canonical(self.graph.tensor(slot.layer.weight)).abs().double()
        return weight.flatten(2).amax(2).numpy() if weight.dim() > 2 else weight.numpy()

    # ---- Scales -----------------------------------------------------------------------------------------------------

    def solve(self, iterations: int) -> Array:
        """Alternate over blocks of groups until nothing moves: S of each group."""
        count = self.channels.count
        scale = np.ones(count)
        blocks = [block[~self.channels.pinned[block]] for block in self.channels.blocks()]
        touching = self.layers_of([b for b in blocks if len(b)])
        for _ in range(iterations):
            moved = 0.0
            for block, slots in touching:
                written, read = np.zeros(count), np.zeros(count)
                for index in slots:
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

    def layers_of(self, blocks: list[npt.NDArray[np.int64]]) -> list[tuple[npt.NDArray[np.int64], list[int]]]:
        """For every block the layers (indices into `writes`) that write or read one of its groups."""
        block_of = np.full(self.channels.count, -1)
        for number, block in enumerate(blocks):
            block_of[block] = number
        found: list[list[int]] = [[] for _ in blocks]
        for index, slot in enumerate(self.channels.writes):
            groups = slot.groups
            if (read := self.reads.get(slot.layer.node)) is not None:
                groups = np.concatenate([groups, read.groups])
            for number in np.unique(block_of[groups[groups >= 0]]):
                if number >= 0:
                    found[number].append(index)
        return list(zip(blocks, found, strict=True))

    def current(
        self, index: int, scale: Array
    ) -> tuple[tuple[npt.NDArray[np.int64], Array], tuple[npt.NDArray[np.int64], Array]]:
        """Ranges of one layer's rows and columns under the present scales, with the groups they belong to."""
        slot = self.channels.writes[index]
        read = self.reads.get(slot.layer.node)
        ranges = self.ranges[index] / scale[slot.groups][:, None]
        nothing = (np.zeros(0, np.int64), np.zeros(0))
        if read is None:
            return (slot.groups, ranges.max(1)), nothing
        groups = slot.layer.groups
        per_group = read.groups.reshape(groups, -1)  # input channels of each group of the convolution
        factor = np.where(per_group >= 0, scale[per_group], 1.0)
        ranges = ranges.reshape(groups, -1, ranges.shape[1]) * factor[:, None, :]
        columns = ranges.max(1).flatten()
        used = read.groups >= 0
        return (slot.groups, ranges.max(2).flatten()), (read.groups[used], columns[used])

    # ---- Rewriting --------------------------------------------------------------------------------------------------

    def apply(self, scale: Array) -> list[Change]:
        changes = []
        for slot in self.channels.writes:
            read = self.reads.get(slot.layer.node)
            out = scale[slot.groups]
            into = (
                np.where(read.groups >= 0, scale[read.groups], 1.0)
                if read is not None
                else np.ones(slot.layer.in_channels)
            )
            if np.allclose(out, 1.0, rtol=1e-12) and np.allclose(into, 1.0, rtol=1e-12):
                continue
            self.scale_layer(slot.layer, torch.from_numpy(out), torch.from_numpy(into))
            moved = int((np.abs(np.log(out)) > 1e-3).sum())
            changes.append(Change(self.graph.site(slot.layer.node), f"{moved} of {len(out)} output channels rescaled"))
        for node, groups in self.channels.clips:
            factor = np.where(groups >= 0, scale[groups], 1.0)
            if not np.allclose(factor, 1.0, rtol=1e-12):
                self.scale_clip(node, torch.from_numpy(factor))
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

    def end(self, node: Node) -> Tensor:
        if (ends := clip_of(node)) is not None:
            return torch.tensor(ends[1], dtype=torch.float64)
        return self.graph.tensor(operand(node, 2)).double().flatten()

    def scale_clip(self, node: Node, factor: Tensor) -> None:
        """relu6(x) -> clamp(relu(x), max=ends) with an end per channel."""
        graph = self.graph
        flow = self.channels.flows[node]
        ends = (self.end(node) / factor).float()
        ends = ends.reshape([-1 if d == flow.dim else 1 for d in range(1, len(shape(node)))])
        if family(node) == "channel_clamp":
            graph.set_constant(node, 2, ends)
            return
        positive = graph.call(aten.relu.default, node.args[0], before=node)
        constant = graph.add_constant(f"{node.name}_ends", ends, before=node)
        positive.meta["val"] = node.meta["val"]
        graph.replace(node, graph.call(aten.clamp.Tensor, positive, None, constant, before=node))
