"""Every factorization, the layers that each applies to, and chains for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.passes.factorization import (
    CP,
    SVD,
    BlockTerm,
    ChannelWise,
    DepthwiseSeparable,
    Separable,
    StackedKernels,
    TensorTrain,
    Tucker,
)
from graphopt.passes.factorization.chain import Chain
from graphopt.passes.factorization.method import Method, Ranks

METHODS: list[Method] = [
    SVD(), ChannelWise(), Separable(), Tucker(), CP(), DepthwiseSeparable(), StackedKernels(), TensorTrain(),
    TensorTrain(modes=3), BlockTerm(), BlockTerm(modes=2, terms=3),
    BlockTerm(modes=4, terms=1),
]  # fmt: skip

C1, C2, C3 = nn.Conv1d, nn.Conv2d, nn.Conv3d

T1, T2, T3 = nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv1d": (lambda: C1(4, 6, 5, stride=2, padding=3, dilation=2), (2, 4, 19)),
    "conv1d grouped": (lambda: C1(4, 6, 3, groups=2, bias=False), (2, 4, 9)),
    "conv2d": (lambda: C2(5, 6, 3, padding=1), (2, 5, 7, 8)),
    "conv2d strided": (lambda: C2(4, 6, (3, 5), stride=(2, 1), padding=(0, 2), bias=False), (2, 4, 9, 8)),
    "conv2d dilated": (lambda: C2(4, 5, 3, dilation=(2, 3), padding=2), (2, 4, 11, 12)),
    "conv2d same": (lambda: C2(4, 5, (3, 4), padding="same"), (2, 4, 7, 8)),
    "conv2d reflect": (lambda: C2(4, 5, 5, padding=2, padding_mode="reflect"), (2, 4, 7, 8)),
    "conv2d grouped": (lambda: C2(8, 6, 5, groups=2, padding=2, stride=2), (2, 8, 9, 9)),
    "conv2d tall": (lambda: C2(4, 5, (3, 1), stride=2, padding=1), (2, 4, 7, 7)),
    "conv2d wide": (lambda: C2(4, 5, (1, 5), padding=1, dilation=(2, 1)), (2, 4, 7, 7)),
    "conv2d 7": (lambda: C2(3, 4, 7, padding=3, stride=3), (2, 3, 11, 10)),
    "conv2d 1": (lambda: C2(6, 8, 1, stride=2), (2, 6, 5, 5)),
    "conv3d": (lambda: C3(3, 4, (3, 5, 1), padding=(1, 2, 1), stride=(1, 2, 2)), (2, 3, 5, 6, 4)),
    "transposed 1d": (lambda: T1(4, 5, 5, stride=3, padding=2, output_padding=1), (2, 4, 5)),
    "transposed 2d": (lambda: T2(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (2, 4, 5, 6)),
    "transposed 2d 5": (lambda: T2(4, 3, 5, stride=(2, 1), padding=2, dilation=2, bias=False), (2, 4, 5, 6)),
    "transposed 3d": (lambda: T3(2, 3, 3, stride=2, output_padding=1), (2, 2, 3, 3, 2)),
    "linear": (lambda: nn.Linear(12, 18), (3, 12)),
    "linear on tokens": (lambda: nn.Linear(18, 24, bias=False), (2, 5, 18)),
    "linear on a grid": (lambda: nn.Linear(16, 7), (2, 3, 5, 16)),
}

CONVOLUTIONS = [name for name in LAYERS if name.startswith(("conv", "transposed")) and name != "conv2d 1"]

LINEAR = [name for name in LAYERS if name.startswith("linear")]

APPLIES: dict[type[Method], list[str]] = {  # told, so that parametrizing captures nothing
    SVD: ["conv2d 1", *LINEAR],
    ChannelWise: CONVOLUTIONS,
    Separable: [
        name for name in CONVOLUTIONS if "1d" not in name and name not in ("conv2d tall", "conv2d wide")
    ],
    Tucker: CONVOLUTIONS,
    CP: CONVOLUTIONS,
    DepthwiseSeparable: CONVOLUTIONS,
    StackedKernels: [
        "conv1d", "conv2d strided", "conv2d reflect", "conv2d grouped", "conv2d wide", "conv2d 7", "conv3d",
        "transposed 1d", "transposed 2d 5",
    ],
    TensorTrain: LINEAR,
    BlockTerm: LINEAR,
}  # fmt: skip


def label(method: Method) -> str:
    options = [str(getattr(method, name)) for name in ("modes", "terms") if hasattr(method, name)]
    return " ".join([type(method).__name__, *options])


@cache
def captured(name: str) -> tuple[nn.Module, Tensor, Graph]:
    with torch.random.fork_rng():
        torch.manual_seed(len(name))
        make, sizes = LAYERS[name]
        model, x = nn.Sequential(make()).double().eval(), torch.randn(sizes).double()
    return model, x, Graph.capture(model, x)


def layer_in(graph: Graph) -> Layer:
    return next(layer for node in graph.calls() if (layer := Layer.of(node)))


def weight_of(name: str) -> Tensor:
    layer = layer_in(captured(name)[2])
    return layer.canonical(captured(name)[2].tensor(layer.weight))


def pairs() -> list[Any]:
    """Every method with every layer it applies to."""
    return [
        pytest.param(method, name, id=f"{label(method)}, {name}")
        for method in METHODS
        for name in APPLIES[type(method)]
    ]


def low(method: Method, layer: Layer) -> Ranks:
    return tuple(max(1, full // 3) for full in method.full(layer))


@cache
def small(method: str, name: str) -> Chain:
    """A method's chain for a layer, at low ranks."""
    chosen, layer = next(m for m in METHODS if label(m) == method), layer_in(captured(name)[2])
    return chosen.decompose(layer, weight_of(name), low(chosen, layer))


def lost(method: Method, name: str, ranks: Ranks) -> float:
    weight = weight_of(name)
    return float((method.decompose(layer_in(captured(name)[2]), weight, ranks).dense() - weight).square().sum())


def dropped(matrix: Tensor, rank: int) -> float:
    return float(torch.linalg.svdvals(matrix)[rank:].square().sum())


def outer(*factors: Tensor) -> Tensor:
    letters = "abcd"[: len(factors)]
    return torch.einsum(",".join(f"{x}r" for x in letters) + "->" + letters, *factors)
