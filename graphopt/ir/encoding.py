"""Graph pieces as JSON: arguments, operators, nested structures. Tensors go into a list beside it.

JSON holds no code, so reading it runs none. What JSON has no form for is an object with one key: `{"node": "relu"}`,
`{"tuple": [1, 2]}`, `{"float": "inf"}`, `{"dtype": "float32"}`, `{"tensor": 3}`.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import importlib
import math
import operator
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx.node import Node

from graphopt.utils.errors import InputError

# The only plain functions a graph may call: arithmetic on sizes, and taking one of several results.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{f"operator.{n}": getattr(operator, n) for n in (
        "getitem", "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow", "abs",
        "eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_",
    )},
    **{f"math.{n}": getattr(math, n) for n in ("ceil", "floor", "trunc", "sqrt")},
    **{f"torch.{n}": getattr(torch, n) for n in ("sym_float", "sym_int", "sym_ite", "sym_max", "sym_min", "sym_not")},
}  # fmt: skip
NAMES = {function: name for name, function in FUNCTIONS.items()}
# Where operators outside torch's core are defined, in case nobody imported that yet.
DEFINED_IN = {"quantized_decomposed": "torch.ao.quantization.fx._decomposed", "graphopt": "graphopt.formats"}
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
    """The way back. `nodes` are those read so far, by name."""

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
    """A dtype, layout or memory format by name."""
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


def operator_of(name: str) -> Any:
    """The operator of this name.

    Raises:
        InputError: it is not registered in this process.
    """
    if "::" not in name:
        return FUNCTIONS[name]
    namespace, rest = name.split("::")
    packet, overload = rest.rsplit(".", 1)
    if namespace in DEFINED_IN:
        with contextlib.suppress(ImportError):
            importlib.import_module(DEFINED_IN[namespace])
    try:
        found = getattr(getattr(getattr(torch.ops, namespace), packet), overload)
    except AttributeError:
        raise InputError(
            f"the graph calls {name}, which is not registered here; import the package that defines it first"
        ) from None
    if packet == "from_file":  # the one operator that touches the disk
        raise ValueError(name)
    return found


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
    """A class of a module that is imported already (reading a file imports nothing), known to pytree."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, type):
        return None
    if dataclasses.is_dataclass(found) and found not in pytree.SUPPORTED_NODES:
        torch.export.register_dataclass(found)
    return found if found in pytree.SUPPORTED_NODES or hasattr(found, "_fields") else None
