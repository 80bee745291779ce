"""The Relax function under construction: parameters, constants, kernels called, layouts changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx.node import Node
from tvm import relax
from tvm.ir.expr import GenericConst

from graphopt.artifacts.audit import Audit
from graphopt.artifacts.report import FloatOperator
from graphopt.backends.tvm import schedules
from graphopt.backends.tvm.decompose import PART_OF
from graphopt.backends.tvm.layouts import Order, Value, moves_nothing, plain
from graphopt.backends.tvm.machine import Processor
from graphopt.backends.tvm.schedules import Conv, Kernel, Variant
from graphopt.ir.calls import shape
from graphopt.ir.cost import layer_macs
from graphopt.ir.facts import LEFT
from graphopt.ir.float16 import half_of
from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten, family, info

REASONS = {
    "conv_transpose": "there is no integer kernel for transposed convolutions",
    "matmul": "a product of two activations is left in float",
    "mean": "only means of integers over whole images have an integer kernel",
}
OPAQUE = 8  # TVM's number for functions that are not to be fused with others


class Program:
    """What emission writes to.

    Attributes:
        builder: TVM's; inside its function and dataflow block.
        machine: whose kernels are chosen.
        values: what was emitted so far.
        results: the same of calls that give several tensors.
        audit: what of it computes in integer.
        at: the call that is being emitted. sites: the kernels called so far, each with the layer that it computes.
    """

    def __init__(
        self, graph: Graph, machine: Processor, samples: int = 1, variants: Mapping[Conv, Variant] | None = None
    ) -> None:
        """`samples`: to divide multiply-accumulates by; `variants`: of the layers that were tuned."""
        self.graph, self.machine, self.samples = graph, machine, samples
        self.builder = relax.BlockBuilder()
        self.values: dict[Node, Value] = {}
        self.results: dict[Node, tuple[Value, ...]] = {}
        self.audit = Audit()
        self.at: Node | None = None
        self.sites: list[tuple[str, str]] = []
        self._noted: dict[str, int] = {}  # the call it is a part of -> where in the audit
        self._variants = variants or {}
        self._kernels: dict[Any, tuple[Any, Kernel]] = {}

    def emit(self, expr: Any, shape: Sequence[int], order: Order | None = None) -> Value:
        """Bind an expression; `shape` is torch's."""
        shape = tuple(shape)
        return Value(self.builder.emit(expr), shape, plain(len(shape)) if order is None else order)

    def value(self, node: Any) -> Value:
        """What was emitted for a node; a constant is written down now."""
        if node not in self.values and (half := half_of(node)) is not None:
            value = self.value(half)
            self.values[node] = self.emit(relax.op.astype(value.expr, "float32"), value.shape, value.order)
        if node not in self.values:
            self.values[node] = self.constant(self.graph.tensor(node))
        return self.values[node]

    def constant(self, tensor: Tensor, order: Order | None = None) -> Value:
        order = plain(tensor.dim()) if order is None else order
        array = (
            tensor.detach().cpu().permute(order).contiguous().numpy() if tensor.dim() else tensor.detach().cpu().numpy()
        )
        return Value(relax.const(array, str(array.dtype)), tuple(tensor.shape), order)

    def laid_out(self, value: Value, order: Order) -> Value:
        """The same value in another order of dimensions."""
        if value.order == order:
            return value
        if isinstance(value.expr, GenericConst):
            array = np.ascontiguousarray(value.expr.value.numpy().transpose([value.order.index(d) for d in order]))
            return Value(relax.const(array, str(array.dtype)), value.shape, order)
        stored = [value.shape[d] for d in order]
        if moves_nothing(value.shape, value.order, order):
            return self.emit(relax.op.reshape(value.expr, stored), value.shape, order)
        axes = [value.order.index(d) for d in order]
        return self.emit(relax.op.permute_dims(value.expr, axes), value.shape, order)

    def plain(self, value: Value) -> Value:
        return self.laid_out(value, plain(len(value.shape)))

    def reshaped(self, value: Value, stored: Sequence[int]) -> Any:
        """The expression with other sizes in memory."""
        return (
            value.expr
            if value.stored == tuple(stored)
            else self.builder.emit(relax.op.reshape(value.expr, list(stored)))
        )

    def operands(self, node: Node) -> tuple[Value, Value]:
        """The two operands of a call in one order of dimensions and of equal rank."""
        rank = len(shape(node))
        values = [self.value(a) for a in node.args[:2]]
        order = max((v for v in values if len(v.shape) == rank), key=lambda v: prod(v.shape)).order
        found = []
        for value in values:
            if len(value.shape) < rank:
                sizes = (*[1] * (rank - len(value.shape)), *value.shape)
                value = Value(self.reshaped(self.plain(value), sizes), sizes, plain(rank))
            found.append(self.laid_out(value, order))
        return found[0], found[1]

    def integer(self, node: Node, macs: int) -> None:
        """Note a layer that computes in integer."""
        self.audit.integer.append(self.graph.site(node))
        self.audit.integer_macs += macs // self.samples
        self.audit.total_macs += macs // self.samples

    def half(self, macs: int) -> None:
        """Count a layer that reads float16."""
        self.audit.float16_macs += macs // self.samples
        self.audit.total_macs += macs // self.samples

    def floating(self, node: Node, macs: int | None = None) -> None:
        """Note an operator that computes in float, unless it only moves values or gives float16."""
        kind = family(node)
        values = node.meta["val"]
        is_half = isinstance(values, Tensor) and values.dtype == torch.float16
        if is_half or info(node).selects or kind in ("pad", "concat") or node.target is aten.constant_pad_nd.default:
            return
        macs = (layer_macs(self.graph).get(node, 0) if macs is None else macs) // self.samples
        own = (node.name, str(getattr(node.target, "__name__", node.target)).partition(".")[0])
        origin, name = node.meta.get(PART_OF, own)
        reason = self.graph.fact(node, LEFT) or REASONS.get(kind or "", "the operators around it are float")
        known = self._noted.setdefault(origin, len(self.audit.floating))
        if known < len(self.audit.floating):  # another part of it
            macs_before = self.audit.floating[known].macs
            self.audit.floating[known] = replace(self.audit.floating[known], macs=macs_before + macs)
        else:
            self.audit.floating.append(FloatOperator(self.graph.site(node), name, reason, macs))
        self.audit.total_macs += macs

    def kernel(self, spec: Any) -> Kernel:
        """The kernel of a spec; equal specs share one function."""
        if spec not in self._kernels:
            variant = self._variants.get(spec) if isinstance(spec, Conv) else None
            kernel = schedules.kernel(spec, self.machine, variant)
            self._add(spec, kernel, type(spec).__name__.lower())
        return self._kernels[spec][1]

    @property
    def layers(self) -> tuple[Conv, ...]:
        """Every kind of layer that was called."""
        return tuple(spec for spec in self._kernels if isinstance(spec, Conv))

    def _add(self, key: Any, kernel: Kernel, name: str) -> None:
        function = kernel.function.without_attr("global_symbol").with_attr("op_pattern", OPAQUE)
        self._kernels[key] = self.builder.add_func(function, name), kernel

    def call(self, spec: Any, inputs: Sequence[Any], constants: Sequence[Any] = ()) -> Any:
        """Call the kernel of a spec on expressions and arrays; the variable that holds its result."""
        kernel = self.kernel(spec)
        return self._call(
            spec, [*inputs, *(relax.const(c, str(c.dtype)) for c in constants)], kernel.shape, kernel.dtype
        )

    def compute(
        self, key: Any, function: Any, inputs: Sequence[Any], shape: Sequence[int], dtype: str, name: str
    ) -> Any:
        """Call a function of TIR made by `function()`, once for every `key`."""
        if key not in self._kernels:
            with schedules.written_for(self.machine):
                self._add(key, Kernel(function(), tuple(shape), dtype), name)
        return self._call(key, inputs, shape, dtype)

    def _call(self, key: Any, arguments: Sequence[Any], shape: Sequence[int], dtype: str) -> Any:
        function, result = self._kernels[key][0], relax.TensorType([int(s) for s in shape], dtype)
        self.sites.append((function.name_hint, "" if self.at is None else self.graph.site(self.at)))
        return self.builder.emit(relax.call_tir(function, list(arguments), result))
