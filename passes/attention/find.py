"""Softmax attention in a graph: one call, or products and a softmax.

    scaled_dot_product_attention(Q, K, V, mask, is_causal, scale)
    softmax(s Q K^T + mask) V        matmul, bmm, baddbmm, einsum of dimensions in this order; scaled by mul or div;
                                     masked by add, masked_fill or where; with dropout

Q: [..., queries, d], K: [..., keys, d], V: [..., keys, values]. `Attention.written` puts the one call in the place of the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx.node import Node

from graphopt.ir.calls import argument, bound, operand, shape, value
from graphopt.ir.facts import ATTENTION_PART
from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten
from graphopt.ir.reading import varying

SDPA = aten.scaled_dot_product_attention.default
PRODUCTS = (aten.matmul.default, aten.bmm.default)
SAME = (aten.to.dtype, aten.dropout.default, aten.clone.default, aten.contiguous.default)
SCALED = (aten.mul.Tensor, aten.div.Tensor, aten.mul.Scalar, aten.div.Scalar)
LOW = -1e4  # what is added to a score that shall count for nothing is at most this


@dataclass(frozen=True)
class Attention:
    """One attention.

    Attributes:
        node: the call that gives its result.
        query, key, value: see the head of the file; `turned`: key is K^T, [..., d, keys].
        mask: bool (true: may be seen) or added to scores, [..., queries or 1, keys]; None: all may be seen.
        inverted: the mask is true where nothing may be seen.
        causal: a token sees none that come later.
        scale: of the scores.
        dropout: of the shares, in eval mode too.
    """

    node: Node
    query: Node
    key: Node
    value: Node
    mask: Node | None
    scale: float
    causal: bool = False
    turned: bool = False
    inverted: bool = False
    dropout: float = 0.0

    def written(self, graph: Graph) -> Node:
        """One call of the same, which stands in its place; its shape is known when the graph was refreshed."""
        if self.node.target is SDPA:
            return self.node
        key, mask = self.key, self.mask
        if self.turned:
            key = graph.call(aten.transpose.int, key, -2, -1, before=self.node)
        if mask is not None and self.inverted:
            mask = graph.call(aten.logical_not.default, mask, before=self.node)
        elif mask is not None and value(mask).dtype not in (value(self.query).dtype, torch.bool):
            mask = graph.call(aten.to.dtype, mask, value(self.query).dtype, before=self.node)
        if mask is not None and len(shape(self.mask)) == 1:  # type: ignore[arg-type]
            mask = graph.call(aten.unsqueeze.default, mask, 0, before=self.node)
        given = (self.query, key, self.value, mask, 0.0, False)
        node = graph.call(SDPA, *given, before=self.node, scale=self.scale)
        graph.replace(self.node, node)
        return node


def attentions(graph: Graph) -> list[Attention]:
    """All, in execution order; not those that a replacement is made of."""
    depends = varying(graph)
    found = []
    for node in graph.calls():
        attention = called(node) if node.target is SDPA else _spelled_out(node, depends)
        if attention is not None and not graph.fact(node, ATTENTION_PART):
            found.append(attention)
    return found


def called(node: Node) -> Attention:
    """Of a call of `scaled_dot_product_attention`, as it is now."""
    given = bound(node)
    size = shape(given["query"])[-1]
    scale = given["scale"] if given["scale"] is not None else 1 / math.sqrt(size)
    return Attention(
        node, given["query"], given["key"], given["value"], given["attn_mask"], float(scale), bool(given["is_causal"]),
        dropout=float(given["dropout_p"]),
    )  # fmt: skip


def _spelled_out(node: Node, depends: set[Node]) -> Attention | None:
    """Of the product of shares and values."""
    product = _product(node)
    if product is None or not product[2]:
        return None
    shares, values, _ = product
    while shares.target in SAME and len(shares.users) == 1:
        shares = operand(shares)
    if shares.target is not aten.softmax.int or len(shares.users) > 1 or shares not in depends or values not in depends:
        return None
    if argument(shares, "dim") not in (-1, len(shape(shares)) - 1):
        return None
    return _scores(node, operand(shares), values)


def _product(node: Node) -> tuple[Node, Node, bool] | None:
    """The operands of a product of matrices, and whether it is A B, not A B^T."""
    if node.target in PRODUCTS:
        return operand(node), operand(node, 1), True
    if node.target is not aten.einsum.default:
        return None
    terms, _, result = str(node.args[0]).replace(" ", "").partition("->")
    one, _, other = terms.partition(",")
    operands: Any = node.args[1]
    if len(operands) != 2 or not one[:-2] == other[:-2] == result[:-2] or one[-2:-1] != result[-2:-1]:
        return None
    if len({*one, *other}) != len(one) + 1 or other[-2:] not in (one[-1] + result[-1], result[-1] + one[-1]):
        return None
    return operands[0], operands[1], other[-2] == one[-1]


def _scores(node: Node, scores: Node, values: Node) -> Attention | None:
    """From the softmax's input back to the product of queries and keys."""
    scale, mask, inverted = 1.0, None, False
    while True:
        if (product := _product(scores)) is not None:
            query, key, turned = product
            return Attention(node, query, key, values, mask, scale, turned=turned, inverted=inverted)
        if len(scores.users) > 1:
            return None
        if scores.target is aten.baddbmm.default:
            return _added(node, scores, values) if mask is None and scale == 1.0 else None
        step = _step(scores)
        if step is None:
            return None
        scores, factor, here, turned = step
        if here is not None and (mask is not None or scale != 1.0):
            return None  # two masks, or one that is scaled
        scale, mask, inverted = scale * factor, mask if here is None else here, inverted or turned


def _added(node: Node, scores: Node, values: Node) -> Attention | None:
    """With a mask and a product in one call."""
    if argument(scores, "beta") != 1:
        return None
    mask, query, key = (operand(scores, n) for n in range(3))
    return Attention(node, query, key, values, mask, float(argument(scores, "alpha")), turned=True)


def _step(node: Node) -> tuple[Node, float, Node | None, bool] | None:
    """What a call makes its scores of: the scores before it, a factor, a mask, and whether that is true where nothing is seen."""
    target, given = node.target, node.args
    if target in SAME:
        return operand(node), 1.0, None, False
    if target in SCALED:
        by = given[1]
        if isinstance(by, (int, float)):
            return operand(node), float(by) if "mul" in str(target) else 1 / float(by), None, False
        return None
    if target is aten.add.Tensor and argument(node, "alpha") == 1 and isinstance(given[1], Node):
        first, second = operand(node), operand(node, 1)
        return (first, 1.0, second, False) if _leads_to_product(first) else (second, 1.0, first, False)
    if target is aten.masked_fill.Scalar and isinstance(given[2], (int, float)) and given[2] <= LOW:
        return operand(node), 1.0, operand(node, 1), True
    if target is aten.where.ScalarOther and isinstance(given[2], (int, float)) and given[2] <= LOW:
        return operand(node, 1), 1.0, operand(node), False
    return None


def _leads_to_product(node: Node) -> bool:
    """Whether a value is scores, not a mask."""
    while _product(node) is None:
        if node.target not in (*SAME, *SCALED) or not isinstance(node.args[0], Node):
            return False
        node = node.args[0]
    return True
