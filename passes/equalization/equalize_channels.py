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

from graphopt.analysis.channels import ScaleGroups
from graphopt.analysis.channels.labels import Array as Groups
from graphopt.analysis.channels.rescale import Array, factors, layer_of, rescale
from graphopt.ir.constants import constant_weights
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.passes import Change

SETTLED = 1e-3  # the logarithm of a scale that no longer counts as moved


@dataclass(frozen=True)
class EqualizeChannels:
    """`iterations`: the most rounds over all groups; `clips`: whether they may get an end per channel."""

    exact: ClassVar[bool] = True

    iterations: int = 100
    clips: bool = True

    def __call__(self, graph: Graph) -> list[Change]:
        changes = constant_weights(graph)
        groups = ScaleGroups.of(graph)
        if not self.clips:
            groups.pin(groups.clips, "a clip that keeps one end")
        work = _Equalizer(graph, groups)
        scale = work.solve(self.iterations)
        if np.abs(np.log(scale)).max(initial=0.0) < 10 * SETTLED:
            return changes
        return changes + rescale(graph, groups, scale)


class _Equalizer:
    def __init__(self, graph: Graph, groups: ScaleGroups) -> None:
        self.graph, self.groups = graph, groups
        self.layers = [layer_of(site.node) for site in groups.writes]
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
        ranges = self.ranges[index] / factors(written, scale)[:, None]
        if read is None:
            return (written, ranges.max(1)), (np.zeros(0, np.int64), np.zeros(0))
        into = factors(read, scale).reshape(layer.groups, 1, -1)  # input channels of each group of the convolution
        ranges = ranges.reshape(layer.groups, -1, ranges.shape[1]) * into
        used = read >= 0
        return (written, ranges.max(2).flatten()), (read[used], ranges.max(1).flatten()[used])
