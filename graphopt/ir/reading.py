"""What a graph says about its nodes: inputs, outputs, calls, constants, facts."""

from __future__ import annotations

import operator
from collections.abc import Container
from typing import Any, TypeVar

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch.fx.node import Node

from graphopt.ir.facts import Fact
from graphopt.ir.ops import is_random
from graphopt.utils.errors import InputError

T = TypeVar("T")


class Reading:
    """Reads a `torch.fx.GraphModule`; the part of `Graph` that changes nothing but facts."""

    module: fx.GraphModule

    @property
    def nodes(self) -> list[Node]:
        return list(self.module.graph.nodes)

    @property
    def inputs(self) -> list[Node]:
        """The input tensors, in the order of `input_names`. (Numbers and flags the model takes are built in.)"""
        return [n for n in self.placeholders if isinstance(n.meta.get("val"), Tensor)]

    @property
    def placeholders(self) -> list[Node]:
        """All leaves of the inputs, those that are no tensors included."""
        return [n for n in self.module.graph.nodes if n.op == "placeholder"]

    @property
    def output(self) -> Node:
        return self.module.graph.output_node()

    @property
    def outputs(self) -> list[Node]:
        """The tensors the model returns, in order (one returned twice stands twice)."""
        return [leaf for leaf in self.returned if isinstance(leaf, Node) and is_tensor(leaf)]

    @property
    def results(self) -> list[Node]:
        """What is computed of what the model returns: the tensors, and sizes that follow the batch."""
        return [leaf for leaf in self.returned if isinstance(leaf, Node)]

    @property
    def returned(self) -> list[Any]:
        """All leaves of the outputs in order: nodes (tensors, and sizes that follow the batch), flags, numbers."""
        return list(pytree.tree_leaves(self.output.args[0]))

    def calls(self, *targets: Any) -> list[Node]:
        """The calls of these operators, in execution order; every call where none is named."""
        return [n for n in self.module.graph.nodes if n.op == "call_function" and (not targets or n.target in targets)]

    def is_constant(self, node: Any) -> bool:
        return isinstance(node, Node) and node.op == "get_attr"

    def tensor(self, node: Node, known: dict[Node, Any] | None = None) -> Tensor:
        """The value of a constant, or of a call that only constants lead to, without gradient.

        Args:
            known: what calls are known to give; what is computed here is added.

        Raises:
            InputError: inputs of the graph or random numbers lead to it.
        """
        if node.op == "get_attr":
            return self.parameter(node).detach()
        found = {} if known is None else known
        for source in sorted(leading(node, found)):
            if source.op == "get_attr":
                found[source] = self.parameter(source).detach()
                continue
            if source.op != "call_function" or is_random(source):
                lead = "inputs of the graph" if source.op == "placeholder" else "random numbers"
                raise InputError(f"{node.name} is no constant: {lead} lead to it")
            args, kwargs = fx.node.map_arg((source.args, source.kwargs), found.__getitem__)
            with torch.no_grad():
                found[source] = source.target(*args, **kwargs)  # type: ignore[operator]
        value: Tensor = found[node]
        return value

    def parameter(self, node: Node) -> Tensor:
        """The tensor object behind a constant (an `nn.Parameter` where it is trainable)."""
        value: Tensor = operator.attrgetter(str(node.target))(self.module)
        return value

    def site(self, node: Node) -> str:
        """The name users know a node by: the path of the module it came from, else the node's own name."""
        stack = node.meta.get("nn_module_stack") or {}
        paths = [str(path) for path, _ in stack.values() if path]
        return paths[-1].removeprefix("L['self'].") if paths else node.name

    # ---- What is known about nodes (`graphopt.ir.facts`) -----------------------------------------------------------

    def fact(self, node: Node, fact: Fact[T]) -> T | None:
        """What is known about a node; None where nothing is."""
        found: T | None = node.meta.get(fact.name)
        return found

    def set_fact(self, node: Node, fact: Fact[T], value: T) -> None:
        """Let this be known about a node.

        Raises:
            TypeError: the value is not of the fact's type.
        """
        if not isinstance(value, fact.type):
            raise TypeError(f"the fact {fact.name!r} is a {fact.type.__name__}, got {value!r:.100}")
        node.meta[fact.name] = value


def leading(node: Node, known: Container[Node] = ()) -> set[Node]:
    """A node and all that it is computed of, as far as it is not known."""
    found, todo = set[Node](), [node]
    while todo:
        if (source := todo.pop()) not in known and source not in found:
            found.add(source)
            todo += source.all_input_nodes
    return found


def varying(graph: Reading) -> set[Node]:
    """The input tensors, and the calls that depend on one."""
    found = set[Node](graph.inputs)
    for call in graph.calls():
        if not found.isdisjoint(call.all_input_nodes):
            found.add(call)
    return found


def is_tensor(node: Node) -> bool:
    """Whether a node's value is a tensor, as far as shapes are known; sizes and tuples are none."""
    value = node.meta.get("val")
    return value is None or isinstance(value, Tensor)
