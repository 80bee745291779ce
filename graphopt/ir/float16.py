"""Values in float16 in a deployed graph: what `deploy(half=True)` writes as conversions.

h = half(x); y = float(h)          one value, stored in 16 bits
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx.node import Node

from graphopt.ir.ops import aten


def narrows(node: Node) -> bool:
    """Whether a call rounds to float16."""
    return _converts(node, torch.float16)


def half_of(node: Any) -> Node | None:
    """The float16 value that a call only widens."""
    if isinstance(node, Node) and _converts(node, torch.float32):
        source: Any = node.args[0]
        return source if source.meta["val"].dtype == torch.float16 else None
    return None


def _converts(node: Node, dtype: torch.dtype) -> bool:
    return node.target is aten.to.dtype and node.args[1] is dtype
