"""A pass of one's own: GELU in its tanh form, which some DSPs have a kernel for and its erf form they have not.

    python examples/own_pass.py

A pass is any object with `exact` (whether answers stay what they are, which is then checked) and a call that rewrites the graph
and returns what it changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from graphopt import Graph
from graphopt.ir.passes import Change
from graphopt.passes import Simplify
from graphopt.passmanager import run

aten = torch.ops.aten


@dataclass(frozen=True)
class TanhGelu:
    """GELU(x) = x/2 (1 + erf(x / sqrt 2)) by x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))); off by 5e-4 at most."""

    exact: ClassVar[bool] = False

    def __call__(self, graph: Graph) -> list[Change]:
        changes = []
        for node in graph.calls(aten.gelu.default):
            if node.kwargs.get("approximate", "none") == "none":
                node.kwargs = {**node.kwargs, "approximate": "tanh"}
                changes.append(Change(graph.site(node), "computed by tanh"))
        return changes


def main() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)).eval()
    x = torch.randn(5, 8)
    graph = Graph.capture(model, x)
    for step in run([Simplify(), TanhGelu()], graph):
        print(f"{step.name}: {step.changes}")
    print(graph)
    with torch.no_grad():
        print("largest difference:", float((graph(x) - model(x)).abs().max()))


if __name__ == "__main__":
    main()
