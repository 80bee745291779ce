"""What methods do to a weight in front of its quantizer, as expressions of the graph; at the end the weight is what came out.

    tanh           reach tanh(u) / max |tanh(u)|                               DoReFa, Zhou et al. 2016, eq. 9
    interval       reach sign(w) clamp((|w| / reach - c + d) / 2d, 0, 1)^g     QIL, Jung et al. 2019, eq. 3
    accumulator    v min(2^p, bound) / sum |v|                                 A2Q, Colbert et al. 2023, eq. 17 to 23

`reach` is the end of the grid, one or by output channel; u, v, c, d, g and p are learned. The weight begins as it was.
With `accumulator` no sum of products exceeds an accumulator of so many bits, whatever the input: the l1 norm of each row of codes
is at most (2^(bits - 1) - 1) / (largest code of the input).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.formats.protocol import broadcast
from graphopt.ir.calls import operand
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.ops import aten
from graphopt.ir.quantizers import AXIS, SCALE, UniformQuantizer
from graphopt.training.quantization.grids import Grid
from graphopt.training.quantization.parameters import parameter_of, put_back
from graphopt.training.quantization.surrogate import NEARLY
from graphopt.utils.errors import InputError

SHARE = 0.9  # of tanh's own reach that the largest weight begins at


@dataclass
class Transform:
    """A weight that is computed for as long as it trains.

    Attributes:
        name: of the constant that it was before, and is afterwards.
    """

    quantizer: Node
    value: Node
    name: str

    def settle(self, graph: Graph, weight: Tensor | None = None) -> None:
        """What was computed (or another weight) becomes the constant, unless it did already."""
        if self.quantizer.args[0] is not self.value:
            return
        weight = graph.tensor(self.value) if weight is None else weight
        root = _root(self.value)
        self.quantizer.update_arg(0, root)
        graph.sweep()  # of the calls in between, which may read the constant
        if root.target == self.name and len(root.users) == 1:
            graph.put_constant(root, weight)
        else:
            self.quantizer.update_arg(0, put_back(graph, self.name, weight, before=self.quantizer, like=[root]))


@dataclass
class _Expression:
    """Builds calls on constants in front of a quantizer."""

    graph: Graph
    quantizer: UniformQuantizer
    layer: Layer
    name: str

    def call(self, target: Any, *args: Any) -> Node:
        node = self.graph.add_expression(f"{self.name}_computed", target, *args, before=self.quantizer.node)
        return node

    def parameter(self, name: str, value: Tensor) -> Node:
        return parameter_of(self.graph, f"{self.name}_{name}", value, before=self.quantizer.node)

    def constant(self, name: str, value: Tensor) -> Node:
        return self.graph.add_constant(f"{self.name}_{name}", value, before=self.quantizer.node)

    def step(self) -> Tensor:
        """The scale of the grid as it meets the weight."""
        quantizer = UniformQuantizer.of(self.quantizer.node)  # as it is now
        assert quantizer is not None
        return broadcast(self.graph.tensor(quantizer.scale), self.graph.tensor(quantizer.value), quantizer.axis)

    def others(self, weight: Tensor) -> list[int]:
        """The dimensions that a reach holds for."""
        return [d for d in range(weight.dim()) if d != self.quantizer.node.args[AXIS]]


def check(graph: Graph, grid: Grid, name: str | None, accumulator_bits: int) -> None:
    """Raises InputError, before anything is changed, where a transform cannot be put in front of a grid's weights."""
    if name == "accumulator":
        for layer in grid.layers:
            _allowed(graph, layer, accumulator_bits)


def insert(graph: Graph, grid: Grid, name: str | None, accumulator_bits: int) -> list[Transform]:
    """Put a transform in front of each quantizer of a weight's grid."""
    if name is None:
        return []
    made = []
    for quantizer, layer in zip(grid.quantizers, grid.layers, strict=True):
        if not graph.is_constant(quantizer.value):
            continue
        build = _Expression(graph, quantizer, layer, str(quantizer.value.target))
        value = TRANSFORMS[name](build, accumulator_bits)
        quantizer.node.update_arg(0, value)
        made.append(Transform(quantizer.node, value, build.name))
    return made


def _tanh(build: _Expression, bits: int) -> Node:
    weight = build.graph.tensor(build.quantizer.value)
    dims = build.others(weight)
    reach = weight.abs().amax(dims, keepdim=True).clamp(min=1e-12)
    latent = build.graph.add_constant(
        f"{build.name}_latent",
        torch.atanh(SHARE * weight / reach),
        before=build.quantizer.node,
        like=[build.quantizer.value],
    )
    bent = build.call(aten.tanh.default, latent)
    largest = build.call(aten.amax.default, build.call(aten.abs.default, bent), dims, True)
    share = build.call(aten.div.Tensor, bent, largest)
    return build.call(aten.mul.Tensor, share, build.constant("reach", reach))


def _interval(build: _Expression, bits: int) -> Node:
    reach = build.constant("reach", build.step() * build.quantizer.high)
    half = torch.full((), 0.5)
    centre, distance, exponent = (
        build.parameter(what, value)
        for what, value in (("centre", half), ("distance", half.clone()), ("exponent", 2 * half))
    )
    source = build.quantizer.value
    size = build.call(aten.div.Tensor, build.call(aten.abs.default, source), reach)
    raised = build.call(aten.add.Tensor, build.call(aten.sub.Tensor, size, centre), distance)
    share = build.call(aten.div.Tensor, raised, build.call(aten.mul.Tensor, distance, 2.0))
    inside = build.call(aten.clamp.default, share, 1e-6, 1.0)  # a power of zero has no gradient for the exponent
    bent = build.call(aten.pow.Tensor_Tensor, inside, exponent)
    signed = build.call(aten.mul.Tensor, bent, build.call(aten.sign.default, source))
    return build.call(aten.mul.Tensor, signed, reach)


def _accumulator(build: _Expression, bits: int) -> Node:
    rounded, name = build.graph.tensor(build.quantizer.node), f"{build.name}_latent"
    weight = (
        rounded + rounded.sign() * build.step() / 2
    )  # in the middle of what is rounded towards zero to the same codes
    source = build.graph.add_constant(name, weight, before=build.quantizer.node, like=[build.quantizer.value])
    dims = [d for d in range(weight.dim()) if d != build.layer.weight_axis]
    norm = weight.abs().sum(dims, keepdim=True).clamp(min=1e-12)
    power = build.parameter("norm_power", norm.log2())
    allowed = build.constant("codes", torch.tensor(_allowed(build.graph, build.layer, bits)))
    scale = operand(build.quantizer.node, SCALE)
    if build.graph.tensor(scale).dim():
        scale = build.call(aten.reshape.default, scale, list(norm.shape))
    bound = build.call(aten.mul.Tensor, scale, allowed)
    size = build.call(aten.minimum.default, build.call(aten.exp2.default, power), bound)
    total = build.call(aten.sum.dim_IntList, build.call(aten.abs.default, source), dims, True)
    return build.call(
        aten.mul.Tensor, source, build.call(aten.div.Tensor, size, build.call(aten.clamp.default, total, 1e-12))
    )


def _allowed(graph: Graph, layer: Layer, bits: int) -> float:
    """The l1 norm of a row of codes that the accumulator holds, less what rounding towards zero may add of it."""
    source, site = UniformQuantizer.of(layer.input), graph.site(layer.node)
    if source is None:
        raise InputError(
            f"{site!r} reads no uniform codes, so its accumulator has no bound; give it other weights than 'a2q'"
        )
    zero = int(graph.tensor(source.zero_point).reshape(-1)[0])
    largest = max(abs(c - z) for c in (source.low, source.high) for z in (0, zero))
    weight = graph.tensor(layer.weight)
    row = weight.numel() // weight.shape[layer.weight_axis]
    allowed = float(2 ** (bits - 1) - 1) / largest - row * NEARLY
    if allowed < 1:
        raise InputError(
            f"{site!r}: {bits} bits hold no sum of {row} products of inputs up to {largest}; give more accumulator_bits"
        )
    return allowed


TRANSFORMS: dict[str, Callable[[_Expression, int], Node]] = {
    "tanh": _tanh, "interval": _interval, "accumulator": _accumulator,
}  # fmt: skip


def _root(value: object) -> Node:
    """The first constant behind calls on constants."""
    assert isinstance(value, Node)
    found: Node = value
    while found.op != "get_attr":
        found = found.all_input_nodes[0]
    return found
