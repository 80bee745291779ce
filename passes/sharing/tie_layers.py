"""Let repeated layers share their parameters, as those of ALBERT do.

    encoder.layer.0 ... encoder.layer.11   ->   12 calls of one set of weights (keep=1), or of several, each for a run of layers

What repeats is found by name: parameters that differ in one number alone, of equal shapes, for the same rest of the name. Each
run of layers takes the weights of one of its members, or their mean: with data whichever changes the output least when those
before it are tied already; without, those of the member in the middle. Nothing is computed less; a file, and what trains, is
smaller. Without training much is lost: `graphopt.train(graph, data, compress=[Response(model)])` trains the shared weights,
gradients of all calls together.

Needs:  parameters of equal shapes. Statistics of batch norms stay each layer's own; measure them anew (`ReestimateBatchNorm`).
Papers: Lan et al. 2020, "ALBERT", section 3.1; Dehghani et al. 2019, "Universal Transformers".
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.fx.node import Node

from graphopt.analysis.output_error import Probe
from graphopt.ir.graph import Graph
from graphopt.ir.passes import Change, in_eval_mode
from graphopt.utils.checks import check_count, check_repeatable
from graphopt.utils.errors import InputError
from graphopt.utils.progress import track

Layers = dict[int, dict[str, Node]]  # number of a layer -> rest of a parameter's name -> the parameter


@dataclass(frozen=True)
class Stack:
    """Layers that repeat.

    Attributes:
        name: what is in front of their numbers, such as `encoder.layer`; empty where that is the model itself.
        layers: of equal parameters.
    """

    name: str
    layers: Layers

    def runs(self, keep: int) -> list[list[int]]:
        """The numbers of the layers, in order, in so many runs of lengths that differ by one at most."""
        numbers = sorted(self.layers)
        keep = min(keep, len(numbers))
        ends = [round(len(numbers) * part / keep) for part in range(keep + 1)]
        return [numbers[first:end] for first, end in itertools.pairwise(ends)]


@dataclass(frozen=True)
class TieLayers:
    """Tie layers.

    Attributes:
        keep: different layers that stay of each stack.
        layers: a pattern of names of stacks, such as `*encoder.layer`; None: every stack.
        data: batches of inputs, on which weights are chosen.

    Raises:
        InputError: an option does not fit, or no layers repeat (those that do are named).
    """

    exact: ClassVar[bool] = False

    keep: int = 1
    layers: str | None = None
    data: Iterable[list[Tensor]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_count("keep", self.keep)
        check_repeatable(self.data)

    @in_eval_mode
    def __call__(self, graph: Graph) -> list[Change]:
        found = stacks(graph)
        chosen = [stack for stack in found if self.layers is None or fnmatchcase(stack.name, self.layers)]
        if self.layers is not None and not chosen and not any(fnmatchcase(name, self.layers) for name in _stems(graph)):
            known = ", ".join(repr(stack.name) for stack in found) or "none"
            raise InputError(f"the pattern {self.layers!r} matches no layers that repeat; there are: {known}")
        runs = [(stack, run) for stack in chosen for run in stack.runs(self.keep) if len(run) > 1]
        if not runs:
            return []
        probe = None if self.data is None else Probe(graph.clone(share_weights=True), self.data)
        return [self.tie(graph, stack, run, probe) for stack, run in track(runs, "tying layers")]

    def tie(self, graph: Graph, stack: Stack, run: Sequence[int], probe: Probe | None) -> Change:
        members = [stack.layers[number] for number in run]
        which, weights = _chosen(graph, members, run, probe)
        for rest, node in members[0].items():
            graph.put_constant(node, weights[rest])
            for other in members[1:]:
                other[rest].replace_all_uses_with(node)
        graph.sweep()
        return Change(stack.name or "the model", f"layers {', '.join(map(str, run))} share their parameters, {which}")


def stacks(graph: Graph) -> list[Stack]:
    """The layers that repeat, in the order in which they are first read; of layers inside others the outer ones."""
    found: list[Stack] = []
    for stem, layers in _stems(graph).items():
        by_shape: dict[tuple[tuple[str, tuple[int, ...]], ...], Layers] = {}
        for number, parts in layers.items():
            shapes = tuple(sorted((rest, tuple(graph.tensor(node).shape)) for rest, node in parts.items()))
            by_shape.setdefault(shapes, {})[number] = parts
        inside = any(not stack.name or stem.startswith(f"{stack.name}.") for stack in found)
        found += [Stack(stem, alike) for alike in by_shape.values() if len(alike) > 1 and not inside]
    return found


def _stems(graph: Graph) -> dict[str, Layers]:
    """Parameters by what is in front of a number in their name, the number, and the rest; shorter fronts first."""
    found: dict[str, Layers] = {}
    for node in graph.nodes:
        if node.op == "get_attr" and isinstance(graph.parameter(node), nn.Parameter):
            for stem, number, rest in _splits(str(node.target)):
                found.setdefault(stem, {}).setdefault(number, {})[rest] = node
    return dict(sorted(found.items(), key=lambda item: len(item[0].split(".")) if item[0] else 0))


def _splits(name: str) -> Iterator[tuple[str, int, str]]:
    parts = name.split(".")
    for place, part in enumerate(parts):
        if part.isdigit() and place + 1 < len(parts):
            yield ".".join(parts[:place]), int(part), ".".join(parts[place + 1 :])


def _chosen(
    graph: Graph, members: Sequence[Mapping[str, Node]], run: Sequence[int], probe: Probe | None
) -> tuple[str, dict[str, Tensor]]:
    """The weights that all members get, and whose they are."""
    values = [{rest: graph.tensor(node) for rest, node in member.items()} for member in members]
    if probe is None:
        middle = (len(run) - 1) // 2
        return f"those of {run[middle]}", values[middle]
    mean = {rest: torch.stack([value[rest] for value in values]).mean(0) for rest in values[0]}
    options = {**{f"those of {number}": value for number, value in zip(run, values, strict=True)}, "their mean": mean}
    damages = {}
    for name, weights in options.items():
        changed = {str(member[rest].target): weights[rest] for member in members for rest in member}
        damages[name] = _damage(probe, graph, changed)
    best = min(damages, key=damages.__getitem__)
    return best, options[best]


def _damage(probe: Probe, graph: Graph, changed: Mapping[str, Tensor]) -> float:
    """At the output, of the graph as it is now with these weights."""
    trial = graph.clone(share_weights=True)
    for node in [n for n in trial.nodes if n.op == "get_attr" and str(n.target) in changed]:
        trial.put_constant(node, changed[str(node.target)])
    return probe.damage(trial)
