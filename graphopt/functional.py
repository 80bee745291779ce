"""Rewrite in-place operators to their functional twins."""

from __future__ import annotations

import torch
from torch import fx

aten = torch.ops.aten


def make_functional(module: fx.GraphModule) -> None:
    order = {n: i for i, n in enumerate(module.graph.nodes)}
    for node in list(module.graph.nodes):
        if node.op != "call_function" or not hasattr(node.target, "_schema"):
            continue
        name = node.target._schema.name.split("::")[-1]
        if not name.endswith("_") or name.startswith("_"):
            continue
        twin = getattr(getattr(aten, name[:-1]), node.target._overloadname)
        node.target = twin
        first = node.args[0]
        for user in list(first.users):
            if order[user] > order[node]:
                user.replace_input_with(first, node)
    module.recompile()
