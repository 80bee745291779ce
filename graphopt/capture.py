"""Capture a PyTorch model into a `Graph` through `torch.export`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from graphopt.errors import CaptureError
from graphopt.functional import make_functional
from graphopt.graph import Example, Graph
from graphopt.program import to_exported_program


def capture(model: Any, args: Any, kwargs: Mapping[str, Any] | None, *, dynamic_batch: bool) -> Graph:
    args = (args,) if isinstance(args, Tensor) else tuple(args)
    example = Example(args, dict(kwargs or {}))
    doubled = pytree.tree_map(lambda t: torch.cat([t, t]) if isinstance(t, Tensor) else t, args)
    shapes = pytree.tree_map(lambda t: {0: torch.export.Dim.AUTO} if isinstance(t, Tensor) else None, args)
    program = torch.export.export(model, doubled if dynamic_batch else args, dict(example.kwargs), dynamic_shapes=shapes if dynamic_batch else None)
    module = program.module(check_guards=False)
    module = fx.GraphModule(module, module.graph)
    own_weights(module)
    make_functional(module)
    names = [n.name for n in module.graph.nodes if n.op == "placeholder"]
    graph = Graph(module, example, input_names=names, output_names=["output"], dynamic_batch=dynamic_batch)
    graph.refresh()
    return graph


def own_weights(module: nn.Module) -> None:
    """Give the module its own copy of every weight (the export shares the caller's), shared ones staying shared."""
    copies: dict[int, Tensor] = {}
    for owner in module.modules():
        for table in (owner._parameters, owner._buffers):
            for name, value in table.items():
                if value is None:
                    continue
                if id(value) not in copies:
                    copy = value.detach().clone()
                    copies[id(value)] = nn.Parameter(copy, value.requires_grad) if isinstance(value, nn.Parameter) else copy
                table[name] = copies[id(value)]  # type: ignore[assignment]


__all__ = ["CaptureError", "capture", "own_weights", "to_exported_program"]
