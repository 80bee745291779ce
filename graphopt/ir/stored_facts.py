"""Facts as data of a file: written whatever their type, or refused by name; checked before anything is built from them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, get_type_hints

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.ir.encoding import Decoder, Encoder
from graphopt.ir.facts import FACTS, FLOAT_REFERENCE, REFERENCE_LEFT_OUT, TORCH_META, Fact
from graphopt.utils.errors import InputError

# What a value of a type looks like in JSON: an object with this one key.
OBJECTS: dict[type, str] = {
    Tensor: "tensor", tuple: "tuple", dict: "dict", slice: "slice", complex: "complex", torch.device: "device",
    torch.dtype: "dtype", torch.layout: "layout", torch.memory_format: "memory_format",
}  # fmt: skip


def encode(node: Node, encoder: Encoder, *, reference: bool) -> dict[str, Any]:
    """What is known about a node, by the names of facts; `reference`: float references included.

    Raises:
        InputError: a key that is no declared fact, or a value that files do not hold.
    """
    found: dict[str, Any] = {}
    for key, value in node.meta.items():
        if key in TORCH_META:
            continue
        if key not in FACTS:
            raise InputError(
                f"{node.name} has {key!r} in its meta, which is no declared fact and would be lost; "
                "declare it (graphopt.ir.facts.declare) or remove it before saving"
            )
        fact = FACTS[key]
        if fact is FLOAT_REFERENCE and not reference:
            found[REFERENCE_LEFT_OUT.name] = True
        elif fact.saved:
            found[key] = _encode(node, fact, value, encoder)
    return found


def _encode(node: Node, fact: Fact[Any], value: Any, encoder: Encoder) -> Any:
    try:
        encoded = encoder.value(value)
        if matches(fact.type, encoded):
            return encoded
        problem = f"it is no {fact.type.__name__}"
    except InputError as error:
        problem = f"{error}"
    raise InputError(f"the fact {fact.name!r} of {node.name}, a {type(value).__name__}, cannot be saved: {problem}")


def matches(kind: type, encoded: Any) -> bool:
    """Whether an encoded value, well-formed by itself, is one of this type."""
    if kind is float:
        return type(encoded) is float or _is(encoded, "float")
    if kind in (bool, int, str, list):
        return type(encoded) is kind
    if hasattr(kind, "_fields"):
        wanted = get_type_hints(kind).values()
        return (
            _is(encoded, "tuple")
            and len(encoded["tuple"]) == len(wanted)
            and all(map(matches, wanted, encoded["tuple"]))
        )
    return kind in OBJECTS and _is(encoded, OBJECTS[kind])


def _is(encoded: Any, key: str) -> bool:
    return isinstance(encoded, dict) and encoded.keys() == {key}


def decode(facts: dict[str, Any], decoder: Decoder, known: Collection[str] = FACTS) -> dict[str, Any]:
    """The values again, for facts that `schema` has checked."""
    found = {}
    for name in facts.keys() & set(known):
        kind, value = FACTS[name].type, decoder.value(facts[name])
        found[name] = kind(*value) if hasattr(kind, "_fields") else value
    return found
