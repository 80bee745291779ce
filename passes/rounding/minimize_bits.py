"""Choose the codes of quantized weights for an entropy coder: the fewest bits at no more error than the nearest codes have.

    minimize    bits(codes)    subject to    E |(W^ - W) x|^2  <=  error * E |(W_nearest - W) x|^2

Feedback from column to column leaves a fraction of the nearest codes' error; the rest is spent on codes that occur often
(`graphopt.fitting.priced`). Biases take out the mean of what is left. Grids stay as they are, so that the artifact runs as fast,
in a smaller file:

    [*clean(target), Quantize(target, data), MinimizeBits(data)]           with optimize(..., storage="entropy"), which does this

`error` under 1 keeps more accuracy, over 1 saves more bits. A layer whose codes lose more than that on samples held out
keeps the nearest.

Weights that are zero, as pruned ones, stay so.

Needs:  a graph straight from `Quantize` or `QuantizeWeights`; in place of `CorrectBias` and `LearnRounding`.
Paper:  Wiedemann et al. 2020, "DeepCABAC", section III; Frantar et al. 2022, "GPTQ" (feedback).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from graphopt.analysis.moments import Moments
from graphopt.execution.reference import float_reference
from graphopt.fitting.fit import Found
from graphopt.fitting.least_squares import gather, least_squares
from graphopt.fitting.priced import SLOPE, entropy, fewest_bits
from graphopt.fitting.rounding import cost
from graphopt.fitting.samples import Samples
from graphopt.ir.facts import ROUNDING_LEARNED
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.passes import Change, in_eval_mode
from graphopt.passes.rounding.codes import RIDGE, Codes
from graphopt.passes.rounding.learn_rounding import LearnRounding, original
from graphopt.passes.rounding.weights import Rounded, rounded_layers
from graphopt.utils.checks import check_repeatable
from graphopt.utils.errors import InputError

SAFETY = 0.85  # of the error that is allowed, on the samples that are fitted on
HELD_OUT = 1.05  # of it, on those held out, where values that are rounded, too, add noise of their own


@dataclass(eq=False, kw_only=True)
class PricedCodes(Codes):
    """Codes of few bits; `allowed`: the share of the nearest codes' error that they may have."""

    def solve(self, graph: Graph, samples: Samples) -> Iterator[Found]:
        rounded = self.rounded
        moments = Moments(rounded.layer, centred=rounded.bias is not None)
        gather(rounded.layer, samples, moments.update)
        weight, lattice = rounded.grouped(rounded.weight(graph)).double(), rounded.lattice(graph)
        aim, metric = least_squares(weight, moments, RIDGE)
        nearest = float(cost(weight, metric, lattice.weight(lattice.codes(weight))).sum())
        most = SAFETY / HELD_OUT * self.allowed * nearest
        slope = SLOPE * float(lattice.scale.square().mean())
        codes = fewest_bits(aim, metric, lattice, slope, most, held=weight == 0)
        lost = moments.mean_t - (lattice.weight(codes) @ moments.mean_x[..., None])[..., 0]
        yield {"codes": codes, "scale": lattice.scale, "bias": lost.flatten(), "aim": aim.float()}


@dataclass(frozen=True)
class MinimizeBits:
    """Choose codes of few bits.

    Attributes:
        data: batches of inputs, as for calibration.
        error: of each layer, as a share of what its nearest codes lose.

    Raises:
        InputError: the graph has no quantized weights, or their biases were corrected for other codes.
    """

    exact: ClassVar[bool] = False

    data: Iterable[list[Tensor]] = field(repr=False)
    error: float = 1.0

    def __post_init__(self) -> None:
        check_repeatable(self.data)
        if not self.error > 0:
            raise InputError(f"error is a share of the nearest codes' error, over 0, got {self.error}")

    @in_eval_mode
    def __call__(self, graph: Graph) -> list[Change]:
        way = LearnRounding(self.data)
        if all(graph.fact(rounded.layer.node, ROUNDING_LEARNED) for rounded in way.check(graph)):
            return []
        reference, found = float_reference(graph), rounded_layers(graph)
        before = [_bits(graph, rounded) for rounded in found]
        tasks = [self._task(reference, rounded) for rounded in found]
        fits = way.fit(graph, reference, tasks, "choosing codes of few bits")
        changes = []
        for rounded, bits, each in zip(found, before, fits, strict=True):
            graph.set_fact(rounded.layer.node, ROUNDING_LEARNED, True)
            text = f"{bits:.2f} -> {_bits(graph, rounded):.2f} bits per weight, error {each.before:.2g} -> {each.error:.2g}"
            changes.append(Change(graph.site(rounded.layer.node), text))
        return changes

    def _task(self, reference: Graph, rounded: Rounded) -> PricedCodes:
        source = Layer.of(original(reference, rounded.layer.node))
        assert source is not None
        return PricedCodes.of_layer(
            rounded.layer, source, rounded=rounded, digits=False, scales=False, allowed=HELD_OUT * self.error
        )


def _bits(graph: Graph, rounded: Rounded) -> float:
    """Of one code, once they are entropy-coded."""
    weight = rounded.grouped(rounded.weight(graph))
    return entropy(rounded.lattice(graph).codes(weight.double())) / weight.numel()
