"""Few variants of each operator: what torch spells in several ways is written in the one that passes expect.

    conv2d(padding="same")                ->  conv2d with numbers, and a pad in front where the sides differ
    convolution                           ->  conv1d, conv2d, conv3d, conv_transpose...
    _native_batch_norm_..., getitem 0     ->  batch_norm
    _to_copy, to.device, ...              ->  to.dtype, or nothing where the type stays
    view                                  ->  reshape
    pad by nothing, clone                 ->  gone
    as_strided                            ->  of a value that lies in memory as it did for the trace

Some of these only come from programs that were decomposed before they came here.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.fx.node import Node

from graphopt.ir.calls import bound
from graphopt.ir.layer import convolution
from graphopt.ir.ops import aten

SAME_PADDING = {
    aten.conv1d.padding: aten.conv1d.default,
    aten.conv2d.padding: aten.conv2d.default,
    aten.conv3d.padding: aten.conv3d.default,
}


def needs_simplifying(module: fx.GraphModule) -> bool:
    return any(n.op == "call_function" and n.target in RULES for n in module.graph.nodes)


def simplify(module: fx.GraphModule) -> None:
    """Rewrite operator variants into the ones passes know. Needs `meta["val"]`; leaves it to be derived anew."""
    for node in list(module.graph.nodes):
        rule = RULES.get(node.target) if node.op == "call_function" else None
        if rule is not None:
            with module.graph.inserting_before(node):
                rule(module.graph, node)
    module.graph.eliminate_dead_code()


def _becomes(graph: fx.Graph, node: Node, target: Any, *args: Any, readers: Node | None = None) -> None:
    new = graph.call_function(target, args)
    new.meta.update(node.meta)
    (readers or node).replace_all_uses_with(new, propagate_meta=False)


def _rank(weight: Any) -> int:
    return int(weight.meta["val"].dim()) - 2


def _string_padding(graph: fx.Graph, node: Node) -> None:
    x, weight, bias, stride, padding, dilation, groups = bound(node).values()
    kernel, rank = weight.meta["val"].shape[2:], _rank(weight)
    stride, dilation = (v if len(v) == rank else list(v) * rank for v in (stride, dilation))
    total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
    if any(t % 2 for t in total):  # the odd column goes to the far side, which conv's own padding cannot say
        x = graph.call_function(aten.pad.default, (x, [v for t in reversed(total) for v in (t // 2, t - t // 2)]))
        x.meta.update({k: v for k, v in node.meta.items() if k != "val"})
        total = [0] * rank
    target = SAME_PADDING[node.target]  # type: ignore[index]
    _becomes(graph, node, target, x, weight, bias, stride, [t // 2 for t in total], dilation, groups)


def _convolution(graph: fx.Graph, node: Node) -> None:
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = bound(node).values()
    target = convolution(_rank(weight), transposed=bool(transposed))
    if target is None:
        return
    if transposed:
        _becomes(graph, node, target, x, weight, bias, stride, padding, output_padding, groups, dilation)
    else:
        _becomes(graph, node, target, x, weight, bias, stride, padding, dilation, groups)


def _batch_norm(graph: fx.Graph, node: Node) -> None:
    x, weight, bias, mean, variance, momentum, eps = bound(node).values()
    for part in _only_first(node):
        _becomes(
            graph,
            node,
            aten.batch_norm.default,
            x,
            weight,
            bias,
            mean,
            variance,
            False,
            momentum,
            eps,
            False,
            readers=part,
        )


def _layer_norm(graph: fx.Graph, node: Node) -> None:
    for part in _only_first(node):
        _becomes(graph, node, aten.layer_norm.default, *bound(node).values(), readers=part)


def _group_norm(graph: fx.Graph, node: Node) -> None:
    x, weight, bias, _, _, _, groups, eps = bound(node).values()
    for part in _only_first(node):
        _becomes(graph, node, aten.group_norm.default, x, groups, weight, bias, eps, readers=part)


def _max_pool(graph: fx.Graph, node: Node) -> None:
    for part in _only_first(node):
        _becomes(graph, node, aten.max_pool2d.default, *bound(node).values(), readers=part)


def _softmax(target: Any) -> Callable[[fx.Graph, Node], None]:
    def rule(graph: fx.Graph, node: Node) -> None:
        x, dim, half_to_float = bound(node).values()
        if not half_to_float:
            _becomes(graph, node, target, x, dim)

    return rule


def _addmm(graph: fx.Graph, node: Node) -> None:
    """addmm(bias, x, t(weight)) -> linear(x, weight, bias)."""
    if node.kwargs or len(node.args) != 3:
        return
    bias, x, transposed = node.args
    weight = _transposed(transposed)
    if weight is not None and isinstance(bias, Node) and bias.meta["val"].dim() == 1:
        _becomes(graph, node, aten.linear.default, x, weight, bias)


def _mm(graph: fx.Graph, node: Node) -> None:
    """mm(x, t(weight)), matmul(x, t(weight)) -> linear(x, weight)."""
    weight = _transposed(node.args[1])
    if weight is not None and weight.op == "get_attr" and node.args[0] is not node.args[1]:
        _becomes(graph, node, aten.linear.default, node.args[0], weight)


def _transposed(node: Any) -> Node | None:
    """`w` of the transpose of a matrix, in any spelling."""
    if not isinstance(node, Node) or node.op != "call_function" or not isinstance(node.args[0], Node):
        return None
    source, order = node.args[0], node.args[1:]
    if node.target not in _TRANSPOSES or source.meta["val"].dim() != 2:
        return None
    named: Any = order[0] if node.target is aten.permute.default else order
    dims = [d % 2 for d in named]
    return (
        source if not dims or dims == [1, 0] or (dims == [0, 1] and node.target is not aten.permute.default) else None
    )


_TRANSPOSES = (
    aten.t.default, aten.permute.default, aten.transpose.int, aten.swapaxes.default, aten.swapdims.default, aten.numpy_T.default,
    aten.mT.default,
)  # fmt: skip


def _to_copy(graph: fx.Graph, node: Node) -> None:
    wanted = {
        k: v
        for k, v in node.kwargs.items()
        if v is not None and k not in ("non_blocking", "pin_memory", "device", "layout")
    }
    if set(wanted) == {"dtype"}:
        _becomes(graph, node, aten.to.dtype, node.args[0], wanted["dtype"])
    elif not wanted:
        node.replace_all_uses_with(node.args[0], propagate_meta=False)  # type: ignore[arg-type]


def _to(graph: fx.Graph, node: Node) -> None:
    """The `to` variants by device, layout or example -> to.dtype, or nothing where the type stays."""
    given = bound(node)
    x = given["self"]
    wanted = given["other"].meta["val"].dtype if "other" in given else given.get("dtype")
    if given.get("memory_format") not in (None, torch.preserve_format, torch.contiguous_format):
        return
    if wanted is None or wanted == x.meta["val"].dtype:
        node.replace_all_uses_with(x, propagate_meta=False)
    elif node.target is not aten.to.dtype:
        _becomes(graph, node, aten.to.dtype, x, wanted)


def _pad(graph: fx.Graph, node: Node) -> None:
    """Padding by nothing, which windowed attention does for sizes that fit."""
    x, amounts, *_ = bound(node).values()
    if all(isinstance(a, int) and a == 0 for a in amounts):
        node.replace_all_uses_with(x, propagate_meta=False)


def _view(graph: fx.Graph, node: Node) -> None:
    """`reshape` asks nothing of the memory layout, so passes may change what stands in front of it."""
    _becomes(graph, node, aten.reshape.default, *node.args)


def _clone(graph: fx.Graph, node: Node) -> None:
    """A copy in the same memory layout computes nothing, now that nothing is written in place."""
    kept = any(user.target is aten.as_strided.default for user in node.users)  # for which its layout is what counts
    if node.kwargs.get("memory_format") in (None, torch.preserve_format) and not kept:
        node.replace_all_uses_with(node.args[0], propagate_meta=False)  # type: ignore[arg-type]


def _as_strided(graph: fx.Graph, node: Node) -> None:
    """Steps in memory mean something in one layout alone; whoever runs the graph may choose another, such as channels last."""
    x: Any = node.args[0]
    value = x.meta["val"]
    if not all(isinstance(stride, int) for stride in value.stride()) or value.storage_offset() != 0:
        return
    order = sorted(range(value.dim()), key=lambda d: (-value.stride(d), d))
    with value.fake_mode:
        if not value.permute(order).is_contiguous():  # with gaps or overlaps: no layout but its own has these steps
            return
    if order != sorted(order):
        x = graph.call_function(aten.permute.default, (x, order))
    new = graph.call_function(aten.contiguous.default, (x,))
    for made in (x, new) if x is not node.args[0] else (new,):
        made.meta.update({k: v for k, v in node.meta.items() if k != "val"})
    node.args = (new, *node.args[1:])


def _only_first(node: Node) -> list[Node]:
    """The readers of a call's first result, provided no one reads the others."""
    parts = [u for u in node.users if u.users]
    return parts if all(p.target is operator.getitem and p.args[1] == 0 for p in parts) else []


RULES: dict[Any, Callable[[fx.Graph, Node], None]] = {
    **dict.fromkeys(SAME_PADDING, _string_padding),
    aten.convolution.default: _convolution,
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    aten.native_layer_norm.default: _layer_norm,
    aten.native_group_norm.default: _group_norm,
    aten.max_pool2d_with_indices.default: _max_pool,
    aten._softmax.default: _softmax(aten.softmax.int),
    aten._log_softmax.default: _softmax(aten.log_softmax.int),
    aten.addmm.default: _addmm,
    aten.mm.default: _mm,
    aten.matmul.default: _mm,
    aten._to_copy.default: _to_copy,
    **dict.fromkeys([aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.to.other], _to),
    aten.pad.default: _pad,
    aten.constant_pad_nd.default: _pad,
    aten.view.default: _view,
    aten._unsafe_view.default: _view,
    aten.clone.default: _clone,
    aten.as_strided.default: _as_strided,
}
