"""Emit what computes in float and is no layer, and moves of values: a rule for each ATen operator, of all its arguments.

A rule is a function of the program and of the call's `Arguments`; one that leaves an argument unread which is not at its default
is an error here, in the one place where rules are called. Operators without a rule were decomposed into such that have one
(`graphopt.backends.tvm.decompose`); where torch knows no decomposition either, they are refused by name.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.fx.node import Node

from graphopt.backends.tvm.decompose import PART_OF
from graphopt.backends.tvm.layouts import Value
from graphopt.backends.tvm.operators.elementwise import ELEMENTWISE
from graphopt.backends.tvm.operators.indexing import INDEXING
from graphopt.backends.tvm.operators.moves import MOVES
from graphopt.backends.tvm.operators.pairs import PAIRS
from graphopt.backends.tvm.operators.products import PRODUCTS
from graphopt.backends.tvm.operators.reductions import REDUCTIONS
from graphopt.backends.tvm.operators.rule import Rule, dtype_of
from graphopt.backends.tvm.operators.windows import WINDOWS
from graphopt.backends.tvm.program import Program
from graphopt.ir.arguments import Arguments
from graphopt.ir.layer import BatchNorm
from graphopt.ir.ops import aten
from graphopt.utils.errors import GraphoptError, last_line
from graphopt.utils.printing import dtype_name

ELEMENTS: dict[Any, Rule] = {**ELEMENTWISE, **PAIRS}
# What torch's decompositions are written in, where they are not written in ATen: the same operators, on tensors alone.
PRIMS_OF_ONE = (
    "abs", "neg", "sign", "exp", "log", "log1p", "expm1", "sqrt", "rsqrt", "reciprocal", "erf", "sin", "cos", "tanh", "floor",
    "ceil", "round", "trunc", "maximum", "minimum",
)  # fmt: skip
PRIMS_OF_TWO = ("add", "sub", "mul", "div", "fmod", "remainder", "eq", "ne", "lt", "le", "gt", "ge")
RULES: dict[Any, Rule] = {**ELEMENTS, **MOVES, **REDUCTIONS, **PRODUCTS, **WINDOWS, **INDEXING}
RULES.update(
    {
        getattr(torch.ops.prims, name).default: ELEMENTS[getattr(getattr(aten, name), overload)]
        for overload, names in {"default": PRIMS_OF_ONE, "Tensor": PRIMS_OF_TWO}.items()
        for name in names
    }
)
# Calls of these have a rule on a condition only.
ONLY_IF: dict[Any, Callable[[Node], bool]] = {
    aten.batch_norm.default: lambda node: BatchNorm.of(node) is not None,
    aten.pad.default: lambda node: Arguments(node)["mode"] == "constant",
}
Values = Value | tuple[Value, ...]
ADVICE = "leave this part out of the model, write it with other operators, or use an ONNX Runtime target (arm, x86)"


def has_rule(node: Node) -> bool:
    condition = ONLY_IF.get(node.target)
    return node.target in RULES and (condition is None or condition(node))


def emit(program: Program, node: Node) -> Values:
    """Emit a call.

    Raises:
        GraphoptError: it has no rule, or TVM does not take it. InputError: the rule does not know one of its arguments.
    """
    if node.target is operator.getitem:
        return program.results[node.args[0]][node.args[1]]  # type: ignore[index]
    site, what = program.graph.site(node), described(node)
    if not has_rule(node):
        raise GraphoptError(f"{site}: TVM has no operator for {what}; {ADVICE}")
    arguments = Arguments(node)
    try:
        values = RULES[node.target](program, arguments)
    except GraphoptError:
        raise
    except Exception as error:
        raise GraphoptError(f"{site}: TVM cannot compute {what}: {last_line(error)}; {ADVICE}") from error
    arguments.require_all_read(site, "TVM")
    _check(site, what, values, node)
    return values


def described(node: Node) -> str:
    """A call by its operator and name, with what it is a part of."""
    origin = f", a part of {node.meta[PART_OF][1]} {node.meta[PART_OF][0]}" if PART_OF in node.meta else ""
    target = node.target if isinstance(node.target, torch._ops.OpOverload) else getattr(node.target, "__name__", "")
    return f"{target} (node {node.name}{origin})"


def _check(site: str, what: str, values: Values, node: Node) -> None:
    """Shapes and types are those that torch has."""
    fakes = node.meta["val"]
    pairs = zip(values, fakes, strict=True) if isinstance(values, tuple) else [(values, fakes)]
    for value, fake in pairs:
        given, wanted = (dtype_of(value), value.shape), (dtype_name(fake.dtype), tuple(fake.shape))
        stored = tuple(int(n) for n in value.expr.ty.shape.values)
        if given != wanted or stored != value.stored:
            raise GraphoptError(f"{site}: emitted {given}, stored as {stored}, for {what}, which is {wanted}")


__all__ = ["ADVICE", "RULES", "described", "emit", "has_rule"]
