"""Weights of an elastic network that a small network makes for the widths at hand: MetaPruning.

    e = [share of the channels that are read, share that are made]            of a layer: its choices of width
    W(e) = W + V relu(U e + u)                U: [hidden, widths], V: [elements of W, hidden]

W is the bias of the second of two linear layers, as it was before; V begins at zero, so that the answers stay. Trained with drawn
widths, the network answers at each of them with weights of their own, and a search ranks widths by that:

    train(graph, loader, compress=[GeneratedWeights(), SinglePath()], epochs=10)
    found = graphopt.supernets.search(graph, {"macs": 0.5}, evaluate=accuracy, data=images)

The expressions stay in the graph, which is saved and searched with them; `extract` computes them for the network taken out.

Paper:  Liu et al. 2019, "MetaPruning: Meta Learning for Automatic Neural Network Channel Pruning", section 3.1 (where each block
        has two such layers, and W none of its own).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.fx.node import Node

from graphopt.ir.build import Build
from graphopt.ir.choices import KEEP, WEIGHTS, generated_from, weights_of
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.ops import aten
from graphopt.ir.passes import Change
from graphopt.training.compression import Compression
from graphopt.utils.checks import check_count
from graphopt.utils.errors import InputError

LEVELS = 2  # the argument of `keep` that says what counts


class GeneratedWeights(Compression):
    """See the head of this file.

    Args:
        hidden: numbers between the two linear layers.
        seed: of U and u.

    Raises:
        InputError: no layer of the graph has channels whose number is a choice.
    """

    def __init__(self, hidden: int = 32, *, seed: int = 0) -> None:
        check_count("hidden", hidden)
        self.hidden, self.seed = hidden, seed

    def attach(self, graph: Graph) -> list[Change]:
        held = _held(graph)
        if not held:
            raise InputError(
                "no layer has widths to choose; make the graph elastic first: graphopt.passes.elastic.Elastic()(graph)"
            )
        made = torch.Generator().manual_seed(self.seed)
        changes = []
        for weight, keeps in held.items():
            if all(generated_from(graph, keep.args[0]) is None for keep in keeps):  # a training that goes on has them
                self._generate(graph, weight, keeps, made)
                changes.append(Change(str(weight.target), f"generated for {len(keeps)} widths"))
        graph.refresh()
        return changes

    def _generate(self, graph: Graph, weight: Node, keeps: Sequence[Node], made: torch.Generator) -> None:
        readers, name = list(weight.users), str(weight.target)
        before = min(readers)
        tensor = graph.tensor(weight)

        def constant(what: str, value: torch.Tensor, like: Sequence[Node] = ()) -> Node:
            return graph.add_constant(f"{name}_{what}", value, before=before, like=like)

        call = Build(graph, before, {}).call
        shares = []
        for number, keep in enumerate(keeps):
            levels = graph.tensor(keep.args[LEVELS])  # type: ignore[arg-type]
            share = constant(f"shares_{number}", levels.mean(1, keepdim=True))
            shares.append(call(aten.matmul.default, call(aten.unsqueeze.default, keep.args[WEIGHTS], 0), share))
        encoding = call(aten.cat.default, shares, 1)
        spread = 1 / math.sqrt(len(keeps))
        u = constant("encoder", torch.randn(len(keeps), self.hidden, generator=made) * spread, [weight])
        shift = constant("encoder_shift", torch.randn(self.hidden, generator=made) * spread, [weight])
        v = constant("generator", torch.zeros(self.hidden, tensor.numel()), [weight])
        inside = call(aten.relu.default, call(aten.add.Tensor, call(aten.matmul.default, encoding, u), shift))
        more = call(aten.reshape.default, call(aten.matmul.default, inside, v), list(tensor.shape))
        whole = call(aten.add.Tensor, weight, more)
        for reader in readers:
            reader.replace_input_with(weight, whole)


def _held(graph: Graph) -> dict[Node, list[Node]]:
    """The trained weights of layers that are held at zero by choices, and the calls of `keep` that do so, the first one first."""
    found: dict[Node, list[Node]] = {}
    for node in graph.calls():
        layer = Layer.of(node)
        keeps, source = [], layer.weight if layer else None
        while isinstance(source, Node) and source.target is KEEP:
            keeps.append(source)
            source = source.args[0]  # type: ignore[assignment]
        weight = generated_from(graph, source) or source
        known = (
            isinstance(weight, Node) and graph.is_constant(weight) and isinstance(graph.parameter(weight), nn.Parameter)
        )
        if keeps and known and all(weights_of(graph, keep) is keep.args[WEIGHTS] for keep in keeps):
            found.setdefault(weight, keeps[::-1])  # type: ignore[arg-type]
    return found
