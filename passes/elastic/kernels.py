"""Kernel sizes become choices: smaller kernels are the middle of larger ones.

    w_k = (middle k x k of w) M_k        w: [out, in / groups, K, K], M_k: [k k, k k], learned, at first the identity

A convolution with w_k and as many fewer pads gives values of the same size.

Paper: Cai et al. 2020, "Once-for-All", section 3.3 (M_k is one for all channels of a layer, as there).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.fx.node import Node

from graphopt.ir.calls import argument, listed, value
from graphopt.ir.choices import CHOOSE, constant_name, one_hot
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.ops import aten
from graphopt.ir.passes import Change


def insert_kernels(graph: Graph, sizes: Sequence[int], transform: bool, chosen: Callable[[str], bool]) -> list[Change]:
    """A choice between kernel sizes, for each two-dimensional convolution that can have a smaller one."""
    changes = []
    for node in graph.calls(aten.conv2d.default):
        layer = Layer.of(node)
        if layer is None or not graph.is_constant(layer.weight) or not chosen(graph.site(node)):
            continue
        smaller = [size for size in sorted(set(sizes), reverse=True) if _fits(node, layer.weight, size)]
        if smaller:
            changes.append(_insert(graph, node, layer.weight, smaller, transform))
    graph.refresh()
    return changes


def _fits(node: Node, weight: Node, size: int) -> bool:
    """Whether a convolution's kernel can shrink to this size: square, odd, and with as many pads to spare."""
    height, width = value(weight).shape[2:]
    if height != width or not height % 2 or size >= height:
        return False
    less = (height - size) // 2
    pads, steps = _two(argument(node, "padding")), _two(argument(node, "dilation"))
    return all(pad >= less * step for pad, step in zip(pads, steps, strict=True))


def _insert(graph: Graph, node: Node, weight: Node, sizes: Sequence[int], transform: bool) -> Change:
    name, largest = graph.site(node), int(value(weight).shape[2])
    readers, behind = list(node.users), graph.after(node)
    options = [node, *(_smaller(graph, node, weight, size, transform, behind) for size in sizes)]
    weights = graph.add_constant(constant_name(name, "kernel"), one_hot(0, len(options)), before=behind)
    call = graph.call(CHOOSE, options, weights, before=behind, like=node)
    for reader in readers:
        reader.replace_input_with(node, call)
    return Change(name, f"kernels of {', '.join(map(str, [largest, *sizes]))}")


def _smaller(graph: Graph, node: Node, weight: Node, size: int, transform: bool, behind: Node) -> Node:
    """The convolution with a kernel of this size."""
    less = (int(value(weight).shape[2]) - size) // 2
    middle = weight
    for dim in (2, 3):
        middle = graph.call(aten.slice.Tensor, middle, dim, less, less + size, before=behind)
    if transform:
        count = size * size
        matrix = graph.add_constant(f"{weight.target}_middle_{size}", torch.eye(count), before=behind, like=[weight])
        flat = graph.call(aten.flatten.using_ints, middle, 2, before=behind)
        turned = graph.call(aten.matmul.default, flat, matrix, before=behind)
        middle = graph.call(aten.unflatten.int, turned, 2, [size, size], before=behind)
    pads, steps = _two(argument(node, "padding")), _two(argument(node, "dilation"))
    fewer = [pad - less * step for pad, step in zip(pads, steps, strict=True)]
    bias, stride, groups = (argument(node, key) for key in ("bias", "stride", "groups"))
    call = graph.call(
        aten.conv2d.default, node.args[0], middle, bias, stride, fewer, argument(node, "dilation"), groups,
        before=behind, like=node,
    )  # fmt: skip
    return call


def _two(amount: object) -> list[int]:
    found = [int(n) for n in listed(amount)]
    return found * 2 if len(found) == 1 else found
