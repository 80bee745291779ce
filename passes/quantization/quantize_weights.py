"""Weights of linear layers in blocks of few bits; values stay float. For transformers, whose values are hard to quantize.

    y = W^ x + b        W^ = (codes - z) * scale        one scale (and zero point) to every `block` weights of a row

A layer that reads few rows at a time is as slow as its weights are large: those are what shrinks, 4 bits and a scale to every 32
weights to a seventh. `graphopt.formats.blocks` has the grids, which are ONNX Runtime's own
(`matmul_nbits_quantizer`), code by code.

    [*clean(target), QuantizeWeights(bits=4)]                          each weight to its nearest code
    [*clean(target), QuantizeWeights(bits=4), LearnRounding(data)]     codes chosen on data (GPTQ)

Weights stay trainable parameters behind `fake_quantize` nodes. (Products with a constant matrix are linear layers since
capture.) A layer that `Quantize` made integer is left alone, as `Quantize` leaves these alone: convolutions can be integer beside
them.

Needs:  constant float32 weights.
Paper:  Frantar et al. 2022, "GPTQ" (grouping); Dettmers and Zettlemoyer 2022, "The case for 4-bit precision".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.formats import FAKE_QUANTIZE
from graphopt.formats.blocks import block_grid, check_blocks
from graphopt.ir.calls import value
from graphopt.ir.constants import constant_weights
from graphopt.ir.graph import Graph
from graphopt.ir.layer import WEIGHT, Layer
from graphopt.ir.ops import family
from graphopt.ir.passes import Change
from graphopt.utils.checks import names_weight
from graphopt.utils.errors import InputError, NonFiniteError

Estimator = Literal["minmax", "mse"]


@dataclass(frozen=True)
class QuantizeWeights:
    """Put the weights of linear layers on grids of blocks.

    Attributes:
        bits: 2, 4 or 8.
        block: weights that share a scale, along the inputs.
        symmetric: zero in the middle of every grid; otherwise each block has a zero point, for a little more accuracy and size.
        layers: name pattern of a layer or its weight (`fnmatch`, first match wins) -> its bits, or None to keep it in float.
        estimator: `minmax`, or `mse`: the range of each block that loses least.

    Raises:
        InputError: bits or block that the runtime has no kernel for, a pattern that matches nothing.
        NonFiniteError: NaN or infinity in a weight.
    """

    exact: ClassVar[bool] = False

    bits: int = 4
    block: int = 32
    symmetric: bool = True
    layers: Mapping[str, int | None] = field(default_factory=dict)
    estimator: Estimator = "minmax"

    def __post_init__(self) -> None:
        for bits in [self.bits, *(b for b in self.layers.values() if b is not None)]:
            check_blocks(bits, self.block)
        if self.estimator not in get_args(Estimator):
            raise InputError(f"estimator must be one of {', '.join(get_args(Estimator))}, got {self.estimator!r}")

    def __call__(self, graph: Graph) -> list[Change]:
        baked = constant_weights(graph)
        weights = {node: weight for node in graph.calls() if (weight := linear_weight(graph, node)) is not None}
        self.check(graph, weights)
        chosen = {node: bits for node, weight in weights.items() if (bits := self.bits_of(weight)) is not None}
        grids: dict[tuple[Node, int], tuple[Node, Node]] = {}
        return baked + [self.quantize(graph, node, bits, grids) for node, bits in chosen.items()]

    def bits_of(self, weight: Node) -> int | None:
        return next((b for p, b in self.layers.items() if names_weight(p, str(weight.target))), self.bits)

    def check(self, graph: Graph, weights: Mapping[Node, Node]) -> None:
        done = [n for n in graph.calls() if family(n) == "linear" and n.args[WEIGHT].target is FAKE_QUANTIZE]  # type: ignore[union-attr]
        names = {str(w.target) for w in weights.values()} | {str(n.args[WEIGHT].args[0].target) for n in done}  # type: ignore[union-attr]
        for pattern in self.layers:
            if names and not any(names_weight(pattern, name) for name in names):
                raise InputError(
                    f"the pattern {pattern!r} matches no linear layer; their weights are {', '.join(sorted(names)[:5])}"
                )
        for weight in weights.values():
            if self.bits_of(weight) is not None and not bool(torch.isfinite(graph.tensor(weight)).all()):
                raise NonFiniteError(f"weight {weight.target!r} contains NaN or infinity; restore it before quantizing")

    def quantize(self, graph: Graph, node: Node, bits: int, grids: dict[tuple[Node, int], tuple[Node, Node]]) -> Change:
        """Put a quantizer between a layer and its weight; layers that share the weight share the grid."""
        layer = Layer.of(node)
        assert layer is not None
        weight = layer.weight
        if (weight, bits) not in grids:
            found = block_grid(
                graph.tensor(weight), bits, self.block, symmetric=self.symmetric, estimator=self.estimator
            )
            grids[weight, bits] = self.constants(graph, weight, found)
        grid = (*grids[weight, bits], 0, 2**bits - 1, 1, self.block)
        quantized = graph.call(FAKE_QUANTIZE, weight, *grid, before=node)
        quantized.meta["val"] = value(weight)
        node.update_arg(WEIGHT, quantized)
        kind = "symmetric" if self.symmetric else "affine"
        return Change(graph.site(node), f"{bits}-bit weights, {kind}, in blocks of {self.block}")

    def constants(self, graph: Graph, weight: Node, grid: tuple[Tensor, Tensor]) -> tuple[Node, Node]:
        scale, zero_point = grid
        s = graph.add_constant(f"{weight.target}_scale", scale, before=graph.after(weight))
        return s, graph.add_constant(f"{weight.target}_zero_point", zero_point, before=graph.after(s))


def linear_weight(graph: Graph, node: Node) -> Node | None:
    """The constant float32 weight of a linear layer; None for any other call."""
    layer = Layer.of(node)
    weight = layer.weight if layer is not None and layer.kind == "linear" else None
    if not isinstance(weight, Node) or not graph.is_constant(weight):
        return None
    return weight if graph.tensor(weight).dtype == torch.float32 else None
