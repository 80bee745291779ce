"""Scale a family of networks to a budget: depth, width and resolution together.

    depth x alpha^phi,   width x beta^phi,   resolution x gamma^phi          alpha, beta, gamma >= 1

1. alpha, beta and gamma are chosen on a grid, among those that multiply the cost by about two at phi = 1, by the score of the
   network there.
2. phi is then raised or lowered until the cost is within the limit.

Paper: Tan and Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", section 3.3. There the cost is
estimated as alpha beta^2 gamma^2; here it is whatever you measure.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.utils.errors import InputError

Factory = Callable[[float, float, float], tuple[nn.Module, Tensor]]
GRID = (1.0, 1.1, 1.2, 1.3)
NEARLY = 0.25  # of two
HALVINGS = 20  # of the interval that phi is in


@dataclass(frozen=True)
class Scaled:
    """What was found: the network, an input of its size, the factors of depth, width and resolution, and its cost."""

    model: nn.Module
    example: Tensor
    depth: float
    width: float
    resolution: float
    cost: float


def macs(model: nn.Module, example: Tensor) -> float:
    """Multiply-accumulates of one sample."""
    return float(cost.macs(Graph.capture(model.eval(), example)))


def compound_scaling(
    factory: Factory,
    limit: float,
    *,
    measure: Callable[[nn.Module, Tensor], float] = macs,
    score: Callable[[nn.Module, Tensor], float] | None = None,
    ratios: tuple[float, float, float] | None = None,
) -> Scaled:
    """The largest network of a family within a limit.

    Args:
        factory: of the factors of depth, width and resolution, a model and an example input; (1, 1, 1) is the family's base.
        limit: of the cost, in its unit.
        measure: the cost of a model, such as milliseconds on a runtime; None given: multiply-accumulates.
        score: of a model, higher is better, for instance after a short training; says which factors are chosen. None: `ratios`.
        ratios: alpha, beta, gamma; None, without a score: those of EfficientNet, 1.2, 1.1, 1.15.

    Raises:
        InputError: a limit or ratios that do not fit, or a base that the limit is far below: nothing smaller than a tenth of the
            base's factors is tried.
    """
    if not limit > 0:
        raise InputError(f"limit must be over 0, got {limit}")
    if ratios is not None and (min(ratios) < 1 or max(ratios) <= 1):
        raise InputError(f"ratios are at least 1, and one of them is over 1, got {ratios}")
    if ratios is None:
        ratios = (1.2, 1.1, 1.15) if score is None else _chosen(factory, measure, score)
    low, high = _around(factory, measure, limit, ratios)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _cost(factory, measure, ratios, middle) <= limit else (low, middle)
    depth, width, resolution = (ratio**low for ratio in ratios)
    model, example = factory(depth, width, resolution)
    return Scaled(model, example, depth, width, resolution, measure(model, example))


def _cost(
    factory: Factory, measure: Callable[[nn.Module, Tensor], float], ratios: tuple[float, ...], phi: float
) -> float:
    return measure(*factory(*(ratio**phi for ratio in ratios)))


def _around(
    factory: Factory, measure: Callable[[nn.Module, Tensor], float], limit: float, ratios: tuple[float, ...]
) -> tuple[float, float]:
    """A phi within the limit, and one beyond it."""
    low, step = 0.0, 1.0
    while _cost(factory, measure, ratios, low) > limit:
        low, step = low - step, 2 * step
        if max(ratios) ** low < 0.1:
            raise InputError(f"even a tenth of the base costs more than {limit:.4g}; begin with a smaller base")
    high = low + 1.0
    while _cost(factory, measure, ratios, high) <= limit:
        low, high = high, high + 2 * (high - low)
        if max(ratios) ** high > 100:
            raise InputError(f"the family does not reach {limit:.4g}: its cost hardly depends on the factors")
    return low, high


def _chosen(
    factory: Factory, measure: Callable[[nn.Module, Tensor], float], score: Callable[[nn.Module, Tensor], float]
) -> tuple[float, float, float]:
    """The ratios whose network scores best, among those that cost about twice the base."""
    base = _cost(factory, measure, (1.0, 1.0, 1.0), 1.0)
    found: list[tuple[float, tuple[float, float, float]]] = []
    nearest: tuple[float, tuple[float, float, float]] = (math.inf, (1.2, 1.1, 1.15))
    for a, b, c in itertools.product(GRID, repeat=3):
        model, example = factory(a, b, c)
        off = abs(measure(model, example) / base / 2 - 1)
        nearest = min(nearest, (off, (a, b, c)))
        if off <= NEARLY:
            found.append((score(model, example), (a, b, c)))
    return max(found)[1] if found else nearest[1]
