"""The assignment that a reinforcement-learning agent finds under a budget, as in HAQ.

The agent (`graphopt.searching.ddpg`) sees one decision at a time: layer index, channels in and out, kernel, stride, size of the
feature map, number of weights, depthwise or not, weights or activations, and its last action. Its actions stand for the choices
in order, the most bits first; where the whole is over the budget, the bits are lowered until it is not. The reward is

    r = -log(divergence of the network / that of the first episode)

Paper: Wang et al. 2019, "HAQ: Hardware-Aware Automated Quantization", section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from graphopt.ir.calls import shape
from graphopt.ir.layer import Layer
from graphopt.passes.quantization.mixed.cost import Cost, Numbers, lowered
from graphopt.passes.quantization.mixed.space import Decision, Space, stored
from graphopt.searching.ddpg import episodes as learned
from graphopt.searching.ddpg import scaled, within


def search(
    space: Space, cost: Cost, divergence: Callable[[Sequence[int]], float], episodes: int, seed: int
) -> tuple[int, ...]:
    """The best assignment of all episodes; it meets the budget if any can.

    Args:
        divergence: measured, of the network with an assignment.
    """
    sizes = [len(d.choices) for d in space.decisions]

    def fit(actions: Sequence[float]) -> tuple[list[float], tuple[int, ...]]:
        return within(actions, sizes, cost.meets, lambda drawn: lowered(drawn, cost))

    def score(assignment: tuple[int, ...]) -> float:
        return math.log(max(divergence(assignment), 1e-12))

    known = learned(observations(space), fit, score, episodes, seed)
    return min(known, key=known.__getitem__)


def observations(space: Space) -> Numbers:
    """Of every decision what the agent sees of it, each feature scaled to [0, 1]: [decisions, 9]."""
    return scaled(np.array([[number, *_features(d)] for number, d in enumerate(space.decisions)], dtype=np.float64))


def _features(decision: Decision) -> list[float]:
    layer = Layer.of(decision.nodes[0])
    if layer is None:  # activations
        sizes = [size for size in shape(decision.nodes[0])[1:] if isinstance(size, int)]
        channels = sizes[0] if sizes else 1
        return [channels, channels, 1, 1, math.prod(sizes[1:]) ** 0.5, 0, 0, 1]
    features = [size for size in shape(layer.input)[2:] if isinstance(size, int)] if layer.dims else []
    kernel = math.prod(shape(layer.weight)[2:]) if layer.dims else 1
    stride = math.prod(layer.stride) if layer.dims else 1
    depthwise = layer.groups > 1 and layer.groups == layer.in_channels
    weights = decision.kind == "weights"
    return [
        layer.in_channels, layer.out_channels, kernel, stride, math.prod(features) ** 0.5, stored(decision) * weights, depthwise,
        not weights,
    ]  # fmt: skip
