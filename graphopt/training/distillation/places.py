"""Where a student and a teacher are compared.

A place is one value of a graph, or several that belong together (queries, keys and values of an attention; the first and the last
value of a stage). Places are named as reports name layers, or found by a rule:

    outputs          what the model answers (its logits), whatever the model is
    gradients        outputs and inputs, of which derivatives are taken
    features         what the last layer reads, [N, features]
    stages           the last value of each resolution, [N, channels, *size]
    last             the last of these
    flow             the first and the last value of each resolution
    preactivations   what the activations at the ends of stages read
    attention        queries, keys and values of each attention
    last_attention   those of the last one
    hidden           hidden states behind each attention, [N, tokens, features]
    common           every layer that both networks have under one name, such as a network and its pruned or quantized self

Resolutions are those that convolutions compute, larger than one position. A network without convolutions has no stages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.ir.calls import is_float, operand
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.ops import info
from graphopt.training.distillation.attention import Read, attentions, has_tokens, states
from graphopt.utils.errors import InputError, alternatives, suggestion
from graphopt.utils.quantities import few

Shape = tuple[int, ...]
Names = Sequence[str | tuple[str, str]]


class Answer:
    """Stands for what a network answers, as a node does for a value."""

    def __init__(self, example: Tensor) -> None:
        self.meta = {"val": example}


@dataclass(frozen=True)
class Place:
    """Values of a network that belong together.

    Attributes:
        name: what messages call it.
        nodes: whose values.
        read: what is made of them first; None: they are taken as they are, tokens [N, tokens, features] as [N, features, tokens].
    """

    name: str
    nodes: tuple[Node | Answer, ...]
    read: Read | None = None

    def values(self, known: Mapping[Any, Any]) -> tuple[Tensor, ...]:
        found = tuple(known[node] for node in self.nodes)
        if self.read is not None:
            return self.read(found)
        return tuple(v.movedim(-1, 1) if has_tokens(n) else v for n, v in zip(self.nodes, found, strict=True))

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Sizes behind the batch; channels or features first."""
        sizes = [tuple(map(number, node.meta["val"].shape[1:])) for node in self.nodes]
        return tuple(s[-1:] + s[:-1] if has_tokens(n) else s for n, s in zip(self.nodes, sizes, strict=True))

    def __add__(self, other: Place) -> Place:
        return Place(f"{self.name} and {other.name}", self.nodes + other.nodes)


Pair = tuple[Place, Place]  # of student and teacher


def pairs(student: Graph, teacher: Graph, rule: str, names: Names | None = None) -> list[Pair]:
    """Places of both networks, one of each in a pair.

    Args:
        rule: how they are found; see the head of this file.
        names: instead; a name in both, or (name in the student, name in the teacher).

    Raises:
        InputError: an unknown name or rule, or nothing found.
    """
    known = ("outputs", "common", *RULES)
    if rule not in known:
        raise InputError(f"unknown places {rule!r}; {alternatives(rule, known, 'places')}")
    if names is not None:
        both = [(name, name) if isinstance(name, str) else name for name in names]
        if not both:
            raise InputError("places is empty; name at least one, or leave it out")
        of = attention if rule in ("attention", "last_attention") else None
        return [(named(student, s, "student", of), named(teacher, t, "teacher", of)) for s, t in both]
    if rule == "common":
        return common(student, teacher)
    return matched(found(student, rule, "student"), found(teacher, rule, "teacher"))


def matched(student: list[Place], teacher: list[Place]) -> list[Pair]:
    """By name where the teacher has all of the student's names, else from the last one backwards."""
    known = {place.name: place for place in teacher}
    if len(known) == len(teacher) == len(student) and all(place.name in known for place in student):
        return [(place, known[place.name]) for place in student]
    count = min(len(student), len(teacher))
    return list(zip(student[-count:], teacher[-count:], strict=True))


def found(graph: Graph, rule: str, whose: str) -> list[Place]:
    """The places of one graph.

    Raises:
        InputError: there are none.
    """
    places = RULES[rule](graph)
    if not places:
        raise InputError(
            f"the {whose} has no {rule}: {MISSING.get(rule, 'no convolution has more than one position')}; name places instead"
        )
    return places


def named(graph: Graph, name: str, whose: str, of: Callable[[Graph], list[Place]] | None = None) -> Place:
    """The last value that a layer or block of this name computes, or the place of a rule with this name.

    Raises:
        InputError: there is none; says what is near.
    """
    if of is not None:
        known = {place.name: place for place in of(graph)}
        if name in known:
            return known[name]
        raise InputError(f"the {whose} has no attention {name!r}; {suggestion(name, known)}{_listed(known)}")
    calls = [node for node in graph.calls() if is_float(node)]
    own = [node for node in calls if name in (graph.site(node), node.name)]
    inner = own or [node for node in calls if graph.site(node).startswith(name + ".")]
    if inner:
        return Place(name, (inner[-1],))
    sites = dict.fromkeys(part for node in calls for part in _prefixes(graph.site(node)))
    raise InputError(f"the {whose} has no place {name!r}; {suggestion(name, sites)}{_listed(sites)}")


def common(student: Graph, teacher: Graph) -> list[Pair]:
    """The last values of the layers with weights that both have under one name.

    Raises:
        InputError: there are none.
    """
    mine, theirs = _layers(student), _layers(teacher)
    both = [name for name in mine if name in theirs]
    if not both:
        raise InputError(
            f"student and teacher have no layer of the same name ({few(list(mine), 8)}; {few(list(theirs), 8)}); name pairs: "
            "places=[(student's, teacher's), ...]"
        )
    return [(Place(name, (mine[name],)), Place(name, (theirs[name],))) for name in both]


# ---- Rules ----------------------------------------------------------------------------------------------------------


def gradients(graph: Graph) -> list[Place]:
    answers, inputs = ([node for node in nodes if is_float(node)] for nodes in (graph.outputs, graph.inputs))
    return [Place("gradients", (answers[0], inputs[0]))] if len(answers) == 1 and inputs else []


def features(graph: Graph) -> list[Place]:
    """What the last layer reads."""
    layers = list(_layers(graph).values())
    return [Place("features", (operand(layers[-1]),))] if layers else []


def stages(graph: Graph) -> list[Place]:
    return [Place(graph.site(values[-1]), (values[-1],)) for values in _resolutions(graph)]


def last(graph: Graph) -> list[Place]:
    return stages(graph)[-1:]


def flow(graph: Graph) -> list[Place]:
    ranges = [values for values in _resolutions(graph) if values[0] is not values[-1]]
    return [Place(graph.site(values[-1]), (values[0], values[-1])) for values in ranges]


def preactivations(graph: Graph) -> list[Place]:
    """Values in front of the activation that ends a stage; where none does, its last value."""
    found = []
    for values in _resolutions(graph):
        end = values[-1]
        source = end.all_input_nodes[0] if _ends_activated(end) else end
        found.append(Place(graph.site(end), (source,)))
    return found


def attention(graph: Graph) -> list[Place]:
    return [Place(*each) for each in attentions(graph)]


def hidden(graph: Graph) -> list[Place]:
    return [Place(graph.site(node), (node,)) for node in states(graph)]


RULES: dict[str, Callable[[Graph], list[Place]]] = {
    "gradients": gradients, "features": features, "stages": stages, "last": last, "flow": flow,
    "preactivations": preactivations, "attention": attention, "last_attention": lambda graph: attention(graph)[-1:],
    "hidden": hidden,
}  # fmt: skip
MISSING = {
    "gradients": "it does not return exactly one floating-point tensor of a floating-point input",
    "features": "it has no layer with weights",
    **dict.fromkeys(("attention", "last_attention", "hidden"), "no call of scaled_dot_product_attention"),
}


def _resolutions(graph: Graph) -> list[list[Node]]:
    """The values of each resolution from its first convolution on, in the order of their last ones."""
    found: dict[Shape, list[Node]] = {}
    for node in graph.calls():
        size = _size(node)
        if size is not None and (size in found or info(node).family in ("conv", "conv_transpose")):
            found.setdefault(size, []).append(node)
    return sorted(found.values(), key=lambda values: values[-1])


def number(size: Any) -> int:
    """A size, of a free one that of the example; asking `int` would fix it for good."""
    return int(size.node.hint) if isinstance(size, torch.SymInt) else int(size)


def _size(node: Node) -> Shape | None:
    """Of a map with several positions."""
    value = node.meta.get("val")
    if not is_float(node) or not isinstance(value, Tensor) or value.dim() < 3:
        return None
    size = tuple(map(number, value.shape[2:]))
    return size if math.prod(size) > 1 else None


def _layers(graph: Graph) -> dict[str, Node]:
    """Convolutions and linear layers by name; the last one where a name has several."""
    return {graph.site(node): node for node in graph.calls() if Layer.of(node) is not None}


def _ends_activated(node: Node) -> bool:
    return info(node).pointwise and len([n for n in node.all_input_nodes if is_float(n)]) == 1


def _prefixes(site: str) -> list[str]:
    parts = site.split(".")
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


def _listed(names: Any) -> str:
    return f"it has {few(list(names), 8)}"
