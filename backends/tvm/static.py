"""Fix the batch size of a graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten
from graphopt.ir.shapes import is_free


def example_batch(graph: Graph) -> int:
    """The batch size of the example a graph with a free batch was captured with."""
    tensors = iter(graph.example.tensors())
    return next(len(t) for node, t in zip(graph.inputs, tensors, strict=True) if is_free(node.meta["val"].shape[0]))


def fix_batch(graph: Graph, batch: int) -> Graph:
    """A copy of a graph whose free batch is this size."""
    fixed = graph.clone(share_weights=True)
    mode = FakeTensorMode()
    for node in fixed.placeholders:
        fake: Any = node.meta["val"]
        if isinstance(fake, Tensor):
            sizes = [batch if is_free(s) else int(s) for s in fake.shape]
            with mode:
                node.meta["val"] = torch.empty(sizes, dtype=fake.dtype)
    for node in fixed.calls(aten.sym_size.int):
        node.replace_all_uses_with(batch)  # type: ignore[arg-type]
    fold_numbers(fixed)
    fixed.refresh()
    return fixed


def fold_numbers(graph: Graph) -> None:
    """Compute what is computed of numbers alone, such as the batch times the number of heads."""
    for node in graph.calls():
        if not node.all_input_nodes and not isinstance(node.target, torch._ops.OpOverload):
            target: Any = node.target
            node.replace_all_uses_with(target(*node.args, **node.kwargs))
