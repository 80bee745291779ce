"""Take the mean error that rounded weights cause out of the biases.

Rounding W to W^ shifts the mean of a layer's output by (W^ - W) E[x], channel by channel:

    b' = b + mean over positions of (W - W^) E[x]           E[x]: [in, *image], mean over samples

What E[x] is, calibration data tell (section 4.2.2): the means are those of the float network, to which the layers before will
have come back once they are corrected, too. Without data, batch norms tell (section 4.2.1): their mean and deviation are pushed
through the activations, sums and pools that follow (`graphopt.analysis.distributions`). Layers whose input no batch norm says
anything about stay as they are: the first one, usually. E[x] has a value for every position, so borders of zeros count as such.

Needs:  a simulated graph (fake-quantize nodes on weights); calibration data, or batch norms folded by `FoldBatchNorm`.
Paper:  Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.distributions import Distributions
from graphopt.execution.observers import MeanResponse, Statistic, observe
from graphopt.execution.reference import float_reference, set_compensated, unquantized
from graphopt.ir.facts import BIAS_CORRECTED
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.passes import Change, in_eval_mode
from graphopt.ir.quantizers import is_quantizer, is_uniform
from graphopt.utils.errors import InputError


@dataclass(frozen=True)
class CorrectBias:
    """`calibration`: batches to take the means from; None: batch norms tell them.

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
        sources = {node.name: node for node in reference.nodes}
        shifts = [MeanResponse(layer.dims, self.lost(graph, layer)) for layer in layers]
        watched: dict[Node, list[Statistic]] = {}
        for layer, shift in zip(layers, shifts, strict=True):
            watched.setdefault(sources[unquantized(layer.input).name], []).append(shift)
        if not observe(reference, watched, self.calibration):
            return []
        return [self.correct(graph, layer, shift) for layer, shift in zip(layers, shifts, strict=True)]

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
            shift = MeanResponse(layer.dims, self.lost(graph, layer))
            shift.update(mean)
            changes.append(self.correct(graph, layer, shift))
        left = [layer for layer in layers if layer not in known]
        return changes + [Change(graph.site(n.node), f"left as it is: {found.unknown[n.input]}") for n in left]

    def lost(self, graph: Graph, layer: Layer) -> Callable[[Tensor], Tensor]:
        """The layer with the lost part of its weight alone: [1, in, *image] -> [1, out, *image]."""
        weight: Any = layer.weight
        constants = [graph.tensor(a) if isinstance(a, Node) else a for a in weight.args]
        lost = constants[0].double() - weight.target(*constants).double()
        target: Any = layer.node.target
        return lambda x: target(x, lost, None, *layer.node.args[3:], **layer.node.kwargs)

    def correct(self, graph: Graph, layer: Layer, response: MeanResponse) -> Change:
        """Shift the bias by what the lost part of the weight makes of the layer's inputs on average."""
        shift = response.mean
        found = rounded_bias(layer)
        assert found is not None
        reader, bias = found
        corrected = (graph.tensor(bias).double() + shift).to(graph.tensor(bias).dtype)
        set_compensated(graph, reader, reader.args.index(bias), corrected)
        graph.set_fact(layer.node, BIAS_CORRECTED, True)
        return Change(graph.site(layer.node), f"bias moved by up to {float(shift.abs().max()):.3g}")


def rounded_bias(layer: Layer) -> tuple[Node, Node] | None:
    """`Layer.stored_bias` of a layer whose weight is rounded; None where its weight alone is, and its values are float."""
    found = layer.stored_bias
    if found is None or not is_quantizer(layer.weight):
        return None
    return None if is_uniform(layer.weight) and found[0] is layer.node and not is_quantizer(layer.input) else found
