"""Residual blocks for signs: a shortcut around each convolution, and activations that leave signs something to say.

    block                                    h = a(conv1(x) + shortcut(x))
    y = relu(conv2(relu(conv1(x)))           y = a(conv2(h) + h)
         + shortcut(x))

A sign keeps little of a value, so what goes around a convolution matters more than what goes through it: with a shortcut to each,
values between layers keep their bits (Liu et al. 2018, "Bi-Real Net", section 3.1; the ResNet-20 of Qin et al. 2020, "IR-Net").
Behind a relu nothing is negative, and every sign is the same: `a` is a clip to [-1, 1] (`hardtanh`), whose sign is that of what
it reads, or a prelu that learns its slope below zero for each channel (Tang et al. 2017, section 3).

The network answers otherwise from then on: train it before its layers are rounded to signs, and with them.

Needs:  batch norms not folded, or layers with biases of their own; blocks whose second sum has the shape of the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx.node import Node

from graphopt.ir.calls import operand, shape, value
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.ops import aten, family
from graphopt.ir.passes import Change
from graphopt.utils.errors import InputError

SLOPE = 0.25  # of a prelu below zero, at first: torch's own


@dataclass(frozen=True)
class BlockShortcuts:
    """Give each convolution of a residual block a shortcut of its own.

    Attributes:
        activation: `hardtanh`, `prelu`, or `relu`, which leaves activations as they are: those of the blocks that are changed,
            and of the layer in front of the first.

    Raises:
        InputError: another activation.
    """

    exact: ClassVar[bool] = False

    activation: str = "hardtanh"

    def __post_init__(self) -> None:
        if self.activation not in ("hardtanh", "prelu", "relu"):
            raise InputError(f"activation must be 'hardtanh', 'prelu' or 'relu', got {self.activation!r}")

    def __call__(self, graph: Graph) -> list[Change]:
        changes = []
        while (found := next(filter(None, map(_block, graph.calls(aten.add.Tensor))), None)) is not None:
            inner, total, shortcut = found
            after = min(inner.users)
            _bring_forward(shortcut, after)
            first = graph.call(aten.add.Tensor, inner, shortcut, before=after, like=inner)
            first.meta["val"] = value(inner)
            after.replace_input_with(inner, first)
            total.replace_input_with(shortcut, after)
            changes.append(Change(graph.site(total), "a shortcut around each convolution"))
            for relu in (*_relus(after), *_relus(*total.users), *_relus(_source(shortcut))):
                self._replace(graph, relu)
        graph.sweep()
        graph.refresh()
        return changes

    def _replace(self, graph: Graph, relu: Node) -> None:
        if self.activation == "relu":
            return
        if self.activation == "hardtanh":
            call = graph.call(aten.hardtanh.default, relu.args[0], before=relu, like=relu)
        else:
            name = f"{graph.site(relu)}.{relu.name}_slope"
            slope = graph.add_constant(name, torch.full((shape(relu)[1],), SLOPE), before=relu)
            graph.make_parameter(slope)
            call = graph.call(aten.prelu.default, relu.args[0], slope, before=relu, like=relu)
        call.meta["val"] = value(relu)
        graph.replace(relu, call)


def _block(total: Node) -> tuple[Node, Node, Node] | None:
    """Of the sum behind a block of two convolutions: what the first one gives, the sum, and the shortcut."""
    for branch, shortcut in (total.args[:2], total.args[1::-1]):
        if not isinstance(branch, Node) or not isinstance(shortcut, Node) or (second := _layer(branch)) is None:
            continue
        relu = second.input
        if family(relu) != "relu" or len(relu.users) != 1:
            continue
        inner = operand(relu)
        first = _layer(inner)
        if (
            first is not None
            and len(inner.users) == 1
            and first.input is _source(shortcut)
            and shape(inner) == shape(total)
        ):
            return inner, total, shortcut
    return None


def _layer(node: Node) -> Layer | None:
    """The convolution that gives a value, behind its batch norm or not."""
    behind = operand(node) if family(node) == "batch_norm" else node
    layer = Layer.of(behind)
    return layer if layer is not None and layer.kind == "conv" and len(behind.users) == 1 else None


def _source(shortcut: Node) -> Node:
    """What a shortcut reads: in front of slices, pads, pools, and a convolution with its norm."""
    node = shortcut
    while family(node) in ("slice", "pad", "average_pool", "batch_norm", "conv"):
        node = operand(node)
    return node


def _bring_forward(shortcut: Node, reader: Node) -> None:
    """Let what computes a shortcut stand in front of its new reader."""
    calls: list[Node] = []
    end, node = _source(shortcut), shortcut
    while node is not end:
        calls = [*(n for n in node.all_input_nodes if n.op == "get_attr"), node, *calls]
        node = operand(node)
    for call in calls:
        if reader < call:
            reader.prepend(call)


def _relus(*nodes: Node) -> list[Node]:
    return [node for node in nodes if family(node) == "relu"]
