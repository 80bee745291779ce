"""Shapes of every value, derived with fake tensors: no data moves, and an operator that no longer fits raises.

The free batch size is one symbol that the placeholders carry in `meta["val"]` since capture; it travels through the graph
unchanged, so a graph that passes here fits for every batch size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.node import Node


class _Shapes(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, mode: FakeTensorMode) -> None:
        super().__init__(module)
        self.mode = mode
        self.constants: dict[str, Any] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.op != "output":
            n.meta["val"] = value
        return value

    def fetch_attr(self, target: str) -> Any:
        if target not in self.constants:
            value = super().fetch_attr(target)
            fake = isinstance(value, Tensor)
            self.constants[target] = self.mode.from_tensor(value, static_shapes=True) if fake else value
        return self.constants[target]


def propagate(module: fx.GraphModule) -> None:
    """Set `meta["val"]` of every node to its fake value. Raises what the operator raises where shapes do not fit."""
    inputs = [n.meta["val"] for n in module.graph.nodes if n.op == "placeholder"]
    mode = next((v.fake_mode for v in inputs if isinstance(v, FakeTensor)), None) or FakeTensorMode()
    inputs = [mode.from_tensor(v) if isinstance(v, Tensor) and not isinstance(v, FakeTensor) else v for v in inputs]
    interpreter = _Shapes(module, mode)
    with mode, torch.no_grad():
        interpreter.run(*inputs, enable_io_processing=False)
