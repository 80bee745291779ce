"""Sum the kernels of CondConv in front of the convolution, for one sample at a time.

    [W_1 ... W_E] * [r_1 x; ...; r_E x]   ->   (sum over e of r_e W_e) * x

That is as many multiply-accumulates as the plain convolution has, and E for each weight. The kernel is computed, so the
convolution stays float where the rest of the network is quantized; reports name it.

Needs:  a float graph of one sample, with convolutions as `CondConv` leaves them.
Keeps:  the outputs, up to rounding.
Paper:  Yang et al. 2019, "CondConv: Conditionally Parameterized Convolutions for Efficient Inference", section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torch.fx.node import Node

from graphopt.ir.calls import operand, shape
from graphopt.ir.graph import Graph
from graphopt.ir.layer import WEIGHT
from graphopt.ir.ops import aten
from graphopt.ir.passes import Change
from graphopt.ir.quantizers import quantizers
from graphopt.passes.experts.weighted import WeightedCopies, weighted
from graphopt.utils.errors import InputError


@dataclass(frozen=True)
class MixKernels:
    """See the head of this file.

    Raises:
        InputError: the graph is quantized, or has such convolutions for a batch of another size than one.
    """

    exact: ClassVar[bool] = True

    def __call__(self, graph: Graph) -> list[Change]:
        found = [each for node in graph.calls() if (each := weighted(graph, node)) is not None]
        if found and quantizers(graph):
            raise InputError("the graph is quantized; sum kernels in the float graph, and quantize afterwards")
        for mixed in found:
            size = shape(mixed.x)[0]
            if graph.dynamic_batch or size != 1:
                raise InputError(
                    f"every sample has a kernel of its own at {graph.site(mixed.layer.node)!r}, and the graph takes "
                    f"{'batches' if graph.dynamic_batch else size} of them; capture it for one, with dynamic_batch=False"
                )
        for mixed in found:
            _rewrite(graph, mixed)
        if found:
            graph.refresh()
        return [
            Change(graph.site(each.layer.node), f"{each.experts} kernels are summed in front of the convolution")
            for each in found
        ]


def _rewrite(graph: Graph, mixed: WeightedCopies) -> None:
    layer, node, experts = mixed.layer, mixed.layer.node, mixed.experts
    weight: Tensor = graph.tensor(layer.weight)
    out, own = weight.shape[0], weight.shape[1] // experts
    rows = weight.reshape(out, experts, own, *weight.shape[2:]).transpose(0, 1).flatten(1).contiguous()
    graph.set_constant(node, WEIGHT, rows)
    constant = operand(node, WEIGHT)
    routed = _call(graph, node, aten.reshape.default, mixed.routed, [1, experts])
    kernel = _call(graph, node, aten.matmul.default, routed, constant)
    kernel = _call(graph, node, aten.reshape.default, kernel, [out, own, *weight.shape[2:]])
    node.update_arg(WEIGHT, kernel)
    node.update_arg(0, mixed.x)


def _call(graph: Graph, node: Node, target: Any, *args: Any) -> Node:
    return graph.call(target, *args, before=node, like=node)
