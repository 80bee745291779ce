"""Fold batch norm into the convolution or linear layer next to it.

At inference batch norm is a per-channel affine map BN(x) = s x + t, so a layer beside it can absorb it:

    s = g / sqrt(var + eps)        t = beta - mean * s                  s, t: [channels]

    behind a layer, BN(Wx + b):    W' = W * s[:, None, ...]             W: [out, in/groups, *kernel]
                                   b' = b * s + t
    before a layer, W BN(x) + b:   W' = W * s[None, :, ...]             s, t of the channels each group reads
                                   b' = b + sum over in and kernel of W * t

Before a convolution that pads with zeros the second form is wrong at the border (the padding stands for x = 0 behind the
norm, not before it) unless t is 0, so it is left alone there. Where no neighbour can take it, batch norm becomes what it is:
one multiply, one add, with s and t reshaped to the channel dimension; or, with `depthwise`, a depthwise convolution with a
kernel of 1, W = s, b = t, which integer kernels compute faster and with one rounding instead of two. One that was frozen into a
multiply and an add by constants is folded, too: `frozen_norms.py`.

Needs:  constant weight and statistics; between layer and norm nobody else reads.
Keeps:  outputs, up to float rounding. A weight shared with another layer is copied, not changed. The moments of the
        channels (mean beta, deviation |g|; of the norm's input, where it moved behind) stay known to later passes as
        `meta["moments"]`: see `graphopt.analysis.distributions`.
Paper:  Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
        section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.distributions import norm_moments
from graphopt.ir.calls import shape
from graphopt.ir.constants import constant_weights
from graphopt.ir.facts import MOMENTS, Moments
from graphopt.ir.graph import Graph
from graphopt.ir.layer import WEIGHT, BatchNorm, Layer
from graphopt.ir.ops import aten
from graphopt.ir.passes import Change
from graphopt.passes.cleanup.frozen_norms import fold_frozen_norms


@dataclass(frozen=True)
class FoldBatchNorm:
    """`depthwise`: write a batch norm of images that no neighbour takes as a depthwise convolution."""

    exact: ClassVar[bool] = True

    depthwise: bool = False

    def __call__(self, graph: Graph) -> list[Change]:
        changes = constant_weights(graph)
        norms = [norm for node in graph.calls(aten.batch_norm.default) if (norm := BatchNorm.of(node))]
        return changes + [self.fold(graph, norm) for norm in norms] + fold_frozen_norms(graph)

    def fold(self, graph: Graph, norm: BatchNorm) -> Change:
        """Take one batch norm out of the graph, by the first of the three ways that fits."""
        scale, shift = affine(graph, norm)
        site = graph.site(norm.node)
        before = Layer.of(norm.input)
        if before and len(before.node.users) == 1 and before.channel_dim == 1 and graph.is_constant(before.weight):
            self.fold_back(graph, norm, before, scale, shift)
            return Change(site, f"folded into {graph.site(before.node)} in front of it")
        behind = [Layer.of(reader) for reader in norm.node.users]
        if behind and all(layer and self.reads_only(graph, norm, layer, shift) for layer in behind):
            for layer in behind:
                assert layer is not None
                self.fold_forward(graph, norm, layer, scale, shift)
            if (before is None or before.channel_dim == 1) and graph.fact(norm.input, MOMENTS) is None:
                graph.set_fact(norm.input, MOMENTS, input_moments(graph, norm))
            graph.replace(norm.node, norm.input)
            return Change(
                site, f"folded into {', '.join(graph.site(layer.node) for layer in behind if layer)} behind it"
            )
        if self.depthwise and len(shape(norm.node)) == 4:
            self.make_depthwise(graph, norm, scale, shift)
            return Change(site, "written as a depthwise 1x1 convolution")
        self.spell_out(graph, norm, scale, shift)
        return Change(site, "written as one multiply and one add")

    def fold_back(self, graph: Graph, norm: BatchNorm, layer: Layer, scale: Tensor, shift: Tensor) -> None:
        weight = layer.canonical(graph.tensor(layer.weight))
        bias = graph.tensor(layer.bias).to(scale) if layer.bias is not None else torch.zeros_like(shift)
        folded = (weight * layer.over_outputs(scale)).to(weight.dtype)
        graph.set_constant(layer.node, WEIGHT, layer.native(folded))
        graph.set_bias(layer.node, (bias * scale + shift).to(weight.dtype))
        graph.set_fact(layer.node, MOMENTS, norm_moments(graph, norm))
        graph.replace(norm.node, layer.node)

    def fold_forward(self, graph: Graph, norm: BatchNorm, layer: Layer, scale: Tensor, shift: Tensor) -> None:
        weight = layer.canonical(graph.tensor(layer.weight))
        weight64 = weight.double()
        added = layer.respond(weight64, shift)
        bias = graph.tensor(layer.bias).double() if layer.bias is not None else 0.0
        folded = layer.native((weight64 * layer.over_inputs(scale)).to(weight.dtype))
        graph.set_constant(layer.node, WEIGHT, folded, keeps=[MOMENTS])  # the layer gives what it gave
        graph.set_bias(layer.node, (bias + added).to(weight.dtype), keeps=[MOMENTS])

    def reads_only(self, graph: Graph, norm: BatchNorm, layer: Layer, shift: Tensor) -> bool:
        """Can this reader absorb the norm in front of it?"""
        if layer.node.args[0] is not norm.node or norm.node in layer.node.args[1:]:
            return False
        if not graph.is_constant(layer.weight) or layer.channel_dim != 1 or layer.kind == "conv_transpose":
            return False  # a transposed convolution reads fewer inputs at its border
        return not any(layer.padding) or not bool(shift.any())

    def make_depthwise(self, graph: Graph, norm: BatchNorm, scale: Tensor, shift: Tensor) -> None:
        dtype, name = graph.tensor(norm.mean).dtype, str(norm.mean.target).rpartition(".")[0]
        kernel = scale.reshape(-1, 1, 1, 1).to(dtype)
        weight = graph.add_constant(f"{name}.scale", kernel, before=norm.node, like=_affine(graph, norm))
        bias = graph.add_constant(f"{name}.shift", shift.to(dtype), before=norm.node, like=_affine(graph, norm))
        position = ([1, 1], [0, 0], [1, 1], len(scale))  # stride, padding, dilation, groups
        layer = graph.call(aten.conv2d.default, norm.input, weight, bias, *position, before=norm.node)
        graph.set_fact(layer, MOMENTS, norm_moments(graph, norm))
        graph.replace(norm.node, layer)

    def spell_out(self, graph: Graph, norm: BatchNorm, scale: Tensor, shift: Tensor) -> None:
        dtype = graph.tensor(norm.mean).dtype
        broadcast = [-1 if d == 1 else 1 for d in range(len(shape(norm.node)))][1:]
        name = str(norm.mean.target).rpartition(".")[0]
        s = graph.add_constant(
            f"{name}.scale", scale.reshape(broadcast).to(dtype), before=norm.node, like=_affine(graph, norm)
        )
        t = graph.add_constant(
            f"{name}.shift", shift.reshape(broadcast).to(dtype), before=norm.node, like=_affine(graph, norm)
        )
        product = graph.call(aten.mul.Tensor, norm.input, s, before=norm.node)
        product.meta["val"] = norm.node.meta["val"]  # which tells whether a layer in front takes both after all
        shifted = graph.call(aten.add.Tensor, product, t, before=norm.node)
        graph.set_fact(shifted, MOMENTS, norm_moments(graph, norm))
        graph.replace(norm.node, shifted)


def affine(graph: Graph, norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """s and t of the norm, float64 [channels]; finite also where the variance is near zero."""
    weight, bias = (graph.tensor(a).double() if a is not None else None for a in (norm.weight, norm.bias))
    mean, var = (graph.tensor(a).double() for a in (norm.mean, norm.var))
    scale = torch.rsqrt(var + norm.eps)
    scale = scale * weight if weight is not None else scale
    shift = -mean * scale
    return scale, shift + bias if bias is not None else shift


def input_moments(graph: Graph, norm: BatchNorm) -> Moments:
    """Mean and deviation of what a norm reads, float32 [channels]."""
    mean, var = (graph.tensor(a).float() for a in (norm.mean, norm.var))
    return Moments(mean, var.clamp(min=0).sqrt())


def _affine(graph: Graph, norm: BatchNorm) -> list[Node]:
    """The constants that scale and shift, where there are any."""
    return [node for node in norm.node.args[1:3] if isinstance(node, Node) and graph.is_constant(node)]
