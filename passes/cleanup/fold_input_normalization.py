"""Fold what a model does to pixels in front of its first layers into them, so that bytes go in as they are.

    x = s u + t      u: pixels, uint8; s, t: [channels], what scaling, means and deviations come to

    W x + b  =  W' u + b'        W' = W s over the channels of u,    b' = b + sum over in and kernel of W t

At the border of a convolution that pads with zeros, x is 0 where there is no pixel, and so is s u + t not. There t is the weight
of one more channel, 255 inside the image and 0 around it, which integer kernels read for nothing beside three others:

    W x + b  =  W' u + (sum over channels of W t / 255) 255 [inside] + b

A grid of step 1 for u is exact, so quantized models take the bytes of a camera without a multiplication.

Needs:  convolutions without groups, or linear layers; values in uint8, cast to float; sums, differences, products and quotients
        with constants that have one number for each channel, or one for all; permutations, views and padding with zeros between.
Keeps:  outputs, up to float rounding.
Paper:  Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
        section 2: zero points stand for padding, which no single one does where every channel has its own mean.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.ir.binary import Binary
from graphopt.ir.calls import CASTS, argument, is_float, shape, value
from graphopt.ir.graph import Graph
from graphopt.ir.layer import WEIGHT, Layer
from graphopt.ir.ops import aten, family
from graphopt.ir.passes import Change

LARGEST = 255  # of a byte
VIEWS = (aten.flatten.using_ints, aten.view.default, aten.reshape.default, aten.unflatten.int)


@dataclass(frozen=True)
class FoldInputNormalization:
    """See the head of this file."""

    exact: ClassVar[bool] = True

    def __call__(self, graph: Graph) -> list[Change]:
        changes = []
        for node in list(graph.calls()):
            layer = Layer.of(node)
            chain = _chain(graph, layer) if layer is not None and _fits(graph, layer) else None
            if layer is not None and chain is not None and chain.steps:
                _fold(graph, layer, chain)
                changes.append(Change(graph.site(node), "takes pixels as they are"))
        return changes


def spans(graph: Graph) -> dict[str, float]:
    """Layer -> how far apart what it reads is for pixels of 0 and 255, in its widest channel; of layers that can take pixels."""
    found = {}
    for node in graph.calls():
        layer = Layer.of(node)
        chain = _chain(graph, layer) if layer is not None and _fits(graph, layer) else None
        if layer is not None and chain is not None:
            scale, _ = chain.affine(layer.canonical(graph.tensor(layer.weight)).shape[1])
            found[graph.site(node)] = LARGEST * float(scale.abs().max())
    return found


class _Step(NamedTuple):
    """A sum, difference, product or quotient with a constant, float64 [channels] or []; `first`: which is the first operand."""

    kind: str
    constant: Tensor
    first: bool


@dataclass
class _Chain:
    """What lies between bytes and a layer, in order.

    Attributes:
        source: the bytes.
        steps: what is computed.
        moves: permutations, views, and padding with zeros, each with the dimension of channels in front of it.
        dim: that in front of the layer; None: unknown, behind views.
    """

    source: Node
    dim: int | None
    steps: list[_Step] = field(default_factory=list)
    moves: list[tuple[Node, int | None]] = field(default_factory=list)

    def affine(self, channels: int) -> tuple[Tensor, Tensor]:
        """s and t, float64 [channels]."""
        s, t = torch.ones(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
        for kind, constant, first in self.steps:
            if kind == "mul":
                s, t = s * constant, t * constant
            elif kind == "div":
                s, t = s / constant, t / constant
            elif kind == "add":
                t = t + constant
            else:
                s, t = (-s, constant - t) if first else (s, t - constant)
        return s, t


def _fits(graph: Graph, layer: Layer) -> bool:
    constant = graph.is_constant(layer.weight) and (layer.bias is None or graph.is_constant(layer.bias))
    batched = len(shape(layer.input)) == layer.dims + 2
    plain = layer.kind == "linear" or (
        layer.kind == "conv" and layer.groups == 1 and layer.channel_dim == 1 and batched
    )
    return constant and plain and is_float(layer.node)


def _chain(graph: Graph, layer: Layer) -> _Chain | None:
    """None where a layer reads no bytes, or something else is done to them."""
    node, inner = layer.input, len(shape(layer.input))
    dim: int | None = layer.channel_dim % inner if layer.kind == "conv" else inner - 1
    chain = _Chain(node, dim)
    while not _holds_bytes(node):
        source: Any = node.args[0] if node.args else None
        if node.op != "call_function" or not is_float(node) or not isinstance(source, Node):
            return None
        if node.target in CASTS:
            pass
        elif (found := _step(graph, node, dim)) is not None:
            source = found[0]
            chain.steps.insert(0, found[1])
        elif (moved := _before(node, dim, layer)) is not None and not _computed_behind(chain, node):
            dim = moved[0]
            chain.moves.insert(0, (node, dim))
        else:
            return None
        node = source
    chain.source = node
    return chain


def _holds_bytes(node: Node) -> bool:
    return isinstance(value(node), Tensor) and value(node).dtype == torch.uint8


def _computed_behind(chain: _Chain, node: Node) -> bool:
    """Padding is with zeros of what a layer reads only where nothing is computed behind it."""
    return family(node) == "pad" and bool(chain.steps)


def _before(node: Node, dim: int | None, layer: Layer) -> tuple[int | None] | None:
    """The dimension of channels in front of a call that moves values; None where it does something else."""
    if node.target is aten.permute.default:
        return (None if dim is None else argument(node, "dims")[dim] % len(shape(node)),)
    if node.target in VIEWS:
        return (None,)
    if family(node) == "pad" and layer.kind == "conv":
        amounts = argument(node, "pad")
        padded = {len(shape(node)) - 1 - n // 2 for n, amount in enumerate(amounts) if amount}
        return (dim,) if min(amounts) >= 0 and not padded & {0, dim} and dim is not None else None
    return None


def _step(graph: Graph, node: Node, dim: int | None) -> tuple[Node, _Step] | None:
    """The value that a constant meets, and what they make."""
    binary = Binary.of(node)
    if binary is None or len(node.args) > 2 or node.kwargs or not is_float(node):
        return None
    for own, other in ((binary.left, binary.right), (binary.right, binary.left)):
        constant = _constant(graph, other)
        if constant is None or not isinstance(own, Node) or shape(own) != shape(node):
            continue
        first = own is binary.right
        found = None if first and binary.kind == "div" else _by_channel(constant, node, dim)
        return None if found is None else (own, _Step(binary.kind, found, first))
    return None


def _constant(graph: Graph, given: Any) -> Tensor | None:
    if isinstance(given, (int, float)) and not isinstance(given, bool):
        return torch.tensor(given, dtype=torch.float64)
    return graph.tensor(given).double() if isinstance(given, Node) and graph.is_constant(given) else None


def _by_channel(constant: Tensor, node: Node, dim: int | None) -> Tensor | None:
    """One number, or one for each channel."""
    if constant.numel() == 1:
        return constant.reshape(())
    rank = len(shape(node))
    sizes = [1] * (rank - constant.dim()) + list(constant.shape)
    others = [n for d, n in enumerate(sizes) if d != dim]
    return constant.reshape(-1) if dim is not None and len(sizes) == rank and set(others) <= {1} else None


def _fold(graph: Graph, layer: Layer, chain: _Chain) -> None:
    weight = layer.canonical(graph.tensor(layer.weight))
    wide = weight.double()
    s, t = chain.affine(wide.shape[1])
    folded, shifts = wide * layer.over_inputs(s), wide * layer.over_inputs(t)
    padded = any(layer.padding) or any(family(node) == "pad" for node, _ in chain.moves)
    marked = padded and bool(t.any())
    pixels = _pixels(graph, layer, chain, marked)
    dtype = value(layer.node).dtype
    layer.node.update_arg(0, graph.call(aten.to.dtype, pixels, dtype, before=layer.node))
    if marked:
        folded = torch.cat([folded, shifts.sum(1, keepdim=True) / LARGEST], 1)
    graph.set_constant(layer.node, WEIGHT, layer.native(folded.to(weight.dtype)))
    if not marked and bool(t.any()):
        bias = graph.tensor(layer.bias).double() if layer.bias is not None else 0.0
        graph.set_bias(layer.node, (bias + shifts.flatten(1).sum(1)).to(weight.dtype))


def _pixels(graph: Graph, layer: Layer, chain: _Chain, marked: bool) -> Node:
    """The bytes as the layer is to have them; `marked`: with a channel that tells the image from what is around it."""
    pixels = chain.source
    for node, dim in chain.moves:
        if marked and family(node) == "pad":
            pixels, marked = _with_mark(graph, layer, pixels, dim), False
        options: Any = node.kwargs
        pixels = graph.call(node.target, pixels, *node.args[1:], before=layer.node, **options)
    return _with_mark(graph, layer, pixels, chain.dim) if marked else pixels


def _with_mark(graph: Graph, layer: Layer, pixels: Node, dim: int | None) -> Node:
    assert dim is not None
    behind = len(shape(layer.input)) - 1 - dim
    amounts = [0] * (2 * behind) + [0, 1]
    return graph.call(aten.constant_pad_nd.default, pixels, amounts, LARGEST, before=layer.node)
