"""Parts of a network by themselves, with other numbers of channels: what their time is measured on.

    resizing = Resizing(graph, groups, trace)
    alone = resizing(part, kept)            kept: of each group's units, which stay
    Branches([alone, ...])                  a module that computes several, each on inputs of its own

Weights are made up: they do not change the time. A part whose calls carry sizes as numbers, such as a reshape to a given shape,
cannot be had at other sizes without the whole network; then there is None.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx.node import Argument, Node, map_arg

from graphopt.analysis.channels.cost import Kept, Lengths
from graphopt.analysis.channels.groups import Group
from graphopt.analysis.channels.trace import Trace
from graphopt.evaluation.parts import Part
from graphopt.execution.executor import constant_calls
from graphopt.ir.calls import argument, value
from graphopt.ir.graph import Graph
from graphopt.ir.ops import family
from graphopt.utils.errors import InputError

LEAST, MOST = 0.1, 1.0  # of made-up weights and inputs


@dataclass(frozen=True)
class Ref:
    """An argument that is a tensor: an `input`, a `constant`, or what a `call` before gave, by number."""

    kind: str
    number: int


@dataclass(frozen=True)
class Call:
    """One call; tensors among the arguments are `Ref`s."""

    target: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Alone:
    """A part by itself.

    Attributes:
        calls: in order. ends: those whose results nothing in the part reads.
        inputs, constants: shapes.
    """

    calls: tuple[Call, ...]
    ends: tuple[int, ...]
    inputs: tuple[tuple[int, ...], ...]
    constants: tuple[tuple[int, ...], ...]

    @cached_property
    def key(self) -> str:
        """Equal for parts that take the same time."""
        calls = [[str(c.target), _plain(c.args), _plain(dict(c.kwargs))] for c in self.calls]
        return json.dumps([calls, self.inputs, self.constants], default=str, sort_keys=True)

    def run(self, inputs: Sequence[Tensor], constants: Sequence[Tensor]) -> list[Tensor]:
        results: list[Any] = []
        tensors = {"input": inputs, "constant": constants, "call": results}

        def given(value: Any) -> Any:
            if isinstance(value, Ref):
                return tensors[value.kind][value.number]
            return type(value)(map(given, value)) if isinstance(value, (list, tuple)) else value

        for call in self.calls:
            results.append(call.target(*map(given, call.args), **{k: given(v) for k, v in call.kwargs.items()}))
        return [results[end] for end in self.ends]


class Resizing:
    """Parts of a graph at other sizes, by the groups of its channels."""

    def __init__(self, graph: Graph, groups: Sequence[Group], trace: Trace) -> None:
        self.graph, self.lengths = graph, Lengths(trace, groups)
        self.computed = constant_calls(graph.nodes)  # weights that are computed of constants count as such

    def groups_of(self, part: Part) -> tuple[int, ...]:
        """The groups whose widths a part's shapes depend on."""
        nodes = {*part.nodes, *(source for node in part.nodes for source in node.all_input_nodes)}
        return tuple(sorted(set().union(*(self.lengths.groups_of(n) for n in nodes if _is_tensor(n)))))

    def __call__(self, part: Part, kept: Kept) -> Alone | None:
        """The part where these units stay; None where it cannot be had."""
        refs: dict[Node, Ref] = {}
        shapes: dict[str, list[tuple[int, ...]]] = {"input": [], "constant": []}
        calls = []
        for number, node in enumerate(part.nodes):
            for source in node.all_input_nodes:
                if source not in refs:
                    constant = self.graph.is_constant(source) or source in self.computed
                    kind = "constant" if constant else "input"
                    if not _is_tensor(source):
                        return None
                    refs[source] = Ref(kind, len(shapes[kind]))
                    shapes[kind].append(tuple(self.lengths.sizes(source, kept)))
            args, kwargs = map_arg((node.args, node.kwargs), cast("Any", refs.__getitem__))
            calls.append(Call(node.target, self._regrouped(node, args, kept), kwargs))
            refs[node] = Ref("call", number)
        read = {source for node in part.nodes for source in node.all_input_nodes}
        ends = tuple(number for number, node in enumerate(part.nodes) if node not in read)
        alone = Alone(tuple(calls), ends, tuple(shapes["input"]), tuple(shapes["constant"]))
        wanted = [
            tuple(self.lengths.sizes(part.nodes[end], kept)) if _is_tensor(part.nodes[end]) else () for end in ends
        ]
        return alone if _shapes(alone) == wanted else None

    def _regrouped(self, node: Node, args: Argument, kept: Kept) -> tuple[Any, ...]:
        """Arguments with the number of groups that a grouped convolution has left."""
        found = list(args)  # type: ignore[arg-type]
        if family(node) == "conv" and argument(node, "groups") > 1:
            data, weight = (self.lengths.sizes(source, kept) for source in node.all_input_nodes[:2])
            position = [a.name for a in node.target._schema.arguments].index("groups")  # type: ignore[union-attr]
            found[position] = data[value(node).dim() + 1 - len(weight)] // weight[1]
        return tuple(found)


def whole(graph: Graph) -> Alone:
    """A whole network as one part."""
    found = Resizing(graph, [], Trace(graph))(Part("", tuple(graph.calls())), [])
    if found is None:
        raise InputError("a network with inputs that are no tensors cannot be timed as one part")
    return found


class Branches(nn.Module):
    """Several parts side by side; the inputs are those of all, in order."""

    def __init__(self, parts: Sequence[Alone]) -> None:
        super().__init__()
        self.parts = parts
        self.branches = nn.ModuleList(map(_Branch, parts))

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        results, start = [], 0
        for branch, part in zip(self.branches, self.parts, strict=True):
            results += branch(*inputs[start : start + len(part.inputs)])
            start += len(part.inputs)
        return results

    def example(self) -> tuple[Tensor, ...]:
        """Made-up inputs."""
        return tuple(made_up(shape) for part in self.parts for shape in part.inputs)


class _Branch(nn.Module):
    def __init__(self, alone: Alone) -> None:
        super().__init__()
        self.alone = alone
        self.constants = nn.ParameterList(
            nn.Parameter(made_up(shape), requires_grad=False) for shape in alone.constants
        )

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        return self.alone.run(inputs, list(self.constants))


def made_up(shape: Sequence[int]) -> Tensor:
    """Positive numbers, which suit variances of batch norms as well as weights."""
    return torch.empty(tuple(shape)).uniform_(LEAST, MOST)


def _shapes(alone: Alone) -> list[tuple[int, ...]] | None:
    """Of the results; None where the calls do not take these sizes."""
    tensors = [[torch.empty(s, device="meta") for s in shapes] for shapes in (alone.inputs, alone.constants)]
    try:
        results = alone.run(*tensors)
    except (RuntimeError, IndexError, TypeError, ValueError):  # whatever an operator raises for shapes
        return None
    return [tuple(r.shape) if isinstance(r, Tensor) else () for r in results]


def _is_tensor(node: Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor) or node.op == "get_attr"


def _plain(value: Any) -> Any:
    if isinstance(value, Ref):
        return [value.kind, value.number]
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value
