"""Gates: where a graph takes one value or another for each sample, by what it computes of the sample.

    open = logits > 0                            [N, 1], or [N, C]: a gate for each channel
    open = argmax(scores) == 1, or a rank < 2    an expert that is taken (`graphopt.ir.selecting.best`)
    y    = where(open, x + f(x), x)              a block: what only f needs is not needed where it is closed
    y    = where(open[:, :, None, None], f, 0)   channels

`graphopt.passes.AddGates` makes them; a network that was written so has them, too.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch.fx.node import Node

from graphopt.analysis.channels.trace import sizes
from graphopt.ir import cost
from graphopt.ir.calls import operand
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.ops import aten, info
from graphopt.ir.quantizers import is_quantizer
from graphopt.ir.reading import leading, varying

SIGNS = (aten.gt.Scalar, aten.ge.Scalar)  # of logits; training draws these
TESTS = (*SIGNS, aten.lt.Scalar, aten.eq.Scalar, aten.eq.Tensor)  # the others are of ranks and numbers of experts
VIEWS = (
    aten.unsqueeze.default, aten.squeeze.dim, aten.reshape.default, aten.view.default, aten.flatten.using_ints,
    aten.slice.Tensor, aten.select.int,
)  # fmt: skip


class Gate(NamedTuple):
    """One gate of a graph.

    Attributes:
        name: of the module that makes what is taken where it is open.
        select: the `where`. condition: what it chooses by. test: the comparison. logits: what is compared; of experts their
            ranks, or the number of the best.
        open, closed: what is taken.
        channels: 1: all of a sample goes one way; else of how many channels each does.
    """

    name: str
    select: Node
    condition: Node
    test: Node
    logits: Node
    open: Node
    closed: Node
    channels: int


def gates(graph: Graph) -> list[Gate]:
    """The gates of a graph, in execution order."""
    moving = varying(graph)
    return [gate for node in graph.calls(aten.where.self) if (gate := _gate(graph, node, moving)) is not None]


def _gate(graph: Graph, node: Node, moving: set[Node]) -> Gate | None:
    condition, opened, closed = node.args[:3]
    if not all(isinstance(each, Node) for each in (condition, opened, closed)) or condition not in moving:
        return None
    test: Any = condition
    while test.target in VIEWS:
        test = operand(test)
    if test.target not in TESTS or condition.meta["val"].dim() != node.meta["val"].dim():  # type: ignore[union-attr]
        return None
    chosen, whole = sizes(condition.meta["val"]), sizes(node.meta["val"])  # type: ignore[union-attr]
    if chosen[0] != whole[0] or sizes(opened.meta["val"]) != whole:  # type: ignore[union-attr]
        return None
    channels = math.prod(chosen[1:])
    if channels != 1 and (len(whole) < 3 or channels != chosen[1] or channels != whole[1]):
        return None
    name = graph.site(opened)  # type: ignore[arg-type]
    return Gate(name, node, condition, test, operand(test), opened, closed, channels)  # type: ignore[arg-type]


def needs(graph: Graph, gate: Gate) -> set[Node]:
    """The calls that only matter where a gate of a block is open."""
    known = set[Node]()
    for result in graph.results:
        known |= _leading_closed(result, gate, known)
    return {node for node in leading(gate.open, known) if node.op == "call_function"}


def _leading_closed(node: Node, gate: Gate, known: set[Node]) -> set[Node]:
    """What a value is computed of, where the gate is closed."""
    found, todo = set[Node](), [node]
    while todo:
        source = todo.pop()
        if source in known or source in found:
            continue
        found.add(source)
        todo += [gate.condition, gate.closed] if source is gate.select else source.all_input_nodes
    return found


def saved_macs(graph: Graph, found: list[Gate] | None = None) -> list[int]:
    """What is saved of the multiply-accumulates of a sample where each gate is closed, alone; of all its channels together.

    Of a gate of channels: those of the layer that makes them and of the layers that read them, which is what a runtime that left
    channels out would save.
    """
    work = cost.layer_macs(graph)
    return [
        sum(work.get(node, 0) for node in (needs(graph, gate) if gate.channels == 1 else _layers_around(gate)))
        for gate in (gates(graph) if found is None else found)
    ]


def _layers_around(gate: Gate) -> set[Node]:
    """The layer that makes the channels of a gate, and those that read them and nothing else."""
    found, source, todo = set[Node](), gate.open, list(gate.select.users)
    while _passes_on(source):
        source = operand(source)
    if Layer.of(source) is not None:
        found.add(source)
    while todo:
        reader = todo.pop()
        if Layer.of(reader) is not None:
            found.add(reader)
        elif _passes_on(reader):
            todo += reader.users
    return found


def _passes_on(node: Node) -> bool:
    """Whether a call leaves channels what they are, each by itself."""
    return node.op == "call_function" and (
        is_quantizer(node) or info(node).fusable or node.target in (aten.batch_norm.default, aten.relu.default)
    )
