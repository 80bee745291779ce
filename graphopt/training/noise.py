"""Quantization noise: in each step some blocks of the weights are what a quantization would make of them.

    W' = W + m (Q(W) - W)        m: 1 for blocks drawn anew in each step, with a probability, else 0

The gradient goes to W as if W' were W (straight-through), unbiased where m is 0. So weights learn to do without any of these
blocks being exact, whatever quantization follows:

    zero       Q(W) = 0                              the paper's proxy, nearly as good as the real one for product quantization
    product    pieces of a row from a codebook       found anew at every `every`-th step
    int8       rounded to 255 levels, a scale for each output channel

    graphopt.train(graph, data, compress=[QuantNoise("product", block=8), Response(model)], epochs=3)

Paper:  Fan et al. 2021, "Training with Quantization Noise for Extreme Model Compression", section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.formats import Format
from graphopt.ir.calls import value
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.ops import aten
from graphopt.ir.passes import Change
from graphopt.training.compression import Compression
from graphopt.utils.checks import check_count, check_share
from graphopt.utils.errors import InputError, alternatives

Kind = Literal["zero", "product", "int8"]
ENTRIES, TURNS, SAMPLE = 256, 4, 16384  # of a codebook: vectors, rounds of k-means, and pieces these are found on


class QuantNoise(Compression):
    """Noise on the weights of convolutions and linear layers while they train.

    Args:
        kind: see the head of this file.
        share: of the blocks, in each step; over 0 and under 1.
        block: weights of a block in a row, at most: the largest number that divides the row (of a convolution other than 1x1, a
            kernel).
        every: steps after which what blocks are quantized to is found anew.

    Raises:
        InputError: an option does not fit; with `attach`, there are no layers with constant weights of their own.
    """

    def __init__(self, kind: Kind = "zero", share: float = 0.1, block: int = 8, every: int = 100) -> None:
        if kind not in get_args(Kind):
            raise InputError(f"unknown kind {kind!r}; {alternatives(kind, get_args(Kind), 'kinds')}")
        check_share("share", share)
        check_count("block", block)
        check_count("every", every)
        self.kind, self.share, self.block, self.every = kind, share, block, every
        self.places: list[_Place] = []
        self.steps = 0

    def attach(self, graph: Graph) -> list[Change]:
        layers = [layer for node in graph.calls() if (layer := Layer.of(node)) and _own(graph, layer)]
        if not layers:
            raise InputError(
                "there are no convolutions or linear layers with constant weights of their own to put noise on"
            )
        self.places = [_Place.at(graph, layer, self.block) for layer in layers]
        self.steps = 0
        graph.refresh()
        return []

    @torch.no_grad()
    def step(self, progress: float) -> None:
        for place in self.places:
            weight = place.weight.detach()
            if self.kind != "product" or self.steps % self.every == 0 or place.target is None:
                place.target = TARGETS[self.kind](weight, place.block)
            drawn = torch.rand(weight.numel() // place.block, 1, device=weight.device) < self.share
            blocks = (place.target - weight).reshape(-1, place.block) * drawn
            place.noise.copy_(blocks.reshape(weight.shape))
        self.steps += 1

    @torch.no_grad()
    def settle(self, graph: Graph) -> None:
        for place in self.places:
            place.noise.zero_()

    def finish(self, graph: Graph) -> list[Change]:
        for place in self.places:
            graph.replace(place.total, place.source)
        graph.sweep()
        graph.refresh()
        self.places = []
        return []


@dataclass
class _Place:
    """One weight, the noise that is added to it, and what its blocks are quantized to."""

    graph: Graph
    source: Node
    total: Node
    added: Node
    block: int
    target: Tensor | None = None

    @classmethod
    def at(cls, graph: Graph, layer: Layer, most: int) -> _Place:
        source, weight = layer.weight, graph.tensor(layer.weight)
        added = graph.add_constant(f"{source.target}_noise", torch.zeros_like(weight), before=layer.node)
        total = graph.call(aten.add.Tensor, source, added, before=layer.node)
        total.meta["val"] = value(source)
        layer.node.replace_input_with(source, total)
        return cls(graph, source, total, added, _block(weight, most))

    @property
    def weight(self) -> Tensor:
        return self.graph.parameter(self.source)

    @property
    def noise(self) -> Tensor:
        return self.graph.parameter(self.added)


def _own(graph: Graph, layer: Layer) -> bool:
    return graph.is_constant(layer.weight) and len(layer.weight.users) == 1 and graph.tensor(layer.weight).dim() > 1


def _block(weight: Tensor, most: int) -> int:
    """The weights of a block: a kernel, or the largest part of a row."""
    kernel = weight[0, 0].numel()
    return kernel if kernel > 1 else max(n for n in range(1, most + 1) if weight.shape[1] % n == 0)


def _zero(weight: Tensor, block: int) -> Tensor:
    return torch.zeros_like(weight)


def _int8(weight: Tensor, block: int) -> Tensor:
    rounded: Tensor = Format(8, per_channel=True).fit(weight, axis=0)(weight)
    return rounded


def _product(weight: Tensor, block: int) -> Tensor:
    """Each block the nearest of a codebook, by k-means."""
    pieces = weight.reshape(-1, block)
    sample = pieces[torch.randperm(len(pieces), device=pieces.device)[:SAMPLE]]
    table = sample[: min(ENTRIES, max(2, len(pieces) // 4))].clone()
    for _ in range(TURNS):
        codes = torch.cdist(sample, table).argmin(1)
        counts = torch.bincount(codes, minlength=len(table))[:, None]
        sums = torch.zeros_like(table).index_add_(0, codes, sample)
        table = torch.where(counts > 0, sums / counts.clamp(min=1), table)
    nearest = torch.cat([torch.cdist(part, table).argmin(1) for part in torch.split(pieces, SAMPLE)])
    return table[nearest].reshape(weight.shape)


TARGETS: Mapping[str, Callable[[Tensor, int], Tensor]] = MappingProxyType(
    {"zero": _zero, "product": _product, "int8": _int8}
)
