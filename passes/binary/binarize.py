"""Let the layers inside a network have weights, and read inputs, of one or two bits.

    y = conv(sign(x) * s_x, sign(w) * s_w) + b          s_w by output channel, s_x one number

    [Quantize(target, data), Binarize()]                                         one bit to a weight, 8 to an input
    [Quantize(target, data), Binarize(Ternary(per_channel=True))]                two bits
    [Quantize(target, data), Binarize(activations=Binary(), calibration=data)]   one bit each

The input is rounded in front of the layer alone: sums and shortcuts around it read what they read before, in 8 bits behind
`Quantize`, in float without it. Zeros around an image stay zeros. The bias of a layer that is integer moves to the grid of its
new sums. What is left is not accurate until it is trained, with one of `graphopt.training.QuantizationAware`'s methods for signs.

The first and the last layer stay as they are, and so do 1x1 convolutions with a stride, which shortcuts have (Rastegari et al.
2016, section 4; Liu et al. 2018); options change that.

Needs:  constant weights.
Papers: Rastegari et al. 2016, "XNOR-Net", section 3; Li and Liu 2016, "Ternary Weight Networks".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import ClassVar

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.execution.observers import Histogram, observe
from graphopt.formats import Binary, NumberFormat, Quantizer, Ternary
from graphopt.ir.calls import operand, value
from graphopt.ir.constants import constant_weights
from graphopt.ir.graph import Graph
from graphopt.ir.layer import WEIGHT, Layer
from graphopt.ir.passes import Change, in_eval_mode
from graphopt.ir.quantizers import constants, is_quantizer, is_signs
from graphopt.ir.scales import move_bias
from graphopt.utils.errors import InputError


@dataclass(frozen=True)
class Binarize:
    """Round weights, and inputs, of layers to signs.

    Attributes:
        weights: `Binary` or `Ternary`, per channel or not.
        activations: `Binary` or `Ternary` for what the layers read; None: that stays as it is.
        calibration: batches, each a list of input tensors, that the scales of activations are fitted to.
        first, last, shortcuts: whether those layers have signs, too.
        leave: name patterns (`fnmatch`) of layers that stay as they are.
        estimator: of the threshold of ternary numbers: `minmax` (the paper's) or `mse`.

    Raises:
        InputError: another format, activations without calibration, a pattern that matches nothing, or no layer to round.
    """

    exact: ClassVar[bool] = False

    weights: NumberFormat = field(default_factory=lambda: Binary(per_channel=True))
    activations: NumberFormat | None = None
    calibration: Iterable[list[Tensor]] | None = field(default=None, repr=False)
    first: bool = False
    last: bool = False
    shortcuts: bool = False
    leave: tuple[str, ...] = ()
    estimator: str = "minmax"

    def __post_init__(self) -> None:
        for what, format in (("weights", self.weights), ("activations", self.activations)):
            if format is not None and not isinstance(format, Binary | Ternary):
                raise InputError(
                    f"{what} of Binarize are Binary or Ternary, not {format}; Quantize takes other formats"
                )
        if self.activations is not None and self.calibration is None:
            raise InputError("scales of activations are fitted to data: give calibration=[...]")
        if self.estimator not in ("minmax", "mse"):
            raise InputError(f"estimator must be 'minmax' or 'mse', got {self.estimator!r}")

    @in_eval_mode
    def __call__(self, graph: Graph) -> list[Change]:
        changes = constant_weights(graph)
        layers = self.chosen(graph)
        rounded = self.round_inputs(graph, layers)
        for layer in layers:
            self.round_weight(graph, layer)
            what = f"weights {self.weights}" + (f", input {self.activations}" if layer.node in rounded else "")
            changes.append(Change(graph.site(layer.node), what))
        return changes

    def chosen(self, graph: Graph) -> list[Layer]:
        """The layers that signs are for, without those that have them."""
        layers = [layer for node in graph.calls() if (layer := Layer.of(node)) and _root(graph, layer) is not None]
        for pattern in self.leave:
            if not any(fnmatchcase(graph.site(layer.node), pattern) for layer in layers):
                names = ", ".join(graph.site(layer.node) for layer in layers[:5])
                raise InputError(f"the pattern {pattern!r} of leave matches no layer; layers are named like {names}")
        inside = layers[0 if self.first else 1 : len(layers) if self.last else -1]
        found = [
            layer for layer in inside if (self.shortcuts or not _is_shortcut(layer)) and not self.left(graph, layer)
        ]
        return [layer for layer in found if not is_signs(layer.weight)]

    def left(self, graph: Graph, layer: Layer) -> bool:
        return any(fnmatchcase(graph.site(layer.node), pattern) for pattern in self.leave)

    def round_inputs(self, graph: Graph, layers: list[Layer]) -> set[Node]:
        """Round what layers read, once for all that read the same value; the layers."""
        if self.activations is None:
            return set()
        readers: dict[Node, list[Layer]] = {}
        for layer in layers:
            readers.setdefault(layer.input, []).append(layer)
        seen = {source: Histogram() for source in readers}
        if readers and not observe(graph, {node: [stat] for node, stat in seen.items()}, self.calibration or []):
            raise InputError("the calibration data are empty; give at least one batch")
        for source, some in readers.items():
            self.round_input(graph, source, some, seen[source])
        return {layer.node for layer in layers}

    def round_input(self, graph: Graph, source: Node, layers: list[Layer], seen: Histogram) -> None:
        assert self.activations is not None
        used = seen.counts > 0
        values = seen.centers[used].clamp(seen.low, seen.high)
        how = "minmax" if self.estimator == "minmax" else "mse"
        quantizer = self.activations.fit_values(seen.low, seen.high, values, seen.counts[used], -1, how)  # type: ignore[arg-type]
        first = graph.after(source)
        arguments = constants(graph, quantizer, f"{graph.site(source)}.signs", before=first)
        call = graph.call(self.activations.operator, source, *arguments, before=first, like=source)
        call.meta["val"] = value(source)
        for layer in layers:
            layer.node.update_arg(0, call)

    def round_weight(self, graph: Graph, layer: Layer) -> None:
        node, root = layer.node, _root(graph, layer)
        assert root is not None
        quantizer = self.fit(graph, layer, root)
        arguments = constants(graph, quantizer, f"{root.target}_signs", before=node)
        call = graph.call(self.weights.operator, root, *arguments, before=node)
        call.meta["val"] = value(layer.weight)
        node.update_arg(WEIGHT, call)
        move_bias(graph, layer)
        graph.sweep()

    def fit(self, graph: Graph, layer: Layer, root: Node) -> Quantizer:
        weight = graph.tensor(root)
        if not bool(torch.isfinite(weight).all()):
            raise InputError(f"weight {root.target!r} contains NaN or infinity; restore it before rounding it to signs")
        found = self.weights.fit(layer.canonical(weight), 0, "minmax" if self.estimator == "minmax" else "mse")
        return replace(found, axis=layer.weight_axis) if found.axis >= 0 else found


def _root(graph: Graph, layer: Layer) -> Node | None:
    """The constant behind a layer's weight and its quantizer."""
    found = operand(layer.weight) if is_quantizer(layer.weight) else layer.weight
    return found if graph.is_constant(found) and layer.kind != "conv_transpose" else None


def _is_shortcut(layer: Layer) -> bool:
    kernel = value(layer.weight).shape[2:]
    return layer.kind == "conv" and set(kernel) == {1} and max(layer.stride) > 1
