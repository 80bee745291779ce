"""The quantizers of a graph: calls that round a value or a constant to a number format, whatever its family.

    is_quantizer(node)                 one of the operators of `graphopt.formats`
    quantizers(graph)                  all of them, in execution order
    quantizer_of(graph, node)          format and parameters, as a `Quantizer`
    constants(graph, quantizer, ...)   what a new one takes

Uniform formats and signs are whole multiples of a scale and become integers of a runtime (`graphopt.lowering.qdq`); code that
needs the grids of uniform ones looks for `FAKE_QUANTIZE` itself. Whatever holds for rounding in general asks here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx.node import Node

from graphopt.formats import (
    FAKE_QUANTIZE,
    FAKE_QUANTIZE_BLOCK_FLOAT,
    FAKE_QUANTIZE_FLOAT,
    FAKE_QUANTIZE_LOG,
    FAKE_QUANTIZE_SIGNS,
    FAKE_QUANTIZE_TABLE,
    NumberFormat,
    Quantizer,
    block_floating,
    codebook,
    floating,
    in_blocks,
    logarithmic,
    signs,
    uniform,
)
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.utils.errors import InputError

_READ: dict[Any, Callable[..., Quantizer]] = {
    FAKE_QUANTIZE: uniform.from_arguments,
    FAKE_QUANTIZE_LOG: logarithmic.from_arguments,
    FAKE_QUANTIZE_FLOAT: floating.from_arguments,
    FAKE_QUANTIZE_BLOCK_FLOAT: block_floating.from_arguments,
    FAKE_QUANTIZE_TABLE: codebook.from_arguments,
    FAKE_QUANTIZE_SIGNS: signs.from_arguments,
}
OPERATORS = frozenset(_READ)
SCALE, ZERO_POINT, AXIS = 1, 2, 5  # their positions in the arguments of a uniform quantizer


def is_quantizer(node: Any) -> bool:
    return isinstance(node, Node) and node.target in OPERATORS


def is_uniform(node: Any) -> bool:
    """Whether a call rounds to whole numbers times a scale, one per tensor or channel or block."""
    return isinstance(node, Node) and node.target is FAKE_QUANTIZE


def is_signs(node: Any) -> bool:
    """Whether a call rounds to signs times a scale (`graphopt.formats.signs`)."""
    return isinstance(node, Node) and node.target is FAKE_QUANTIZE_SIGNS


def has_steps(format: NumberFormat) -> bool:
    """Whether the numbers of a format are whole multiples of a scale, so that a layer computes in integers."""
    return format.operator in (FAKE_QUANTIZE, FAKE_QUANTIZE_SIGNS)


def scale_of(node: Any) -> Node | None:
    """The scale that a quantizer gives whole multiples of; None where it has none, or one to each block."""
    if is_signs(node) or (is_uniform(node) and not in_blocks(node)):
        scale: Node = node.args[SCALE]
        return scale
    return None


@dataclass(frozen=True)
class UniformQuantizer:
    """A call that rounds a value or constant to whole numbers times a scale: its arguments by name.

    Attributes:
        value: what it rounds. scale, zero_point: constants, [] or [channels] (or one for each block); the scale of a bias is a
            call on constants, see `bias_quantizer`. `Graph.tensor` reads both.
        low, high: the first and last code.
        axis: along which channels lie; -1: one scale for all.
        block: how many elements share a scale, where blocks do; empty else.
    """

    node: Node
    value: Node
    scale: Node
    zero_point: Node
    low: int
    high: int
    axis: int
    block: tuple[int, ...] = ()

    @classmethod
    def of(cls, node: Any) -> UniformQuantizer | None:
        if not is_uniform(node):
            return None
        value, scale, zero_point, low, high, axis, *block = node.args
        return cls(node, value, scale, zero_point, low, high, axis, tuple(block))


def bias_quantizer(layer: Layer) -> UniformQuantizer | None:
    """The uniform quantizer of a layer's bias, behind the shift that it may have.

    Its scale is mul(scale of the layer's input, scale of its weight), which follows both, whoever changes or trains them.
    """
    bias = layer.bias
    if bias is not None and not is_quantizer(bias) and bias.args:
        bias = bias.args[0]  # type: ignore[assignment]
    return UniformQuantizer.of(bias)


def is_scale_expression(node: Node) -> bool:
    """Whether a call computes the scale of a quantizer."""
    return any((is_uniform(user) or is_signs(user)) and user.args[SCALE] is node for user in node.users)


def quantizers(graph: Graph) -> list[Node]:
    """Every quantizer, in execution order."""
    return graph.calls(*OPERATORS)


def is_quantized(graph: Graph) -> bool:
    """Whether more is rounded than weights in blocks, which leave values to be rounded later."""
    return not all(is_uniform(node) and in_blocks(node) for node in quantizers(graph))


def quantizer_of(graph: Graph, node: Node) -> Quantizer:
    """What a quantizer rounds to, with its parameters as the graph has them now.

    Raises:
        InputError: it has a scale per block, or more than 16 bits (a bias).
    """
    if is_uniform(node) and in_blocks(node):
        raise InputError(f"{node.name} has a scale per block; see graphopt.formats.blocks")
    arguments = [graph.tensor(a) if isinstance(a, Node) else a for a in node.args[1:]]
    try:
        return _READ[node.target](*arguments)
    except ValueError as error:
        raise InputError(f"{node.name} has no number format of 2 to 16 bits: {error}") from error


def constants(graph: Graph, quantizer: Quantizer, name: str, *, before: Node) -> list[Any]:
    """What a quantizer's operator takes behind the value, with tensors as constants `name_...` of the graph."""
    names = iter(_NAMES[quantizer.format.operator])
    return [
        graph.add_constant(f"{name}_{next(names)}", a, before=before) if isinstance(a, Tensor) else a
        for a in quantizer.arguments
    ]


_NAMES: dict[Any, tuple[str, ...]] = {
    FAKE_QUANTIZE: ("scale", "zero_point"),
    FAKE_QUANTIZE_LOG: ("last",),
    FAKE_QUANTIZE_FLOAT: (),
    FAKE_QUANTIZE_BLOCK_FLOAT: ("exponent",),
    FAKE_QUANTIZE_TABLE: ("table",),
    FAKE_QUANTIZE_SIGNS: ("scale", "threshold", "below", "above"),
}
