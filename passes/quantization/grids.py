"""From the ranges of values to the quantizer of every grid.

A uniform grid takes its range as it is; a hard-swish's gate shares the grid of its value (`gates.py`). Other formats fit
themselves to the streamed distribution: to its range with `minmax` and `percentile`, else to the least squared error, as the
other estimators are made for uniform grids. Block floating point needs neither.
"""

from __future__ import annotations

import torch
from torch.fx.node import Node

from graphopt.execution.observers import Histogram, Range
from graphopt.formats import Format, Quantizer, scale_and_zero_point
from graphopt.ir.calls import is_cast_of_bytes, shape
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.ops import family, share_range
from graphopt.passes.quantization.gates import gate_of, shared_grid
from graphopt.passes.quantization.placement import QuantizationPlan, SharedGrid
from graphopt.utils.errors import InputError

TAKE_THE_RANGE = ("minmax", "percentile")  # estimators that say which range to cover, whatever the grid


def known_range(grid: SharedGrid) -> tuple[float, float] | None:
    """The range of a value that needs no data: of shares, and of bytes, which a step of one holds as they are."""
    for node in grid.produced:
        if (known := share_range(node)) is not None:
            return known
        if is_cast_of_bytes(node):
            return 0.0, 255.0
    return None


def fit_grids(
    graph: Graph, plan: QuantizationPlan, ranges: list[tuple[float, float]], statistics: list[Range], estimator: str
) -> list[Quantizer]:
    """The quantizer of every grid. That of blocks has no axis yet: see `block_axis`."""
    found = [
        fit_uniform(grid.format, *ends)
        if isinstance(grid.format, Format)
        else fit_other(graph, grid, ends, stat, estimator)
        for grid, ends, stat in zip(plan.grids, ranges, statistics, strict=True)
    ]
    by_value = {
        tuple(grid.produced): index for index, grid in enumerate(plan.grids) if not grid.moved and not grid.entered
    }
    for index, grid in enumerate(plan.grids):
        if len(grid.produced) != 1 or grid.moved or grid.entered or not isinstance(grid.format, Format):
            continue
        gate = gate_of(grid.produced[0])
        if gate is None or (gate,) not in by_value or plan.grids[by_value[gate,]].format != grid.format:
            continue
        if (shared := shared_grid(ranges[index][1], grid.format)) is not None:
            found[index], found[by_value[gate,]] = (Quantizer(grid.format, parameters) for parameters in shared)
    return found


def fit_uniform(format: Format, low: float, high: float) -> Quantizer:
    return Quantizer(format, scale_and_zero_point(torch.tensor(low), torch.tensor(high), format))


def fit_other(graph: Graph, grid: SharedGrid, ends: tuple[float, float], stat: Range, estimator: str) -> Quantizer:
    assert isinstance(stat, Histogram)
    used = stat.counts > 0
    seen = stat.centers[used].clamp(stat.low, stat.high)
    method = "minmax" if estimator in TAKE_THE_RANGE else "mse"
    try:
        return grid.format.fit_values(*ends, seen, stat.counts[used], 1, method)  # type: ignore[arg-type]
    except InputError as error:
        raise InputError(f"activations of {graph.site(grid.observed[0])!r}: {error}") from error


def block_axis(value: Node) -> int:
    """The dimension of a value that its readers sum over: channels, which are last where linear layers are around."""
    near = [value, *value.users]
    last = len(shape(value)) - 1
    linear = any((layer := Layer.of(node)) is not None and layer.kind == "linear" for node in near)
    return last if linear or family(value) == "softmax" else min(1, last)


def weight_block_axis(weight: torch.Tensor) -> int:
    """The dimension of a weight [out, in / groups, *kernel] that blocks lie along: inputs, or the kernel where there is one."""
    return 1 if weight.shape[1] > 1 or weight.dim() == 2 else weight.dim() - 1
