"""What is particular to transformers: attention as a place, hidden states between attentions, values with tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.ir.calls import bound, is_float, same_sizes, shape
from graphopt.ir.graph import Graph
from graphopt.ir.ops import info
from graphopt.ir.reading import leading

aten = torch.ops.aten
SDPA = aten.scaled_dot_product_attention.default
KINDS = {"linear": True, "layer_norm": True, "conv": False, "conv_transpose": False, "batch_norm": False}
Read = Callable[[tuple[Any, ...]], tuple[Tensor, ...]]


def attentions(graph: Graph) -> list[tuple[str, tuple[Node, ...], Read]]:
    """Of each call: its name, its queries, keys, values (and mask), and what makes of their values the logarithms of the
    probabilities, [N, heads, queries, keys], and the values, [N, heads, keys, size]."""
    return [(graph.site(node), *_inside(node)) for node in graph.calls(SDPA)]


def _inside(node: Node) -> tuple[tuple[Node, ...], Read]:
    given = bound(node)
    mask, causal, scale = given.get("attn_mask"), bool(given.get("is_causal")), given.get("scale")

    def read(values: tuple[Any, ...]) -> tuple[Tensor, ...]:
        query, key, value, *rest = values
        factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
        scores = query @ _shared(key, query).transpose(-2, -1) * factor
        for each in rest:
            scores = scores.masked_fill(~each, -math.inf) if each.dtype == torch.bool else scores + each
        if causal:
            past = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
            scores = scores.masked_fill(~past, -math.inf)
        return scores.log_softmax(-1), value

    nodes = tuple(given[name] for name in ("query", "key", "value"))
    return (*nodes, mask) if isinstance(mask, Node) else nodes, read


def _shared(keys: Tensor, queries: Tensor) -> Tensor:
    """Keys of grouped-query attention, repeated for the queries that share them."""
    return keys.repeat_interleave(queries.shape[1] // keys.shape[1], 1) if keys.dim() == 4 else keys


def states(graph: Graph) -> list[Node]:
    """Behind each attention, the value [N, tokens, features] that the next one's queries, keys and values are computed of; behind
    the last one, the last value of that shape."""
    calls = graph.calls(SDPA)
    entries = [node for each in calls[1:] if (node := _entry(each)) is not None]
    first = _entry(calls[0]) if calls else None
    if first is None:
        return []
    behind = [n for n in graph.calls() if n > calls[-1] and is_float(n) and same_sizes(shape(n), shape(first))]
    return [*entries, *behind[-1:]]


def has_tokens(node: Any) -> bool:
    """Whether a value is [N, tokens, features], not [N, channels, positions]: the nearest layer or normalization behind it, or
    else in front, works on the last dimension."""
    if not is_float(node) or len(shape(node)) != 3:
        return False
    for following in (True, False):
        todo, seen = [node], {node}
        while todo:
            at = todo.pop(0)
            for each in at.users if following else [at, *at.all_input_nodes]:
                kind = info(each).family
                if kind in KINDS:
                    return KINDS[kind]
                if each not in seen and is_float(each) and len(shape(each)) == 3:
                    seen.add(each)
                    todo.append(each)
    return False


def _entry(attention: Node) -> Node | None:
    """The latest value with tokens and features of which queries, keys and values are all computed."""
    sources = [leading(node) - {node} for node in list(bound(attention).values())[:3] if isinstance(node, Node)]
    shared = set.intersection(*sources)
    maps = [node for node in shared if node.op != "get_attr" and is_float(node) and len(shape(node)) == 3]
    return max(maps, default=None)
