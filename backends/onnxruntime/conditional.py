"""Gates as `If`: what only one side of a choice needs is computed where that side is taken.

    Where(open, a, b)   ->   If(open) then { what only a needs; a } else { what only b needs; b }          one sample at a time
                        ->   If(any open) then { what only a needs; Where(open, a, b) } else { b }         any batch

Only choices for whole samples are written so, `open` [N, 1, ...]; of others both sides are needed for some element. What both
sides need is computed in front of it, but for conversions of codes, of which each side has its own: what crosses the
border of a subgraph are codes, and kernels on either side of it are integer.

Measured on ONNX Runtime 1.32: an `If` takes about one microsecond more than what it runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import onnx_ir as ir

VIEWS = ("Unsqueeze", "Squeeze", "Reshape", "Flatten")
REPEATED = ("DequantizeLinear", "Slice", "Pad", "Transpose", "Reshape")  # cheaper than their values are handed over


def compute_as_needed(model: ir.Model, names: Iterable[str]) -> None:
    """Rewrite the choices of these names, which are gates of blocks, in place."""
    wanted = set(names)
    for node in [n for n in model.graph if n.op_type == "Where" and n.outputs[0].name in wanted]:
        _Choice(model.graph, node).rewrite()


class _Choice:
    """One `Where` on the way to become an `If`."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self.graph, self.node = graph, node
        self.owners = {inner: outer for outer in graph for inner in _inside(outer)}  # those that hold subgraphs

    def rewrite(self) -> None:
        condition, opened, closed = self.node.inputs
        assert condition is not None
        assert opened is not None
        assert closed is not None
        shape = condition.shape
        one = shape is not None and all(size == 1 for size in shape)
        sides = {1: self._only_for(opened, 1), 2: self._only_for(closed, 2) if one else []}
        if not any(_works(node) for nodes in sides.values() for node in nodes):
            return
        result = self.node.outputs[0]
        then = self._side(opened, sides[1], "then", None if one else self.node)
        other = self._side(closed, sides[2], "else", None)
        before: list[ir.Node] = []
        decided = _scalar(condition) if one else self._any(condition, before)
        made = ir.Node(
            "", "If", [decided],
            [ir.AttrGraph("then_branch", then), ir.AttrGraph("else_branch", other)],
            outputs=[ir.Value(name=result.name, type=result.type, shape=result.shape)], name=f"{self.node.name}/If",
        )  # fmt: skip
        result.name = f"{result.name}/chosen"
        self.graph.insert_before(self.node, [*before, made])
        made.outputs[0].type, made.outputs[0].shape = result.type, result.shape
        for reader, place in list(result.uses()):
            reader.replace_input_with(place, made.outputs[0])
        for place, output in enumerate(self.graph.outputs):
            if output is result:
                self.graph.outputs[place] = made.outputs[0]
        for node in [self.node, *reversed(sides[1]), *reversed(sides[2])]:
            self.graph.remove(node, safe=True)

    def _only_for(self, value: ir.Value, place: int) -> list[ir.Node]:
        """The operators that nothing but this side of the choice needs, in order."""
        found, todo = set[ir.Node](), [value.producer()]
        while todo:
            node = todo.pop()
            if node is None or node in found or node.graph is not self.graph:
                continue
            uses = [use for output in node.outputs for use in output.uses()]
            mine = all(
                self.owners.get(reader, reader) in found or (reader is self.node and at == place) for reader, at in uses
            )
            if mine and not any(output.is_graph_output() for output in node.outputs):
                found.add(node)
                todo += [source.producer() for source in _read(node)]
        return [node for node in self.graph if node in found]

    def _side(self, value: ir.Value, nodes: list[ir.Node], name: str, choice: ir.Node | None) -> ir.Graph:
        """A subgraph that computes copies of these operators; with the choice at its end where there is one.

        Copies are called after the choice, too: a choice inside of this one may have a copy of the same operator.
        """
        name = f"{self.node.name}/{name}"
        values: dict[ir.Value, ir.Value] = {}
        copies: list[ir.Node] = []
        for node in [*nodes, *([choice] if choice is not None else [])]:
            for source in _read(node):
                self._repeat(source, values, copies, name)
            copies.append(_copied(node, values, name))
        if choice is None:
            self._repeat(value, values, copies, name)
        result = values.get(value if choice is None else choice.outputs[0])
        if result is None:  # made in front of the choice
            result = ir.Value(name=name, type=value.type, shape=value.shape)
            copies.append(ir.Node("", "Identity", [value], outputs=[result], name=result.name))
        return ir.Graph([], [result], nodes=copies, name=name)

    def _repeat(self, value: ir.Value, values: dict[ir.Value, ir.Value], copies: list[ir.Node], name: str) -> None:
        """Compute a value of a cheap operator inside, where it is computed in front of the choice."""
        maker = value.producer()
        if value in values or maker is None or maker.graph is not self.graph or maker.op_type not in REPEATED:
            return
        for source in _read(maker):
            self._repeat(source, values, copies, name)
        copies.append(_copied(maker, values, name))

    def _any(self, condition: ir.Value, before: list[ir.Node]) -> ir.Value:
        """Whether a gate is open for any sample, a scalar."""
        name = f"{self.node.name}/any"
        count = ir.Value(name=f"{name}/count")
        found = ir.Value(name=name, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
        number = ir.Value(name=f"{name}/number")
        before.append(
            ir.Node(
                "",
                "Cast",
                [condition],
                [ir.AttrInt64("to", ir.DataType.FLOAT)],
                outputs=[number],
                name=f"{name}/number",
            )
        )
        before.append(
            ir.Node("", "ReduceMax", [number], [ir.AttrInt64("keepdims", 0)], outputs=[count], name=f"{name}/count")
        )
        before.append(ir.Node("", "Cast", [count], [ir.AttrInt64("to", ir.DataType.BOOL)], outputs=[found], name=name))
        return found


def _scalar(condition: ir.Value) -> ir.Value:
    """The truth value itself, which views made a shape for: the runtime takes a tensor of one element."""
    maker = condition.producer()
    while maker is not None and maker.op_type in VIEWS:
        source = maker.inputs[0]
        assert source is not None
        condition, maker = source, source.producer()
    return condition


def _read(node: ir.Node) -> list[ir.Value]:
    """What an operator reads, its subgraphs included."""
    found = [value for value in node.inputs if value is not None]
    for inner in _inside(node):
        found += [value for value in inner.inputs if value is not None]
    return found


def _inside(node: ir.Node) -> list[ir.Node]:
    """All operators in its subgraphs."""
    return [
        each
        for attribute in node.attributes.values()
        if attribute.type == ir.AttributeType.GRAPH
        for inner in attribute.as_graph()
        for each in (inner, *_inside(inner))
    ]


def _copied(node: ir.Node, values: dict[ir.Value, ir.Value], name: str) -> ir.Node:
    """An operator that reads the copies of values where there are some; its results are added to them."""
    outputs = []
    for output in node.outputs:
        made = ir.Value(name=f"{output.name}/{name}", type=output.type, shape=output.shape)
        values[output] = made
        outputs.append(made)
    for inner in _inside(node):  # a choice inside of this one is handed over as it is
        for place, value in enumerate(inner.inputs):
            if value is not None and value in values:
                inner.replace_input_with(place, values[value])
    inputs = [values.get(value, value) if value is not None else None for value in node.inputs]
    attributes: list[Any] = list(node.attributes.values())
    return ir.Node(node.domain, node.op_type, inputs, attributes, outputs=outputs, name=f"{node.name}/{name}")


def _works(node: ir.Node) -> bool:
    """Whether leaving an operator out is worth an `If`."""
    return node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulNBits", "If", "LSTM", "GRU", "RNN")
