"""What a runtime makes of quantizers around an operator: one integer kernel.

    dequantize(x), dequantize(w) -> conv -> quantize          ->   LayerKernel(x)
    dequantize(a), dequantize(b) -> add  -> quantize          ->   table(a, b)

The runtime does so where every operand is dequantized from 8 bits, the one reader of the operator quantizes to the same type,
and a layer's bias is int32; a linear layer may also answer in float. ONNX Runtime has no layers of signed values and unsigned
weights. Whatever does not qualify stays float, here as there, between `quantize` and `dequantize`.

Learned from the graphs that ONNX Runtime 1.31 writes back after optimizing; TVM is given the same kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.ir.arguments import Arguments
from graphopt.ir.averages import averages
from graphopt.ir.calls import shape
from graphopt.ir.facts import LEFT
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer, Pool
from graphopt.ir.ops import family
from graphopt.lowering.integers.arithmetic import dequantize, f32
from graphopt.lowering.integers.kernels import (
    AveragePool,
    LayerKernel,
    Softmax,
    Window,
    centred,
    sigmoid,
)
from graphopt.lowering.integers.legalize import CLIP_CODES, GLOBAL_AVERAGE_POOL, is_dequantized
from graphopt.lowering.integers.machines import MACHINES, Machine
from graphopt.lowering.integers.pairs import Pairs
from graphopt.lowering.names import value_names
from graphopt.lowering.qdq import Q, QuantizationParameters
from graphopt.lowering.signs import disagreement
from graphopt.utils.printing import dtype_name

QUANTIZE, DEQUANTIZE = Q.quantize_per_tensor.default, Q.dequantize_per_tensor.default
BYTES = {torch.int8, torch.uint8}


class Kernel:
    """A function of codes as a graph's target, which must have a name.

    Attributes:
        function: what it computes; a `LayerKernel`, a `Table`, ...
        grids: of the operands, in order.
        grid: of the result; None where that is float.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Tensor],
        grids: Sequence[QuantizationParameters],
        grid: QuantizationParameters | None,
    ) -> None:
        self.__name__, self.function, self.grids, self.grid = name, function, tuple(grids), grid

    def __call__(self, *codes: Tensor) -> Tensor:
        return self.function(*codes)


class Operand(NamedTuple):
    """Codes and what they stand for."""

    codes: Node
    grid: QuantizationParameters


def fuse(graph: Graph, machine: str, *, mixes_signs: bool = False) -> dict[Node, str]:
    """Rewrite a deployed graph in the backend's dialect in place: fused kernels in place of float operators.

    Args:
        mixes_signs: the runtime's layers multiply signed values by unsigned weights.

    Returns:
        Every node that computes codes, in order -> the name of the same value in the exported model.
    """
    names = {node: name for node, name in value_names(graph).items() if node.target in (QUANTIZE, CLIP_CODES)}
    kernels = MACHINES[machine]._replace(mixes_signs=mixes_signs)
    for node in graph.calls():
        _dequantize_later(graph, node)
        function, operands = _kernel(graph, node, kernels)
        if function is None:
            _explain(graph, node)
            continue
        reader = quantizer(node)
        result = QuantizationParameters.of(reader) if reader is not None else None
        kernel = Kernel(_kind(node), function, [o.grid for o in operands], result)
        call = graph.call(kernel, *(o.codes for o in operands), before=reader or node, like=node)
        call.meta["val"] = (reader or node).meta["val"]
        if reader is not None:
            names[call] = names.pop(reader)
            graph.replace(reader, call)
        else:
            graph.replace(node, call)
    graph.module.graph.eliminate_dead_code()
    for node in graph.calls(QUANTIZE, DEQUANTIZE):
        node.target = kernels.quantize if node.target is QUANTIZE else dequantize
    return {node: names[node] for node in graph.nodes if node in names}


def _kind(node: Node) -> str:
    return "global_average_pool" if node.target is GLOBAL_AVERAGE_POOL else family(node) or ""


def _dequantize_later(graph: Graph, node: Node) -> None:
    """dequantize -> reshape  =>  reshape -> dequantize, as the runtime does to bring it next to the reader's kernel."""
    source: Any = node.args[0] if node.args else None
    if family(node) not in ("reshape", "transpose") or operand(source) is None or quantizer(node) is not None:
        return
    codes, *grid = source.args
    target: Any = node.target
    options: Any = node.kwargs
    moved = graph.call(target, codes, *node.args[1:], before=node, **options)
    moved.meta["val"] = node.meta["val"]
    graph.replace(node, graph.call(DEQUANTIZE, moved, *grid, before=node))


def quantizer(node: Node) -> Node | None:
    """The quantizer that alone reads a call."""
    reader = next(iter(node.users), None)
    return reader if len(node.users) == 1 and reader is not None and reader.target is QUANTIZE else None


def operand(value: Any) -> Operand | None:
    """The 8-bit codes that a value is dequantized from."""
    if not isinstance(value, Node) or value.target is not DEQUANTIZE or value.args[5] not in BYTES:
        return None
    return Operand(value.all_input_nodes[0], QuantizationParameters.of(value))


def _kernel(graph: Graph, node: Node, machine: Machine) -> tuple[Callable[..., Tensor] | None, list[Operand]]:
    """The integer kernel that computes a call, and what it reads; None where the call stays float."""
    kind = _kind(node)
    if kind not in machine.kinds:
        return None, []
    if kind in ("conv", "linear"):
        return _layer(graph, node, machine)
    make = _MAKERS.get(kind)
    reader = quantizer(node)
    if make is None or reader is None:
        return None, []
    operands = [operand(a) for a in node.args[: 2 if kind in ("add", "sub", "mul") else 1]]
    y = QuantizationParameters.of(reader)
    found = [o for o in operands if o is not None and o.grid.dtype == y.dtype]
    if len(found) < len(operands):
        return None, []
    if kind in ("add", "mul") and _spreads(found[0].codes, node):
        found.reverse()  # the runtime hands the operand that repeats over as the second
    arguments = Arguments(node)
    arguments.ignore(*(name for name in arguments if isinstance(arguments.given[name], Node)))  # the operands
    function = make(arguments, machine, *(o.grid for o in found), y)
    return (None, []) if function is None or arguments.unread else (function, found)


def _explain(graph: Graph, node: Node) -> None:
    """Note where the types of the codes around it are what keeps a call in float."""
    if _kind(node) not in ("conv", "linear", *_MAKERS):
        return
    made = [reader for reader in node.users if reader.target is QUANTIZE]
    grids = [o.grid for a in node.args if (o := operand(a)) is not None and not graph.is_constant(o.codes)]
    grids += [QuantizationParameters.of(reader) for reader in made]
    why = disagreement(dtype_name(grid.dtype) for grid in grids)
    if why is not None and graph.fact(node, LEFT) is None:
        graph.set_fact(node, LEFT, why)


def _spreads(codes: Node, node: Node) -> bool:
    """Is the last dimension of this operand broadcast?"""
    own, out = codes.meta["val"].shape, shape(node)
    return bool(out) and (not own or (own[-1] == 1 and out[-1] != 1))


def _layer(graph: Graph, node: Node, machine: Machine) -> tuple[LayerKernel | None, list[Operand]]:
    layer, x = Layer.of(node), operand(node.args[0])
    assert layer is not None
    reader = quantizer(node)
    y = QuantizationParameters.of(reader) if reader is not None else None
    answers_in_float = machine.float_output and layer.kind == "linear"
    stays_float = y is None and (not answers_in_float or any(r.target is QUANTIZE for r in node.users))
    if x is None or stays_float or (y is not None and y.dtype != x.grid.dtype) or not is_dequantized(layer.weight):
        return None, []
    stored: Any = layer.weight.args
    bias: Any = layer.bias.args if is_dequantized(layer.bias) else None  # type: ignore[union-attr]
    if not graph.is_constant(stored[0]) or stored[-1] not in BYTES or (layer.bias is not None and bias is None):
        return None, []
    if (x.grid.dtype, stored[-1]) == (torch.int8, torch.uint8) and not machine.mixes_signs:
        return None, []
    scale, zero_point = (graph.tensor(a) if isinstance(a, Node) else torch.tensor(a) for a in stored[1:3])
    codes = graph.tensor(stored[0])
    kernel = LayerKernel(
        operator=partial(_without_tensors, node),
        weight=centred(codes, zero_point, x.grid),
        bias=graph.tensor(bias[0]) if bias is not None else None,
        scale=f32(x.grid.scale) * scale.float(),
        zero_point=x.grid.zero_point,
        channel_dim=layer.channel_dim,
        grid=y,
        pairs=Pairs.of(layer, codes, x.grid) if machine.in_pairs else None,
        window=Window(layer.stride, layer.padding, layer.dilation, layer.groups),
    )
    return kernel, [x]


def _without_tensors(node: Node, x: Tensor, weight: Tensor) -> Tensor:
    options = node.args[3:]
    target: Any = node.target
    return target(x, weight, None, *options, **{k: v for k, v in node.kwargs.items() if k != "bias"})  # type: ignore[no-any-return]


def _average_pool(
    arguments: Arguments, machine: Machine, x: QuantizationParameters, y: QuantizationParameters
) -> AveragePool | None:
    node = arguments.node
    target: Any = node.target
    arguments.ignore("kernel_size", "stride", "padding", "count_include_pad")  # `pool` has them
    arguments.ignore("ceil_mode")  # a matter of sizes, which `shape_of` tells
    pool = Pool.of(node)
    assert pool is not None
    form = averages(pool)
    if form is None:
        return None
    return AveragePool(
        x=x,
        y=y,
        kernel=pool.kernel,
        stride=pool.stride,
        padding=pool.padding,
        shape_of=lambda image: target(image, *node.args[1:], **node.kwargs),
        include_padding=form.counts,
    )


def _global_average_pool(
    arguments: Arguments, machine: Machine, x: QuantizationParameters, y: QuantizationParameters
) -> Callable[..., Tensor]:
    arguments.ignore("output_size")  # 1, by its family
    return partial(machine.mean, grid=x, y=y)


# A kernel that does not read an argument which is off its default is none for that call: it stays float.
_MAKERS: dict[str, Callable[..., Callable[..., Tensor] | None]] = {
    "add": lambda arguments, machine, a, b, y: machine.add(a, b, y),
    "sub": lambda arguments, machine, a, b, y: machine.subtract(a, b, y),
    "mul": lambda arguments, machine, a, b, y: machine.multiply(a, b, y),
    "sigmoid": lambda arguments, machine, x, y: sigmoid(x, y),
    "softmax": lambda arguments, machine, x, y: Softmax(x, y, int(arguments["dim"])),
    "average_pool": _average_pool,
    "global_average_pool": _global_average_pool,
}
