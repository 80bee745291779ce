"""Masks: weights held at zero by the graph itself.

A masked layer reads `mul(weight, mask)`. The weight stays the trainable parameter it was, under its own name; the mask is a
constant of zeros and ones in its shape, named `<weight>_mask`. Training goes through the product and never gives back what is
masked, and the graph can be saved, copied and trained like any other. (What `torch.nn.utils.prune` leaves in a model,
`weight_orig` times `weight_mask`, reads the same.)

Where weights have to be constants, masks are baked in: by `constant_weights`, which passes begin with, and by `deploy`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.fx.node import Node

from graphopt.ir.calls import operand, value
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.ops import aten
from graphopt.ir.passes import Change
from graphopt.ir.quantizers import is_quantizer


class Mask(NamedTuple):
    """The product that a masked layer reads, and the two constants it multiplies."""

    product: Node
    weight: Node
    mask: Node


def mask_of(graph: Graph, node: object) -> Mask | None:
    """The parts of a masked weight; None where the node is something else."""
    if not isinstance(node, Node) or node.target is not aten.mul.Tensor:
        return None
    for weight, mask in (node.args, node.args[::-1]):
        if not (graph.is_constant(weight) and graph.is_constant(mask)):
            continue
        name = re.escape(f"{str(weight.target).removesuffix('_orig')}_mask")  # type: ignore[union-attr]
        if not re.fullmatch(name + r"(_\d+)?", str(mask.target)):  # type: ignore[union-attr]
            continue
        kept = graph.parameter(mask)  # type: ignore[arg-type]
        if not isinstance(kept, nn.Parameter) and kept.shape == graph.parameter(weight).shape:  # type: ignore[arg-type]
            return Mask(node, weight, mask)  # type: ignore[arg-type]
    return None


def masks(graph: Graph) -> list[Mask]:
    """All masks of a graph, in execution order."""
    return [found for node in graph.calls(aten.mul.Tensor) if (found := mask_of(graph, node))]


def unmasked(graph: Graph, weight: Node) -> Node:
    """The constant behind a layer's weight, whether it is masked or not."""
    found = mask_of(graph, weight)
    return weight if found is None else found.weight


def put_mask(graph: Graph, weight: Node, keep: Tensor) -> None:
    """Let all readers of a constant read it masked; a mask it has already is exchanged. The weight itself is not touched.

    Args:
        weight: the constant.
        keep: bool, in its shape; False where the weight is held at zero.
    """
    mask = keep.to(graph.tensor(weight).dtype)
    known = next((found for found in masks(graph) if found.weight is weight), None)
    if known is not None:
        graph.put_constant(known.mask, mask)
        return
    readers = list(weight.users)
    first = min(readers)
    constant = graph.add_constant(f"{weight.target}_mask", mask, before=first)
    product = graph.call(aten.mul.Tensor, weight, constant, before=first)
    product.meta["val"] = value(weight)
    for reader in readers:
        reader.replace_input_with(weight, product)


def bake(graph: Graph) -> list[Change]:
    """Multiply masks into their weights, which are constants again, with zeros and trainable as before. Outputs stay as they are.

    The weights are new parameters under the old names: make an optimizer afterwards.
    """
    return [
        Change(site, f"mask baked in, {zeros} of {total} weights are zero")
        for site, zeros, total in _remove(graph, restore=False)
    ]


def release(graph: Graph, *, restore: bool = False) -> list[Change]:
    """Take the masks away, so that all weights train again: the last phase of dense-sparse-dense training.

    Args:
        restore: let masked weights have the values they had before; otherwise they start at zero, as in the paper, and outputs
            stay as they are. The weights are then new parameters: make an optimizer afterwards.

    Paper: Han et al. 2017, "DSD: Dense-Sparse-Dense Training for Deep Neural Networks", section 3.
    """
    return [Change(site, f"{zeros} weights released") for site, zeros, _ in _remove(graph, restore=restore)]


def _remove(graph: Graph, *, restore: bool) -> list[tuple[str, int, int]]:
    found = []
    for product, weight, mask in masks(graph):
        site = graph.site(next(iter(product.users), product))
        keep = graph.tensor(mask)
        found.append((site, int((keep == 0).sum()), keep.numel()))
        if not restore:
            baked = graph.tensor(weight) * keep + 0.0  # no negative zeros: those compress badly
            if len(weight.users) == 1:
                graph.put_constant(weight, baked)
            else:
                weight = graph.add_constant(str(weight.target), baked, before=product, like=[weight])
        graph.replace(product, weight)
    if found:
        graph.refresh()
    return found


def zero_share(graph: Graph) -> float:
    """The share of zeros, 0 to 1, among the weights of convolutions and linear layers, masked ones included.

    A weight that several layers share counts once.
    """
    counted: dict[Node, tuple[int, int]] = {}
    for layer in (layer for node in graph.calls() if (layer := Layer.of(node))):
        weight = layer.weight
        if is_quantizer(weight):
            weight = operand(weight)
        found = mask_of(graph, weight)
        if found is not None:
            live = torch.logical_and(graph.tensor(found.weight) != 0, graph.tensor(found.mask) != 0)
        elif graph.is_constant(weight):
            live = graph.tensor(weight) != 0
        else:
            continue
        counted[weight] = (live.numel() - int(live.sum()), live.numel())
    return sum(zeros for zeros, _ in counted.values()) / max(1, sum(total for _, total in counted.values()))
