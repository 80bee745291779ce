"""Place and calibrate fake-quantize nodes: the simulated form of an integer model.

Every value that the target computes in integer goes through x^ = (clamp(round(x / s) + z, ...) - z) * s on a grid (s, z); so do
the weights of its layers, and their biases on the grid of the int32 accumulator, s_bias = s_input * s_weight. The result still
computes in float, can be fine-tuned, and answers what the integer artifact will answer; backends turn it into integers.

    activations  placement.py decides which values share a grid; ranges.py turns a streamed histogram into a range
    weights      symmetric, per output channel or per tensor
    bias         int32; a channel whose weights are (nearly) zero gets a scale that still represents its bias

Needs:  batch norm folded (an unfolded one stays float and is paid for in speed).
Paper:  Jacob et al. 2018, sections 2 and 3; Krishnamoorthi 2018, "Quantizing deep convolutional networks for efficient
        inference: A whitepaper".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.contract import Change
from graphopt.deploy import end_codes
from graphopt.errors import InputError, NonFiniteError
from graphopt.graph import Graph
from graphopt.masks import bake
from graphopt.numerics import FAKE_QUANTIZE, Format, in_blocks, scale_and_zero_point
from graphopt.observe import Histogram, Range, observe
from graphopt.ops import BIAS, WEIGHT, Layer, aten, family, value
from graphopt.passes.quantize.gates import gate_of, shared_grid
from graphopt.passes.quantize.placement import Grid, LayerFormat, Plan, override, place
from graphopt.passes.quantize.ranges import ESTIMATORS, WEIGHT_METHODS, weight_range
from graphopt.passes.quantize.readers import best_ranges, candidates
from graphopt.probe import samples
from graphopt.targets import Target

BY_OUTPUT = "output_mse"
VALUE_METHODS = (*ESTIMATORS, BY_OUTPUT)
BIAS_MIN, BIAS_MAX = -(2**31), 2**31 - 1
KNOWN_RANGE = {"sigmoid": (0.0, 1.0), "hard_sigmoid": (0.0, 1.0), "softmax": (0.0, 1.0)}


@dataclass(frozen=True)
class Quantize:
    """Simulate integer arithmetic.

    Attributes:
        target: decides placement, and the formats that are not given here.
        calibration: re-iterable batches, each a list of input tensors in `graph.input_names` order.
        estimator: for activations: `minmax`, `percentile`, `mse`, `entropy`, `aciq` (`ranges.py`), or `output_mse`, which chooses
            among them for every value by what the operators behind make of it (`readers.py`).
        weight_estimator: `minmax`, `mse` or `aciq`.
        weights, activations: formats in place of the target's.
        formats: layer-name pattern (`fnmatch`, first match wins) -> `LayerFormat`, or None to keep the layer in float.

    Raises:
        InputError: no layer can be quantized, unknown estimator, a pattern that matches nothing.
        NonFiniteError: NaN or infinity in a weight or an activation; names the first node.
    """

    exact: ClassVar[bool] = False

    target: Target
    calibration: Iterable[list[Tensor]] = field(repr=False)
    estimator: str = "mse"
    weight_estimator: str = "minmax"
    weights: Format | None = None
    activations: Format | None = None
    formats: Mapping[str, LayerFormat | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, known in ((self.estimator, VALUE_METHODS), (self.weight_estimator, WEIGHT_METHODS)):
            if name not in known:
                raise InputError(f"unknown range estimator {name!r}; known: {', '.join(known)}")

    def __call__(self, graph: Graph) -> list[Change]:
        if not all(map(in_blocks, graph.calls(FAKE_QUANTIZE))):
            return []
        self.check_patterns(graph)
        changes = bake(graph)
        plan = place(
            graph,
            self.target,
            self.weights or self.target.weights,
            self.activations or self.target.activations,
            self.formats,
        )
        if not plan.layers:
            raise InputError(
                f"nothing to quantize: the graph has no convolution or linear layer that {self.target.name!r} computes in integer"
            )
        check_weights(graph, plan)
        ranges = self.calibrate(graph, plan)
        scales: dict[Node, Tensor] = {}
        for grid, parameters in zip(plan.grids, grid_parameters(plan, ranges), strict=True):
            changes.append(self.insert(graph, grid, *parameters, scales))
        for node, format in plan.layers.items():
            changes.append(self.quantize_layer(graph, node, format, scales))
        for node, why in plan.left.items():
            node.meta["left"] = why
        return changes + [Change(graph.site(node), f"stays float: {why}") for node, why in plan.left.items()]

    def check_patterns(self, graph: Graph) -> None:
        names = {graph.site(node) for node in graph.calls() if family(node)}
        for pattern in self.formats:
            if not any(override(name, {pattern: None})[0] for name in names):
                raise InputError(
                    f"the pattern {pattern!r} matches no layer; layers are named like {', '.join(sorted(names)[:5])}"
                )

    # ---- Activations ------------------------------------------------------------------------------------------------

    def calibrate(self, graph: Graph, plan: Plan) -> list[tuple[float, float]]:
        """One range per grid, from one walk over the calibration data."""
        first: list[list[Tensor]] = []
        statistics = self.watch(graph, plan, first)
        ranges = [self.range_of(grid, stat) for grid, stat in zip(plan.grids, statistics, strict=True)]
        if self.by_output:
            free = {i: s for i, s in enumerate(statistics) if known_range(plan.grids[i]) is None}
            options = {i: candidates(s, plan.grids[i]) for i, s in free.items() if isinstance(s, Histogram)}
            for index, found in best_ranges(graph, options, plan.grids, first).items():
                ranges[index] = found
        return ranges

    def watch(self, graph: Graph, plan: Plan, first: list[list[Tensor]] | None = None) -> list[Range]:
        """What the values of each grid are like on the calibration data, whatever the grid's format.

        `first` takes the batches that ranges are compared on, where they are chosen by what the readers make of them.
        """
        statistic = Range if self.estimator == "minmax" else Histogram
        statistics = [statistic() for _ in plan.grids]
        watched: dict[Node, list[Range]] = {}
        for grid, stat in zip(plan.grids, statistics, strict=True):
            for node in dict.fromkeys(grid.observed):
                watched.setdefault(node, []).append(stat)
        keep = first is not None and self.by_output
        batches = keep_first(self.calibration, samples(graph), first) if keep else self.calibration  # type: ignore[arg-type]
        if not observe(graph, watched, batches):  # type: ignore[arg-type]
            raise InputError("the calibration data are empty; give at least one batch")
        return list(statistics)

    @property
    def by_output(self) -> bool:
        return self.estimator == BY_OUTPUT

    def range_of(self, grid: Grid, stat: Range) -> tuple[float, float]:
        if (known := known_range(grid)) is not None:
            return known
        if isinstance(stat, Histogram):
            return ESTIMATORS["mse" if self.by_output else self.estimator](stat, grid.format)
        return stat.low, stat.high

    def insert(self, graph: Graph, grid: Grid, scale: Tensor, zero_point: Tensor, scales: dict[Node, Tensor]) -> Change:
        """Put fake-quantize nodes behind the values of a grid; `scales` learns the scale of each."""
        values = [*grid.produced, *grid.moved, *(value for value, _ in grid.entered)]
        name, home = f"{graph.site(values[0])}.grid", min(values)
        s = graph.add_constant(f"{name}_scale", scale, before=graph.after(home))
        z = graph.add_constant(f"{name}_zero_point", zero_point, before=graph.after(s))
        low, high = grid.format.quant_min, grid.format.quant_max
        readers = dict(grid.entered)
        for node in values:
            quantizer = graph.call(
                FAKE_QUANTIZE, node, s, z, low, high, -1, before=graph.after(max(node, z)), like=node
            )
            scales[quantizer] = scale
            for reader in readers.get(node) or [user for user in node.users if user is not quantizer]:
                reader.replace_input_with(node, quantizer)
        ends = [float((code - zero_point) * scale) for code in (low, high)]
        return Change(graph.site(values[0]), f"values on {grid.format}, [{ends[0]:.4g}, {ends[1]:.4g}]")

    # ---- Layers -----------------------------------------------------------------------------------------------------

    def quantize_layer(self, graph: Graph, node: Node, format: Format, scales: dict[Node, Tensor]) -> Change:
        layer = Layer.of(node)
        assert layer is not None
        input_scale = scales[layer.input]
        weight = layer.canonical(graph.tensor(layer.weight))
        low, high = weight_range(weight, format, self.weight_estimator)
        scale, zero_point = scale_and_zero_point(low, high, format)
        bias = graph.tensor(layer.bias) if layer.bias is not None else None
        scale = fit_bias(scale, high - low, input_scale, bias)
        site = str(layer.weight.target)
        s = graph.add_constant(f"{site}_scale", scale, before=node)
        z = graph.add_constant(f"{site}_zero_point", zero_point, before=node)
        axis = layer.weight_axis if format.per_channel else -1
        quantized = graph.call(FAKE_QUANTIZE, layer.weight, s, z, format.quant_min, format.quant_max, axis, before=node)
        quantized.meta["val"] = value(layer.weight)
        node.update_arg(WEIGHT, quantized)
        self.quantize_bias(graph, layer, input_scale * scale, channel_shift(graph, layer))
        return Change(graph.site(node), f"weights {format}")

    def quantize_bias(self, graph: Graph, layer: Layer, scale: Tensor, shift: Tensor | None) -> None:
        """Put the bias on the accumulator's grid; with `shift`, put b + shift on it and take shift off again."""
        if layer.bias is None and shift is None:
            return
        node = layer.node
        if layer.bias is None:
            graph.set_bias(node, torch.zeros(layer.out_channels))
        bias = layer.bias
        assert bias is not None
        s = graph.add_constant(f"{bias.target}_scale", scale, before=node)
        z = graph.add_constant(f"{bias.target}_zero_point", torch.zeros_like(scale, dtype=torch.int32), before=node)
        axis = 0 if scale.dim() else -1
        if shift is None:
            node.update_arg(BIAS, graph.call(FAKE_QUANTIZE, bias, s, z, BIAS_MIN, BIAS_MAX, axis, before=node))
            return
        constant = graph.add_constant(f"{bias.target}_shift", shift, before=node)
        raised = graph.call(aten.add.Tensor, bias, constant, before=node)
        quantized = graph.call(FAKE_QUANTIZE, raised, s, z, BIAS_MIN, BIAS_MAX, axis, before=node)
        node.update_arg(BIAS, graph.call(aten.sub.Tensor, quantized, constant, before=node))


def known_range(grid: Grid) -> tuple[float, float] | None:
    """The range of a value that needs no data."""
    return next((known for node in grid.produced if (known := KNOWN_RANGE.get(family(node) or "")) is not None), None)


def keep_first(data: Iterable[list[Tensor]], count: int, kept: list[list[Tensor]]) -> Iterator[list[Tensor]]:
    """The batches, of which those with the first so many samples are kept."""
    seen = 0
    for batch in data:
        if seen < count:
            kept.append(batch)
            seen += len(batch[0])
        yield batch


def grid_parameters(plan: Plan, ranges: list[tuple[float, float]]) -> list[tuple[Tensor, Tensor]]:
    """Scale and zero point of every grid; a hard-swish's gate shares that of its value."""
    found = [
        scale_and_zero_point(torch.tensor(low), torch.tensor(high), grid.format)
        for grid, (low, high) in zip(plan.grids, ranges, strict=True)
    ]
    by_value = {
        tuple(grid.produced): index for index, grid in enumerate(plan.grids) if not grid.moved and not grid.entered
    }
    for index, grid in enumerate(plan.grids):
        if len(grid.produced) != 1 or grid.moved or grid.entered:
            continue
        gate = gate_of(grid.produced[0])
        if gate is None or (gate,) not in by_value or plan.grids[by_value[gate,]].format != grid.format:
            continue
        if (shared := shared_grid(ranges[index][1], grid.format)) is not None:
            found[index], found[by_value[gate,]] = shared
    return found


def channel_shift(graph: Graph, layer: Layer) -> Tensor | None:
    """Where the layer's activation clips each channel at its own end: how far below the grid's end that is, [out].

    See `graphopt.deploy` for what the shift is for. None where all channels share the grid's end.
    """
    chain = [layer.node]
    while len(chain[-1].users) == 1 and family(reader := next(iter(chain[-1].users))) in ("relu", "channel_clamp"):
        chain.append(reader)
    quantizers = [user for user in chain[-1].users if user.target is FAKE_QUANTIZE]
    if family(chain[-1]) != "channel_clamp" or len(quantizers) != 1:
        return None
    _, scale, zero_point, low, high, _ = quantizers[0].args
    s, z = graph.tensor(scale), graph.tensor(zero_point)  # type: ignore[arg-type]
    if int(z) != low:
        return None
    codes = end_codes(graph, chain[-1], s, z, low, high)  # type: ignore[arg-type]
    shift = ((high - codes) * s).flatten()  # type: ignore[operator]
    return shift if bool((shift != 0).any()) and len(shift) == layer.out_channels else None


def fit_bias(scale: Tensor, reach: Tensor, input_scale: Tensor, bias: Tensor | None) -> Tensor:
    """Weight scales under which the bias still fits 32 bits with room for the sum, and dead channels keep a sensible one."""
    if scale.dim() and bool((reach == 0).any()):
        alive = scale[reach > 0]
        scale = torch.where(reach > 0, scale, alive.max() if alive.numel() else torch.ones(()))
    if bias is None:
        return scale
    need = bias.abs() / (2.0**30 * input_scale)
    return torch.maximum(scale, need if scale.dim() else need.max())


def check_weights(graph: Graph, plan: Plan) -> None:
    for node in plan.layers:
        layer = Layer.of(node)
        assert layer is not None
        for constant in (layer.weight, layer.bias):
            if constant is not None and not bool(torch.isfinite(graph.tensor(constant)).all()):
                raise NonFiniteError(
                    f"weight {constant.target!r} contains NaN or infinity; restore it before quantizing"
                )
