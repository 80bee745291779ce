"""Multiply masks into the weights they mask.

    W' = W * M        W, M: [out, in / groups, *kernel]; M is 0 or 1

Needed by hand only to hand a sparse graph on without masks: passes that need constant weights, and lowering, do it first.

Keeps:  outputs, bit for bit. Weights stay trainable under their names, but nothing holds their zeros any more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.ir.graph import Graph
from graphopt.ir.masks import bake
from graphopt.ir.passes import Change


@dataclass(frozen=True)
class BakeMasks:
    exact: ClassVar[bool] = True

    def __call__(self, graph: Graph) -> list[Change]:
        return bake(graph)
