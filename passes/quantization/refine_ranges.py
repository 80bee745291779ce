"""Refine the scales of a simulated graph together, by what the network answers with them: loss-aware quantization.

Ranges chosen value by value ignore that their errors meet. With s the vector of all scales that may move, and L the loss of the
quantized network against the float one,

    1. layer by layer    s(p) = argmin E |x - q(x)|^p  for each scale alone, p in 2, 2.5, 3, 3.5, 4
    2. quadratic         a parabola through L(s(p)); its lowest point p*, and s(p*)
    3. jointly           Powell's method on log2 s from the best of the start and 1. and 2.

The result is kept only where the loss of held-out samples (every fourth) falls as well; on all samples used it never rises. Zero
points stay, so both ends of a range move in proportion. What is tied stays: known ranges, gates, ends per channel, powers of two
(`graphopt.ir.scales`); biases follow their accumulators. A weight's scales move together, by one factor.

Needs:  a graph straight from `Quantize`; `CorrectBias` and `LearnRounding` come behind.
Paper:  Nahshan et al. 2021, "Loss Aware Post-Training Quantization", section 4.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.fx.node import Node

from graphopt.execution.executor import Executor
from graphopt.execution.observers import Histogram, Statistic, observe
from graphopt.execution.reference import float_reference, unquantized
from graphopt.fitting.losses import COMPARISONS
from graphopt.formats import FAKE_QUANTIZE, fake_quantize
from graphopt.ir.batches import count, first, split
from graphopt.ir.calls import operand
from graphopt.ir.facts import BIAS_CORRECTED, REFINED
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.ops import aten
from graphopt.ir.passes import Change, in_eval_mode
from graphopt.ir.quantizers import SCALE, UniformQuantizer
from graphopt.ir.scales import free_step, power_of_two
from graphopt.utils.checks import check_count
from graphopt.utils.errors import InputError
from graphopt.utils.progress import progress

Array = npt.NDArray[np.float64]
POWERS = (2.0, 2.5, 3.0, 3.5, 4.0)
REACH = 1.5  # how far a scale may move, in powers of two
FACTORS = torch.exp2(torch.linspace(-REACH, REACH, 61, dtype=torch.float64))
HELD_OUT = 4  # every so many batches
PART = 32  # samples of a batch


@dataclass(frozen=True)
class RefineRanges:
    """Move the scales of values, and of weights if wanted, to where the network answers best.

    Attributes:
        data: unlabeled inputs.
        loss: `labels` (cross-entropy against the float network's classes), `divergence` (Kullback-Leibler, of class
            probabilities) or `outputs` (squared error).
        weights: whether the scales of weights move, too.
        samples: how many are used, those held out included.
        evaluations: of the loss, at most.

    Raises:
        InputError: the graph is not quantized or its biases were corrected already; unknown loss; too few samples.
    """

    exact: ClassVar[bool] = False

    data: Iterable[list[Tensor]] = field(repr=False)
    loss: str = "divergence"
    weights: bool = False
    samples: int = 256
    evaluations: int = 300

    def __post_init__(self) -> None:
        if self.loss not in COMPARISONS:
            raise InputError(f"unknown loss {self.loss!r}; known: {', '.join(COMPARISONS)}")
        check_count("samples", self.samples, 2)
        check_count("evaluations", self.evaluations)

    @in_eval_mode
    def __call__(self, graph: Graph) -> list[Change]:
        if not graph.calls(FAKE_QUANTIZE):
            return []
        if any(graph.fact(node, BIAS_CORRECTED) for node in graph.calls()):
            raise InputError("biases were corrected for the present scales; put RefineRanges in front of CorrectBias")
        steps = [step for step in free_steps(graph, self.weights) if not graph.fact(step.quantizers[0], REFINED)]
        if not steps:
            return []
        work = _Search(graph, steps, self)
        changes = work.write(work.solve())
        for step in steps:
            graph.set_fact(step.quantizers[0], REFINED, True)
        return changes


@dataclass(frozen=True)
class MovableScale:
    """A scale that may move: its constant, the quantizers that read it, and log2 of the least and largest factor."""

    constant: Node
    quantizers: tuple[Node, ...]
    least: float
    most: float


def free_steps(graph: Graph, weights: bool) -> list[MovableScale]:
    """The scales of values that may move, and of weights, in execution order."""
    readers: dict[Node, list[Node]] = {}
    for quantizer in graph.calls(FAKE_QUANTIZE):
        if graph.is_constant(scale_node := operand(quantizer, SCALE)):  # biases follow
            readers.setdefault(scale_node, []).append(quantizer)
    layers = [layer for node in graph.calls() if (layer := Layer.of(node)) and layer.weight.target is FAKE_QUANTIZE]
    rounded = {layer.weight: layer for layer in layers}
    found = []
    for constant, quantizers in readers.items():
        scale, layer = graph.tensor(constant), rounded.get(quantizers[0])
        if layer is not None:
            shifted = layer.bias is not None and layer.bias.target is aten.sub.Tensor
            if weights and len(quantizers) == 1 and not power_of_two(scale) and not shifted:
                found.append(MovableScale(constant, tuple(quantizers), max(-REACH, _bias_room(graph, [layer])), REACH))
            continue
        limits = [free_step(graph, quantizer) for quantizer in quantizers]
        if any(limit is None for limit in limits):
            continue
        most = min(REACH, *(float(np.log2(max(limit / float(scale), 1.0))) for limit in limits if limit is not None))
        least = max(-REACH, _bias_room(graph, [layer for layer in layers if layer.input in quantizers]))
        if most > least:
            found.append(MovableScale(constant, tuple(quantizers), least, most))
    return found


def _bias_room(graph: Graph, layers: list[Layer]) -> float:
    """log2 of the least factor under which the biases of these layers still fit into 31 bits."""
    room = -np.inf
    for layer in layers:
        stored = layer.stored_bias
        if stored is not None and (grid := UniformQuantizer.of(layer.bias)) is not None:
            codes = (graph.tensor(stored[1]).abs() / graph.tensor(grid.scale)).max()
            room = max(room, float(torch.log2(codes.clamp(min=1e-30) / 2.0**31)))
    return min(room, 0.0)


class _Search:
    def __init__(self, graph: Graph, steps: list[MovableScale], options: RefineRanges) -> None:
        self.graph, self.steps, self.options = graph, steps, options
        self.batches = self.take()
        reference = float_reference(graph)
        executor = Executor(reference)
        self.wanted = [executor.nested(executor.run(reference.results, batch)) for batch in self.batches]
        self.used = [i for i in range(len(self.batches)) if (i + 1) % HELD_OUT]
        self.held = [i for i in range(len(self.batches)) if not (i + 1) % HELD_OUT]
        self.left = options.evaluations
        self.best: tuple[float, Array] = (np.inf, np.zeros(len(steps)))

    def take(self) -> list[list[Tensor]]:
        """The first samples, in parts of which every fourth is held out."""
        whole = list(first(self.graph, self.options.data, self.options.samples))
        samples = sum(count(self.graph, batch) for batch in whole)
        parts = [part for batch in whole for part in split(self.graph, batch, max(1, min(PART, samples // HELD_OUT)))]
        if len(parts) < HELD_OUT:
            raise InputError(
                f"{samples} samples in {len(parts)} batches are too few to hold some out; give at least {HELD_OUT}"
            )
        return parts

    def loss(self, moved: Array, which: list[int]) -> float:
        """Mean loss per sample over some batches, with scales times 2^moved."""
        pairs = zip(self.steps, moved, strict=True)
        changed = {s.constant: self.graph.tensor(s.constant) * float(2.0**m) for s, m in pairs}
        executor, compare = Executor(self.graph, constants=changed).settled(), COMPARISONS[self.options.loss]
        found = (executor.nested(executor.run(self.graph.results, self.batches[i])) for i in which)
        total = sum(float(compare(output, self.wanted[i])) for output, i in zip(found, which, strict=True))
        return total / sum(count(self.graph, self.batches[i]) for i in which)

    def solve(self) -> Array:
        """The best factors found, as logarithms; zeros where held-out samples do not gain by them."""
        start = np.zeros(len(self.steps))
        with progress("refining ranges", self.options.evaluations) as advance:

            def evaluate(moved: Array) -> float:
                if self.left <= 0:
                    raise _Enough
                self.left -= 1
                advance()
                found = self.loss(moved, self.used)
                if found < self.best[0]:
                    self.best = (found, moved.copy())
                return found

            try:
                evaluate(start)
                self.layerwise(evaluate)
                bounds = [(step.least, step.most) for step in self.steps]
                minimize(
                    evaluate, self.best[1].copy(), method="Powell", bounds=bounds, options={"xtol": 1e-3, "ftol": 1e-4}
                )
            except _Enough:
                pass
        found = self.best[1]
        return found if self.loss(found, self.held) < self.loss(start, self.held) else start

    def layerwise(self, evaluate: Any) -> None:
        """Try the scales of least |error|^p for several p, and those of the p at the bottom of a parabola through them."""
        errors = self.errors()
        losses = [evaluate(self.nearest(errors, p)) for p in POWERS]
        a, b, _ = np.polyfit(POWERS, losses, 2)
        if a > 0 and POWERS[0] < -b / (2 * a) < POWERS[-1]:
            evaluate(self.nearest(errors, -b / (2 * a)))

    def errors(self) -> list[tuple[Tensor, Tensor]]:
        """Of every scale: |error| of each occupied bin (or weight) under all `FACTORS`, and how many it stands for."""
        histograms = [Histogram() for _ in self.steps]
        watched: dict[Node, list[Statistic]] = {}
        for step, histogram in zip(self.steps, histograms, strict=True):
            for quantizer in step.quantizers:
                if not self.graph.is_constant(quantizer.args[0]):
                    watched.setdefault(unquantized(quantizer), []).append(histogram)
        observe(self.graph, watched, [self.batches[i] for i in self.used])
        found = []
        for step, histogram in zip(self.steps, histograms, strict=True):
            quantizer = step.quantizers[0]
            scale, zero = (self.graph.tensor(a) for a in quantizer.args[1:3])  # type: ignore[arg-type]
            rest: Any = quantizer.args[3:]
            if self.graph.is_constant(quantizer.args[0]):
                x = self.graph.tensor(operand(quantizer)).double()
                counts = torch.ones(x.numel(), dtype=torch.float64)
            else:
                used = histogram.counts > 0
                x, counts = histogram.centers[used], histogram.counts[used]
            lost = [(fake_quantize(x, scale.double() * f, zero, *rest) - x).abs().flatten() for f in FACTORS]
            found.append((torch.stack(lost), counts))
        return found

    def nearest(self, errors: list[tuple[Tensor, Tensor]], power: float) -> Array:
        indices = [int(((lost**power) @ counts).argmin()) for lost, counts in errors]
        best = torch.log2(FACTORS[indices]).numpy()
        ends = np.array([(step.least, step.most) for step in self.steps])
        clipped: Array = np.clip(best, ends[:, 0], ends[:, 1])
        return clipped

    def write(self, moved: Array) -> list[Change]:
        changes = []
        for step, logarithm in zip(self.steps, moved, strict=True):
            if logarithm == 0.0:
                continue
            self.graph.put_constant(step.constant, self.graph.tensor(step.constant) * float(2.0**logarithm))
            site = self.graph.site(unquantized(step.quantizers[0]))
            changes.append(Change(site, f"scale x {2.0**logarithm:.3g}"))
        return changes


class _Enough(Exception):
    """The evaluations are used up."""
