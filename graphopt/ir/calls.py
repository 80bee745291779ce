"""Reading and writing the arguments of a call by their names, and the value it gives.

argument(node, "padding")      # by its schema name, its default where it is not given
operand(node)                  # the first argument, where it is a value of the graph
shape(node)                    # of its value; a free size is a symbol
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import Node


@cache
def positions(target: Any) -> dict[str, tuple[int, Any]]:
    """Argument name -> position and default."""
    schema = getattr(target, "_schema", None)
    arguments = schema.arguments if schema is not None else ()
    return {spec.name: (position, spec.default_value) for position, spec in enumerate(arguments)}


def bound(node: Node) -> dict[str, Any]:
    """All arguments of a call by name, in the order of the schema, defaults filled in."""
    return {
        name: node.args[position] if position < len(node.args) else node.kwargs.get(name, default)
        for name, (position, default) in positions(node.target).items()
    }


def has_argument(node: Node, name: str) -> bool:
    """Whether an operator's schema has an argument of this name."""
    return name in positions(node.target)


def argument(node: Node, name: str) -> Any:
    """An argument by its schema name, its default where it is not given."""
    if name not in positions(node.target):
        raise KeyError(f"{node.target} has no argument {name!r}")
    position, default = positions(node.target)[name]
    return node.args[position] if position < len(node.args) else node.kwargs.get(name, default)


def set_argument(node: Node, name: str, new: Any) -> None:
    """Let an argument be `new` from now on, written by position where it was, else by its name."""
    position, _ = positions(node.target)[name]
    if position < len(node.args):
        node.update_arg(position, new)
    else:
        node.update_kwarg(name, new)


def with_argument(
    node: Node, args: tuple[Any, ...], kwargs: Mapping[str, Any], name: str, new: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with one of them, by its schema name, exchanged; the node stays as it is."""
    position, _ = positions(node.target)[name]
    if position < len(args):
        return (*args[:position], new, *args[position + 1 :]), dict(kwargs)
    return args, {**kwargs, name: new}


def listed(found: Any) -> list[Any]:
    return list(found) if isinstance(found, (list, tuple)) else [found]


def operand(node: Node, position: int = 0) -> Node:
    """An argument that is known to be a value, not a number."""
    found = node.args[position]
    assert isinstance(found, Node), f"argument {position} of {node} is {found!r}, not a value"
    return found


def value(node: Node) -> Any:
    """The fake value a node carries (shape and type without data)."""
    return node.meta.get("val")


def shape(node: Node) -> tuple[Any, ...]:
    """The shape of a node's value; a free batch size is a symbol."""
    return tuple(value(node).shape)


def same_sizes(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether two shapes are one, whatever the free sizes are.

    `==` would ask with the numbers that stand for free sizes, and tie one for good to what it happens to equal.
    """
    first, second = ([s.node.expr if isinstance(s, torch.SymInt) else s for s in sizes] for sizes in (one, other))
    return first == second


def gives_several(node: Any) -> bool:
    """Whether a call gives a list of tensors (a split)."""
    return isinstance(node, Node) and isinstance(value(node), (list, tuple))


CASTS = (torch.ops.aten.to.dtype, torch.ops.aten._to_copy.default)


def is_cast_of_bytes(node: Any) -> bool:
    """Whether this makes floats of uint8 numbers, which stay what they are."""
    if not is_float(node) or node.target not in CASTS:
        return False
    source = node.args[0]
    return isinstance(source, Node) and isinstance(value(source), Tensor) and value(source).dtype == torch.uint8


def is_float(node: Any) -> bool:
    return isinstance(node, Node) and isinstance(value(node), Tensor) and value(node).dtype.is_floating_point
