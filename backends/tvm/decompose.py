"""Rewrite operators without a rule into those that have one, by torch's own decompositions.

    mish(x)             ->   mul(x, tanh(log1p(exp(x))))
    lstm(x, ...)        ->   linear, sigmoid, tanh, ... of every step
    unbind(x)[1]        ->   select

torch traces the operator on fake tensors, with all its arguments. What stays without a rule is refused when it is emitted, by
name.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection
from typing import Any

import torch
import torch._decomp.decompositions as decompositions
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch._decomp import core_aten_decompositions, decomposition_table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import Node, map_arg

from graphopt.frontend.operator_variants import RULES as VARIANTS
from graphopt.frontend.operator_variants import simplify
from graphopt.ir.graph import Graph

aten = torch.ops.aten
PART_OF = "part_of"  # in a node's meta: name and operator of the call that it was decomposed from


def decompose(graph: Graph, ruled: Collection[Any], has_rule: Callable[[Node], bool]) -> None:
    """Rewrite a graph of fixed sizes in place until every call has a rule, or torch knows no simpler form of it.

    Args:
        ruled: the operators that have a rule, if only for some arguments.
        has_rule: whether a call has one.
    """
    tried: set[Node] = set()
    while waiting := [n for n in graph.calls() if n not in tried and _is_aten(n) and not has_rule(n)]:
        for node in waiting:
            tried.add(node)
            parts = _parts(node, ruled)
            if not any(part.target is node.target for part in parts.graph.nodes):
                _put_in(graph, node, parts)
        if any(n.target in VARIANTS for n in graph.calls()):
            simplify(graph.module)
        graph.module.graph.eliminate_dead_code()


def _is_aten(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload)


def _parts(node: Node, ruled: Collection[Any]) -> fx.GraphModule:
    """A call in simpler operators, its inputs being the tensors among the arguments, in order."""
    leaves, structure = pytree.tree_flatten((node.args, dict(node.kwargs)))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Node)]
    target: Any = node.target

    def call(*tensors: Tensor) -> Any:
        given = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            given[place] = tensor
        args, kwargs = pytree.tree_unflatten(given, structure)
        return OWN.get(target, target)(*args, **kwargs)

    table = {t: d for t, d in TABLE.items() if t not in ruled or t is target}
    values = [leaves[i].meta["val"] for i in places]
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        fakes = [torch.empty(tuple(map(int, v.shape)), dtype=v.dtype) for v in values]
        parts = make_fx(call, table)(*fakes)
        if any(_writes(n) for n in parts.graph.nodes):
            parts = make_fx(torch.func.functionalize(parts, remove="mutations"))(*fakes)
    parts.graph.eliminate_dead_code()
    return parts


def _writes(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _put_in(graph: Graph, node: Node, parts: fx.GraphModule) -> None:
    """Put the parts in the place of the call; readers of its several results read them directly."""
    leaves = pytree.tree_leaves((node.args, dict(node.kwargs)))
    inputs = iter(leaf for leaf in leaves if isinstance(leaf, Node))
    origin = node.meta.get(PART_OF) or (node.name, str(getattr(node.target, "__name__", node.target)).partition(".")[0])
    values: dict[Node, Any] = {}
    for part in parts.graph.nodes:
        if part.op == "placeholder":
            values[part] = next(inputs)
        elif part.op == "get_attr":
            constant = getattr(parts, str(part.target))
            values[part] = graph.add_constant(f"{node.name}_constant", constant, before=node)
        elif part.op == "call_function":
            arguments, options = map_arg((part.args, part.kwargs), values.__getitem__)
            values[part] = graph.call(part.target, *arguments, before=node, **options)
            values[part].meta.update({"val": part.meta["val"], PART_OF: origin})
    results: Any = map_arg(parts.graph.output_node().args[0], values.__getitem__)
    for reader in list(node.users):
        if isinstance(results, (list, tuple)) and reader.target is operator.getitem:
            number: Any = reader.args[1]
            reader.replace_all_uses_with(results[number], propagate_meta=False)
            graph.module.graph.erase_node(reader)
    if node.users:
        node.replace_all_uses_with(results, propagate_meta=False)
    graph.module.graph.erase_node(node)


def _lstm(x: Tensor, hx: Any, params: Any, has_biases: bool, layers: int, dropout: float, train: bool,
          bidirectional: bool, batch_first: bool) -> Any:  # fmt: skip
    """In plain operators; torch's own decomposition chooses a call of oneDNN."""
    torchs: Any = decompositions  # has no types
    projected = len(hx) == 2 and hx[0].shape[2] != hx[1].shape[2]
    weights = torchs.gather_params(params, has_biases, projected)
    states = list(zip(hx[0], hx[1], strict=True))
    out, finals = torchs._rnn_helper(
        x, states, weights, has_biases, layers, dropout, train, bidirectional, batch_first, torchs.one_layer_lstm
    )
    finals = list(zip(*finals, strict=True))
    return out, torch.stack(finals[0], 0), torch.stack(finals[1], 0)


TABLE: dict[Any, Any] = {**decomposition_table, **core_aten_decompositions()}
OWN: dict[Any, Callable[..., Any]] = {aten.lstm.input: _lstm}
