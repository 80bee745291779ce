"""Parts of a network that experts can stand for: what is computed of one value of each sample, with weights that are there.

blocks    the branch of a residual block
layers    a convolution or linear layer, with the batch norm and the activation behind it
mlps      two linear layers with an activation in between
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch.fx.node import Node

from graphopt.analysis.blocks import blocks
from graphopt.ir.batches import of_samples
from graphopt.ir.calls import is_float, operand, value
from graphopt.ir.graph import Graph
from graphopt.ir.layer import BatchNorm, Layer
from graphopt.ir.ops import function_of_one
from graphopt.ir.reading import leading
from graphopt.passes.experts.sites import mlps
from graphopt.passes.experts.weighted import weighted
from graphopt.utils.checks import matching
from graphopt.utils.errors import InputError

KINDS = ("blocks", "layers", "mlps")


class Part(NamedTuple):
    """What is computed of a value.

    Attributes:
        name: of its module. entry: the value. calls: in execution order. end: the one that others read.
        last: whether channels are the last dimension of the entry.
    """

    name: str
    entry: Node
    calls: list[Node]
    end: Node
    last: bool


def chosen_parts(graph: Graph, kind: str, patterns: str | Sequence[str]) -> list[Part]:
    """The parts of a kind that patterns name, or all of them for `auto`, in execution order.

    Raises:
        InputError: there are none; a pattern names none, or only layers that cannot have experts.
    """
    if kind == "layers":
        return [_layer(graph, layer) for layer in chosen_layers(graph, ("conv", "linear"), patterns)]
    known = _blocks(graph) if kind == "blocks" else _mlps(graph)
    if not known:
        what = "residual block" if kind == "blocks" else "two linear layers with an activation in between,"
        raise InputError(
            f"the graph has no {what} whose values are floats of samples, so there is nothing to make experts of"
        )
    return matching(known, patterns, lambda part: part.name, f"none of the {kind} is called", kind)


def chosen_layers(graph: Graph, kinds: Sequence[str], patterns: str | Sequence[str]) -> list[Layer]:
    """The layers of these kinds that patterns name and that can have experts.

    Raises:
        InputError: there are none; a pattern names none, or only such that cannot have experts, with the reason.
    """
    layers = [layer for node in graph.calls() if (layer := Layer.of(node)) is not None]
    reasons = {layer.node: _unfit(graph, layer, kinds) for layer in layers}
    known = [layer for layer in layers if reasons[layer.node] is None]
    for pattern in [] if isinstance(patterns, str) else patterns:
        named = [layer for layer in layers if fnmatchcase(graph.site(layer.node), pattern)]
        if named and all(reasons[layer.node] is not None for layer in named):
            raise InputError(f"{graph.site(named[0].node)!r} cannot have experts: {reasons[named[0].node]}")
    if not known:
        why = "; ".join(f"{graph.site(layer.node)!r}: {reasons[layer.node]}" for layer in layers[:3])
        raise InputError(f"no layer of the graph can have experts{f' ({why})' if why else ': it has no layers'}")
    return matching(known, patterns, lambda layer: graph.site(layer.node), "no layer is called", "layers")


def _unfit(graph: Graph, layer: Layer, kinds: Sequence[str]) -> str | None:
    """Why a layer cannot have experts; None where it can."""
    if layer.kind not in kinds:
        return f"it is no {' or '.join('convolution' if kind == 'conv' else f'{kind} layer' for kind in kinds)}"
    if weighted(graph, layer.node) is not None:
        return "its kernel is a sum of experts already"
    if not graph.is_constant(layer.weight) or (layer.bias is not None and not graph.is_constant(layer.bias)):
        return "its weights are computed by the graph"
    if not is_float(layer.node) or not is_float(layer.input):
        return "it does not compute on floats"
    dims = value(layer.node).dim()
    if not (layer.dims + 2 == dims if layer.dims else dims >= 2):
        return f"its values have no dimension of samples, {list(value(layer.node).shape)}"
    if not of_samples(graph, layer.input) or not of_samples(graph, layer.node):
        return "the first dimension of its values does not count samples, so nothing can be decided for each"
    return None


def _layer(graph: Graph, layer: Layer) -> Part:
    calls = [layer.node]
    while len(calls[-1].users) == 1:
        (reader,) = calls[-1].users
        norm = BatchNorm.of(reader)
        if not (reader.args and reader.args[0] is calls[-1] and (norm is not None or function_of_one(reader))):
            break
        calls.append(reader)
        if norm is None:
            break
    return Part(graph.site(layer.node), layer.input, calls, calls[-1], layer.kind == "linear")


def _mlps(graph: Graph) -> list[Part]:
    found = [Part(m.name, operand(m.up), [m.up, m.activation, m.down], m.down, True) for m in mlps(graph)]
    return [part for part in found if value(part.end).dim() > 1 and of_samples(graph, part.entry)]


def _blocks(graph: Graph) -> list[Part]:
    found = []
    for block in blocks(graph):
        outside = leading(block.entry) | leading(block.shortcut)
        calls = sorted(node for node in leading(block.branch) - outside if node.op == "call_function")
        first = next((layer for node in calls if (layer := Layer.of(node)) is not None), None)
        found.append(Part(block.name, block.entry, calls, block.branch, first is not None and first.kind == "linear"))
    return found
