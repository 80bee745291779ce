"""Normalizations, and attention."""

from __future__ import annotations

import math
from typing import Any

import torch
from onnx_ir import Value
from torch.fx.node import Node

from graphopt.backends.onnxruntime.emit.rule import NoRule, Rule, rank, reshaped, result_type
from graphopt.backends.onnxruntime.emit.writer import Writer, type_of
from graphopt.ir.arguments import Arguments
from graphopt.ir.calls import shape
from graphopt.ir.ops import aten


def _filled(w: Writer, given: Node | None, count: int, value: float, dtype: torch.dtype) -> Value:
    return w.read(given) if given is not None else w.constant(torch.full((count,), value), dtype)


def _batch_norm(w: Writer, a: Arguments) -> Value:
    source, dtype = a["input"], result_type(a)
    a.ignore("momentum", "cudnn_enabled")
    if a["training"] or a["running_mean"] is None:
        raise NoRule
    count = shape(a["running_mean"])[0]
    scale, shift = _filled(w, a["weight"], count, 1, dtype), _filled(w, a["bias"], count, 0, dtype)
    mean, variance = w.read(a["running_mean"]), w.read(a["running_var"])
    return w.op("BatchNormalization", w.read(source), scale, shift, mean, variance, epsilon=float(a["eps"]))


def _layer_norm(w: Writer, a: Arguments) -> Value:
    source, over, dtype = a["input"], list(a["normalized_shape"]), result_type(a)
    a.ignore("cudnn_enable")
    weight, bias = a["weight"], a["bias"]
    scale = w.read(weight) if weight is not None else w.constant(torch.ones(over), dtype)
    sides = [] if bias is None else [w.read(bias)]
    return w.op(
        "LayerNormalization", w.read(source), scale, *sides, axis=-len(over), epsilon=float(a["eps"]), stash_type=1
    )


def _channels(w: Writer, x: Value, weight: Node | None, bias: Node | None, behind: int) -> Value:
    """x * weight + bias, one of each for a channel, with so many dimensions behind."""
    for kind, given in (("Mul", weight), ("Add", bias)):
        if given is not None:
            x = w.op(kind, x, w.shaped(given, [-1, *[1] * behind]))
    return x


def _group_norm(w: Writer, a: Arguments) -> Value:
    source, groups, dtype = a["input"], a["num_groups"], result_type(a)
    a.ignore("cudnn_enabled")
    batch, channels, *rest = shape(source)
    free = any(map(w.is_free, rest))
    x = (
        w.op("Reshape", w.read(source), w.integers([0, groups, -1]))
        if free
        else w.op("Reshape", w.read(source), w.integers([0, groups, channels // groups * torch.Size(rest).numel()]))
    )
    ones, zeros = w.constant(torch.ones(groups), dtype), w.constant(torch.zeros(groups), dtype)
    x = w.op("InstanceNormalization", x, ones, zeros, epsilon=float(a["eps"]))
    return _channels(w, reshaped(w, x, (batch, channels, *rest)), a["weight"], a["bias"], len(rest))


def _instance_norm(w: Writer, a: Arguments) -> Value:
    source, dtype = a["input"], result_type(a)
    a.ignore("momentum", "cudnn_enabled")
    if not a["use_input_stats"] or rank(source) < 3:
        raise NoRule
    a.ignore("running_mean", "running_var")
    channels = shape(source)[1]
    scale, shift = _filled(w, a["weight"], channels, 1, dtype), _filled(w, a["bias"], channels, 0, dtype)
    return w.op("InstanceNormalization", w.read(source), scale, shift, epsilon=float(a["eps"]))


def _rms_norm(w: Writer, a: Arguments) -> Value:
    """x / sqrt(mean(x^2) + eps), times the weight."""
    source, over, dtype = a["input"], len(a["normalized_shape"]), result_type(a)
    eps = torch.finfo(dtype).eps if a["eps"] is None else a["eps"]
    x, dims = w.read(source), w.integers(range(rank(source) - over, rank(source)))
    mean = w.op("ReduceMean", w.op("Mul", x, x), dims, keepdims=1)
    value = w.op("Mul", x, w.op("Reciprocal", w.op("Sqrt", w.op("Add", mean, w.constant(eps, dtype)))))
    return value if a["weight"] is None else w.op("Mul", value, w.read(a["weight"]))


def _attention(w: Writer, a: Arguments) -> Value:
    """softmax(q k^T scale + mask) v, the scale shared between q and k as torch does."""
    query, key, values, dtype = a["query"], a["key"], a["value"], result_type(a)
    if a["dropout_p"] or w.is_free(shape(query)[-1]):
        raise NoRule
    scale = (
        math.sqrt(1 / math.sqrt(shape(query)[-1]) if a["scale"] is None else a["scale"])
        if (a["scale"] or 1) > 0
        else None
    )
    if scale is None:
        raise NoRule
    q, k, v = w.read(query), w.read(key), w.read(values)
    if a["enable_gqa"]:
        k, v = (_repeated_heads(w, x, node, query) for x, node in ((k, key), (v, values)))
    order = [*range(rank(key) - 2), rank(key) - 1, rank(key) - 2]
    half = w.constant(scale, dtype)
    scores = w.op("MatMul", w.op("Mul", q, half), w.op("Mul", w.op("Transpose", k, perm=order), half))
    if a["is_causal"]:
        scores = w.op("Add", scores, _causal(w, query, key, dtype))
    mask = a["attn_mask"]
    if mask is None:
        return w.op("MatMul", w.op("Softmax", scores, axis=-1), v)
    if type_of(mask) != torch.bool:
        scores = w.op("Add", scores, w.cast(w.read(mask), type_of(mask), dtype))
        return w.op("MatMul", w.op("Softmax", scores, axis=-1), v)
    return _chosen(w, scores, mask, v, dtype)


def _chosen(w: Writer, scores: Value, mask: Node, values: Value, dtype: torch.dtype) -> Value:
    """A query attends to what its row of the mask allows; one that is allowed nothing answers zero.

    What is not allowed gets a number so low that its share is exactly zero. Minus infinity would do the same, but for rows
    without anything, whose shares would be NaN: to repair those takes a pass over all shares, several times what this takes.
    """
    low = torch.finfo(dtype).min / 2  # adding a score to it is still finite
    added = w.op("Where", w.read(mask), w.constant(0, dtype), w.constant(low, dtype))
    found = w.op("MatMul", w.op("Softmax", w.op("Add", scores, added), axis=-1), values)
    known = w.constant_value(mask)
    if known is not None and bool(known.any(-1).all()):
        return found
    any_allowed = w.op("ReduceMax", w.read(mask, dtype), w.integers([-1]), keepdims=1)
    return w.op("Mul", found, any_allowed)


def _causal(w: Writer, query: Node, key: Node, dtype: torch.dtype) -> Value:
    """0 where a query may look, the smallest number where it may not."""
    rows, columns = shape(query)[-2], shape(key)[-2]
    low = torch.finfo(dtype).min
    if not w.is_free(rows) and not w.is_free(columns):
        return w.constant(torch.full((rows, columns), low).triu(1), dtype)
    ones = w.op("Expand", w.constant(1.0, dtype), w.sizes([rows, columns]))
    seen = w.op("Trilu", ones, upper=0)
    return w.op("Where", w.op("Equal", seen, w.constant(0, dtype)), w.constant(low, dtype), w.constant(0, dtype))


def _repeated_heads(w: Writer, x: Value, node: Node, query: Node) -> Value:
    """[..., heads, L, E], every head as often as there are queries for it."""
    *lead, heads, length, size = shape(node)
    times, at = shape(query)[-3] // heads, len(lead) + 1
    if times == 1:
        return x
    x = w.op("Unsqueeze", x, w.integers([at]))
    x = w.op("Tile", x, w.integers([*[1] * at, times, 1, 1]))
    return reshaped(w, x, (*lead, heads * times, length, size))


NORMALIZATION: dict[Any, Rule] = {
    aten.batch_norm.default: _batch_norm,
    aten.layer_norm.default: _layer_norm,
    aten.group_norm.default: _group_norm,
    aten.instance_norm.default: _instance_norm,
    aten.rms_norm.default: _rms_norm,
    aten.scaled_dot_product_attention.default: _attention,
}
