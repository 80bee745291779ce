"""The network, images and quantized graph that tests of the layer analysis share."""

from typing import Any

import torch
from capture_once import capture_once
from torch import Tensor, nn

from graphopt.data.calibration import Calibration
from graphopt.ir.graph import Graph
from graphopt.passes.quantization import Quantize
from graphopt.passmanager.runner import run
from graphopt.targets import find

X86 = find("x86")


class Small(nn.Module):
    """A chain, a sum with a stream around it, a max pool that repeats a grid, and a linear layer that leaves in float."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.third, self.head = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        y = torch.max_pool2d(torch.relu(y + self.second(y)), 2)
        return self.head(torch.relu(self.third(y)).mean((2, 3)))  # type: ignore[no-any-return]


def images(count: int = 24) -> Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def quantized(model: nn.Module, x: Tensor | None = None, dynamic_batch: bool = True, **options: Any) -> Graph:
    x = images() if x is None else x
    graph = capture_once(model.eval(), (x[:4],), dynamic_batch=dynamic_batch)
    run([Quantize(X86, Calibration(x, graph), **options)], graph)
    return graph
