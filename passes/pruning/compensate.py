"""Make up for removed channels without data: their means go into biases, or their weights to those of similar channels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, fx
from torch.fx.node import Node

from graphopt.analysis.channels.groups import Group
from graphopt.analysis.im2col import from_matrix, weight_matrix
from graphopt.fitting.least_squares import shift_output
from graphopt.ir.calls import shape
from graphopt.ir.graph import Graph
from graphopt.ir.layer import BatchNorm, Layer
from graphopt.ir.ops import info, is_elementwise
from graphopt.passes.pruning.criteria import filters_of
from graphopt.passes.pruning.readers import Reader, readers

NODES = 64  # of the quadrature
Removed = Iterable[tuple[Group, list[int]]]


def means(graph: Graph, removed: Removed) -> dict[str, Tensor]:
    """What the layers that read removed channels lose on average: W_u E[x_u], by the name of the layer's call, [out].

    To be called before the channels are removed; `add_means` adds it to the biases afterwards.

    The mean comes from the batch norm in front: its output is taken as normal with mean beta and deviation |gamma|, and followed
    through the functions behind by Gauss-Hermite quadrature, as in Nagel et al. 2019, section 4.2.1. A reader with anything else
    in front is left alone. (At zero-padded borders the mean is not reached; that is accepted.)
    """
    lost: dict[str, Tensor] = {}
    for group, units in removed:
        for reader in readers(graph, group):
            mean = expected_input(graph, reader.layer.input)
            if mean is not None and units:
                gone = torch.from_numpy(np.isin(reader.units, units))
                weight = weight_matrix(reader.layer, graph.tensor(reader.layer.weight))
                per_column = mean.repeat_interleave(weight.shape[1] // len(mean)).to(weight.dtype)
                name = reader.layer.node.name
                lost[name] = lost.get(name, 0) + weight[:, gone] @ per_column[gone]
    return lost


def add_means(graph: Graph, lost: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> None:
    """Add to the biases of readers what they lost on average.

    Args:
        graph: after the removal.
        lost: see `means`.
        kept: the output channels that calls still have, by name, where they lost some.
    """
    for node in graph.calls():
        if (shift := lost.get(node.name)) is not None and (layer := Layer.of(node)) is not None:
            shift_output(graph, layer, shift[kept[node.name]] if node.name in kept else shift)
    graph.refresh()


def expected_input(graph: Graph, value: Node) -> Tensor | None:
    """The mean of each channel of a value behind a batch norm: [channels]; None where it does not follow from one."""
    chain: list[Node] = []
    while (norm := BatchNorm.of(value)) is None:
        pointwise, known = is_elementwise(value), info(value)
        keeps_means = known.family == "identity" or (known.pools and known.averages)
        values = [source for source in value.all_input_nodes if not graph.is_constant(source)]
        if len(values) != 1 or not (pointwise or keeps_means):
            return None
        if pointwise:
            chain.append(value)
        value = values[0]
    gamma, beta = (graph.tensor(a).double() if a is not None else None for a in (norm.weight, norm.bias))
    count = len(graph.tensor(norm.mean))
    gamma = torch.ones(count).double() if gamma is None else gamma
    beta = torch.zeros(count).double() if beta is None else beta
    points, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(NODES))
    grid = beta + gamma.abs() * points[:, None]  # [nodes, channels, 1, ...], so that constants meet their channels
    grid = grid.reshape(*grid.shape, *[1] * (len(shape(norm.node)) - 2))
    for node in reversed(chain):
        grid = _applied(graph, node, grid)
        if len(grid) != NODES or grid.shape[1] != count:
            return None  # a constant that samples differ in
    return (weights[:, None] * grid.reshape(NODES, count, -1).mean(2)).sum(0) / weights.sum()


def _applied(graph: Graph, node: Node, grid: Tensor) -> Tensor:
    """A call with the grid in place of the value it reads."""

    def given(source: Node) -> Tensor:
        return _wide(graph.tensor(source)) if graph.is_constant(source) else grid

    args, kwargs = fx.node.map_arg((node.args, node.kwargs), given)
    found: Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
    return found


def _wide(constant: Tensor) -> Tensor:
    return constant.double() if constant.is_floating_point() else constant


def merge_twins(graph: Graph, removed: Removed) -> None:
    """Add the weights that read a unit about to be removed to those that read its twin: the kept unit most like it.

    Srinivas & Babu 2015, "Data-free Parameter Pruning for Deep Neural Networks", section 3.
    """
    for group, units in removed:
        left = [u for u in range(len(group)) if u not in set(units)]
        filters = filters_of(graph, group)
        twins = torch.cdist(filters[units], filters[left]).argmin(1).tolist() if units else []
        for reader in readers(graph, group):
            _merge(graph, reader, [(unit, left[twin]) for unit, twin in zip(units, twins, strict=True)])


def _merge(graph: Graph, reader: Reader, pairs: list[tuple[int, int]]) -> None:
    layer: Layer = reader.layer
    old = graph.tensor(layer.weight)
    weight = weight_matrix(layer, old).clone()
    for unit, twin in pairs:
        weight[:, np.flatnonzero(reader.units == twin)] += weight[:, np.flatnonzero(reader.units == unit)]
    graph.put_constant(layer.weight, from_matrix(layer, weight, old))
