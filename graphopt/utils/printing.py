"""The canonical text of a graph: stable between runs, so that tests, dumps and `diff` can rely on it.

    graph(x: f32[N, 3, 8, 8])
      %0 = conv2d(x, f32[8, 3, 3, 3], f32[8], padding=[1, 1]) : f32[N, 8, 8, 8]  # features.conv1
      %1 = relu(%0) : f32[N, 8, 8, 8]  # features.act1
      return %1

Values are numbered in execution order, constants stand as their type and shape, arguments at their default are left out,
the free batch size is N, and other free sizes stand by their names. Behind a call stands the name that options of passes know it
by, as in `Quantize(layers={"features.conv1": None})`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch.fx.node import Node

_DTYPES = {
    torch.float64: "f64", torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16", torch.int64: "i64",
    torch.int32: "i32", torch.int16: "i16", torch.int8: "i8", torch.uint8: "u8", torch.bool: "bool",
}  # fmt: skip


def dtype_name(value: torch.dtype) -> str:
    """`float32`: as NumPy, ONNX and TVM call it, too."""
    return str(value).removeprefix("torch.")


def dtype(value: torch.dtype) -> str:
    return _DTYPES.get(value, dtype_name(value))


def sizes(shape: Sequence[int | None]) -> str:
    """A shape, N in place of sizes that are free (None)."""
    return f"[{', '.join('N' if n is None else str(n) for n in shape)}]"


class _Names:
    """Names for symbolic sizes: those that are known, else in order of appearance N, then M1, M2, ..."""

    def __init__(self, known: Mapping[Any, str]) -> None:
        self.known = {str(symbol): name for symbol, name in known.items()}

    def size(self, value: Any) -> str:
        if isinstance(value, int):
            return str(value)
        expression = value.node.expr if hasattr(value, "node") else value
        symbols = sorted(map(str, getattr(expression, "free_symbols", [])))
        for symbol in symbols:
            self.known.setdefault(symbol, "N" if not self.known else f"M{len(self.known)}")
        return re.sub(r"\w+", lambda word: self.known.get(word[0], word[0]), str(expression))

    def type(self, value: Any) -> str:
        if isinstance(value, Tensor):
            return f"{dtype(value.dtype)}[{', '.join(map(self.size, value.shape))}]"
        if isinstance(value, (tuple, list)):
            return f"({', '.join(map(self.type, value))})"
        return type(value).__name__ if not hasattr(value, "node") else self.size(value)


def canonical(
    module: fx.GraphModule, sizes: Mapping[Any, str] | None = None, known_as: Mapping[Node, str] | None = None
) -> str:
    """The text of a module's graph; see the head of this file.

    Args:
        sizes: what symbols in shapes are called.
        known_as: names of calls, which stand behind them.
    """
    known_as = known_as or {}
    names = _Names(sizes or {})
    values: dict[Node, str] = {}
    signature, lines = [], []
    for node in module.graph.nodes:
        if node.op == "placeholder":
            values[node] = node.name
            signature.append(f"{node.name}: {names.type(node.meta.get('val'))}")
        elif node.op == "get_attr":
            values[node] = names.type(node.meta["val"]) if "val" in node.meta else str(node.target)
        elif node.op == "output":
            lines.append(f"return {_argument(_returned(node), values, names)}")
        else:
            values[node] = f"%{len(lines)}"
            comment = f"  # {known_as[node]}" if node in known_as else ""
            lines.append(f"{values[node]} = {call(node, values, names)} : {names.type(node.meta.get('val'))}{comment}")
    return "\n".join([f"graph({', '.join(signature)})", *("  " + line for line in lines)])


def call(node: Node, values: dict[Node, str], names: _Names | None = None) -> str:
    """One call: operator name, inputs, and the arguments that differ from their defaults, by name."""
    names = names or _Names({})
    target: Any = node.target
    schema = getattr(target, "_schema", None)
    if schema is None:
        return f"{getattr(target, '__name__', target)}({', '.join(_argument(a, values, names) for a in node.args)})"
    parts = []
    for position, spec in enumerate(schema.arguments):
        if position < len(node.args):
            value = node.args[position]
        elif spec.name in node.kwargs:
            value = node.kwargs[spec.name]
        else:
            continue
        if spec.has_default_value() and _same(value, spec.default_value):
            continue
        shown = _argument(value, values, names)
        has_node = any(isinstance(leaf, Node) for leaf in pytree.tree_leaves(value))
        parts.append(shown if has_node or position == 0 else f"{spec.name}={shown}")
    return f"{schema.name.split('::')[-1]}({', '.join(parts)})"


def _same(value: Any, default: Any) -> bool:
    if any(isinstance(leaf, Node) for leaf in pytree.tree_leaves(value)):
        return False
    if isinstance(value, (list, tuple)) and isinstance(default, (list, tuple)):
        return list(value) == list(default) or (len(set(default)) == 1 and list(value) == [default[0]] * len(value))
    if isinstance(value, (list, tuple)) and isinstance(default, int):
        return all(v == default for v in value)
    return type(value) is type(default) and bool(value == default)


def _argument(value: Any, values: dict[Node, str], names: _Names) -> str:
    if isinstance(value, Node):
        return values.get(value, value.name)
    if isinstance(value, (list, tuple)):
        inner = ", ".join(_argument(v, values, names) for v in value)
        return f"[{inner}]" if isinstance(value, list) else f"({inner})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_argument(v, values, names)}" for k, v in value.items()) + "}"
    if isinstance(value, torch.dtype):
        return dtype(value)
    return str(value)


def _returned(node: Node) -> Any:
    value = node.args[0]
    return value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value
