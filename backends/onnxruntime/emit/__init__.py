"""Write a deployed graph as an ONNX model: a rule for each ATen operator, of all its arguments.

writer.py         the model under construction: operators, constants, sizes, names
rule.py           what rules share
elementwise.py    activations and functions of one value
pairs.py          arithmetic on two values, comparisons, choices
reductions.py     sums, means, extremes, orders
moves.py          other shapes and orders, parts, joins, padding
windows.py        convolutions, pools
resizing.py       resizing and sampling of images
products.py       products of matrices
normalization.py  normalizations and attention
indexing.py       elements by index; tensors made of numbers
recurrent.py      LSTM, GRU, plain recurrent layers
quantizers.py     codes
numbers.py        arithmetic on sizes
exporter.py       a call that has no rule, by torch's exporter

A rule is a function of the writer and of the call's `Arguments`; one that leaves an argument unread which is not at its default
is an error, in the one place where rules are called. Calls of constants alone are computed here and stored.
"""

from __future__ import annotations

import operator
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir import Value
from torch import Tensor
from torch.fx.node import Node

from graphopt.backends.onnxruntime.emit import numbers
from graphopt.backends.onnxruntime.emit.elementwise import ELEMENTWISE
from graphopt.backends.onnxruntime.emit.exporter import export_call, refusal
from graphopt.backends.onnxruntime.emit.indexing import INDEXING
from graphopt.backends.onnxruntime.emit.moves import MOVES
from graphopt.backends.onnxruntime.emit.normalization import NORMALIZATION
from graphopt.backends.onnxruntime.emit.pairs import PAIRS
from graphopt.backends.onnxruntime.emit.products import PRODUCTS
from graphopt.backends.onnxruntime.emit.quantizers import QUANTIZERS
from graphopt.backends.onnxruntime.emit.recurrent import RECURRENT
from graphopt.backends.onnxruntime.emit.reductions import REDUCTIONS
from graphopt.backends.onnxruntime.emit.resizing import RESIZING
from graphopt.backends.onnxruntime.emit.rule import NoRule, Rule, no_rule
from graphopt.backends.onnxruntime.emit.windows import WINDOWS
from graphopt.backends.onnxruntime.emit.writer import Writer, as_numpy, onnx_type
from graphopt.ir.arguments import Arguments
from graphopt.ir.facts import STORED_AS
from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten, is_random
from graphopt.utils.errors import GraphoptError, first_line
from graphopt.utils.version import __version__

RULES: dict[Any, Rule] = {
    **ELEMENTWISE, **PAIRS, **REDUCTIONS, **MOVES, **WINDOWS, **RESIZING, **PRODUCTS, **NORMALIZATION, **INDEXING,
    **RECURRENT, **QUANTIZERS,
}  # fmt: skip
LARGEST = 2**24  # elements of a constant that is computed here


def write(graph: Graph, opset: int) -> tuple[ir.Model, list[Node]]:
    """The model of a deployed graph, and the calls that torch's exporter wrote for want of a rule.

    Raises:
        InputError: a rule does not know an argument. GraphoptError: sizes are computed in a way that ONNX has no operators for.
    """
    writer, exported = Writer(graph, opset), list[Node]()
    inputs = [_input(writer, name, node) for name, node in zip(graph.input_names, graph.inputs, strict=True)]
    for node in graph.nodes:
        if node.op == "get_attr":
            _constant(writer, node)
        elif node.op == "call_function":
            _call(writer, node, exported)
    outputs = _outputs(writer)
    return _assembled(writer, inputs, outputs), exported


def _input(writer: Writer, name: str, node: Node) -> Value:
    fake = node.meta["val"]
    value = Value(name=name, type=ir.TensorType(onnx_type(fake.dtype)), shape=ir.Shape([None] * fake.dim()))
    writer.keep(node, value)
    return value


def _constant(writer: Writer, node: Node) -> None:
    name = writer.names[node]
    if name not in writer.weights:
        writer.store(name, as_numpy(writer.graph.parameter(node)))
    writer.values[node] = writer.weights[name]


def _call(writer: Writer, node: Node, exported: list[Node]) -> None:
    writer.name = writer.names[node]
    if node.target is operator.getitem and isinstance(parts := writer.values.get(node.args[0]), tuple):  # type: ignore[arg-type]
        writer.values[node] = parts[node.args[1]]  # type: ignore[index]
    elif node.target is aten.sym_size.int:
        writer.values[node] = numbers.of_tensor(writer, node)
    elif not isinstance(node.target, torch._ops.OpOverload):
        writer.values[node] = numbers.number(writer, node)
    elif (tensor := _known(writer, node)) is not None:
        writer.values[node] = writer.store(writer.names[node], as_numpy(tensor))
    else:
        writer.keep(node, _by_rule(writer, node, exported))


def _by_rule(writer: Writer, node: Node, exported: list[Node]) -> Value | tuple[Value, ...]:
    arguments = Arguments(node)
    site = writer.graph.site(node)
    try:
        value = RULES.get(node.target, no_rule)(writer, arguments)
    except NoRule:
        exported.append(node)
        return export_call(writer, node)
    except GraphoptError:
        raise
    except Exception as error:
        raise refusal(site, node, first_line(error)) from error
    arguments.require_all_read(site, "ONNX Runtime")
    return value


def _known(writer: Writer, node: Node) -> Tensor | None:
    """The value of a call that reads constants alone, and is no conversion from codes."""
    if node.target in QUANTIZERS or is_random(node) or not isinstance(node.meta["val"], Tensor):
        return None
    if writer.graph.fact(node, STORED_AS):
        return None
    if any(n.op != "get_attr" and n not in writer.known for n in node.all_input_nodes):
        return None
    if any(not isinstance(s, int) for s in node.meta["val"].shape) or node.meta["val"].numel() > LARGEST:
        return None
    return writer.graph.tensor(node, writer.known)


def _outputs(writer: Writer) -> list[Value]:
    """The model's outputs under their names; one that is an input, a constant or another output is copied."""
    taken: set[Value] = set()
    found = []
    for name, node in zip(writer.graph.output_names, writer.graph.outputs, strict=True):
        value = writer.values[node]
        assert isinstance(value, Value)
        writer.name = name
        if value in taken or value.producer() is None:
            value = writer.op("Identity", value)
            value.type = ir.TensorType(onnx_type(node.meta["val"].dtype))
        value.name = name
        taken.add(value)
        found.append(value)
    return found


def _assembled(writer: Writer, inputs: list[Value], outputs: list[Value]) -> ir.Model:
    domains = {node.domain: 1 for node in writer.nodes}
    graph = ir.Graph(
        inputs, outputs, nodes=writer.nodes, initializers=list(writer.weights.values()),
        opset_imports=domains | {"": writer.opset}, name="main_graph",
    )  # fmt: skip
    return ir.Model(graph, ir_version=10, producer_name="graphopt", producer_version=__version__)


__all__ = ["RULES", "write"]
