"""Let the kernel of a convolution be a weighted sum of experts, with weights of each sample: CondConv.

    CondConv()                                          every convolution, 4 experts each
    CondConv(layers=["layer3.*"], experts=8)

    y = (sum over e of r_e(x) W_e) * x + b      r = sigmoid(R mean over positions of x + c)      r: [N, E]      R: [E, channels]

A convolution is linear in its kernel, so that is one convolution of E times the channels, with a constant kernel:

    y = [W_1 ... W_E] * [r_1 x; ...; r_E x] + b                                                  of grouped ones, group by group

In this form it trains with any batch, batch norms fold into it, and it quantizes and lowers like any convolution, for E times its
multiply-accumulates. `MixKernels` gives the other form, for one sample at a time in float: the kernels are summed, and one
convolution is left.

At the start R is 0 and r_e = 1 / E, and W_e = W + D_e where the D_e are noise that adds up to zero: the kernel is the original
one. Without the noise, experts would learn the same and stay alike.

Needs:  a float graph whose inputs have a batch, and convolutions with constant weights.
Keeps:  the outputs, up to rounding.
Paper:  Yang et al. 2019, "CondConv: Conditionally Parameterized Convolutions for Efficient Inference", section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from graphopt.execution.executor import Executor
from graphopt.ir.build import Build
from graphopt.ir.graph import Graph
from graphopt.ir.inline import inline
from graphopt.ir.layer import WEIGHT, Layer
from graphopt.ir.ops import aten
from graphopt.ir.passes import Change, in_eval_mode
from graphopt.ir.quantizers import quantizers
from graphopt.ir.selecting import spread
from graphopt.networks.heads import Router
from graphopt.passes.experts.parts import chosen_layers
from graphopt.utils.checks import check_count
from graphopt.utils.errors import InputError

NAME = "kernels"  # begins the names of routers


@dataclass(frozen=True)
class CondConv:
    """See the head of this file.

    Attributes:
        layers: patterns of convolutions; `auto`: all.
        experts: of each.
        spread: the deviation of the noise that experts begin with, as a share of the deviation of the layer's weight.
        seed: of that noise.

    Raises:
        InputError: the graph is quantized, or has no convolutions, or none of these names; a layer is no convolution, has weights
            that the graph computes, or values that are not of samples; an option is none.
    """

    exact: ClassVar[bool] = True

    layers: str | Sequence[str] = "auto"
    experts: int = 4
    spread: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("experts", self.experts, 2)
        if not 0 < self.spread < math.inf:
            raise InputError(f"spread must be over 0, so that experts can become different, got {self.spread}")
        if isinstance(self.layers, str) and self.layers != "auto":
            raise InputError(f"layers are 'auto' or a list of patterns, got {self.layers!r}")

    @in_eval_mode
    def __call__(self, graph: Graph) -> list[Change]:
        if quantizers(graph):
            raise InputError(
                "the graph is quantized; add experts to the float graph, train it, and quantize afterwards"
            )
        chosen = chosen_layers(graph, ("conv",), self.layers)
        generator = torch.Generator().manual_seed(self.seed)
        with torch.no_grad():
            values = Executor(graph).run([layer.input for layer in chosen], graph.example.tensors())
            examples = [values[layer.input] for layer in chosen]
            for number, (layer, example) in enumerate(zip(chosen, examples, strict=True)):
                self._rewrite(graph, layer, example, generator, f"{NAME}_{number}")
        graph.refresh()
        return [
            Change(graph.site(layer.node), f"the kernel is a sum of {self.experts}, weighted for each sample")
            for layer in chosen
        ]

    def _rewrite(self, graph: Graph, layer: Layer, example: Tensor, generator: torch.Generator, name: str) -> None:
        router = Router(layer.in_channels, self.experts, last=False, bias=-math.log(self.experts - 1)).eval()
        scored = Graph.capture(
            router.to(example.dtype), torch.cat([example] * 2)[:2], dynamic_batch=graph.dynamic_batch
        )
        x, node = layer.input, layer.node
        weight: Tensor = graph.tensor(layer.weight)
        scores = inline(graph, scored, x, name, before=node)
        build = Build(graph, node, {})
        routed = build.call(aten.sigmoid.default, scores)
        size = layer.in_channels // layer.groups
        if layer.groups == 1:
            apart, first = build.call(aten.unsqueeze.default, x, 1), 1
        else:
            apart, first = build.call(aten.unflatten.int, x, 1, [layer.groups, 1, size]), 2
            routed = build.call(aten.unsqueeze.default, routed, 1)
        routed = spread(graph, routed, first + 1, first + 2 + layer.dims, before=node)
        weighted = build.call(aten.mul.Tensor, apart, routed)
        node.update_arg(0, build.call(aten.flatten.using_ints, weighted, 1, first + 1))
        graph.set_constant(node, WEIGHT, torch.cat(self._experts(weight, generator), 1))

    def _experts(self, weight: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Kernels whose mean is the weight."""
        noise = torch.randn(self.experts, *weight.shape, generator=generator).to(weight)
        noise = (noise - noise.mean(0)) * self.spread * weight.std(correction=0)
        return [weight + each for each in noise]
