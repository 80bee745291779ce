"""Rounding to uniform grids in a step of training, at less cost than by the graph's own calls, with the same numbers.

A function of autograd takes less time to call than an operator of a library. Where all that reads a ReLU are quantizers whose
grids begin with zero, rounding clamps what is below zero anyway, so the ReLU is left out, forward and backward.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.formats import FAKE_QUANTIZE, pieces, straight_through
from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten
from graphopt.ir.quantizers import UniformQuantizer


def overrides(graph: Graph, watched: Collection[Node]) -> dict[Node, Callable[..., Any]]:
    """What an executor calls in place of a graph's quantizers and ReLUs.

    Args:
        watched: calls whose values are wanted; a ReLU among them stays.
    """
    found: dict[Node, Callable[..., Any]] = {}
    for node in graph.calls():
        quantizer = UniformQuantizer.of(node)
        if quantizer is not None and not quantizer.block:
            found[node] = partial(rounded, positive=False)
    for node in graph.calls(aten.relu.default):
        if node not in watched and node.users and all(_begins_with_zero(graph, user, node) for user in node.users):
            found[node] = _same
            found.update({user: partial(rounded, positive=True) for user in node.users})
    return found


def rounded(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, axis: int, *, positive: bool) -> Tensor:
    """As `graphopt::fake_quantize`; with `positive`, of relu(x), on a grid that begins with zero."""
    if positive and not pieces.fits(x, scale, zero_point, axis):
        x, positive = x.relu(), False
    if x.dtype != torch.float32:  # where autocast has to see it
        answer: Tensor = FAKE_QUANTIZE(x, scale, zero_point, low, high, axis)
        return answer
    found: Tensor = _Rounded.apply(x, scale, zero_point, low, high, axis, positive)  # type: ignore[no-untyped-call]
    return found


class _Rounded(torch.autograd.Function):
    """See `graphopt.formats.straight_through`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, axis: int, positive: bool
    ) -> Tensor:
        found = straight_through.rounded(x, scale, zero_point, low, high, axis)
        ctx.save_for_backward(x, scale, zero_point, found)
        ctx.grid, ctx.positive = (low, high, axis), positive
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,), (x, scale, zero_point, found) = gradients, ctx.saved_tensors
        to_x, to_scale = straight_through.gradients(
            gradient, x, found, scale, zero_point, *ctx.grid, of_scale=ctx.needs_input_grad[1], positive=ctx.positive
        )
        return to_x, to_scale, *[None] * 5


def _same(x: Tensor) -> Tensor:
    return x


def _begins_with_zero(graph: Graph, user: Node, source: Node) -> bool:
    """Whether a call rounds a value to a grid of one scale whose first code stands for zero."""
    quantizer = UniformQuantizer.of(user)
    if quantizer is None or quantizer.block or quantizer.axis >= 0 or quantizer.value is not source:
        return False
    return graph.is_constant(quantizer.zero_point) and bool((graph.tensor(quantizer.zero_point) == quantizer.low).all())
