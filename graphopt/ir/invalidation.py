"""Which facts no longer hold after a constant was replaced (see `facts.py`)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch.fx.node import Node

from graphopt.ir.facts import FACTS, FLOAT_REFERENCE, Fact, Trigger
from graphopt.ir.layer import WEIGHT, Layer
from graphopt.ir.quantizers import SCALE, is_quantizer


def constant_changed(reader: Node, position: int, keeps: Collection[Fact[Any]]) -> None:
    """Forget what depended on the constant at this argument; a kept float reference says that the float network is the same."""
    _walk(reader, position, FLOAT_REFERENCE not in keeps, {fact.name for fact in keeps})


def value_changed(constant: Node, keeps: Collection[Fact[Any]]) -> None:
    """Forget what was known about the constant itself."""
    _forget(constant, "value", {fact.name for fact in keeps})


def _walk(node: Node, position: int, in_float: bool, keeps: Collection[str]) -> None:
    """Follow a change through the calls that only constants lead to, up to the first that reads something else."""
    if is_quantizer(node):
        in_float = in_float and position == 0
        if position == SCALE:
            _forget(node, "scale", keeps)
    elif in_float:
        _forget(node, "float constants", keeps)
    if position == WEIGHT and Layer.of(node) is not None:
        _forget(node, "rounded weight", keeps)
    if _is_constant(node):
        for user in node.users:
            for at, argument in enumerate(user.args):
                if argument is node:
                    _walk(user, at, in_float, keeps)


def _is_constant(node: Node) -> bool:
    """Whether a value depends on constants alone."""
    if node.op != "call_function":
        return node.op == "get_attr"
    return bool(node.all_input_nodes) and all(map(_is_constant, node.all_input_nodes))


def _forget(node: Node, trigger: Trigger, keeps: Collection[str]) -> None:
    for name, fact in FACTS.items():
        if trigger in fact.invalidated_by and name not in keeps:
            node.meta.pop(name, None)
