"""Which layers lose accuracy to quantization: layers and tensors of a simulated graph against its float reference.

    analysis = graphopt.analyze(result.graph, calibration)
    analysis.print()                        worst layers first
    analysis.layers, analysis.tensors       the numbers
    analysis.first_bad(20.0)                the first layer whose cumulative SQNR is below 20 dB
    analysis.plot("plots")                  bar charts and histograms

Weights whose codes were chosen on data are compared with what they were before. Where a file left that out
(`Graph.save(path, reference=False)`), they are compared with the weights as they are, and a note says so.

A layer is quantized *alone* (its weight, bias and result; everything else in float) and *cumulatively* (everything up to it in
execution order). Both are compared with float *here*, at the layer's own result, and at the *output* of the network:

                 here                                   output
    alone        the layer's own error                  what it costs the network: the ranking
    cumulative   what has piled up until this layer     the network quantized up to this layer, float behind it

All four need one walk over the data, batch by batch, with both networks side by side and nothing kept but sums. What reaches the
output is measured on fewer samples, because each layer costs two runs of the network behind it: half a run each on average.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.output_error import samples as worth
from graphopt.data.calibration import Calibration, synthetic
from graphopt.evaluation.analysis import Analysis, Effect, Fidelity, LayerSensitivity, ascending
from graphopt.evaluation.tensor_statistics import GridUse, TensorStatistics
from graphopt.execution.reference import NONE, PartialQuantization, is_reference_left_out, reference_of
from graphopt.ir import batches
from graphopt.ir.calls import operand
from graphopt.ir.cost import Match
from graphopt.ir.facts import LEFT
from graphopt.ir.graph import Graph
from graphopt.ir.quantized_units import Unit, units
from graphopt.utils.checks import check_count
from graphopt.utils.errors import InputError
from graphopt.utils.progress import track

LOG = logging.getLogger(__name__)


def analyze(graph: Graph, calibration: Any = None, *, output_samples: int | None = None) -> Analysis:
    """Measure what quantization costs, layer by layer and tensor by tensor.

    Args:
        graph: quantized, as `Optimized.graph`; it is not changed.
        calibration: typical inputs; see `graphopt.data.Calibration`. They are gone through once, so an iterator will do, and
            memory does not grow with their number. None: made-up inputs, and the analysis notes it.
        output_samples: on how many samples the network's output is compared, by default 16 (large networks) to 128 (small ones).
            Each costs about as many runs of the network as it has layers.

    Returns:
        The analysis; `print()` shows it.

    Raises:
        InputError: the graph has no quantizers, or the data are empty or do not fit it.
        NonFiniteError: NaN or infinity on the data; names the first node that produced one.
    """
    if not isinstance(graph, Graph):
        raise InputError(f"analyze takes a quantized Graph such as optimize(...).graph, got {type(graph).__name__}")
    if output_samples is not None:
        check_count("output_samples", output_samples)
    graph = graph.clone(share_weights=True).eval() if graph.training else graph
    meter = _Meter(graph)
    data = calibration
    if not isinstance(data, Calibration):
        data = Calibration(calibration, graph) if calibration is not None else synthetic(graph)
    left = worth(graph) if output_samples is None else output_samples
    compared = 0
    with torch.no_grad():
        for batch in track(data, "analyzing"):
            for part, count, reaches_output in _split(graph, batch, left - compared):
                meter.walk(part, reaches_output)
                compared += count * reaches_output
    LOG.info("analyzed %d samples, %d of them up to the output", data.samples, compared)
    notes = ["the inputs are made up; pass calibration=... for the true ranges"] if data.synthetic else []
    if is_reference_left_out(graph):
        notes.append(
            "the graph was saved without its float reference, so what was chosen or corrected on data counts as exact; "
            "save it with reference=True to compare with the weights before"
        )
    return Analysis(meter.layers(), meter.tensors(), data.samples, compared, [*notes, *data.notes])


def _split(graph: Graph, batch: list[Tensor], left: int) -> Iterator[tuple[list[Tensor], int, bool]]:
    """A batch in up to two parts, with their samples: what is followed to the output, and the rest."""
    size = batches.count(graph, batch)
    if left <= 0 or left >= size or not graph.dynamic_batch:
        yield batch, size, left > 0
        return
    yield batches.cut(graph, batch, 0, left), left, True
    yield batches.cut(graph, batch, left, size), size - left, False


class _Meter:
    """The sums behind an analysis, and the walk that feeds them."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.units, self.network = graph, units(graph), PartialQuantization(graph)
        if not self.network.all:
            raise InputError(
                "the graph has no quantizers, so nothing can be compared with float; give optimize(...).graph, or run Quantize "
                "on it first (a deployed graph holds integers instead)"
            )
        self.starts: dict[Node, list[Unit]] = {}
        self.ends: dict[Node, list[Unit]] = {}
        self.on_path: dict[Node, list[Unit]] = {}
        for unit in self.units:
            self.ends.setdefault(unit.end, []).append(unit)
            if unit.path:
                self.starts.setdefault(unit.path[0], []).append(unit)
            for node in unit.path:
                self.on_path.setdefault(node, []).append(unit)
        self.alone = {unit: Match() for unit in self.units}
        self.cumulative = {unit: Match() for unit in self.units}
        outputs = len(graph.outputs)
        self.alone_output = {unit: [Match() for _ in range(outputs)] for unit in self.units}
        self.cumulative_output = {unit: [Match() for _ in range(outputs)] for unit in self.units}
        self.uses = {q: GridUse(graph, q) for unit in self.units for q in (unit.weight, unit.value) if q is not None}
        for unit in self.units:
            if unit.weight is not None:
                stored = self.graph.tensor(self._source(unit.weight))
                self.uses[unit.weight].update(reference_of(self.graph, self._source(unit.weight)), stored)

    def walk(self, batch: list[Tensor], reaches_output: bool) -> None:
        """One batch through the float reference, the quantized graph, and every layer quantized alone."""
        executor = self.network.executor
        plain_graph, rounded_graph = executor(NONE), executor(self.network.all)
        plain = plain_graph.inputs(batch)
        rounded = dict(plain)
        outputs = plain_graph.float_outputs(plain) if reaches_output else []
        if not all(bool(torch.isfinite(z).all()) for z in outputs):
            raise self.network.blame(batch)
        alone: dict[Unit, dict[Node, Any]] = {}
        walks = (
            run.walk(values, (), keep=self.graph.outputs)
            for run, values in ((plain_graph, plain), (rounded_graph, rounded))
        )
        for node, _ in zip(*walks, strict=True):
            for unit in self.starts.get(node, ()) if reaches_output else ():
                _update(self.alone_output[unit], outputs, executor(unit.quantizers).float_outputs(plain, start=node))
            for unit in self.on_path.get(node, ()):
                own = alone.setdefault(unit, {})
                own[node] = executor(unit.quantizers).call(node, {**plain, **own})
            for unit in self.ends.get(node, ()):
                own = {node: plain[node], **alone.pop(unit, {})}
                self._compare(unit, plain[node], own[node], rounded[node], batch)
                if reaches_output:
                    _update(self.cumulative_output[unit], outputs, plain_graph.float_outputs(rounded))
                    if unit.is_float:
                        _update(self.alone_output[unit], outputs, outputs)

    def _compare(self, unit: Unit, plain: Tensor, alone: Tensor, rounded: Tensor, batch: list[Tensor]) -> None:
        self.alone[unit].update(plain, alone)
        self.cumulative[unit].update(plain, rounded)
        if not math.isfinite(self.alone[unit].signal):
            raise self.network.blame(batch)
        if unit.value is not None:
            self.uses[unit.value].update(plain)  # a bypassed quantizer passes on what it reads

    def _source(self, quantizer: Node) -> Node:
        return operand(quantizer)

    def layers(self) -> list[LayerSensitivity]:
        return [
            LayerSensitivity(
                unit.name,
                unit.operator,
                self._bits(unit.weight),
                self._bits(unit.value),
                Effect(_worst([self.alone[unit]]), _worst(self.alone_output[unit])),
                Effect(_worst([self.cumulative[unit]]), _worst(self.cumulative_output[unit])),
                (self.graph.fact(unit.node, LEFT) or "") if unit.is_float else "",
            )
            for unit in self.units
        ]

    def _bits(self, quantizer: Node | None) -> int | None:
        return self.uses[quantizer].quantizer.format.bits if quantizer is not None else None

    def tensors(self) -> list[TensorStatistics]:
        found = []
        for unit in self.units:
            if unit.weight is not None:
                found.append(self.uses[unit.weight].found(str(unit.weight.args[0].target), "weight"))  # type: ignore[union-attr]
            if unit.value is not None:
                found.append(self.uses[unit.value].found(unit.name, "activation"))
        return found


def _update(matches: list[Match], reference: list[Tensor], values: list[Tensor]) -> None:
    for match, r, v in zip(matches, reference, values, strict=False):
        match.update(r, v)


def _worst(matches: list[Match]) -> Fidelity:
    return min((Fidelity(m.sqnr_db, m.cosine) for m in matches), key=lambda f: ascending(f.sqnr_db))
