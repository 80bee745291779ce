"""What tests of capturing share: a small network, nested inputs and outputs, and the exact comparison with the model."""

from __future__ import annotations

import dataclasses
from collections import namedtuple
from collections.abc import Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from graphopt.ir.graph import Graph

aten = torch.ops.aten


def small() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 5)
    )
    for name, buffer in model[1].named_buffers():
        if name != "num_batches_tracked":
            buffer.uniform_(0.5, 1.5)
    return model.eval()


def same(graph: Graph, model: nn.Module, *args: Any, **kwargs: Any) -> None:
    """The graph returns exactly what the model returns, in the same structure."""
    with torch.no_grad():
        found, expected = graph(*args, **kwargs), model(*args, **kwargs)
    assert pytree.tree_structure(found) == pytree.tree_structure(expected)
    for a, b in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
        assert torch.equal(a, b) if isinstance(b, Tensor) else a == b


Pair = namedtuple("Pair", "mean deviation")


@dataclasses.dataclass
class Result:
    scores: Tensor
    parts: list[Tensor]
    loss: Tensor | None = None


class Nested(nn.Module):
    def __init__(self, returns: str) -> None:
        super().__init__()
        self.returns = returns

    def forward(self, x: Tensor, extra: Mapping[str, Any], scale: float = 1.0, *, mask: Tensor | None = None) -> Any:
        y = x * scale + extra["shift"][0]
        y = y if mask is None else y * mask
        match self.returns:
            case "dict":
                return {"y": y, "more": [y + 1, (y + 2,)], "scale": scale}
            case "namedtuple":
                return Pair(y.mean(-1), y.std(-1))
            case "dataclass":
                return Result(y, [y + 1, y + 2])
            case "clash":
                return {"x": y, "extra": y, "output": x}
            case "same":
                return x, y, y
        return y


def close(graph: Graph, model: nn.Module, x: Tensor) -> None:
    """Sums of another order: equal but for rounding."""
    for ours, theirs in zip(*(pytree.tree_leaves(f(x)) for f in (graph, model)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
