"""Graph pieces as JSON: arguments, operators, nested structures. Tensors go into a list beside it.

What comes from a file is checked by `schema` before it gets here. What JSON has no form for is an object with one key:
`{"node": "relu"}`, `{"tuple": [1, 2]}`, `{"float": "inf"}`, `{"dtype": "float32"}`, `{"tensor": 3}`.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import sys
import types
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx.node import Node

from graphopt.ir import operators
from graphopt.utils.errors import InputError

NAMES = {function: name for name, function in operators.FUNCTIONS.items()}
ENUMS = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}
CONTAINERS: dict[str, Any] = {
    "tuple": tuple, "list": list, "dict": dict, "OrderedDict": collections.OrderedDict,
    "defaultdict": collections.defaultdict, "deque": collections.deque,
}  # fmt: skip


class Encoder:
    """Turns values into JSON; `tensors` collects those it met, each once."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.known: dict[int, int] = {}

    def tensor(self, value: Tensor) -> int:
        if id(value) not in self.known:
            self.known[id(value)] = len(self.tensors)
            self.tensors.append(value)
        return self.known[id(value)]

    def value(self, value: Any) -> Any:
        if isinstance(value, Node):
            return {"node": value.name}
        if isinstance(value, Tensor):
            return {"tensor": self.tensor(value)}
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {"float": str(value)}
        if isinstance(value, complex):
            return {"complex": [self.value(value.real), self.value(value.imag)]}
        if isinstance(value, list):
            return [self.value(v) for v in value]
        if isinstance(value, tuple):
            return {"tuple": [self.value(v) for v in value]}
        if isinstance(value, dict):
            return {"dict": [[k, self.value(v)] for k, v in value.items()]}
        if isinstance(value, slice):
            return {"slice": [self.value(v) for v in (value.start, value.stop, value.step)]}
        if isinstance(value, torch.device):
            return {"device": str(value)}
        for name, kind in ENUMS.items():
            if isinstance(value, kind):
                return {name: str(value).removeprefix("torch.")}
        raise InputError(f"a {type(value).__name__} cannot be saved")


class Decoder:
    """The way back, for values that `schema` has checked. `nodes` are those read so far, by name."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = tensors
        self.nodes: dict[str, Node] = {}

    def value(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.value(v) for v in value]
        if not isinstance(value, dict):
            return value
        ((kind, content),) = value.items()
        match kind:
            case "node":
                return self.nodes[content]
            case "tensor":
                return self.tensors[content]
            case "float":
                return float(content)
            case "complex":
                return complex(*(self.value(v) for v in content))
            case "tuple":
                return tuple(self.value(v) for v in content)
            case "dict":
                return {k: self.value(v) for k, v in content}
            case "slice":
                return slice(*(self.value(v) for v in content))
            case "device":
                return torch.device(content)
            case _:
                return enum(kind, content)


def enum(kind: str, name: str) -> Any:
    """A dtype, layout or memory format by name; the names are checked by then."""
    value = getattr(torch, name)
    if not isinstance(value, ENUMS[kind]):
        raise ValueError(f"{name} is no {kind}")
    return value


# ---- Operators ------------------------------------------------------------------------------------------------------


def operator_name(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return f"{target._schema.name}.{target._overloadname}"
    if target in NAMES:
        return NAMES[target]
    raise InputError(
        f"a call of {getattr(target, '__name__', target)} cannot be saved: it is no registered torch operator"
    )


# ---- Nested structures ----------------------------------------------------------------------------------------------


def spec(tree: Any) -> Any:
    """A pytree structure as JSON: None for a leaf, else its type, what belongs to the type, and the children."""
    if tree.is_leaf():
        return None
    children = [spec(tree.child(i)) for i in range(tree.num_children)]
    for name, kind in CONTAINERS.items():
        if tree.type is kind:
            keys = list(tree.context[1]) if kind is collections.defaultdict else tree.context
            return {
                "type": name,
                "context": list(keys) if isinstance(keys, (list, tuple)) else keys,
                "children": children,
            }
    kind = tree.context if hasattr(tree.context, "_fields") else tree.type  # a namedtuple's class is its context
    context = list(kind._fields) if kind is tree.context else tree.context
    return {"class": f"{kind.__module__}:{kind.__qualname__}", "context": context, "children": children}


def spec_of(data: Any) -> Any:
    """The structure again. A namedtuple of the same fields stands in for a class that this process has not imported."""
    if data is None:
        return pytree.treespec_leaf()
    children = [spec_of(child) for child in data["children"]]
    context = data["context"]
    if "type" in data:
        kind = CONTAINERS[data["type"]]
        return pytree.TreeSpec(kind, [None, context] if kind is collections.defaultdict else context, children)
    known = _class_of(data["class"])
    if known is not None and hasattr(known, "_fields"):
        return pytree.TreeSpec(collections.namedtuple, known, children)  # how pytree marks every namedtuple
    if known is not None:
        return pytree.TreeSpec(known, context, children)
    fields = context[0] if context and isinstance(context[0], list) else context
    name = data["class"].rpartition(".")[2].rpartition(":")[2]
    fields = fields if len(fields) == len(children) else [f"field_{i}" for i in range(len(children))]
    substitute: Any = collections.namedtuple(name, fields, rename=True)  # type: ignore[misc]
    return pytree.TreeSpec(collections.namedtuple, substitute, children)


def _class_of(name: str) -> Any:
    """A class of a module that is imported already, whose constructor does nothing but keep its fields.

    Reading a file imports nothing and runs no constructor that the file may choose: a class counts where its user made it known
    to pytree, or where it is a namedtuple or dataclass as Python generates them.
    """
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = vars(found).get(part) if isinstance(found, (types.ModuleType, type)) else None
    if not isinstance(found, type):
        return None
    if found.__module__.startswith("torch.") and found.__module__ != "torch.return_types":
        return None  # some of torch's own stand for functions
    if found in pytree.SUPPORTED_NODES or _is_plain_namedtuple(found):
        return found
    if dataclasses.is_dataclass(found) and _is_plain_dataclass(found):
        torch.export.register_dataclass(found)
        return found
    return None


def _is_plain_namedtuple(kind: type) -> bool:
    return pytree.is_namedtuple_class(kind) and kind.__init__ is object.__init__ and _is_generated(kind.__new__)  # type: ignore[misc]


def _is_plain_dataclass(kind: type) -> bool:
    inherited = kind.__new__ is object.__new__ and type(kind) is type  # type: ignore[comparison-overlap]
    frozen = kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    plain = frozen or kind.__setattr__ is object.__setattr__  # type: ignore[comparison-overlap]
    return inherited and plain and not hasattr(kind, "__post_init__") and _is_generated(kind.__init__)  # type: ignore[misc]


def _is_generated(function: Any) -> bool:
    """Whether Python itself wrote a method, for a namedtuple or a dataclass."""
    return getattr(getattr(function, "__code__", None), "co_filename", "").startswith("<")
