"""What tests of channel groups share: a graph of a function of modules, and its groups by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from rewriting import Model, capture
from torch import nn

from graphopt.analysis.channels import ScaleGroups, Site
from graphopt.analysis.channels.labels import Array
from graphopt.ir.graph import Graph


def conv(inputs: int, outputs: int, kernel: int = 3, **options: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)  # type: ignore[arg-type]


def traced(body: Callable[..., object], *shape: int, **parts: nn.Module) -> tuple[Graph, ScaleGroups]:
    graph = capture(Model(body, **parts), torch.randn(*(shape or (2, 3, 8, 8))))
    return graph, ScaleGroups.of(graph)


def named(graph: Graph, sites: list[Site]) -> dict[str, Array]:
    return {graph.site(site.node): site.labels for site in sites}
