"""Part of a graph as a graph of its own: from some values to others.

    front = subgraph(graph, {"x": graph.inputs[0]}, {"features": middle})
    back = subgraph(graph, {"features": middle}, {"logits": graph.outputs[0]})

Constants are the graph's own tensors. A value that a quantizer gave is rounded again where it comes in, which leaves it as it is
and lets what reads it compute in integer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx, nn
from torch.fx.node import Node

from graphopt.execution.executor import Executor
from graphopt.ir.derivation import DERIVATION
from graphopt.ir.editing import register
from graphopt.ir.graph import Example, Graph
from graphopt.ir.module import LazyModule
from graphopt.ir.quantizers import is_quantizer
from graphopt.ir.shapes import fake_inputs, is_free
from graphopt.ir.sizes import FreeSize, Place
from graphopt.utils.errors import InputError


def subgraph(graph: Graph, inputs: Mapping[str, Node], outputs: Mapping[str, Node]) -> Graph:
    """The calls that lead from some values to others.

    Args:
        inputs: name -> a value of the graph, which is an input of the new one.
        outputs: name -> what the new one returns: the tensor where it is one, else a list.

    Raises:
        InputError: an output needs an input of the graph that is not among `inputs`, or an input has a free size that is not the
            batch.
    """
    calls = _between(graph, inputs, outputs)
    with torch.no_grad():
        values = Executor(graph).run(inputs.values(), graph.example.tensors())
    example = [values[node].detach().clone() for node in inputs.values()]
    free = _free_sizes(graph, list(inputs.values()))
    new, copies, root = fx.Graph(), dict[Node, Node](), nn.Module()
    placeholders = [new.placeholder(name) for name in inputs]
    for node, value in zip(placeholders, fake_inputs(example, free), strict=True):
        node.meta["val"] = value
    for source, placeholder in zip(inputs.values(), placeholders, strict=True):
        copies[source] = placeholder
        if is_quantizer(source):
            for constant in source.all_input_nodes[1:]:
                _copy_call(graph, constant, new, copies, root)
            copies[source] = _copied(source, new, {**copies, source.all_input_nodes[0]: placeholder})
    for node in calls:
        _copy_call(graph, node, new, copies, root)
    found = [copies[node] for node in outputs.values()]
    returned: Any = found[0] if len(found) == 1 else found
    leaves, spec = pytree.tree_flatten(returned)
    new.output(tuple(leaves))
    _, given = pytree.tree_flatten((tuple(example), {}))
    names = [f"argument_{n}" for n in range(len(example))]
    new.set_codegen(fx.graph._PyTreeCodeGen(fx.graph._PyTreeInfo(names, given, spec)))
    module = LazyModule(root, new)
    module.eval()
    part = Graph(
        module, Example(tuple(example), {}), input_names=list(inputs), output_names=list(outputs), free_sizes=free
    )
    part.refresh()
    return part


def _between(graph: Graph, inputs: Mapping[str, Node], outputs: Mapping[str, Node]) -> list[Node]:
    """Calls and constants in execution order."""
    known, found, todo = set(inputs.values()), set[Node](), list(outputs.values())
    while todo:
        node = todo.pop()
        if node in known or node in found:
            continue
        if node.op == "placeholder":
            name = next((n for n, i in zip(graph.input_names, graph.inputs, strict=True) if i is node), node.name)
            raise InputError(f"the part needs the input {name!r} of the network; give it among its inputs")
        found.add(node)
        todo += node.all_input_nodes
    return sorted(found)


def _copy_call(graph: Graph, node: Node, new: fx.Graph, copies: dict[Node, Node], root: nn.Module) -> None:
    if node in copies:
        return
    if node.op == "get_attr":
        register(root, str(node.target), graph.parameter(node))
    for source in node.all_input_nodes:
        _copy_call(graph, source, new, copies, root)
    copies[node] = _copied(node, new, copies)


def _copied(node: Node, new: fx.Graph, copies: Mapping[Node, Node]) -> Node:
    copy = new.node_copy(node, copies.__getitem__)
    for key in ("val", DERIVATION.name):
        copy.meta.pop(key, None)
    return copy


def _free_sizes(graph: Graph, nodes: list[Node]) -> list[FreeSize]:
    """The batch, where the values have it."""
    places, batch = [], graph.batch
    for number, node in enumerate(nodes):
        shape = node.meta["val"].shape
        if any(is_free(size) for size in shape[1:]):
            raise InputError(
                f"{graph.site(node)!r} has a free size beside the batch; capture the network with it fixed"
            )
        if len(shape) and is_free(shape[0]):
            places.append(Place(number, 0))
    if not places:
        return []
    assert batch is not None
    return [FreeSize(batch.name, tuple(places), batch.min, batch.max, batch.step)]
