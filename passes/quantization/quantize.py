"""Place and calibrate fake-quantize nodes: the simulated form of an integer model.

Every value that the target computes in integer goes through x^ = (clamp(round(x / s) + z, ...) - z) * s on a grid (s, z); so do
the weights of its layers, and their biases on the grid of the int32 accumulator, s_bias = s_input * s_weight. The result still
computes in float, can be fine-tuned, and answers what the integer artifact will answer; backends turn it into integers.

    activations  placement.py decides which values share a grid; ranges.py turns a streamed histogram into a range
    weights      symmetric, per output channel or per tensor
    bias         int32 (`biases.py`); float where the target wants it so, or weights or input are not uniform (`grids.py`)

Needs:  batch norm folded (an unfolded one stays float and is paid for in speed).
Paper:  Jacob et al. 2018, sections 2 and 3; Krishnamoorthi 2018, "Quantizing deep convolutional networks for efficient
        inference: A whitepaper".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.output_error import samples
from graphopt.execution.observers import Histogram, Range, observe
from graphopt.formats import (
    SMALLEST_CHANNEL_SCALE,
    SMALLEST_SCALE,
    Format,
    NumberFormat,
    Quantizer,
    reach,
    scale_and_zero_point,
)
from graphopt.ir.batches import count
from graphopt.ir.calls import operand, value
from graphopt.ir.constants import constant_weights
from graphopt.ir.facts import LEFT
from graphopt.ir.graph import Graph
from graphopt.ir.layer import WEIGHT, Layer
from graphopt.ir.ops import family, info
from graphopt.ir.passes import Change, Shortfall, in_eval_mode
from graphopt.ir.quantizers import constants, has_steps, is_quantized, is_quantizer
from graphopt.passes.quantization.activations import clip_before_moves
from graphopt.passes.quantization.balance import balance
from graphopt.passes.quantization.biases import channel_shift, fit_bias, quantize_bias
from graphopt.passes.quantization.grids import block_axis, fit_grids, known_range, weight_block_axis
from graphopt.passes.quantization.joins import drowning, joins
from graphopt.passes.quantization.placement import LayerFormat, QuantizationPlan, SharedGrid, override, place
from graphopt.passes.quantization.ranges import ESTIMATORS, WEIGHT_METHODS, percentile, weight_range
from graphopt.passes.quantization.readers import best_ranges, candidates
from graphopt.passes.quantization.rest import round_rest
from graphopt.targets import Target
from graphopt.targets.number_formats import Kind
from graphopt.utils.errors import InputError, NonFiniteError

BY_OUTPUT = "output_mse"
VALUE_METHODS = (*ESTIMATORS, BY_OUTPUT)


@dataclass(frozen=True)
class Quantize:
    """Simulate integer arithmetic.

    Attributes:
        target: decides placement, and the formats that are not given here.
        calibration: re-iterable batches, each a list of input tensors in `graph.input_names` order.
        estimator: for activations: `minmax`, `percentile`, `mse`, `entropy`, `aciq` (`ranges.py`), or `output_mse`, which chooses
            among them for every value by what the operators behind make of it (`readers.py`).
        weight_estimator: `minmax`, `mse` or `aciq`.
        weights, activations: formats in place of the target's, of any kind (`graphopt.formats`). Those that are not uniform
            take `minmax` and `percentile` at their word, and the least squared error for every other estimator.
        formats: layer-name pattern (`fnmatch`, first match wins) -> `LayerFormat`, or None to keep the layer in float.

    Raises:
        InputError: no layer can be quantized, unknown estimator, a pattern that matches nothing, a format that the hardware
            of a vendor does not take.
        NonFiniteError: NaN or infinity in a weight or an activation; names the first node.
    """

    exact: ClassVar[bool] = False

    target: Target
    calibration: Iterable[list[Tensor]] = field(repr=False)
    estimator: str = "mse"
    weight_estimator: str = "minmax"
    weights: NumberFormat | None = None
    activations: NumberFormat | None = None
    formats: Mapping[str, LayerFormat | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, known in ((self.estimator, VALUE_METHODS), (self.weight_estimator, WEIGHT_METHODS)):
            if name not in known:
                raise InputError(f"unknown range estimator {name!r}; known: {', '.join(known)}")

    @in_eval_mode
    def __call__(self, graph: Graph) -> list[Change]:
        if is_quantized(graph):
            return []
        self.check_patterns(graph)
        self.check_formats()
        changes = constant_weights(graph) + clip_before_moves(graph, self.target.kernels)
        changes += self.balance(graph)
        plan = self.place(graph)
        if not plan.layers:
            raise InputError(
                f"nothing to quantize: the graph has no convolution or linear layer that {self.target.name!r} computes in "
                "integer; leave Quantize out and deploy it in float (optimize: passes=[])"
            )
        check_weights(graph, plan)
        scales: dict[Node, Tensor] = {}
        for grid, quantizer in zip(plan.grids, self.calibrate(graph, plan), strict=True):
            changes.append(self.insert(graph, grid, quantizer, scales))
        for node, format in plan.layers.items():
            changes.append(self.quantize_layer(graph, node, format, scales))
        for node, why in plan.left.items():
            graph.set_fact(node, LEFT, why)
        if self.target.formats.rest is not None:
            changes += round_rest(graph, plan.rest, self.target.formats.rest)
        return changes + [Change(graph.site(node), f"stays float: {why}") for node, why in plan.left.items()]

    def place(self, graph: Graph) -> QuantizationPlan:
        """What is computed in integer; joins of values that one grid cannot hold are not."""
        plan = self.place_all(graph)
        found = [] if self.one_shot else joins(graph, plan)
        if found and (floating := drowning(graph, found, self.calibration)):
            plan = self.place_all(graph, floating)
        return plan

    def place_all(self, graph: Graph, floating: Mapping[Node, str] | None = None) -> QuantizationPlan:
        formats = self.target.formats
        weights, activations = self.weights or formats.weights, self.activations or formats.activations
        return place(graph, self.target.kernels, weights, activations, self.formats, floating)

    def balance(self, graph: Graph) -> list[Change]:
        """Bring the parts of joins to one size where that is exact."""
        if self.one_shot:
            return []
        clips = not self.target.runtime.vendor_compiler
        return balance(graph, joins(graph, self.place_all(graph)), self.calibration, clips=clips)

    @property
    def one_shot(self) -> bool:
        return bool(getattr(self.calibration, "one_shot", False))

    def check_patterns(self, graph: Graph) -> None:
        names = {graph.site(node) for node in graph.calls() if family(node)}
        for pattern in self.formats:
            if not any(override(name, {pattern: None})[0] for name in names):
                raise InputError(
                    f"the pattern {pattern!r} matches no layer; layers are named like {', '.join(sorted(names)[:5])}"
                )

    def check_formats(self) -> None:
        """Raise where a format was asked for that the hardware does not take."""
        given = [("every layer", LayerFormat(self.weights, self.activations)), *self.formats.items()]
        for where, layer in given:
            if layer is not None:
                self.check_format(where, layer.weights, "weights")
                self.check_format(where, layer.activations, "activations")

    def check_format(self, where: str, format: NumberFormat | None, kind: Kind) -> None:
        if format is not None and not self.target.takes(format, kind):
            known = ", ".join(map(str, self.target.formats.accepted(kind)))
            raise InputError(f"{where}: {self.target.name!r} takes no {kind} in {format}; it takes {known}")

    # ---- Activations ------------------------------------------------------------------------------------------------

    def calibrate(self, graph: Graph, plan: QuantizationPlan) -> list[Quantizer]:
        """The quantizer of every grid, from one walk over the calibration data."""
        first: list[list[Tensor]] = []
        statistics = self.watch(graph, plan, first)
        ranges = [self.range_of(grid, stat) for grid, stat in zip(plan.grids, statistics, strict=True)]
        for grid, stat in zip(plan.grids, statistics, strict=True):
            check_size(f"activations of {graph.site(grid.observed[0])!r}", max(-stat.low, stat.high), grid.format)
        if self.by_output:
            options = {
                index: candidates(stat, grid.format)
                for index, (grid, stat) in enumerate(zip(plan.grids, statistics, strict=True))
                if known_range(grid) is None and isinstance(stat, Histogram) and isinstance(grid.format, Format)
            }
            for index, found in best_ranges(graph, options, plan.grids, first).items():
                ranges[index] = found
        return fit_grids(graph, plan, ranges, statistics, self.estimator)

    def watch(self, graph: Graph, plan: QuantizationPlan, first: list[list[Tensor]] | None = None) -> list[Range]:
        """What the values of each grid are like on the calibration data, whatever the grid's format.

        `first` takes the batches that ranges are compared on, where they are chosen by what the readers make of them.
        """
        statistics = [
            Range() if self.estimator == "minmax" and isinstance(grid.format, Format) else Histogram()
            for grid in plan.grids
        ]
        watched: dict[Node, list[Range]] = {}
        for grid, stat in zip(plan.grids, statistics, strict=True):
            for node in dict.fromkeys(grid.observed):
                watched.setdefault(node, []).append(stat)
        keep = first is not None and self.by_output
        batches = keep_first(graph, self.calibration, first) if keep else self.calibration  # type: ignore[arg-type]
        if not observe(graph, watched, batches):  # type: ignore[arg-type]
            raise InputError("the calibration data are empty; give at least one batch")
        return list(statistics)

    @property
    def by_output(self) -> bool:
        return self.estimator == BY_OUTPUT

    def range_of(self, grid: SharedGrid, stat: Range) -> tuple[float, float]:
        if (known := known_range(grid)) is not None:
            return known
        if not isinstance(stat, Histogram):
            return stat.low, stat.high
        if isinstance(grid.format, Format):
            return ESTIMATORS["mse" if self.by_output else self.estimator](stat, grid.format)
        return percentile(stat) if self.estimator == "percentile" else (stat.low, stat.high)

    def insert(self, graph: Graph, grid: SharedGrid, quantizer: Quantizer, scales: dict[Node, Tensor]) -> Change:
        """Put a quantizer behind the values of a grid; `scales` learns the scale of each that has one."""
        values = [*grid.produced, *grid.moved, *(value for value, _ in grid.entered)]
        home = min(values)
        name = f"{graph.site(values[0])}.grid"
        arguments = constants(graph, quantizer, name, before=graph.after(home))
        ready = max([home, *(a for a in arguments if isinstance(a, Node))])
        readers = dict(grid.entered)
        for node in values:
            own = [*arguments[:-1], block_axis(node)] if grid.format.block else arguments
            rounded = graph.call(grid.format.operator, node, *own, before=graph.after(max(node, ready)), like=node)
            if has_steps(grid.format):
                scales[rounded] = quantizer.parameters[0]
            for reader in readers.get(node) or [user for user in node.users if user is not rounded]:
                reader.replace_input_with(node, rounded)
        return Change(graph.site(values[0]), f"activations on {grid.format}{ends(quantizer)}")

    # ---- Layers -----------------------------------------------------------------------------------------------------

    def quantize_layer(self, graph: Graph, node: Node, format: NumberFormat, scales: dict[Node, Tensor]) -> Change:
        layer = Layer.of(node)
        assert layer is not None
        step = None if self.target.formats.float_bias else scales.get(layer.input)
        quantizer = self.fit_weight(graph, layer, format, step)
        arguments = constants(graph, quantizer, str(layer.weight.target), before=node)
        quantized = graph.call(format.operator, layer.weight, *arguments, before=node)
        quantized.meta["val"] = value(layer.weight)
        node.update_arg(WEIGHT, quantized)
        if step is None or not has_steps(format):
            return Change(graph.site(node), f"weights {format}" + (", bias in float" if layer.bias is not None else ""))
        quantize_bias(graph, layer, channel_shift(graph, layer))
        if isinstance(format, Format) and (lost := lost_channels(graph, layer, format)) is not None:
            return Shortfall(graph.site(node), lost)
        return Change(graph.site(node), f"weights {format}")

    def fit_weight(self, graph: Graph, layer: Layer, format: NumberFormat, step: Tensor | None) -> Quantizer:
        """`step`: that of the layer's input, where it has one."""
        weight = layer.canonical(graph.tensor(layer.weight))
        bias = graph.tensor(layer.bias) if layer.bias is not None and step is not None else None
        own = torch.ones(()) if step is None else step
        check_size(f"weights {str(layer.weight.target)!r}", float(weight.abs().max()), format)
        if isinstance(format, Format):
            low, high = weight_range(weight, format, self.weight_estimator)
            scale, zero_point = scale_and_zero_point(low, high, format)
            scale = fit_bias(scale, reach(low, high), own, bias)
            return Quantizer(format, (scale, zero_point), layer.weight_axis if format.per_channel else -1)
        axis = weight_block_axis(weight) if format.block else layer.weight_axis
        try:
            found = format.fit(weight, axis, "minmax" if self.weight_estimator == "minmax" else "mse")
            if not has_steps(format):
                return found
            scale, *rest = found.parameters
            return replace(found, parameters=(fit_bias(scale, scale, own, bias), *rest))
        except InputError as error:
            raise InputError(f"weight {str(layer.weight.target)!r}: {error}") from error


def ends(quantizer: Quantizer) -> str:
    """The ends of a uniform grid, for a remark."""
    if not isinstance(quantizer.format, Format):
        return ""
    scale, zero_point = quantizer.parameters
    low, high = (
        float((code - zero_point) * scale) for code in (quantizer.format.quant_min, quantizer.format.quant_max)
    )
    return f", [{low:.4g}, {high:.4g}]"


def keep_first(graph: Graph, data: Iterable[list[Tensor]], kept: list[list[Tensor]]) -> Iterator[list[Tensor]]:
    """The batches, of which the first ones are kept: as many samples as a comparison of outputs is worth."""
    seen = 0
    for batch in data:
        if seen < samples(graph):
            kept.append(batch)
            seen += count(graph, batch)
        yield batch


def check_size(what: str, reach: float, format: NumberFormat) -> None:
    """Raise where values are too small for any scale there is, so that little more than noise would be left of them."""
    if isinstance(format, Format) and 0 < reach < SMALLEST_SCALE * format.quant_max / 2:
        raise InputError(
            f"{what} reach no more than {reach:.3g}, too small for {format.bits}-bit steps of at least {SMALLEST_SCALE:.3g}; "
            "scale them up, or keep the layers around them in float with formats={pattern: None}"
        )


def lost_channels(graph: Graph, layer: Layer, format: Format) -> str | None:
    """What to say of channels too small for any scale, where the answer shows it: on a grid they would be zero anyway."""
    end = layer.node
    while len(end.users) == 1 and info(reader := next(iter(end.users))).fusable:
        end = reader
    weight = layer.canonical(graph.tensor(operand(layer.weight))).flatten(1).abs().amax(1)
    least = SMALLEST_CHANNEL_SCALE * format.quant_max / 2
    lost = weight[(weight > 0) & (weight < least)]
    if not format.per_channel or not len(lost) or any(map(is_quantizer, end.users)):
        return None
    return (
        f"{graph.site(layer.node)!r}: the weights of {len(lost)} output channels reach no more than {float(lost.max()):.3g}, too "
        f"small for {format.bits}-bit steps of at least {SMALLEST_CHANNEL_SCALE:.3g}: little is left of them; scale them up"
    )


def check_weights(graph: Graph, plan: QuantizationPlan) -> None:
    for node in plan.layers:
        layer = Layer.of(node)
        assert layer is not None
        for constant in (layer.weight, layer.bias):
            if constant is not None and not bool(torch.isfinite(graph.tensor(constant)).all()):
                raise NonFiniteError(
                    f"weight {constant.target!r} contains NaN or infinity; restore it before quantizing"
                )
