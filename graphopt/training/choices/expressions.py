"""Weights of choices as expressions of what is learned, in the graph.

    softmax    p = softmax(alpha)                                                        DARTS, Liu et al. 2019, eq. 2
    gumbel     softmax((alpha + noise) / temperature)                                    SNAS, Xie et al. 2019, eq. 5; FBNet
    binary     hard + p - p (without gradient), p = softmax over the paths in `gate`     ProxylessNAS, Cai et al. 2019, sec. 3.2
    markov     w_k = prod of the chances to widen up to k, times that to stop there      DMCP, Guo et al. 2020, eq. 6 and 7

alpha, [options], is the constant of the choice. Each function adds calls in front of a node, with constants called after alpha,
and returns the call that gives the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.fx.node import Node

from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten

LOW = -1e4  # added to what does not take part in a softmax


@dataclass
class Learned:
    """What the weights of one choice are computed from: constants of the graph, [options] but for the temperature."""

    alpha: Node
    noise: Node | None = None
    temperature: Node | None = None
    gate: Node | None = None
    hard: Node | None = None


Expression = Callable[[Graph, Node, Node], tuple[Learned, Node]]


def softmax(graph: Graph, alpha: Node, before: Node) -> tuple[Learned, Node]:
    return Learned(alpha), graph.call(aten.softmax.int, alpha, 0, before=before)


def gumbel(graph: Graph, alpha: Node, before: Node) -> tuple[Learned, Node]:
    noise = _constant(graph, alpha, "noise", torch.zeros(_options(graph, alpha)), before)
    temperature = _constant(graph, alpha, "temperature", torch.ones(()), before)
    noisy = graph.call(aten.add.Tensor, alpha, noise, before=before)
    divided = graph.call(aten.div.Tensor, noisy, temperature, before=before)
    return Learned(alpha, noise, temperature), graph.call(aten.softmax.int, divided, 0, before=before)


def binary(graph: Graph, alpha: Node, before: Node) -> tuple[Learned, Node]:
    gate = _constant(graph, alpha, "gate", torch.ones(_options(graph, alpha)), before)
    hard = _constant(graph, alpha, "hard", torch.zeros(_options(graph, alpha)), before)
    outside = graph.call(aten.mul.Tensor, graph.call(aten.rsub.Scalar, gate, 1.0, before=before), LOW, before=before)
    share = graph.call(aten.softmax.int, graph.call(aten.add.Tensor, alpha, outside, before=before), 0, before=before)
    fixed = graph.call(aten.detach.default, share, before=before)
    through = graph.call(aten.sub.Tensor, share, fixed, before=before)
    either = graph.call(aten.add.Tensor, hard, through, before=before)
    return Learned(alpha, gate=gate, hard=hard), graph.call(aten.mul.Tensor, either, gate, before=before)


def markov(graph: Graph, alpha: Node, before: Node) -> tuple[Learned, Node]:
    """The last option is the narrowest, where the chain begins; alpha[i] says whether to widen from option i + 1 to i."""
    one = _constant(graph, alpha, "one", torch.ones(1), before)
    none = _constant(graph, alpha, "none", torch.zeros(1), before)
    widen = graph.call(aten.sigmoid.default, alpha, before=before)
    steps = graph.call(aten.slice.Tensor, widen, 0, 0, _options(graph, alpha) - 1, before=before)
    upward = graph.call(aten.flip.default, steps, [0], before=before)
    reached = graph.call(
        aten.cumprod.default, graph.call(aten.cat.default, [one, upward], 0, before=before), 0, before=before
    )
    further = graph.call(aten.cat.default, [upward, none], 0, before=before)
    stop = graph.call(aten.rsub.Scalar, further, 1.0, before=before)
    weights = graph.call(aten.mul.Tensor, reached, stop, before=before)
    return Learned(alpha), graph.call(aten.flip.default, weights, [0], before=before)


def _constant(graph: Graph, alpha: Node, what: str, value: torch.Tensor, before: Node) -> Node:
    return graph.add_constant(f"{alpha.target}_{what}", value, before=before)


def _options(graph: Graph, alpha: Node) -> int:
    return len(graph.parameter(alpha))
