"""A graph as a `torch.export.ExportedProgram` again, for tools that read those (the ONNX exporter, other compilers).

The program is flat: it takes the graph's input tensors one by one, in order and under `graph.input_names`, and returns
a tuple of the output tensors in the order of `graph.output_names`. Weights keep their names. Free sizes stay free.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from graphopt.ir.shapes import is_free, numbers_for, with_sizes
from graphopt.utils.errors import GraphoptError, InputError

if TYPE_CHECKING:
    from graphopt.ir.graph import Graph


def to_exported_program(graph: Graph) -> ExportedProgram:
    """Export the graph as it is now: edited nodes and constants included, the graph itself untouched.

    Raises:
        InputError: the graph is in training mode.
        GraphoptError: an operator of the graph fixes a size that the graph promises to be free.
    """
    if graph.training:
        raise InputError("the graph is in training mode; call graph.eval() before deploying it")
    module = flat_module(graph)
    given = graph.example.tensors()
    numbers = numbers_for(graph.free_sizes, given, module.state_dict().values())
    example = tuple(with_sizes(given, graph.free_sizes, numbers))
    free: list[dict[int, Any]] = [{} for _ in given]
    for size in graph.free_sizes:
        for place in size.places:
            free[place.input][place.dimension] = Dim.AUTO
    with torch.no_grad():
        program = torch.export.export(module, example, dynamic_shapes=tuple(free), strict=False)
    inputs = [n for n in program.graph.nodes if n.op == "placeholder"][-len(given) :]
    for size in graph.free_sizes:
        for place in size.places:
            if not is_free(inputs[place.input].meta["val"].shape[place.dimension]):
                raise GraphoptError(
                    f"dimension {place.dimension} ({size.label(place)!r}) of input {graph.input_names[place.input]!r} became "
                    "fixed when the graph was exported again; capture with that size fixed (dynamic_batch=False for the batch)"
                )
    program._guards_code = []  # those on sizes, which the graph checks when it is called; they stop decompositions
    return program


def flat_module(graph: Graph) -> fx.GraphModule:
    """The same computation with tensors in and a tuple of tensors out; it shares the graph's weights."""
    flat, values = fx.Graph(), {}
    names = iter(graph.input_names)
    for node in graph.nodes:
        if node.op == "placeholder" and not isinstance(node.meta.get("val"), Tensor):
            continue  # a number, a flag or None: the graph has its value built in
        if node.op == "placeholder":
            values[node] = flat.placeholder(next(names))
        elif node.op == "output":
            flat.output(tuple(values[leaf] for leaf in graph.outputs))
        else:
            values[node] = flat.node_copy(node, values.__getitem__)
        if node in values:
            values[node].meta = dict(node.meta)
    module = fx.GraphModule(graph.module, flat)
    nn.Module.train(module, False)
    return module
