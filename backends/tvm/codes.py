"""Keep codes as codes: what stands between `dequantize` and `quantize` and needs no float arithmetic at run time.

    dequantize -> f -> g -> quantize             ->   table of 256 codes             f, g of one value each, or another grid
    dequantize -> prelu -> quantize              ->   two slopes for each channel    where they give every code
    dequantize -> max pool, slice -> quantize    ->   the same on codes
    concat(a, b) -> quantize                     ->   concat of quantize(a), quantize(b)
    pad(dequantize(q))                           ->   padded with the code of zero

Tables are filled by running torch's own operators, so a table answers what `graphopt.simulate` answers. Works on the graph of
kernels that `graphopt.lowering.integers.fusion` makes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.ir.binary import Binary
from graphopt.ir.calls import argument, gives_several, shape
from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten, family, function_of_one, info
from graphopt.lowering.integers.arithmetic import Table, all_codes, dequantize, quantize
from graphopt.lowering.integers.fusion import BYTES, Kernel
from graphopt.lowering.integers.slopes import Slopes
from graphopt.lowering.qdq import QuantizationParameters


def moves_codes(node: Node) -> bool:
    """Whether a call gives nothing but elements of one tensor, and zeros around them."""
    several = gives_several(node) or any(map(gives_several, node.all_input_nodes))
    return not several and (info(node).selects or family(node) == "pad")


def keep_codes(graph: Graph) -> None:
    """Rewrite a graph of kernels in place."""
    waiting = graph.calls(quantize)
    while waiting:
        node = waiting.pop(0)
        source: Any = node.args[0]
        if family(source) == "concat" and len(source.users) == 1:
            waiting += _concat_codes(graph, node, source)
        else:
            _move_or_look_up(graph, node)
    graph.module.graph.eliminate_dead_code()


def _concat_codes(graph: Graph, node: Node, source: Node) -> list[Node]:
    parts = []
    for part in argument(source, "tensors"):
        codes = graph.call(quantize, part, *node.args[1:], before=node)
        codes.meta["val"] = part.meta["val"].to(QuantizationParameters.of(node).dtype)
        parts.append(codes)
    dim = argument(source, "dim")
    joined = graph.call(aten.cat.default, parts, dim, before=node)
    joined.meta["val"] = node.meta["val"]
    graph.replace(node, joined)
    return parts


def _move_or_look_up(graph: Graph, node: Node) -> None:
    chain = _chain(node)
    if chain is None:
        return
    source, *steps = chain
    x, y = QuantizationParameters.of(source), QuantizationParameters.of(node)
    codes: Any = source.args[0]
    functions = [step for step in steps if not moves_codes(step)]
    composed = _composed(graph, functions, x, y)
    function: Table | Slopes | None = None
    if any(map(_by_channel, functions)):
        function = Slopes.fit(composed(all_codes(x.dtype))[0], x, y) if functions == steps else None
        if function is None:
            return
    elif functions or x != y:
        function = Table(composed, x)
    for step in steps:
        if moves_codes(step):
            codes = _moved(graph, step, codes, x, before=node)
    if function is not None:
        looked_up = graph.call(Kernel("table", function, [x], y), codes, before=node)
        looked_up.meta["val"] = codes.meta["val"].to(y.dtype)
        codes = looked_up
    graph.replace(node, codes)


def _chain(node: Node) -> list[Node] | None:
    """From the `dequantize` to the operator in front of `node`, all read by the next alone; None where there is no such chain."""
    chain: list[Node] = []
    source: Any = node.args[0]
    while isinstance(source, Node) and source.target is not dequantize:
        moves = moves_codes(source)
        function = function_of_one(source) is not None or _with_numbers(source) or _is_prelu(source)
        if len(source.users) != 1 or not (moves or function):
            return None
        if not moves and any(moves_codes(later) and not info(later).moves for later in chain):
            return None  # a maximum or zeros would come before the function
        chain.insert(0, source)
        source = source.args[0]
    if not isinstance(source, Node) or source.args[5] not in BYTES:
        return None
    return [source, *chain]


def _is_prelu(node: Node) -> bool:
    return family(node) == "prelu" and all(slope.op == "get_attr" for slope in node.all_input_nodes[1:])


def _by_channel(node: Node) -> bool:
    """Is this a function of one value with constants of its channel?"""
    return _is_prelu(node) and argument(node, "weight").meta["val"].numel() > 1


def _with_numbers(node: Node) -> bool:
    """Is this value + 3, value / 6, ...?"""
    binary = Binary.of(node)
    return binary is not None and binary.number is not None and len(binary.tensors) == 1


def _moved(graph: Graph, step: Node, codes: Node, grid: QuantizationParameters, *, before: Node) -> Node:
    if family(step) == "pad":
        moved = graph.call(aten.constant_pad_nd.default, codes, argument(step, "pad"), grid.zero_point, before=before)
    else:
        target: Any = step.target
        options: Any = step.kwargs
        moved = graph.call(target, codes, *step.args[1:], before=before, like=step, **options)
    moved.meta["val"] = step.meta["val"].to(codes.meta["val"].dtype)
    return moved


def _composed(
    graph: Graph, functions: list[Node], x: QuantizationParameters, y: QuantizationParameters
) -> Callable[[Tensor], Tensor]:
    """Codes [256] -> [256]; where a function has constants of its channels, [1, channels, 256]."""
    channels = next((shape(node)[1] for node in functions if _by_channel(node)), None)

    def compute(codes: Tensor) -> Tensor:
        value = dequantize(codes, *x)
        if channels is not None:
            value = value.expand(1, channels, -1)
        with torch.no_grad():
            for node in functions:
                target: Any = node.target
                arguments = torch.fx.node.map_arg(node.args[1:], graph.tensor)
                value = target(value, *arguments, **node.kwargs)
        return quantize(value, *y)

    return compute
