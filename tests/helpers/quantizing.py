"""What tests of `Quantize` share: a quantized graph, and its grids."""

from __future__ import annotations

from typing import Any

from rewriting import apply, capture
from torch import Tensor, fx, nn

from graphopt.formats import FAKE_QUANTIZE
from graphopt.ir.graph import Graph
from graphopt.passes.quantization import Quantize
from graphopt.targets import find

X86, ARM = find("x86"), find("arm")


def quantized(model: nn.Module, *inputs: Tensor, target: Any = X86, **options: Any) -> Graph:
    graph = capture(model, *inputs)
    assert apply(Quantize(target, [[*inputs]], **options), graph)
    return graph


def grids(graph: Graph) -> list[str]:
    """The operators whose results stand on a grid, inputs as `input`, in order; weights and biases left out."""
    found = []
    for node in graph.calls(FAKE_QUANTIZE):
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if source.op == "placeholder":
            found.append("input")
        elif not isinstance(source.target, str):  # a call
            found.append(str(source.target.__name__).split(".")[0])
    return found


def scales(graph: Graph) -> list[str]:
    """The name of the scale of each value's grid, in the order of `grids`."""
    ends = [(n.args[0], n.args[1]) for n in graph.calls(FAKE_QUANTIZE)]
    return [str(s.target) for x, s in ends if isinstance(x, fx.Node) and isinstance(s, fx.Node) and x.op != "get_attr"]
