"""Quantizers that round to signs, for as long as they train: what methods do about scale, threshold and the weight in front.

    centred      x = (w - mean) / deviation of its output channel           IR-Net, Qin et al. 2020, eq. 7
    scale        stays      as it is
                 mean       mean |x|                                        XNOR-Net, Rastegari et al. 2016, eq. 6
                 power      2^round(log2 mean |x|)                          IR-Net, eq. 9
                 twn        threshold 0.7 mean |x|, mean of what is beyond  TWN, Li and Liu 2016, eq. 5 and 6
                 learned    scale 2^p, p a parameter
                 two        numbers on both sides, learned; threshold 0.05 max |x|    TTQ, Zhu et al. 2017, eq. 9
    ends         after each step, w is clipped to [-scale, scale]           BinaryConnect, Courbariaux et al. 2015, algorithm 1
    pull         the loss has pull * sum (1 - (w / scale)^2)                Tang et al. 2017, eq. 6

Scales are computed from weights as expressions of the graph, so that gradients go through them and biases follow. At the end each
is a constant, and the quantizer the graph's own.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.formats import FAKE_QUANTIZE_SIGNS, SMALLEST_CHANNEL_SCALE
from graphopt.formats.signs import LARGEST, TWN_THRESHOLD
from graphopt.ir.calls import operand
from graphopt.ir.graph import Graph
from graphopt.ir.layer import WEIGHT, Layer
from graphopt.ir.ops import aten
from graphopt.ir.quantizers import SCALE, is_signs
from graphopt.training.quantization.methods import Method
from graphopt.training.quantization.parameters import parameter_of, put_back
from graphopt.training.quantization.sign_surrogate import SIGNS_IN_TRAINING
from graphopt.utils.errors import InputError

NORMAL = math.sqrt(math.pi / 2)  # deviation of normal numbers, as a multiple of their mean size
TTQ_THRESHOLD = 0.05  # of the largest weight
NAMES = ("scale", "threshold", "below", "above")


def sign_quantizers(graph: Graph) -> list[Node]:
    """The quantizers that round to signs, in execution order."""
    return graph.calls(FAKE_QUANTIZE_SIGNS)


def of_weights(graph: Graph, node: Node) -> bool:
    return any(Layer.of(user) is not None and user.args[WEIGHT] is node for user in node.users)


def check(graph: Graph, node: Node, method: Method) -> None:
    """Raises InputError where a method is not for these numbers."""
    how, bits = method.signs, node.args[5]
    if of_weights(graph, node) and how.levels and how.levels != (2 if bits == 1 else 3):
        kinds = {2: "Binary", 3: "Ternary"}
        raise InputError(
            f"{_name(node)} is in {kinds[5 - how.levels]}, and the method {how.name!r} is for {kinds[how.levels]} numbers; "
            "give it that format with Binarize, or another method"
        )


class LearnedSigns:
    """One quantizer under a method; put in its place at once."""

    def __init__(self, graph: Graph, node: Node, method: Method) -> None:
        self.graph, self.node, self.how = graph, node, method.signs
        self.weights = of_weights(graph, node)
        self.source, *self.parameters = node.all_input_nodes[:5]
        self.names = [str(p.target) for p in self.parameters]
        self.axis: Any = node.args[6]
        self.bits = node.args[5]
        self.root = self.source if graph.is_constant(self.source) else None
        self._put_surrogate()

    # ---- In the graph -----------------------------------------------------------------------------------------------

    def _put_surrogate(self) -> None:
        graph, scale, how = self.graph, self.parameters[0], self.how
        readers = [user for user in scale.users if user is not self.node]
        before = self.before = min([self.node, *readers])
        base, x = str(self.names[0]), self.source
        learned = self.weights and self.root is not None
        if learned and how.centred:
            x = self._centred()
        parts = {
            name: self._constant(f"{base}_{name}_in_training", graph.tensor(p).float())
            for name, p in zip(NAMES, self.parameters, strict=True)
        }
        parts["scale"] = scale
        if learned:
            parts |= self._scaled(x, parts)
        elif how.scale == "learned":
            parts["scale"] = self._learned(scale)
        for reader in readers:
            reader.replace_input_with(scale, parts["scale"])
        unit = self._unit(parts["scale"])
        self.sharpness = graph.add_constant(f"{base}_sharpness", torch.tensor(how.sharpness[0]), before=before)
        gradient = how.gradient if self.weights else how.activations
        self.node.target = SIGNS_IN_TRAINING
        how_rounded = (self.axis, gradient, how.chance and self.weights, False)
        self.node.args = (x, *(parts[name] for name in NAMES), unit, self.sharpness, *how_rounded)

    def _unit(self, scale: Node) -> Node:
        """What x is measured in: for values their deviation, for weights their scale, or 1 where the papers' numbers are so."""
        if not self.weights:
            return self._call(aten.mul.Tensor, scale, NORMAL)
        if self.how.unit == "scale":
            return self._call(aten.detach.default, scale)
        value = torch.ones_like(self.graph.tensor(self.parameters[0]))
        return self._constant(f"{self.names[0]}_unit", value)

    def _call(self, target: Any, *args: Any) -> Node:
        return self.graph.add_expression(f"{self.names[0]}_computed", target, *args, before=self.before)

    def _constant(self, name: str, value: Tensor) -> Node:
        return self.graph.add_constant(name, value, before=self.before)

    def _rows(self, x: Node) -> tuple[list[int], bool]:
        """The dimensions that one scale is for."""
        rank = self.graph.tensor(self.source).dim()
        return [d for d in range(rank) if d != self.axis], self.axis >= 0

    def _mean(self, x: Node, *, keep: bool = False) -> Node:
        return self._call(aten.mean.dim, x, self._rows(x)[0], keep)

    def _centred(self) -> Node:
        weight = self.graph.tensor(self.source)
        dims, _ = self._rows(self.source)
        count = math.prod(weight.shape[d] for d in dims)
        centred = self._call(aten.sub.Tensor, self.source, self._mean(self.source, keep=True))
        square = self._mean(self._call(aten.mul.Tensor, centred, centred), keep=True)
        variance = self._call(aten.mul.Tensor, square, count / max(count - 1, 1))
        deviation = self._call(aten.sqrt.default, self._call(aten.add.Tensor, variance, 1e-12))
        return self._call(aten.div.Tensor, centred, deviation)

    def _scaled(self, x: Node, parts: dict[str, Node]) -> dict[str, Node]:
        """What takes the place of the quantizer's constants."""
        kind = self.how.scale
        if kind == "mean":
            return {"scale": self._least(self._mean(self._call(aten.abs.default, x)))}
        if kind == "power":
            return {"scale": self._power(x)}
        if kind == "twn":
            return self._twn(x)
        if kind == "learned":
            return {"scale": self._learned(parts["scale"])}
        return self._two(x, parts) if kind == "two" else {}

    def _least(self, scale: Node) -> Node:
        return self._call(aten.clamp_min.default, scale, SMALLEST_CHANNEL_SCALE)

    def _power(self, x: Node) -> Node:
        mean = self._call(aten.detach.default, self._least(self._mean(self._call(aten.abs.default, x))))
        return self._call(aten.exp2.default, self._call(aten.round.default, self._call(aten.log2.default, mean)))

    def _learned(self, scale: Node) -> Node:
        value = torch.zeros_like(self.graph.tensor(scale))
        power = parameter_of(self.graph, f"{scale.target}_power", value, before=self.before)
        return self._call(aten.mul.Tensor, scale, self._call(aten.exp2.default, power))

    def _twn(self, x: Node) -> dict[str, Node]:
        size = self._call(aten.abs.default, x)
        threshold = self._call(
            aten.mul.Tensor, self._call(aten.detach.default, self._mean(size, keep=True)), TWN_THRESHOLD
        )
        beyond = self._call(aten.to.dtype, self._call(aten.ge.Tensor, size, threshold), torch.float32)
        dims, _ = self._rows(x)
        total = self._call(aten.sum.dim_IntList, self._call(aten.mul.Tensor, size, beyond), dims)
        count = self._call(aten.clamp_min.default, self._call(aten.sum.dim_IntList, beyond, dims), 1.0)
        shape = list(self.graph.tensor(self.parameters[0]).shape)
        flat = self._call(aten.reshape.default, threshold, shape)
        return {"scale": self._least(self._call(aten.div.Tensor, total, count)), "threshold": self._least(flat)}

    def _two(self, x: Node, parts: dict[str, Node]) -> dict[str, Node]:
        scale = self.graph.tensor(parts["scale"])
        ends = []
        for name in ("below", "above"):
            start = self._constant(f"{self.names[0]}_{name}_start", scale * self.graph.tensor(parts[name]))
            ends.append(self._learned(start))
        common = self._call(aten.div.Tensor, self._call(aten.maximum.default, *ends), float(LARGEST))
        low, high = (self._call(aten.div.Tensor, end, common) for end in ends)
        dims, _ = self._rows(x)
        largest = self._call(aten.amax.default, self._call(aten.abs.default, x), dims, False)
        threshold = self._call(aten.mul.Tensor, self._call(aten.detach.default, largest), TTQ_THRESHOLD)
        return {"scale": common, "below": low, "above": high, "threshold": self._least(threshold)}

    # ---- While it trains, and afterwards ----------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, progress: float) -> None:
        begin, end = self.how.sharpness
        self.graph.parameter(self.sharpness).fill_(begin * (end / begin) ** progress)
        if self.how.ends and self.weights and self.root is not None:
            weight = self.graph.parameter(self.root)
            reach = _met(self.graph.tensor(operand(self.node, SCALE)), weight, self.axis)
            torch.maximum(torch.minimum(weight, reach), -reach, out=weight.data)

    def loss(self) -> Tensor | None:
        """What pulls weights to their signs."""
        if not self.how.pull or not self.weights or self.root is None:
            return None
        weight = self.graph.parameter(self.root)
        reach = _met(self.graph.tensor(operand(self.node, SCALE)).detach(), weight, self.axis)
        return self.how.pull * (1 - (weight / reach).square()).sum()

    def settle(self) -> None:
        """Leave the graph's own quantizer, which answers the same."""
        graph, node = self.graph, self.node
        x, *parts = node.args[:5]
        values = [graph.tensor(part) for part in parts]  # type: ignore[arg-type]
        values[2:] = [value.round().clamp(1, LARGEST).int() for value in values[2:]]
        scale = operand(node, SCALE)
        if self.root is not None and x is not self.root:
            graph.put_constant(self.root, graph.tensor(x))  # type: ignore[arg-type]
        node.target = FAKE_QUANTIZE_SIGNS
        node.args = (self.source, *parts, self.bits, self.axis)
        readers = [user for user in scale.users if user is not node]
        before = min([node, *readers])
        constants = [
            put_back(graph, name, value, before=before) for name, value in zip(self.names, values, strict=True)
        ]
        for reader in readers:
            reader.replace_input_with(scale, constants[0])
        node.args = (self.source, *constants, self.bits, self.axis)
        assert is_signs(node)


def _met(scale: Tensor, weight: Tensor, axis: int) -> Tensor:
    return scale.reshape([-1 if d == axis else 1 for d in range(weight.dim())]) if scale.dim() else scale


def _name(node: Node) -> str:
    return repr(str(node.all_input_nodes[0].target if node.all_input_nodes[0].op == "get_attr" else node.name))
