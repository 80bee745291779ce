"""Biases of integer layers lie on the grid of the sums they are added to: scale_bias == scale_input * scale_weight, in float32.

Where they do not, a runtime computes the layer in float, or adds codes that mean something else; both without a word.
"""

from __future__ import annotations

import torch
from torch.fx.node import Node

from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.quantizers import UniformQuantizer, bias_quantizer, scale_of
from graphopt.utils.errors import InputError


def check_biases(graph: Graph) -> None:
    """Hold the biases of a simulated graph to the grids of their layers.

    A graph whose biases are all float is one for hardware that wants them so. Where some are integer, each has to be.

    Raises:
        InputError: names the layer, what its bias is, and what it has to be.
    """
    layers = [
        (layer, x, w, bias_quantizer(layer))
        for node in graph.calls()
        if (layer := Layer.of(node)) and (x := scale_of(layer.input)) and (w := scale_of(layer.weight))
        if layer.bias is not None
    ]
    for layer, x, w, bias in layers:
        if bias is not None:
            _check(graph, layer, x, w, bias)
        elif any(other is not None for *_, other in layers):
            raise InputError(
                f"the bias of {graph.site(layer.node)!r} is float, while its weight and input and the biases of other layers are "
                "integer, so this layer would compute in float; give the layer its bias before Quantize runs"
            )


def _check(graph: Graph, layer: Layer, x: Node, w: Node, bias: UniformQuantizer) -> None:
    wanted, found = graph.tensor(x) * graph.tensor(w), graph.tensor(bias.scale)
    if torch.equal(found, wanted):
        return
    if found.shape != wanted.shape:
        said = f"has scales {list(found.shape)}, its weight {list(wanted.shape)}"
    else:
        worst = int((found / wanted).log().abs().argmax())
        said = f"has the scale {found.flatten()[worst]:.9g} in place of {wanted.flatten()[worst]:.9g}"
    raise InputError(
        f"the bias of {graph.site(layer.node)!r} {said}: it has to be that of the input times that of the weight, or the layer "
        "would not compute in integers; let it be mul(scale of input, scale of weight), as Quantize writes it"
    )
