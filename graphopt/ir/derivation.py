"""What the fake value of a node was derived from: as long as that is the same, so is the value, and no operator runs again.

A value depends on the operator, on the arguments that are no values, and of those that are, on what shapes are made of: types,
sizes and strides. Symbols of free sizes belong to one mode, of which the derivation speaks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.node import Node

from graphopt.ir.facts import declare


class Derivation(NamedTuple):
    """How a fake value came about.

    Attributes:
        mode: of the value. source: what it was derived from, as `described`. value: itself. result: how it looked then, for
            operators that write into a value may change its shape.
    """

    mode: FakeTensorMode
    source: Any
    value: Any
    result: Any


DERIVATION = declare("derivation", Derivation, saved=False)


def derived(node: Node, mode: FakeTensorMode, source: Any) -> bool:
    """Whether the node's value is the one derived from this."""
    found: Derivation | None = node.meta.get(DERIVATION.name)
    return (
        found is not None
        and found.mode is mode
        and found.value is not None
        and found.value is node.meta.get("val")
        and found.source == source
        and found.result == described(found.value)
    )


def described(value: Any) -> Any:
    """What shapes depend on of an argument; equal where they are equal."""
    if isinstance(value, Tensor):
        sizes = (*value.shape, None, *value.stride(), value.storage_offset())
        kind = (type(value), value.dtype, value.device, value.layout, value.requires_grad)
        return (*kind, *(s.node.expr if isinstance(s, torch.SymInt) else s for s in sizes))
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return type(value), value.node.expr
    if isinstance(value, (list, tuple)):
        return tuple(map(described, value))
    if isinstance(value, Mapping):
        return tuple((key, described(item)) for key, item in value.items())
    if isinstance(value, slice):
        return slice, described((value.start, value.stop, value.step))
    return type(value), value


def mutates(node: Node) -> bool:
    """Whether a call writes into an argument, and so changes values that were derived before."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable
