"""Emit what computes in float and is no layer: pools by our kernels, everything else by the operators of TVM.

Operators that treat every element alike keep the order of dimensions they find; those that work along a dimension are told where
it lies. For the rest, values are brought into torch's order, and TVM's importer for torch programs says what to emit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx.node import Node
from tvm import relax
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from graphopt.backends.tvm.layouts import Value, channels_last, plain
from graphopt.backends.tvm.pools import emit_max_pool, emit_mean
from graphopt.backends.tvm.program import Program
from graphopt.ir.layer import BatchNorm
from graphopt.ir.ops import argument, aten, family, function_of_one, shape
from graphopt.utils.errors import GraphoptError, last_line

PAIRS = {"add", "sub", "mul", "div"}


class Operators:
    """Float operators, and moves of codes."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.importer = ExportedProgramImporter()
        self.importer.block_builder = program.builder
        self.importer.env[None] = None  # arguments left out
        self.rules: dict[str, Callable[[Node], Value | None]] = {
            "transpose": self._transpose, "concat": self._concat, "pad": self._pad, "slice": self._slice, "mean": self._mean,
            "max_pool": self._max_pool, "global_average_pool": self._global_pool,
            "reshape": self._reshape, "convert": self._convert, "batch_norm": self._batch_norm, "shuffle": self._shuffle,
            **dict.fromkeys(PAIRS, self._pair),
        }  # fmt: skip

    def emit(self, node: Node) -> Value:
        kind = "convert" if node.target is aten.to.dtype else family(node) or ""
        value = self.rules[kind](node) if kind in self.rules else None
        if value is None and (kind == "identity" or function_of_one(node) is not None):
            value = self._alike(node)
        return value if value is not None else self._imported(node)

    def _alike(self, node: Node) -> Value:
        source = self.program.value(node.args[0])
        return Value(self._import(node, {node.args[0]: source}), source.shape, source.order)

    def _convert(self, node: Node) -> Value:
        source = self.program.value(node.args[0])
        dtype = str(node.args[1]).removeprefix("torch.")
        return self.program.emit(relax.op.astype(source.expr, dtype), source.shape, source.order)

    def _pair(self, node: Node) -> Value | None:
        if not all(isinstance(a, Node) for a in node.args[:2]) or node.kwargs.get("alpha", 1) != 1:
            return None
        left, right = self.program.operands(node)
        function = {"add": relax.op.add, "sub": relax.op.subtract, "mul": relax.op.multiply, "div": relax.op.divide}[
            family(node) or ""
        ]
        return self.program.emit(function(left.expr, right.expr), shape(node), left.order)

    def _transpose(self, node: Node) -> Value:
        source = self.program.value(node.args[0])
        rank = len(source.shape)
        dims = list(range(rank))
        if node.target is aten.permute.default:
            dims = list(node.args[1])  # type: ignore[arg-type]
        elif node.target is aten.transpose.int:
            i, j = (int(d) % rank for d in node.args[1:3])  # type: ignore[arg-type]
            dims[i], dims[j] = dims[j], dims[i]
        else:
            dims.reverse()
        return source.permuted(tuple(dims))

    def _reshape(self, node: Node) -> Value:
        source = self.program.plain(self.program.value(node.args[0]))
        out = shape(node)
        return Value(self.program.reshaped(source, out), out, plain(len(out)))

    def _concat(self, node: Node) -> Value:
        values = [self.program.value(a) for a in node.args[0]]  # type: ignore[union-attr]
        order = values[0].order
        parts = [self.program.laid_out(v, order).expr for v in values]
        axis = values[0].position(int(argument(node, "dim")))
        return self.program.emit(relax.op.concat(parts, axis), shape(node), order)

    def _pad(self, node: Node) -> Value:
        source = self.program.value(node.args[0])
        amounts = list(argument(node, "pad"))
        rank = len(source.shape)
        widths = [(0, 0)] * rank
        for number in range(len(amounts) // 2):
            widths[rank - 1 - number] = (amounts[2 * number], amounts[2 * number + 1])
        if min(w for pair in widths for w in pair) < 0:
            raise GraphoptError(
                f"{self.program.graph.site(node)} cuts off an edge by negative padding; slice it instead"
            )
        flat = [w for d in source.order for w in widths[d]]
        value = argument(node, "value") or 0
        return self.program.emit(relax.op.nn.pad(source.expr, flat, pad_value=value), shape(node), source.order)

    def _slice(self, node: Node) -> Value | None:
        if node.target is not aten.slice.Tensor:
            return None
        source = self.program.value(node.args[0])
        dim, start, end, step = (argument(node, name) for name in ("dim", "start", "end", "step"))
        length = source.shape[dim]
        start, end, step = slice(start, end, step).indices(length)
        axis = source.position(dim)
        return self.program.emit(
            relax.op.strided_slice(source.expr, [axis], [start], [end], [step]), shape(node), source.order
        )

    def _mean(self, node: Node) -> Value | None:
        source = self.program.value(node.args[0])
        dims = argument(node, "dim")
        if not dims or argument(node, "dtype") is not None:
            return None
        gone = {int(d) % len(source.shape) for d in dims}
        axes, keep = [source.position(d) for d in gone], bool(argument(node, "keepdim"))
        left = [d for d in range(len(source.shape)) if d not in gone]
        order = source.order if keep else tuple(left.index(d) for d in source.order if d in left)
        return self.program.emit(relax.op.mean(source.expr, axes, keep), shape(node), order)

    def _batch_norm(self, node: Node) -> Value | None:
        norm = BatchNorm.of(node)
        if norm is None:
            return None
        tensor = self.program.graph.tensor
        weight, bias = (None if a is None else tensor(a).double() for a in (norm.weight, norm.bias))
        mean, variance = tensor(norm.mean).double(), tensor(norm.var).double()
        scale = (variance + norm.eps).rsqrt() * (1 if weight is None else weight)
        shift = (0 if bias is None else bias) - mean * scale
        source = self.program.value(node.args[0])
        sizes = [-1 if d == 1 else 1 for d in source.order]
        factor, addend = (self.program.constant(t.float().reshape(sizes)).expr for t in (scale, shift))
        scaled = self.program.builder.emit(relax.op.multiply(source.expr, factor))
        return self.program.emit(relax.op.add(scaled, addend), source.shape, source.order)

    def _shuffle(self, node: Node) -> Value | None:
        if node.target is not aten.channel_shuffle.default:
            return None
        order = channels_last(len(shape(node)))
        source = self.program.laid_out(self.program.value(node.args[0]), order)
        *image, channels = source.stored
        groups, rank = int(node.args[1]), len(image)  # type: ignore[arg-type]
        grouped = self.program.reshaped(source, (*image, groups, channels // groups))
        swapped = self.program.builder.emit(relax.op.permute_dims(grouped, [*range(rank), rank + 1, rank]))
        return self.program.emit(relax.op.reshape(swapped, list(source.stored)), source.shape, order)

    def _max_pool(self, node: Node) -> Value | None:
        return emit_max_pool(self.program, node) if 3 <= len(shape(node)) <= 4 else None

    def _global_pool(self, node: Node) -> Value | None:
        source = self.program.value(node.args[0])
        if node.meta["val"].dtype == torch.float16 and len(source.shape) in (3, 4):
            return emit_mean(self.program, node)
        axes = [source.position(d) for d in range(2, len(source.shape))]
        return self.program.emit(relax.op.mean(source.expr, axes, True), shape(node), source.order)

    def _imported(self, node: Node) -> Value:
        sources = {a: self.program.plain(self.program.value(a)) for a in node.all_input_nodes}
        return self.program.emit(self._import(node, sources), shape(node))

    def _import(self, node: Node, sources: dict[Any, Value]) -> Any:
        name = getattr(node.target, "__name__", str(node.target))
        convert = self.importer.convert_map.get(name)
        site = self.program.graph.site(node)
        advice = (
            "leave this part out of the model, write it with other operators, or use an ONNX Runtime target (arm, x86)"
        )
        if convert is None:
            raise GraphoptError(f"{site}: TVM has no operator for {node.target} (node {node.name}); {advice}")
        self.importer.env.update({a: v.expr for a, v in sources.items()})
        try:
            return convert(node)
        except Exception as error:
            raise GraphoptError(
                f"{site}: TVM cannot import {node.target} (node {node.name}): {last_line(error)}; {advice}"
            ) from error
