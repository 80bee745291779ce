"""Where rounding decides: between two quantizers a network may jump (floor, a comparison).

There the last bit of a float, which no two runtimes share, moves codes by many steps. So does a quotient of two codes that are
zero, which is no number: what maxima and codes are of those, no two runtimes share either.
"""

from __future__ import annotations

from typing import Any

import torch
from outcomes import NOISE
from programs import Noisy, NoisyCalls
from torch import Tensor, fx
from torch.fx.node import Node

from graphopt.ir.graph import Graph
from graphopt.ir.quantizers import FAKE_QUANTIZE

SEEDS = 5


def jumps(graph: Graph, inputs: tuple[Tensor, ...]) -> bool:
    """Whether noise as large as rounding moves what any quantizer gives by more than a step, or one gets what is no number."""
    exact = _Codes(graph).of(inputs)
    if any(bool(codes.isnan().any()) for codes in exact.values()):
        return True
    for seed in range(SEEDS):
        with NoisyCalls(Noisy(NOISE, seed)):
            moved = _Codes(graph).of(inputs)
        if any(bool(((moved[name] - codes).abs() > 1.5).any()) for name, codes in exact.items()):
            return True
    return False


class _Codes(fx.Interpreter):
    def __init__(self, graph: Graph) -> None:
        super().__init__(graph.module)
        self.codes: dict[str, Tensor] = {}

    def of(self, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """What each quantizer of one scale gives, in steps; NaN where it is given what is no number."""
        with torch.no_grad():
            self.run(*inputs, enable_io_processing=False)
        return self.codes

    def run_node(self, n: Node) -> Any:
        found = super().run_node(n)
        if n.target is FAKE_QUANTIZE:
            scale = self.env[n.args[1]]  # type: ignore[index]
            if scale.numel() == 1:
                given = self.env[n.args[0]]  # type: ignore[index]
                self.codes[n.name] = torch.where(given.isnan(), given, found / scale)
        return found
