"""A graph with several answers as stages: each answer ends one, and the next one begins with what was computed by then."""

from __future__ import annotations

from torch.fx.node import Node

from graphopt.execution.subgraph import subgraph
from graphopt.ir.graph import Graph
from graphopt.ir.reading import leading, varying
from graphopt.policies import Network
from graphopt.policies.stages import Source
from graphopt.utils.errors import InputError


def split(graph: Graph) -> tuple[list[Graph], Network]:
    """The stages of a graph that returns an answer for each exit, the first exit first; and what each reads.

    A stage returns its answer, and behind it the values that later stages read.

    Raises:
        InputError: the graph returns one answer, or two that are the same value; or an answer needs nothing that is not computed
            for an answer before it.
    """
    ends = graph.outputs
    if len(ends) < 2:
        raise InputError("the graph returns one answer, so there is nothing to split; apply AddExits first")
    stages = _stages(graph, ends)
    given = [_given(graph, stages, number) for number in range(len(ends))]
    handed = [_handed(stages, given, number) for number in range(len(ends))]
    parts, reads = [], []
    for number, end in enumerate(ends):
        inputs = {_name(graph, node): node for node in given[number]}
        outputs = {graph.output_names[number]: end, **{_name(graph, node): node for node in handed[number]}}
        parts.append(subgraph(graph, inputs, outputs))
        reads.append(tuple(_source(graph, stages, handed, node) for node in given[number]))
    return parts, Network(tuple(reads))


def last_answer(graph: Graph) -> Graph:
    """The graph with its last answer alone; what only exits needed is gone."""
    inputs = dict(zip(graph.input_names, graph.inputs, strict=True))
    return subgraph(graph, inputs, {graph.output_names[-1]: graph.outputs[-1]})


def _stages(graph: Graph, ends: list[Node]) -> dict[Node, int]:
    """Of each call the first stage that needs it; calls on constants alone belong to every stage, and to none."""
    moving, found = varying(graph), dict[Node, int]()
    for number, end in enumerate(ends):
        before = len(found)
        for node in leading(end, found):
            if node in moving and node.op == "call_function":
                found[node] = number
        if len(found) == before:
            raise InputError(f"answer {number} is computed with the one before it; it cannot end a stage of its own")
    return found


def _given(graph: Graph, stages: dict[Node, int], number: int) -> list[Node]:
    """What the calls of a stage read from outside: values of earlier stages, and inputs of the network."""
    own = [node for node, stage in stages.items() if stage == number]
    sources = {source for node in own for source in node.all_input_nodes}
    read = {source for source in sources if stages.get(source, number) != number}
    return [*(node for node in graph.inputs if node in sources), *sorted(read)]


def _handed(stages: dict[Node, int], given: list[list[Node]], number: int) -> list[Node]:
    later = {node for each in given[number + 1 :] for node in each}
    return sorted(node for node in later if stages.get(node) == number)


def _source(graph: Graph, stages: dict[Node, int], handed: list[list[Node]], node: Node) -> Source:
    if node in graph.inputs:
        return -1, graph.inputs.index(node)
    stage = stages[node]
    return stage, 1 + handed[stage].index(node)


def _name(graph: Graph, node: Node) -> str:
    return graph.input_names[graph.inputs.index(node)] if node in graph.inputs else f"{node.name}_value"
