"""From the simulated to the deployed form: fake-quantize nodes become integer constants and quantize/dequantize pairs.

    fake_quantize(weight)   ->  dequantize(codes)                 codes stored as int8 (int32 for biases)
    fake_quantize(value)    ->  dequantize(quantize(value))
    fake_quantize(relu(v))  ->  dequantize(quantize(v))           where the grid's own ends clip as the activation does

Both forms compute the same values. Backends call this first; the simulated graph itself is left as it is.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.ao.quantization.fx._decomposed
from torch import Tensor
from torch.fx.node import Node

from graphopt.graph import Graph
from graphopt.numerics import FAKE_QUANTIZE, quantize
from graphopt.ops import clamp_bounds, family

Q: Any = torch.ops.quantized_decomposed


def deploy(graph: Graph) -> Graph:
    """A deployed copy of a simulated graph; a graph without quantizers is copied unchanged."""
    deployed = graph.clone().eval()
    for node in deployed.calls(FAKE_QUANTIZE):
        source = node.args[0]
        if deployed.is_constant(source):
            _store_codes(deployed, node)
        else:
            _quantize_value(deployed, node)
    deployed.refresh()
    return deployed


def storage(quant_min: int, quant_max: int) -> torch.dtype:
    """The smallest integer type that holds these codes."""
    for dtype in (torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32):
        info = torch.iinfo(dtype)
        if info.min <= quant_min and quant_max <= info.max:
            return dtype
    raise ValueError(f"no integer type holds [{quant_min}, {quant_max}]")


def _parameters(graph: Graph, node: Node) -> tuple[Tensor, Tensor, int, int, int]:
    _, scale, zero_point, quant_min, quant_max, axis = node.args
    return graph.tensor(scale), graph.tensor(zero_point), quant_min, quant_max, axis  # type: ignore[arg-type, return-value]


def _store_codes(graph: Graph, node: Node) -> None:
    scale, zero_point, quant_min, quant_max, axis = _parameters(graph, node)
    source: Node = node.args[0]  # type: ignore[assignment]
    dtype = storage(quant_min, quant_max)
    codes = quantize(graph.tensor(source), scale, zero_point, quant_min, quant_max, axis).to(dtype)
    constant = graph.add_constant(f"{source.target}_codes", codes, before=node)
    if scale.dim():
        s = graph.add_constant(f"{source.target}_codes_scale", scale, before=node)
        z = graph.add_constant(f"{source.target}_codes_zero_point", zero_point.to(dtype), before=node)
        call: tuple[Any, ...] = (Q.dequantize_per_channel.default, constant, s, z, axis)
    else:
        call = (Q.dequantize_per_tensor.default, constant, float(scale), int(zero_point))
    graph.replace(node, graph.call(*call, quant_min, quant_max, dtype, before=node))


def _quantize_value(graph: Graph, node: Node) -> None:
    scale, zero_point, quant_min, quant_max, _ = _parameters(graph, node)
    grid = (float(scale), int(zero_point), quant_min, quant_max, storage(quant_min, quant_max))
    source = _without_implied_clip(graph, node.args[0], *grid[:4])  # type: ignore[arg-type]
    codes = graph.call(Q.quantize_per_tensor.default, source, *grid, before=node)
    graph.replace(node, graph.call(Q.dequantize_per_tensor.default, codes, *grid, before=node))


def _without_implied_clip(graph: Graph, source: Node, scale: float, zero_point: int, quant_min: int, quant_max: int) -> Node:
    """Skip a relu or clamp whose ends the grid's own clipping reproduces: round(end / scale) is the last code or beyond."""
    if family(source) not in ("relu", "clamp") or len(source.users) != 1:
        return source
    low, high = clamp_bounds(source)
    end = lambda value: round(float(torch.tensor(value) / torch.tensor(scale))) + zero_point  # noqa: E731
    below = low == -float("inf") or end(low) <= quant_min
    above = high == float("inf") or end(high) >= quant_max
    return source.args[0] if below and above else source  # type: ignore[return-value]
