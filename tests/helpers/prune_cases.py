"""Networks and images that tests of structured pruning share."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from blocks import conv, images
from rewriting import Model, randomised
from torch import Tensor, nn

from graphopt.analysis.channels.groups import Group, groups
from graphopt.ir.graph import Graph

DATA = [[images(16, seed=s)] for s in range(2)]


def plain(width: int = 16) -> nn.Module:
    """conv-BN-relu twice, and a head."""
    return randomised(
        nn.Sequential(
            conv(3, width), nn.BatchNorm2d(width), nn.ReLU(), conv(width, width), nn.BatchNorm2d(width), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5),
        )
    )  # fmt: skip


def residual(width: int = 8, blocks: int = 3) -> nn.Module:
    def body(m: Any, x: Tensor) -> Tensor:
        y = F.relu(m.norm(m.stem(x)))
        for b in range(blocks):
            y = F.relu(y + getattr(m, f"second{b}")(F.relu(getattr(m, f"first{b}")(y))))
        return m.head(y.mean((2, 3)))  # type: ignore[no-any-return]

    inner = {f"{n}{b}": conv(width, width) for b in range(blocks) for n in ("first", "second")}
    return Model(body, stem=conv(3, width), norm=nn.BatchNorm2d(width), head=nn.Linear(width, 5), **inner)


def group_of(graph: Graph, name: str) -> Group:
    return next(g for g in groups(graph) if g.name == name)
