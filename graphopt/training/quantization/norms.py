"""Batch norms, put back behind layers for as long as they train, and folded again.

A layer that had a batch norm has one again. With the mean m and deviation d of the layer's outputs on data, its bias b left out,
a new norm with running statistics m, d^2, weight d and bias m + b answers what was there before. In training it normalizes by the
batch, so that a change of codes does not drift through the network; at the end, with r = weight / sqrt(var + eps),

    w^ r        is the layer's weight: its codes, on the grid s |r|
    bias - m r  is its bias, on the grid of the sums

Where weights or inputs are signs, moments are far from what they were: there m and d of the weight and bias are those that the
layer had without signs, so that what reads it finds values of the size that its grid is made for.

A grid of its own for each channel is that of the weight as it trains, so folding moves no code. One scale for all channels, or
powers of two, are promised for the folded weight: there the weight trains on the grid s / |r|, which is the same thing. Of few
bits the grid of the sums is coarse, so the norm's bias has the rounding error of the folded one all along.

Papers: Jacob et al. 2018, section 3.2 (batch statistics in training); Krishnamoorthi 2018, section 3.2.2 (freezing them).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.execution.norm_statistics import ChannelMoments, by_batch
from graphopt.execution.observers import observe
from graphopt.execution.reference import reference_of
from graphopt.formats import SMALLEST_CHANNEL_SCALE, quantize
from graphopt.formats.signs import multiples
from graphopt.ir.batches import first
from graphopt.ir.calls import operand, value
from graphopt.ir.facts import ALWAYS_EVAL, FLOAT_REFERENCE, MOMENTS
from graphopt.ir.graph import Graph
from graphopt.ir.layer import BIAS, Layer
from graphopt.ir.masks import mask_of, unmasked
from graphopt.ir.ops import aten
from graphopt.ir.passes import Change
from graphopt.ir.quantizers import AXIS, SCALE, UniformQuantizer, is_signs, quantizer_of
from graphopt.ir.scales import power_of_two
from graphopt.training.quantization.sign_surrogate import SIGNS_IN_TRAINING
from graphopt.utils.errors import InputError

EPS, MOMENTUM = 1e-5, 0.1
SAMPLES = 2048  # that the first statistics are of, at most
SIGNS_AXIS = 7  # its position in the arguments of signs that train
SMALLEST = 1e-3  # of a norm's weight, as a share of what it was at first: codes have no sign to change


@dataclass
class Bias:
    """The bias of a norm, kept in the constant of the layer's bias.

    Attributes:
        constant: that one.
        quantizer: rounds the folded bias; None where biases are in float.
        scale: of the quantizer, behind the training.
    """

    constant: Node
    quantizer: Node | None
    scale: Node | None

    def fold(self, graph: Graph, layer: Layer, taken_off: Tensor) -> None:
        """Put it back into the layer."""
        value = graph.tensor(self.constant)
        graph.put_constant(self.constant, (value.double() - taken_off).to(value.dtype))
        if self.quantizer is not None:
            self.quantizer.update_arg(0, self.constant)
            self.quantizer.update_arg(SCALE, self.scale)
        layer.node.update_arg(BIAS, self.quantizer or self.constant)


@dataclass
class Norm:
    """A layer, and the batch norm behind it for as long as it trains.

    Attributes:
        bias: where its bias is.
        folded_grid: the scale is that of the folded weight: one for all channels, or powers of two.
        least: below what the norm's weight may not fall, [out].
    """

    layer: Layer
    node: Node
    bias: Bias
    folded_grid: bool
    least: Tensor

    def keep_positive(self, graph: Graph) -> None:
        with torch.no_grad():
            weight = graph.parameter(operand(self.node, 1))
            weight.clamp_(min=self.least.to(weight.device))

    def freeze(self, graph: Graph, frozen: bool) -> None:
        """From now on, normalize by the running statistics in training, too."""
        graph.set_fact(self.node, ALWAYS_EVAL, frozen)

    def fold(self, graph: Graph) -> None:
        """Let weight and bias of the layer answer for both."""
        weight, mean, var = (graph.tensor(operand(self.node, at)).double() for at in (1, 3, 4))
        factor = weight * (var + EPS).rsqrt()
        self._fold_weight(graph, factor)
        self.bias.fold(graph, self.layer, mean * factor)
        graph.replace(self.node, self.layer.node)

    def _fold_weight(self, graph: Graph, factor: Tensor) -> None:
        if is_signs(self.layer.weight):
            fold_signs(graph, self.layer.weight, factor)
            return
        quantizer = UniformQuantizer.of(self.layer.weight)
        assert quantizer is not None
        weight, scale, zero = (graph.tensor(n) for n in (quantizer.value, quantizer.scale, quantizer.zero_point))
        codes = quantize(weight, scale, zero, quantizer.low, quantizer.high, quantizer.axis)
        if self.folded_grid:
            grid = operand(quantizer.scale)
            scale = graph.tensor(grid)
            quantizer.node.update_arg(SCALE, grid)
            quantizer.node.update_arg(AXIS, 0 if scale.dim() else -1)
        else:
            scale = (scale.double() * factor).clamp(min=SMALLEST_CHANNEL_SCALE).float()
            graph.put_constant(quantizer.scale, scale)
        on_grid = (codes - over_outputs(zero, codes)) * over_outputs(scale, codes)
        reader, position = stored_weight(graph, quantizer)
        latent = (reference_of(graph, operand(reader, position)).double() * over_outputs(factor, codes)).float()
        constant = graph.set_constant(reader, position, on_grid, keeps=[MOMENTS])
        graph.set_fact(constant, FLOAT_REFERENCE, latent)


def fold_signs(graph: Graph, node: Node, factor: Tensor) -> None:
    """Let a quantizer give its signs times a factor of each output channel, over 0: the same codes of another scale."""
    found = quantizer_of(graph, node)
    weight, (scale, threshold, below, above) = graph.tensor(operand(node)), found.parameters
    codes = multiples(weight, found.parameters, found.axis)
    scale = (scale.double() * factor).clamp(min=SMALLEST_CHANNEL_SCALE).float()
    threshold = torch.minimum((threshold.double() * factor).float(), scale * torch.minimum(below, above))
    graph.put_constant(operand(node, SCALE), scale)
    graph.put_constant(operand(node, SCALE + 1), threshold)
    latent = (reference_of(graph, operand(node)).double() * over_outputs(factor, codes)).float()
    constant = graph.set_constant(node, 0, codes * over_outputs(scale, codes), keeps=[MOMENTS])
    graph.set_fact(constant, FLOAT_REFERENCE, latent)


def without_signs(graph: Graph, data: Iterable[list[Tensor]]) -> dict[Node, ChannelMoments]:
    """What layers whose weights are signs give where no call rounds to signs."""
    bypassed = {node: _first for node in graph.calls() if is_signs(node)}
    layers = [node for node in graph.calls() if (layer := Layer.of(node)) and is_signs(layer.weight)]
    return statistics(graph, layers, data, bypassed) if layers else {}


def _first(value: Any, *rest: Any) -> Any:
    return value


def insert(
    graph: Graph, data: Iterable[list[Tensor]], wanted: Mapping[Node, ChannelMoments] | None = None
) -> tuple[list[Norm], list[Change]]:
    """Put a norm behind every layer that had one and still may.

    Args:
        data: for the first statistics; batches of input tensors.
        wanted: moments that layers are to have behind their norms; others keep those that they have.
    """
    layers = {layer.node: layer for layer in candidates(graph)}
    seen, wanted = statistics(graph, layers, data), wanted or {}
    norms = [_insert(graph, layer, seen[node], wanted.get(node, seen[node])) for node, layer in layers.items()]
    if moved := [norm for norm in norms if norm.layer.node in wanted]:
        reestimate(graph, moved, data)
    return norms, [Change(graph.site(norm.layer.node), "has a batch norm while it trains") for norm in norms]


def candidates(graph: Graph) -> Iterator[Layer]:
    """Layers whose batch norm was folded into them, with a quantized weight and a bias of their own."""
    for node in graph.calls():
        layer = Layer.of(node)
        if layer is None or layer.kind == "conv_transpose" or layer.channel_dim != 1:
            continue
        if graph.fact(node, MOMENTS) is not None and _owns_weight(graph, layer) and _owns_bias(layer):
            yield layer


def _owns_weight(graph: Graph, layer: Layer) -> bool:
    """Whether the weight is rounded, with one scale or one by output channel, and no other layer reads it."""
    if layer.weight.target is SIGNS_IN_TRAINING:
        scales = value(operand(layer.weight, SCALE)).shape
        return bool(layer.weight.args[SIGNS_AXIS] == 0) and len(scales) == 1 and len(layer.weight.users) == 1
    quantizer = UniformQuantizer.of(layer.weight)
    if quantizer is None or quantizer.block or graph.tensor(quantizer.scale).numel() not in (1, layer.out_channels):
        return False
    constant = unmasked(graph, quantizer.value)
    return graph.is_constant(constant) and all(len(n.users) == 1 for n in (quantizer.node, quantizer.value, constant))


def _owns_bias(layer: Layer) -> bool:
    return layer.stored_bias is not None and len(layer.stored_bias[1].users) == 1 and not _is_shifted(layer)


def stored_weight(graph: Graph, quantizer: UniformQuantizer) -> tuple[Node, int]:
    """What reads the constant behind a rounded weight, masked or not, and at which position."""
    masked = mask_of(graph, quantizer.value)
    return (quantizer.node, 0) if masked is None else (masked.product, masked.product.args.index(masked.weight))


def _is_shifted(layer: Layer) -> bool:
    """Whether more than a quantizer stands between a layer and its stored bias (`channel_clamp` behind it)."""
    bias = layer.bias
    return bias is not None and bias.op == "call_function" and UniformQuantizer.of(bias) is None


def reestimate(graph: Graph, norms: Sequence[Norm], data: Iterable[list[Tensor]]) -> None:
    """Let the running statistics be those of the network as it rounds in eval mode, each norm behind others that normalize by
    the batch. What rounds otherwise in training leaves other ones."""
    seen = statistics(graph, [norm.layer.node for norm in norms], data, {norm.node: by_batch for norm in norms})
    with torch.no_grad():
        for norm in norms:
            found = seen[norm.layer.node]
            for at, value in ((3, found.mean), (4, found.var)):
                graph.parameter(operand(norm.node, at)).copy_(value)


def statistics(
    graph: Graph,
    nodes: Iterable[Node],
    data: Iterable[list[Tensor]],
    overrides: Mapping[Node, Callable[..., Any]] | None = None,
) -> dict[Node, ChannelMoments]:
    """Of what some calls give; `overrides` as those of `observe`.

    Raises:
        InputError: the data are empty.
    """
    found = {node: ChannelMoments() for node in nodes}
    if found and not observe(graph, found, first(graph, data, SAMPLES), overrides):
        raise InputError("the data for the first statistics of batch norms are empty; give at least one batch")
    return found


def over_outputs(vector: Tensor, weight: Tensor) -> Tensor:
    """[out] or [] as it meets a weight [out, ...]."""
    return vector.reshape(-1, *[1] * (weight.dim() - 1)) if vector.dim() else vector


def _insert(graph: Graph, layer: Layer, seen: ChannelMoments, wanted: ChannelMoments) -> Norm:
    node, quantizer = layer.node, UniformQuantizer.of(layer.weight)
    first = layer.weight
    assert layer.bias is not None
    assert layer.stored_bias is not None
    constant, own = layer.stored_bias[1], graph.tensor(layer.bias).double()
    dtype, name = graph.tensor(constant).dtype, _module(graph, layer) or node.name
    deviation = (wanted.var + EPS).sqrt()  # so that the first answers are those of the layer alone, or what is wanted
    values = {"weight": deviation, "running_mean": seen.mean - own, "running_var": seen.var}
    weight, mean, var = (
        graph.add_constant(f"{name}.norm.{what}", t.to(dtype), before=first) for what, t in values.items()
    )
    graph.make_parameter(weight)
    graph.put_constant(constant, wanted.mean.to(dtype))
    factor = _factor(graph, name, weight, var, before=first)
    folded = quantizer is not None and (quantizer.axis < 0 or power_of_two(graph.tensor(quantizer.scale)))
    if folded:
        assert quantizer is not None
        scale = graph.add_expression(
            f"{name}_unfolded", aten.div.Tensor, quantizer.scale, factor, before=quantizer.node
        )
        quantizer.node.update_arg(SCALE, scale)
        quantizer.node.update_arg(AXIS, 0)
    bias, trained = _trained_bias(graph, layer, mean, factor, follows=not folded)
    node.update_arg(BIAS, None)
    arguments = (weight, trained, mean, var, False, MOMENTUM, EPS, False)
    norm = graph.call(aten.batch_norm.default, node, *arguments, before=graph.after(node), like=node)
    norm.meta["val"] = node.meta["val"]
    for reader in [user for user in node.users if user is not norm]:
        reader.replace_input_with(node, norm)
    return Norm(layer, norm, bias, folded, (deviation * SMALLEST).to(dtype))


def _module(graph: Graph, layer: Layer) -> str:
    """The path of the module that a weight belongs to."""
    quantizer = UniformQuantizer.of(layer.weight)
    if quantizer is None:
        return graph.site(layer.node)
    return str(unmasked(graph, quantizer.value).target).rpartition(".")[0]


def _factor(graph: Graph, name: str, weight: Node, var: Node, *, before: Node) -> Node:
    """weight / sqrt(var + eps)."""
    raised = graph.add_expression(f"{name}_var", aten.add.Tensor, var, EPS, before=before)
    deviation = graph.add_expression(f"{name}_deviation", aten.sqrt.default, raised, before=before)
    return graph.add_expression(f"{name}_factor", aten.div.Tensor, weight, deviation, before=before)


def _trained_bias(graph: Graph, layer: Layer, mean: Node, factor: Node, *, follows: bool) -> tuple[Bias, Node]:
    """Where the norm's bias is, and the bias with the rounding error that it will have folded.

    Args:
        follows: whether the grid of the folded weight, and so that of the bias, is `factor` times the one that trains.
    """
    assert layer.stored_bias is not None
    constant, quantizer, before = layer.stored_bias[1], UniformQuantizer.of(layer.bias), layer.node
    if quantizer is None:
        return Bias(constant, None, None), constant
    name = str(constant.target)
    taken_off = graph.add_expression(f"{name}_mean", aten.mul.Tensor, mean, factor, before=quantizer.node)
    folded = graph.add_expression(f"{name}_folded", aten.sub.Tensor, constant, taken_off, before=quantizer.node)
    quantizer.node.update_arg(0, folded)
    if follows:
        scale = graph.add_expression(f"{name}_step", aten.mul.Tensor, quantizer.scale, factor, before=quantizer.node)
        quantizer.node.update_arg(SCALE, scale)
    error = graph.add_expression(f"{name}_error", aten.sub.Tensor, quantizer.node, folded, before=before)
    trained = graph.add_expression(f"{name}_trained", aten.add.Tensor, constant, error, before=before)
    return Bias(constant, quantizer.node, quantizer.scale), trained
