"""Take the mean error that rounded weights cause out of the biases.

Rounding W to W^ shifts the mean of a layer's output by (W^ - W) E[x], channel by channel; what E[x] is, calibration tells:

    b' = b + sum over in and kernel of (W - W^) E[x]            E[x]: [in], mean over samples and image

The means are those of the simulated graph's own values, so that the errors of the layers before are in them. Borders, where a
convolution reads zeros, are overlooked.

Needs:  a simulated graph (fake-quantize nodes on weights), calibration data.
Paper:  Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor
from torch.fx.node import Node

from graphopt.contract import Change
from graphopt.graph import Graph
from graphopt.numerics import FAKE_QUANTIZE, fake_quantize
from graphopt.observe import ChannelMean, observe
from graphopt.ops import Layer, shape


@dataclass(frozen=True)
class CorrectBias:
    """`calibration`: batches to take the means from."""

    exact: ClassVar[bool] = False

    calibration: Iterable[list[Tensor]] = field(repr=False)

    def __call__(self, graph: Graph) -> list[Change]:
        layers = [layer for node in graph.calls() if (layer := Layer.of(node)) and quantized_bias(layer) is not None]
        layers = [
            layer
            for layer in layers
            if layer.weight.target is FAKE_QUANTIZE and "bias_corrected" not in layer.node.meta
        ]
        means = {layer.input: ChannelMean(len(shape(layer.input)) - 1 - layer.dims) for layer in layers}
        if not means or not observe(graph, means, self.calibration):
            return []
        return [self.correct(graph, layer, means[layer.input].mean) for layer in layers]

    def correct(self, graph: Graph, layer: Layer, mean: Tensor) -> Change:
        weight: Any = layer.weight
        constants = [graph.tensor(a) if isinstance(a, Node) else a for a in weight.args]
        lost = layer.canonical(constants[0].double() - fake_quantize(*constants).double())
        shift = layer.respond(lost, mean)
        found = quantized_bias(layer)
        assert found is not None
        reader, bias = found
        graph.set_constant(reader, 0, (graph.tensor(bias).double() + shift).to(graph.tensor(bias).dtype))
        layer.node.meta["bias_corrected"] = True
        return Change(graph.site(layer.node), f"bias moved by up to {float(shift.abs().max()):.3g}")


def quantized_bias(layer: Layer) -> tuple[Node, Node] | None:
    """`Layer.stored_bias` where a quantizer or a shift stands between; None where the layer reads the constant itself."""
    found = layer.stored_bias
    return found if found is not None and found[0] is not layer.node else None
