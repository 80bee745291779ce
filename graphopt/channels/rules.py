"""What each operator means for channels: the rules of `Trace`, by family.

A rule takes the trace and the call, ties what has to go together, and returns the label columns of each dimension of the result
(for a call with several results, of each).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.channels import contractions, norms
from graphopt.channels.labels import NONE
from graphopt.channels.trace import Dims, Trace, call_on_labels, is_known, operand, sizes
from graphopt.ops import MOVEMENT, argument, aten, family, value

Rule = Callable[[Trace, Node], Any]


def rule(node: Node) -> Rule | None:
    """The rule of a call; None where its operator has none."""
    target = node.target
    if target in RULES:
        return RULES[target]
    name = str(target)
    if (kind := family(node)) in FAMILIES:
        return FAMILIES[kind]
    if kind in MOVEMENT or re.match(
        r"aten\.(index_select|unbind|repeat|tile|narrow|movedim|swapaxes|.*unsqueeze)", name
    ):
        return movement
    if re.search(r"(pool|upsample_\w+|reflection_pad|replication_pad|grid_sampler_|im2col)\dd", name):
        return spatial
    if torch.Tag.pointwise in getattr(target, "tags", ()):
        return elementwise
    if "aten.new_" in name or not any(isinstance(value(n), Tensor) for n in node.all_input_nodes):
        return created
    return None


# ---- Inside each index ----------------------------------------------------------------------------------------------


def same(trace: Trace, node: Node) -> Dims:
    """The result has the labels of the first argument."""
    return trace.of(node.args[0])


def created(trace: Trace, node: Node) -> Dims:
    """A value made from nothing is fixed."""
    return [[] for _ in value(node).shape]


def elementwise(trace: Trace, node: Node) -> Dims:
    """Operands meet index by index, aligned from the right; a dimension of size one is repeated and says nothing."""
    result = sizes(value(node))
    operands = [n for n in node.all_input_nodes if isinstance(value(n), Tensor)]
    dims: Dims = [[] for _ in result]
    for back in range(1, len(result) + 1):
        meeting = [
            trace.of(n)[-back]
            for n in operands
            if value(n).dim() >= back and result[-back] > 1 and sizes(value(n))[-back] == result[-back]
        ]
        for other in meeting[1:]:
            trace.tie(meeting[0], other, node)
        dims[-back] = meeting[0] if meeting else []
    return dims


def prelu(trace: Trace, node: Node) -> Dims:
    dims = trace.of(node.args[0])
    if value(operand(node, 1)).numel() > 1:
        trace.tie(dims[1], trace.of(node.args[1])[0], node)
    return dims


def glu(trace: Trace, node: Node) -> Dims:
    """The first half of the channels times a function of the second."""
    dims = list(trace.of(node.args[0]))
    dim = argument(node, "dim") % len(dims)
    half = sizes(value(node))[dim]
    trace.tie([c[:half] for c in dims[dim]], [c[half:] for c in dims[dim]], node)
    dims[dim] = [c[:half] for c in dims[dim]]
    return dims


def softmax(trace: Trace, node: Node) -> Dims:
    """A share of the whole: the dimension shared along stays."""
    dims = trace.of(node.args[0])
    trace.pin(dims[argument(node, "dim")], node)
    return dims


def spatial(trace: Trace, node: Node) -> Dims:
    """Pooling, resizing, reflecting: the last dimensions stay, those in front are kept apart."""
    count = int(re.findall(r"(\d)d", str(node.target))[-1])
    dims = trace.of(node.args[0])
    for columns in dims[-count:]:
        trace.pin(columns, node)
    for other in node.all_input_nodes:
        if other is not node.args[0] and isinstance(value(other), Tensor):
            for columns in trace.of(other):
                trace.pin(columns, node)
    found = value(node)
    results = [found] if isinstance(found, Tensor) else list(found)
    front = [[*dims[:-count], *([[]] * (r.dim() - len(dims) + count))] for r in results]
    return front[0] if isinstance(found, Tensor) else front  # type: ignore[return-value]


def embedding(trace: Trace, node: Node) -> Dims:
    weight: Node = node.args[0]  # type: ignore[assignment]
    words, features = trace.of(weight)
    trace.pin(words, node)
    trace.writers.append((weight, 1))
    return [*trace.of(node.args[1]), features]


def reduce(trace: Trace, node: Node) -> Any:
    """Over a labelled dimension: a sum is one over the rest; anything else changes when an index goes."""
    dims = trace.of(node.args[0])
    names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
    given = argument(node, "dim") if "dim" in names else None
    over = [given] if isinstance(given, int) else list(range(len(dims)) if given in (None, []) else given)
    reduced = {d % len(dims) for d in over} if dims else set()
    exact = node.target in (aten.sum.dim_IntList, aten.sum.default, aten.linalg_vector_norm.default)
    for d in reduced:
        if dims[d] and not exact:
            trace.statistics.append((dims[d], node))
    keep = bool(argument(node, "keepdim")) if "keepdim" in names else False
    rest = [[] if d in reduced else c for d, c in enumerate(dims) if keep or d not in reduced]
    return rest if isinstance(value(node), Tensor) else [rest, rest]


# ---- Data movement --------------------------------------------------------------------------------------------------


def movement(trace: Trace, node: Node) -> Any:
    """Run the operator on labels and read where they went."""
    source: Node = node.args[0]  # type: ignore[assignment]
    found = value(node)
    results = [found] if isinstance(found, Tensor) else list(found)
    moved = trace.run(
        node,
        lambda labels: call_on_labels(trace.graph, node, labels),
        trace.of(source),
        sizes(value(source)),
        [sizes(r) for r in results],
    )
    if node.target is aten.roll.default:
        for d in argument(node, "dims"):
            trace.pin(moved[0][d], node)
    return moved[0] if isinstance(found, Tensor) else moved


def index(trace: Trace, node: Node) -> Dims | None:
    """Rows of a table by constant indices: the dimensions looked up stay."""
    places: list[Node | None] = list(node.args[1])  # type: ignore[arg-type]
    if not all(i is None or is_known(trace.graph, i) for i in places):
        trace.fix(node, f"{node.name}, which looks up what is only known while running")
        return None
    for columns, position in zip(trace.of(node.args[0]), places, strict=False):
        if position is not None:
            trace.pin(columns, node)
    moved: Dims = movement(trace, node)
    return moved


def slice_scatter(trace: Trace, node: Node) -> Dims:
    """The first argument with a range of it written over."""
    base, written = trace.of(node.args[0]), trace.of(node.args[1])
    dim = (argument(node, "dim") or 0) % len(base)
    where = slice(argument(node, "start"), argument(node, "end"), argument(node, "step"))
    for d, columns in enumerate(base):
        trace.tie([c[where] for c in columns] if d == dim else columns, written[d], node)
    return base


def take(trace: Trace, node: Node) -> Dims:
    """One result of a call with several."""
    source, position = node.args
    return trace.parts[source][position]  # type: ignore[index]


def expand(trace: Trace, node: Node) -> Dims:
    """A dimension of size one, repeated to a known size, may be repeated to a smaller one."""
    dims: Dims = movement(trace, node)
    before, after = value(operand(node)).shape, value(node).shape
    for back in range(1, len(after) + 1):
        repeated = back > len(before) or before[-back] == 1
        if repeated and isinstance(after[-back], int) and after[-back] > 1:
            dims[-back] = [trace.labels.fresh(after[-back])]
    return dims


def like(trace: Trace, node: Node) -> Dims:
    """The first argument in the shape of the second."""
    dims: Dims = expand(trace, node) if node.target is aten.expand_as.default else movement(trace, node)
    for columns, other, size in zip(dims, trace.of(node.args[1]), sizes(value(node)), strict=True):
        if size > 1:
            trace.tie(columns, other, node)
    return dims


def pad(trace: Trace, node: Node) -> Dims | None:
    """Padded channels have labels of their own; padded positions in space stay."""
    dims = list(trace.of(node.args[0]))
    result = value(node).shape
    amounts: Any = argument(node, "pad")
    for back in range(1, len(amounts) // 2 + 1):
        before, after = amounts[2 * back - 2 : 2 * back]
        if not before and not after:
            continue
        if not isinstance(result[-back], int) or back < len(result) - 1 or before < 0 or after < 0:
            trace.pin(dims[-back], node)
            dims[-back] = []
        elif dims[-back]:
            edges = trace.labels.fresh(before + after)
            columns = trace.labels.resolve(dims[-back])
            first = [np.concatenate([edges[:before], columns[0], edges[before:]])]
            dims[-back] = first + [np.pad(c, (before, after), constant_values=NONE) for c in columns[1:]]
    return dims


def concat(trace: Trace, node: Node) -> Dims:
    every: list[Node] = list(node.args[0])  # type: ignore[arg-type]
    parts = [p for p in every if value(p).dim() == value(node).dim()]
    dim = (argument(node, "dim") or 0) % value(node).dim()
    dims = [trace.of(p) for p in parts]
    for other in dims[1:]:
        for d in range(len(other)):
            if d != dim:
                trace.tie(dims[0][d], other[d], node)
    joined = [trace.labels.resolve(d[dim]) for d in dims]
    width = max(map(len, joined))
    blocks = [
        [*columns, *[np.full(sizes(value(p))[dim], NONE, dtype=np.int64)] * (width - len(columns))]
        for columns, p in zip(joined, parts, strict=True)
    ]
    result: Dims = list(dims[0])
    result[dim] = [np.concatenate(column) for column in zip(*blocks, strict=True)]
    return result


def stack(trace: Trace, node: Node) -> Dims:
    parts: list[Node] = list(node.args[0])  # type: ignore[arg-type]
    dims = [trace.of(p) for p in parts]
    for other in dims[1:]:
        for one, two in zip(dims[0], other, strict=True):
            trace.tie(one, two, node)
    result: Dims = list(dims[0])
    result.insert((argument(node, "dim") or 0) % (len(result) + 1), [])
    return result


FAMILIES: dict[str | None, Rule] = {
    "conv": contractions.convolution,
    "conv_transpose": contractions.transposed_convolution,
    "linear": contractions.linear,
    "batch_norm": norms.batch_norm,
    "mean": reduce,
    "prelu": prelu,
    "softmax": softmax,
    "concat": concat,
    "stack": stack,
    "pad": pad,
    "expand": expand,
    "getitem": take,
    "identity": same,
    "hard_swish": elementwise,  # torch does not tag it as pointwise
}

RULES: dict[Any, Rule] = {
    aten.matmul.default: contractions.matmul,
    aten.mm.default: contractions.matmul,
    aten.bmm.default: contractions.matmul,
    aten.addmm.default: contractions.addmm,
    aten.baddbmm.default: contractions.addmm,
    aten.einsum.default: contractions.einsum,
    aten.scaled_dot_product_attention.default: contractions.attention,
    aten.layer_norm.default: norms.layer_norm,
    aten.rms_norm.default: norms.layer_norm,
    aten.group_norm.default: norms.group_norm,
    aten.instance_norm.default: norms.instance_norm,
    aten.log_softmax.int: softmax,
    aten._softmax.default: softmax,
    aten.embedding.default: embedding,
    aten.glu.default: glu,
    aten.index.Tensor: index,
    aten.slice_scatter.default: slice_scatter,
    **dict.fromkeys([aten.expand_as.default, aten.reshape_as.default, aten.view_as.default], like),
    operator.getitem: take,
    **dict.fromkeys(
        [
            aten.sum.dim_IntList, aten.sum.default, aten.amax.default, aten.amin.default, aten.var.correction,
            aten.var.dim, aten.std.correction, aten.std.dim, aten.mean.default, aten.max.dim, aten.min.dim,
            aten.linalg_vector_norm.default, aten.logsumexp.default, aten.var_mean.correction,
        ],
        reduce,
    ),
    **dict.fromkeys(
        [
            aten.to.dtype, aten._to_copy.default, aten.type_as.default, aten.contiguous.default, aten.zeros_like.default,
            aten.ones_like.default, aten.full_like.default, aten.to.dtype_layout, aten.dropout.default,
        ],
        same,
    ),
    aten.repeat_interleave.self_int: movement,
}  # fmt: skip
