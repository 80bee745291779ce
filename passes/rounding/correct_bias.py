"""Take the mean error that rounded weights cause out of the biases.

With calibration data, layer by layer in execution order, with the inputs of the network quantized and corrected so far (section
4.2.2): the bias moves by the mean, over samples and positions, of what the layer gave in float and what it gives
now. It does so where the layer's error becomes smaller on samples held out (`graphopt.fitting.fit`).

Without data (section 4.2.1) rounding W to W^ shifts the mean of a layer's output by (W^ - W) E[x], channel by channel:

    b' = b + mean over positions of (W - W^) E[x]           E[x]: [in, *image], mean over samples

E[x] follows from batch norms: their mean and deviation are pushed through the activations, sums and pools that follow
(`graphopt.analysis.distributions`). Layers with no batch norm in front stay as they are: the first one, usually. E[x] has a value
for every position, so borders of zeros count as such.

Needs:  a simulated graph (fake-quantize nodes on weights); calibration data, or batch norms folded by `FoldBatchNorm`.
Paper:  Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.distributions import Distributions
from graphopt.execution.reference import float_reference, set_compensated
from graphopt.fitting.fit import Found, Parametrization, fit
from graphopt.fitting.samples import Samples
from graphopt.ir.facts import BIAS_CORRECTED
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.passes import Change, in_eval_mode
from graphopt.ir.quantizers import is_quantizer, is_uniform
from graphopt.utils.errors import InputError


@dataclass(frozen=True)
class CorrectBias:
    """`calibration`: batches of inputs; None: means are taken from batch norms.

    Raises:
        InputError: neither data nor batch norms: nothing is known of any layer's input.
    """

    exact: ClassVar[bool] = False

    calibration: Iterable[list[Tensor]] | None = field(default=None, repr=False)

    @in_eval_mode
    def __call__(self, graph: Graph) -> list[Change]:
        layers = [
            layer
            for node in graph.calls()
            if (layer := Layer.of(node)) and rounded_bias(layer) is not None and not graph.fact(node, BIAS_CORRECTED)
        ]
        if not layers:
            return []
        if self.calibration is None:
            return self.from_norms(graph, layers)
        reference = float_reference(graph)
        sources = {node.name: Layer.of(node) for node in reference.nodes}
        pairs = [(layer, source) for layer in layers if (source := sources[layer.node.name])]
        tasks = [Bias.of_layer(layer, source, layer=layer) for layer, source in pairs]
        fits = fit(reference, graph, self.calibration, tasks, "correcting biases")
        for layer in layers:
            graph.set_fact(layer.node, BIAS_CORRECTED, True)
        done = [(task.layer, each.found["shift"]) for task, each in zip(tasks, fits, strict=True) if each.accepted]
        return [_moved(graph, layer, shift) for layer, shift in done]

    def from_norms(self, graph: Graph, layers: list[Layer]) -> list[Change]:
        found = Distributions.of(graph)
        known = [layer for layer in layers if layer.input in found.known]
        if not known:
            if any(graph.fact(node, BIAS_CORRECTED) for node in graph.calls()):
                return []  # all that could be has been
            raise InputError(
                f"without calibration data biases are corrected by batch norms, which tell nothing of this graph "
                f"({found.unknown[layers[0].input]}); run FoldBatchNorm before Quantize, or pass CorrectBias(calibration)"
            )
        changes = []
        for layer in known:
            mean = found.known[layer.input].mean
            mean = mean.flatten(0, -layer.dims - 2).mean(0) if mean.dim() > layer.dims + 1 else mean
            changes.append(self.correct(graph, layer, mean))
        left = [layer for layer in layers if layer not in known]
        return changes + [Change(graph.site(n.node), f"left as it is: {found.unknown[n.input]}") for n in left]

    def correct(self, graph: Graph, layer: Layer, mean: Tensor) -> Change:
        """Shift the bias by what the lost part of the weight makes of the mean input, [in, *image]."""
        weight: Any = layer.weight
        constants = [graph.tensor(a) if isinstance(a, Node) else a for a in weight.args]
        lost = constants[0].double() - weight.target(*constants).double()
        response = layer.node.target(mean[None], lost, None, *layer.node.args[3:], **layer.node.kwargs)  # type: ignore[operator]
        shift = response.movedim(-1 - layer.dims, 0).flatten(1).mean(1)
        shift_bias(graph, layer, shift)
        graph.set_fact(layer.node, BIAS_CORRECTED, True)
        return _moved(graph, layer, shift)


@dataclass(eq=False, kw_only=True)
class Bias(Parametrization):
    """The bias of a layer whose weight is rounded: what is wanted and what the layer gives differ by nothing on average."""

    shifts: ClassVar[bool] = True

    layer: Layer

    def solve(self, graph: Graph, samples: Samples) -> Iterator[Found]:
        total, count = torch.zeros(()), 0
        for part, rows in samples.rows():
            assert part.given is not None
            lost = part.wanted - part.given
            channel = lost.dim() + self.channel_dim
            if rows is None:
                total = total + _sum(lost, keep=(channel,))
                count += lost.numel() // lost.shape[channel]
            else:
                total = total + _sum(lost, keep=(0, channel))[rows].sum(0)
                count += len(rows) * lost[0].numel() // lost.shape[channel]
        yield {"shift": total / count}

    def shift(self, graph: Graph, found: Found) -> Tensor:
        shift: Tensor = found["shift"]
        return shift

    def store(self, graph: Graph, found: Found) -> None:
        shift_bias(graph, self.layer, found["shift"])


def _sum(value: Tensor, keep: tuple[int, ...]) -> Tensor:
    others = [d for d in range(value.dim()) if d not in keep]
    return value.sum(others, dtype=torch.float64) if others else value.double()


def shift_bias(graph: Graph, layer: Layer, shift: Tensor) -> None:
    """Add a vector [out] to the bias of a layer whose weight is rounded; the float reference keeps what it was."""
    found = rounded_bias(layer)
    assert found is not None
    reader, bias = found
    corrected = (graph.tensor(bias).double() + shift).to(graph.tensor(bias).dtype)
    set_compensated(graph, reader, reader.args.index(bias), corrected)


def _moved(graph: Graph, layer: Layer, shift: Tensor) -> Change:
    return Change(graph.site(layer.node), f"bias moved by up to {float(shift.abs().max()):.3g}")


def rounded_bias(layer: Layer) -> tuple[Node, Node] | None:
    """`Layer.stored_bias` of a layer whose weight is rounded; None where its weight alone is, and its values are float."""
    found = layer.stored_bias
    if found is None or not is_quantizer(layer.weight):
        return None
    return None if is_uniform(layer.weight) and found[0] is layer.node and not is_quantizer(layer.input) else found
