"""Products of matrices."""

from __future__ import annotations

from typing import Any

import torch
from onnx_ir import Value
from torch.fx.node import Node

from graphopt.backends.onnxruntime.emit.rule import NoRule, Rule, rank, result_type
from graphopt.backends.onnxruntime.emit.writer import Writer
from graphopt.ir.arguments import Arguments
from graphopt.ir.ops import aten
from graphopt.lowering.integers.legalize import is_dequantized


def _linear(w: Writer, a: Arguments) -> Value:
    source, weight, bias = a["input"], a["weight"], a["bias"]
    x = w.read(source)
    rows = rank(source) == 2 and rank(weight) == 2
    if rows and bias is not None and rank(bias) == 1:
        return w.op("Gemm", x, w.read(weight), w.read(bias), transB=1)
    if rows and bias is None and is_dequantized(weight):
        # MatMul would read a transposed copy of the codes, which the runtime stores under a name of its own.
        return w.op("Gemm", x, w.read(weight), transB=1)
    product = w.op("MatMul", x, turned(w, weight))
    return product if bias is None else w.op("Add", product, w.read(bias))


def turned(w: Writer, weight: Node) -> Value:
    """The transpose of a matrix, stored as such where it is constant; a vector is its own."""
    if rank(weight) != 2:
        return w.read(weight)
    stored = w.derived(weight, "transposed", lambda matrix: matrix.T)
    return stored or w.op("Transpose", w.read(weight), perm=[1, 0])


def _product(w: Writer, a: Arguments) -> Value:
    first, second = list(a)[:2]
    dtype = result_type(a)
    inner = dtype if dtype.is_floating_point or dtype == torch.int64 else torch.int32
    return w.cast(w.op("MatMul", w.read(a[first], inner), w.read(a[second], inner)), inner, dtype)


def _sum_of_product(w: Writer, a: Arguments) -> Value:
    """beta c + alpha a b."""
    dtype = result_type(a)
    first, second = ("mat1", "mat2") if "mat1" in a else ("batch1", "batch2")
    if not dtype.is_floating_point:
        raise NoRule
    product = w.op("MatMul", w.read(a[first]), w.read(a[second]))
    scaled = [(product, a["alpha"]), (w.read(a["self"]), a["beta"])]
    product, term = (v if s == 1 else w.op("Mul", v, w.read(s, dtype)) for v, s in scaled)
    return product if a["beta"] == 0 else w.op("Add", product, term)


def _outer(w: Writer, a: Arguments) -> Value:
    dtype = result_type(a)
    column = w.op("Unsqueeze", w.read(a["self"], dtype), w.integers([1]))
    return w.op("Mul", column, w.op("Unsqueeze", w.read(a["vec2"], dtype), w.integers([0])))


def _einsum(w: Writer, a: Arguments) -> Value:
    a.ignore("path")
    dtype = result_type(a)
    equation = a["equation"].replace(" ", "")
    if not dtype.is_floating_point or any(c.isupper() for c in equation):
        raise NoRule
    return w.op("Einsum", *(w.read(t, dtype) for t in a["tensors"]), equation=equation)


PRODUCTS: dict[Any, Rule] = {
    aten.linear.default: _linear,
    **dict.fromkeys(
        [aten.matmul.default, aten.bmm.default, aten.mm.default, aten.mv.default, aten.dot.default], _product
    ),
    **dict.fromkeys([aten.addmm.default, aten.baddbmm.default], _sum_of_product),
    aten.outer.default: _outer,
    aten.einsum.default: _einsum,
}
