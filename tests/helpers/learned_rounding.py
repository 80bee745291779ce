"""Networks that tests of learned rounding share."""

from __future__ import annotations

from typing import Any

import torch
from rewriting import Model, capture, randomised
from torch import Tensor, nn

from graphopt.formats import Format
from graphopt.ir.graph import Graph
from graphopt.passes.cleanup.fold_batchnorm import FoldBatchNorm
from graphopt.passes.quantization import Quantize
from graphopt.targets import find

FOUR = Format(bits=4, per_channel=True)

BATCHES = [[part] for part in torch.split(torch.randn(64, 3, 10, 10, generator=torch.Generator().manual_seed(1)), 16)]


def residual() -> nn.Module:
    def body(m: Any, x: Tensor) -> Tensor:
        x = torch.relu(m.stem_bn(m.stem(x)))
        for first, second in ((m.a, m.b), (m.c, m.d)):
            x = torch.relu(x + second(torch.relu(first(x))))
        return m.head(x.mean((2, 3)))  # type: ignore[no-any-return]

    def conv() -> nn.Module:
        return nn.Conv2d(8, 8, 3, padding=1)

    torch.manual_seed(0)
    return Model(
        body,
        stem=nn.Conv2d(3, 8, 3),
        stem_bn=nn.BatchNorm2d(8),
        a=conv(),
        b=conv(),
        c=conv(),
        d=conv(),
        head=nn.Linear(8, 5),
    )


def simulated(model: nn.Module | None = None, weights: Format = FOUR) -> Graph:
    torch.manual_seed(0)
    graph = capture(randomised(model or residual()), BATCHES[0][0][:2])
    for transform in (FoldBatchNorm(), Quantize(find("x86"), BATCHES, weights=weights)):
        transform(graph)
        graph.refresh()
    return graph
