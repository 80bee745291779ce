"""What each operator means for channels: the rules of `Trace`, by family.

A rule takes the trace and the call, ties what has to go together, and returns the label columns of each dimension of the result
(for a call with several results, of each).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.channels import contractions, norms, windows
from graphopt.analysis.channels import movement as moves
from graphopt.analysis.channels.trace import Dims, Trace, sizes
from graphopt.ir.calls import argument, operand, value
from graphopt.ir.choices import CHOOSE, KEEP
from graphopt.ir.ops import aten, info, is_elementwise
from graphopt.ir.rules import Rules

Rule = Callable[[Trace, Node], Any]


def rule(node: Node) -> Rule | None:
    """The rule of a call; None where its operator has none."""
    if (own := RULES.find(node)) is not None:
        return own
    name = str(node.target)
    if is_movement(node):
        return moves.movement
    if info(node).pools or re.search(r"(pool|upsample_\w+|reflection_pad|replication_pad|grid_sampler_)\dd", name):
        return windows.spatial
    if is_elementwise(node):
        return elementwise
    if "aten.new_" in name or not any(isinstance(value(n), Tensor) for n in node.all_input_nodes):
        return created
    return None


def is_movement(node: Node) -> bool:
    """Whether a call only reorders, repeats or leaves out elements of its first argument."""
    name = str(node.target)
    pattern = r"aten\.(index_select|unbind|repeat|tile|narrow|movedim|swapaxes|.*unsqueeze)"
    return info(node).moves or re.match(pattern, name) is not None


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


def embedding(trace: Trace, node: Node) -> Dims:
    weight = operand(node)
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
        if dims[d]:
            (trace.sums if exact else trace.statistics).append((dims[d], node))
    keep = bool(argument(node, "keepdim")) if "keepdim" in names else False
    rest = [[] if d in reduced else c for d, c in enumerate(dims) if keep or d not in reduced]
    return rest if isinstance(value(node), Tensor) else [rest, rest]


def choose(trace: Trace, node: Node) -> Dims:
    """Options of a choice meet index by index."""
    options: list[Node] = node.args[0]  # type: ignore[assignment]
    dims = trace.of(options[0])
    for other in options[1:]:
        for mine, theirs in zip(dims, trace.of(other), strict=True):
            trace.tie(mine, theirs, node)
    return dims


RULES: Rules[Rule] = Rules("channels")
"""Where traits do not say enough."""

for _rule, _keys in (
    (contractions.convolution, ["conv"]),
    (contractions.transposed_convolution, ["conv_transpose"]),
    (contractions.linear, ["linear"]),
    (contractions.matmul, ["matmul", aten.mm.default]),
    (contractions.addmm, [aten.addmm.default, aten.baddbmm.default]),
    (contractions.einsum, [aten.einsum.default]),
    (contractions.attention, [aten.scaled_dot_product_attention.default]),
    (norms.batch_norm, ["batch_norm"]),
    (norms.layer_norm, [aten.layer_norm.default, aten.rms_norm.default]),
    (norms.group_norm, [aten.group_norm.default]),
    (norms.instance_norm, [aten.instance_norm.default]),
    (prelu, ["prelu"]),
    (softmax, ["softmax", aten.log_softmax.int, aten._softmax.default]),
    (embedding, [aten.embedding.default]),
    (glu, [aten.glu.default]),
    (moves.concat, ["concat"]),
    (moves.stack, ["stack"]),
    (moves.pad, ["pad"]),
    (moves.expand, ["expand"]),
    (moves.roll, ["roll"]),
    (moves.take, ["getitem"]),
    (moves.index, [aten.index.Tensor]),
    (moves.slice_scatter, [aten.slice_scatter.default]),
    (moves.like, [aten.expand_as.default, aten.reshape_as.default, aten.view_as.default]),
    (moves.movement, [aten.repeat_interleave.self_int]),
    (windows.spatial, ["resize_nearest"]),
    (windows.unfold, [aten.im2col.default]),
    (windows.fold, [aten.col2im.default]),
    (reduce, [
        "mean", aten.sum.dim_IntList, aten.sum.default, aten.amax.default, aten.amin.default, aten.var.correction,
        aten.var.dim, aten.std.correction, aten.std.dim, aten.mean.default, aten.max.dim, aten.min.dim,
        aten.linalg_vector_norm.default, aten.logsumexp.default, aten.var_mean.correction,
    ]),
    (choose, [CHOOSE]),
    (same, [
        KEEP, "identity", aten.to.dtype, aten._to_copy.default, aten.type_as.default, aten.zeros_like.default,
        aten.ones_like.default, aten.full_like.default, aten.to.dtype_layout,
    ]),
):  # fmt: skip
    RULES.of(*_keys)(_rule)
