"""Arithmetic on sizes, each kept as one dimension of one element."""

from __future__ import annotations

import operator
from typing import Any

import torch
from onnx_ir import Value
from torch.fx.node import Node

from graphopt.backends.onnxruntime.emit.writer import Writer
from graphopt.utils.errors import GraphoptError

KINDS = {operator.add: "Add", operator.sub: "Sub", operator.mul: "Mul", operator.mod: "Mod"}
EXTREMES = {getattr(torch, f"sym_{name.lower()}"): name for name in ("Max", "Min")}


def number(w: Writer, node: Node) -> Value:
    """A size that a call computes.

    Raises:
        GraphoptError: it computes in another way than those known here.
    """
    read = [w.size(a) if isinstance(a, Node) else None if isinstance(a, float) else w.integers([a]) for a in node.args]  # type: ignore[list-item]
    target: Any = node.target
    if None not in read:
        if target in KINDS or target in EXTREMES:
            return w.op(KINDS.get(target) or EXTREMES[target], *read)
        if target is operator.floordiv:  # ONNX rounds towards zero
            whole = w.op("Sub", read[0], w.op("Mod", *read))
            return w.op("Div", whole, read[1])
        if target is operator.neg:
            return w.op("Neg", *read)
        if target in (torch.sym_int, operator.pos):
            return read[0]
    raise GraphoptError(
        f"{w.graph.site(node)}: {target} of sizes cannot be written as ONNX; capture with these sizes fixed"
    )


def of_tensor(w: Writer, node: Node) -> Value:
    """A size of a tensor, read from the first value that has it, an input if there is one: a value of codes that nothing else
    reads, would have to be computed for it."""
    if (place := w.place(node.meta["val"])) is not None:
        return w.dimension(*place)
    source: Any = node.args[0]
    value = w.values[source]
    assert isinstance(value, Value)
    dim: Any = node.args[1]
    return w.dimension(value, dim % source.meta["val"].dim())
