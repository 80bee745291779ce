"""Removal: a graph without some of its labels, every tensor smaller.

Constants are cut to the indices that stay, under their names; calls that carry sizes, offsets or counts of groups as numbers are
given the new ones. What a call computes on the indices that stay is what it computed before.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.channels.groups import Group
from graphopt.analysis.channels.labels import Array, Columns
from graphopt.analysis.channels.trace import Trace, call_on_labels, sizes, spread
from graphopt.ir.calls import argument, operand, value
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.ops import aten, family
from graphopt.utils.errors import InputError, PassError


def remove(graph: Graph, trace: Trace, units: Iterable[tuple[Group, Iterable[int]]]) -> dict[str, Tensor]:
    """Remove units of groups from a graph, in place. Groups and trace are those of the graph as it is now, and void afterwards.

    Returns:
        For each layer's call by name the output channels that it still has, where it lost some: int64 [kept].

    Raises:
        InputError: a unit is fixed, does not exist, or is the last of its group.
    """
    labels = [_checked(group, list(chosen)) for group, chosen in units]
    if not any(len(found) for found in labels):
        return {}
    removal = _Removal(graph, trace, np.concatenate(labels))
    removal.run()
    layers = [layer for node in graph.calls() if (layer := Layer.of(node))]
    kept = {layer.node.name: removal.stays[layer.node][layer.channel_dim] for layer in layers}
    return {name: torch.from_numpy(np.flatnonzero(k)) for name, k in kept.items() if not k.all()}


def _checked(group: Group, units: list[int]) -> Array:
    outside = [u for u in units if not 0 <= u < len(group)]
    if outside:
        raise InputError(f"{group.name} has {len(group)} units, so there is no unit {outside[0]}")
    if any(group.fixed[u] for u in units):
        raise InputError(f"{group.name}: unit {next(u for u in units if group.fixed[u])} is fixed by {group.why}")
    if len(set(units)) == len(group):
        raise InputError(f"{group.name}: all of its {len(group)} units would be removed; leave at least one")
    return group.labels[units]


class _Removal:
    def __init__(self, graph: Graph, trace: Trace, labels: Array) -> None:
        self.graph = graph
        gone = np.zeros(trace.labels.count + 1, dtype=bool)  # the last is NONE's
        gone[labels] = True
        self.stays: dict[Node, list[Array]] = {}  # [size] of 0/1 for each dimension of each tensor that loses something
        self.parts: dict[Node, list[list[Array]]] = {}

        def staying(dims: list[Columns], shape: list[int]) -> list[Array]:
            kept = [np.ones(size, dtype=bool) for size in shape]
            for dim, columns in enumerate(dims):
                for column in trace.labels.resolve(columns):
                    kept[dim] &= ~gone[column]
            return kept

        for node, dims in trace.dims.items():
            self.stays[node] = staying(
                dims, sizes(value(node)) if node.op != "get_attr" else list(graph.tensor(node).shape)
            )
        for node, parts in trace.parts.items():
            shapes = [sizes(part) for part in value(node)]
            self.parts[node] = [staying(d, s) for d, s in zip(parts, shapes, strict=True)]

    def run(self) -> None:
        self.check()
        for node in self.stays:
            if node.op == "get_attr":
                self.cut(node)
        for node in self.graph.calls():
            if node in self.stays or node in self.parts:
                self.edit(node)
        self.graph.refresh()
        present = set(self.graph.nodes)
        for node, kept in self.stays.items():
            want = [int(k.sum()) for k in kept]
            if node in present and isinstance(value(node), Tensor) and want[1:] != sizes(value(node))[1:]:
                raise PassError(f"{node.name} came out as {sizes(value(node))} after removal, expected {want}")

    def check(self) -> None:
        """Units of several groups may meet in one dimension (concatenated channels, rows and columns): some must be left."""
        values = [*self.stays.items(), *((n, part) for n, parts in self.parts.items() for part in parts)]
        for node, kept in values:
            if any(len(k) and not k.any() for k in kept):
                name = str(node.target) if node.op == "get_attr" else self.graph.site(node)
                raise InputError(
                    f"nothing would be left of {name}: the groups that meet there lose all of it; remove less"
                )

    # ---- Constants --------------------------------------------------------------------------------------------------

    def cut(self, node: Node) -> None:
        kept = self.stays[node]
        if all(k.all() for k in kept):
            return
        tensor = self.graph.tensor(node)
        for dim, k in enumerate(kept):
            if not k.all():
                tensor = tensor.index_select(dim, torch.from_numpy(np.flatnonzero(k)))
        self.graph.put_constant(node, tensor.contiguous())

    # ---- Calls ------------------------------------------------------------------------------------------------------

    def edit(self, node: Node) -> None:
        kind = family(node)
        change = CHANGES.get(node.target) or CHANGES.get(kind)
        source = node.args[0] if node.args else None
        if change is None or not isinstance(source, Node) or source not in self.stays:
            return
        involved = [
            *self.stays[source],
            *self.stays.get(node, []),
            *(k for part in self.parts.get(node, []) for k in part),
        ]
        if not all(k.all() for k in involved):
            change(self, node)

    def length(self, node: Node, dim: int) -> int:
        return int(self.stays[node][dim].sum())

    def reshape(self, node: Node) -> None:
        """Sizes spelled out; one that is a free size times a number is scaled."""
        spec = next(a.name for a in node.target._schema.arguments if a.name in ("size", "shape", "sizes"))  # type: ignore[union-attr]
        first = argument(node, "dim") % value(operand(node)).dim() if "unflatten" in str(node.target) else 0
        new: list[Any] = []
        for offset, old in enumerate(argument(node, spec)):
            kept = self.stays[node][first + offset]
            if kept.all() or (isinstance(old, int) and old == -1):
                new.append(old)
            elif isinstance(old, int):
                new.append(int(kept.sum()))
            else:
                share = math.gcd(int(kept.sum()), len(kept))
                scaled = self.graph.call(operator.mul, old, int(kept.sum()) // share, before=node)
                new.append(self.graph.call(operator.floordiv, scaled, len(kept) // share, before=node))
        self.set(node, spec, new)

    def cut_slice(self, node: Node) -> None:
        """A range of the indices that stay; where they no longer are a range, they are listed."""
        source = operand(node)
        shape = sizes(value(source))
        dim = 1 if family(node) == "shuffle" else (argument(node, "dim") or 0) % len(shape)
        kept = self.stays[source][dim]
        if kept.all():  # another dimension loses some; this one may be a free size
            return
        (moved,) = call_on_labels(self.graph, node, spread(np.arange(len(kept)), dim, shape))
        chosen = moved.movedim(dim, 0).flatten(1)[:, 0].numpy()
        rank = np.cumsum(kept) - 1
        new = rank[chosen[self.stays[node][dim]]]
        if len(new) and np.array_equal(new, np.arange(new[0], new[0] + len(new))):
            call = (aten.slice.Tensor, source, dim, int(new[0]), int(new[-1]) + 1)
        else:
            index = self.graph.add_constant(f"{node.name}_index", torch.from_numpy(new), before=node)
            call = (aten.index_select.default, source, dim, index)  # type: ignore[assignment]
        self.replace(node, self.graph.call(*call, before=node))

    def move_range(self, node: Node) -> None:
        source = operand(node)
        kept = self.stays[source][(argument(node, "dim") or 0) % value(source).dim()]
        if kept.all():
            return
        start, end, step = slice(argument(node, "start"), argument(node, "end"), argument(node, "step")).indices(
            len(kept)
        )
        if step != 1:
            raise PassError(f"{node.name} writes every {step}th index of channels that are removed")
        self.set(node, "start", int(kept[:start].sum()))
        self.set(node, "end", int(kept[:end].sum()))

    def select(self, node: Node) -> None:
        source, dim, position = node.args
        kept = self.stays[source][dim % value(source).dim()]  # type: ignore[index, arg-type]
        if kept.all():
            return
        self.set(node, "index", int(kept[: position % len(kept)].sum()))  # type: ignore[operator]

    def split(self, node: Node) -> None:
        source = operand(node)
        dim = (argument(node, "dim") or 0) % value(source).dim()
        if self.stays[source][dim].all():
            return
        lengths = [int(part[dim].sum()) for part in self.parts[node]]
        new = self.graph.call(aten.split_with_sizes.default, source, lengths, dim, before=node)
        self.replace(node, new)

    def pad(self, node: Node) -> None:
        amounts = list(argument(node, "pad"))
        for back in range(1, len(amounts) // 2 + 1):
            before, after = amounts[2 * back - 2 : 2 * back]
            kept = self.stays[node][-back]
            if not kept.all():
                amounts[2 * back - 2 : 2 * back] = [int(kept[:before].sum()), int(kept[len(kept) - after :].sum())]
        self.set(node, "pad", amounts)

    def groups(self, node: Node) -> None:
        """Of the rows of a [groups, size / groups] grid, those that stay."""
        source = operand(node)
        name = "num_groups" if family(node) is None else "groups"
        count = argument(node, name)
        channel = (
            1
            if family(node) not in ("conv", "conv_transpose")
            else value(source).dim() + 1 - value(operand(node, 1)).dim()
        )
        rows = self.stays[source][channel].reshape(count, -1).any(1)
        if not rows.all():
            self.set(node, name, int(rows.sum()))

    def normalized(self, node: Node) -> None:
        count = len(argument(node, "normalized_shape"))
        source = operand(node)
        dims = value(source).dim()
        shape = [self.length(source, d) for d in range(dims - count, dims)]
        self.set(node, "normalized_shape", shape)

    def attention(self, node: Node) -> None:
        """Products of queries and keys keep the scale they had."""
        width = len(self.stays[node.args[0]][-1])  # type: ignore[index]
        if argument(node, "scale") is None:
            node.update_kwarg("scale", 1 / math.sqrt(width))

    def squeeze(self, node: Node) -> None:
        """Only what had size one before is squeezed."""
        source = operand(node)
        single = [d for d, size in enumerate(sizes(value(source))) if size == 1]
        self.replace(node, self.graph.call(aten.squeeze.dims, source, single, before=node))

    def replace(self, old: Node, new: Node) -> None:
        if old in self.stays:
            self.stays[new] = self.stays.pop(old)
        if old in self.parts:
            self.parts[new] = self.parts.pop(old)
        new.meta["val"] = value(old)
        self.graph.replace(old, new)

    def set(self, node: Node, name: str, new: Any) -> None:
        names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
        position = names.index(name)
        if position < len(node.args):
            node.update_arg(position, new)
        else:
            node.update_kwarg(name, new)


CHANGES: dict[Any, Callable[[_Removal, Node], None]] = {
    **dict.fromkeys(
        [
            aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.unflatten.int, aten.expand.default,
        ],
        _Removal.reshape,
    ),
    **dict.fromkeys(
        [aten.slice.Tensor, aten.narrow.default, aten.index_select.default, aten.channel_shuffle.default],
        _Removal.cut_slice,
    ),
    aten.slice_scatter.default: _Removal.move_range,
    aten.select.int: _Removal.select,
    "split": _Removal.split,
    "pad": _Removal.pad,
    "conv": _Removal.groups,
    "conv_transpose": _Removal.groups,
    aten.group_norm.default: _Removal.groups,
    aten.layer_norm.default: _Removal.normalized,
    aten.rms_norm.default: _Removal.normalized,
    aten.scaled_dot_product_attention.default: _Removal.attention,
    aten.squeeze.default: _Removal.squeeze,
}  # fmt: skip
