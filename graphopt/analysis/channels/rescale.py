"""Scaling: a graph whose channels are divided by a factor for each scale group, which computes what it computed before.

    W'[i, :] = W[i, :] / S_i      b'[i] = b[i] / S_i      where channel i is written
    W'[:, i] = W[:, i] * S_i                              where it is read

Other parameters that a channel meets on the way are divided, too; so is the end of a clip.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.channels.labels import Array as Groups
from graphopt.analysis.channels.scale_groups import ScaleGroups
from graphopt.analysis.channels.scale_trace import Site
from graphopt.ir.calls import operand, shape
from graphopt.ir.facts import MOMENTS, Moments
from graphopt.ir.graph import Graph
from graphopt.ir.layer import WEIGHT, Layer
from graphopt.ir.ops import aten, clip_of, family
from graphopt.ir.passes import Change

Array = npt.NDArray[np.float64]


def rescale(graph: Graph, groups: ScaleGroups, scale: Array) -> list[Change]:
    """Divide channels in place.

    Args:
        groups: of the graph as it is now.
        scale: [groups], positive; 1 for those that are pinned.
    """
    changes = []
    reads = {site.node: site.labels for site in groups.reads}
    for site in groups.writes:
        layer = layer_of(site.node)
        read = reads.get(layer.node)
        out = factors(site.labels, scale)
        into = np.ones(layer.in_channels) if read is None else factors(read, scale)
        if np.allclose(out, 1.0, rtol=1e-12) and np.allclose(into, 1.0, rtol=1e-12):
            continue
        _scale_layer(graph, layer, torch.from_numpy(out), torch.from_numpy(into))
        moved = int((np.abs(np.log(out)) > 1e-3).sum())
        changes.append(Change(graph.site(layer.node), f"{moved} of {len(out)} output channels rescaled"))
    for sites, scale_site in ((groups.parameters, _scale_parameter), (groups.clips, _scale_clip)):
        for site in sites:
            factor = factors(site.labels, scale)
            if not np.allclose(factor, 1.0, rtol=1e-12):
                scale_site(graph, site, torch.from_numpy(factor))
    return changes


def layer_of(node: Node) -> Layer:
    layer = Layer.of(node)
    assert layer is not None
    return layer


def factors(groups: Groups, scale: Array) -> Array:
    """The factor of each channel; 1 for those of no group."""
    return np.where(groups >= 0, scale[groups], 1.0) if len(scale) else np.ones(len(groups))


def _scale_layer(graph: Graph, layer: Layer, out: Tensor, into: Tensor) -> None:
    moments = graph.fact(layer.node, MOMENTS)
    weight = layer.canonical(graph.tensor(layer.weight))
    scaled = weight.double() / layer.over_outputs(out) * layer.over_inputs(into)
    graph.set_constant(layer.node, WEIGHT, layer.native(scaled.to(weight.dtype)))
    if layer.bias is not None:
        bias = graph.tensor(layer.bias)
        graph.set_bias(layer.node, (bias.double() / out).to(bias.dtype))
    if moments is not None:
        scaled_moments = Moments(*((m.double() / out).float() for m in moments))
        graph.set_fact(layer.node, MOMENTS, scaled_moments)


def _scale_parameter(graph: Graph, site: Site, factor: Tensor) -> None:
    """A vector of batch norm, or a constant that lies as the value does."""
    constant = graph.tensor(operand(site.node, site.position))
    behind = 0 if family(site.node) == "batch_norm" else len(shape(site.node)) - 1 - site.dim
    scaled = constant.double() / factor.reshape(-1, *[1] * behind)
    graph.set_constant(site.node, site.position, scaled.to(constant.dtype))


def _scale_clip(graph: Graph, site: Site, factor: Tensor) -> None:
    """relu6(x) -> clamp(x, 0, end), or clamp(relu(x), max=ends) with an end per channel where factors differ."""
    node = site.node
    ends = clip_of(node)
    assert ends is not None
    if bool((factor == factor[0]).all()):
        clipped = graph.call(aten.clamp.default, node.args[0], 0.0, ends[1] / float(factor[0]), before=node)
        graph.replace(node, clipped)
        return
    positive = graph.call(aten.relu.default, node.args[0], before=node)
    lying = (ends[1] / factor).float().reshape([-1 if d == site.dim else 1 for d in range(1, len(shape(node)))])
    constant = graph.add_constant(f"{node.name}_ends", lying, before=node)
    positive.meta["val"] = node.meta["val"]
    graph.replace(node, graph.call(aten.clamp.Tensor, positive, None, constant, before=node))
