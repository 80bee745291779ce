"""The smaller graph that a choice of options is: what was not chosen is gone, with its weights.

1. Of every `choose`, the option that has weight one takes its place.
2. Of every `keep`, what has weight zero is remembered, and the constant takes its place.
3. Channels that no longer count are removed (`graphopt.analysis.channels.removal`); where they have to stay, the weights that the
   graph held at zero are zeros.
4. Weights that are computed from constants, such as those of smaller kernels, are constants again.

Answers are those of the graph with these options, up to float rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.channels.groups import Group, groups
from graphopt.analysis.channels.labels import Array
from graphopt.analysis.channels.removal import remove
from graphopt.analysis.channels.trace import Trace
from graphopt.ir.choices import CHOOSE, KEEP, assign, generated, weights_of
from graphopt.ir.constants import fold_weights
from graphopt.ir.graph import Graph
from graphopt.utils.errors import InputError

Gone = dict[tuple[Node, int], Array]  # of a constant and a dimension: bool [its size], what does not count


def extract(graph: Graph, chosen: Sequence[int] | Mapping[str, int] | None = None) -> Graph:
    """An ordinary graph with one option of each choice, and weights of its own.

    Args:
        graph: with choices; it stays as it is.
        chosen: as for `graphopt.ir.choices.assign`; None: what the graph is set to.

    Raises:
        InputError: options do not fit, or weights of a choice mix several options.
    """
    return extracted(graph, chosen)[0]


def extracted(graph: Graph, chosen: Sequence[int] | Mapping[str, int] | None = None) -> tuple[Graph, dict[str, Tensor]]:
    """The same, and for each layer's call by name the output channels that it still has, where it lost some."""
    copy = graph.clone()
    if chosen is not None:
        assign(copy, chosen)
    for node, constant in generated(copy):
        copy.put_constant(constant, copy.tensor(node).clone())
        copy.replace(node, constant)
    for call in copy.calls(CHOOSE):
        copy.replace(call, call.args[0][_option(copy, call)])  # type: ignore[index, arg-type]
    gone = _narrowed(copy)
    copy.refresh()
    present = set(copy.nodes)
    kept = remove_unread(copy, {at: which for at, which in gone.items() if at[0] in present})
    fold_weights(copy)
    return copy, kept


def _option(graph: Graph, call: Node) -> int:
    """The number of the option that a call has."""
    weights = graph.tensor(call.args[1])  # type: ignore[arg-type]
    if int((weights == 1).sum()) != 1 or int((weights != 0).sum()) != 1:
        node = weights_of(graph, call)
        name = graph.site(call) if node is None else str(node.target)
        raise InputError(
            f"{name} mixes its options by weights {[round(w, 3) for w in weights.tolist()]}; say which it is to be: "
            "extract(graph, options)"
        )
    return int(weights.argmax())


def _narrowed(graph: Graph) -> Gone:
    """Every `keep` taken away; what they held at zero."""
    gone: Gone = {}
    for call in graph.calls(KEEP):
        level = graph.tensor(call.args[2])[_option(graph, call)]  # type: ignore[arg-type]
        at = call.args[0], int(call.args[3])  # type: ignore[arg-type]
        graph.replace(call, call.args[0])  # type: ignore[arg-type]
        if bool((level == 0).any()):
            lost = (level == 0).numpy()
            gone[at] = gone[at] | lost if at in gone else lost  # type: ignore[index]
    return gone


def remove_unread(graph: Graph, gone: Gone) -> dict[str, Tensor]:
    """Remove channels of which nothing counts in one of the constants that make or read them; the rest becomes zeros. What is
    left of which layer, as `remove` has it."""
    trace = Trace(graph)
    found = [(group, units) for group in groups(graph, trace) if (units := _units(group, gone))]
    left = {at: which.copy() for at, which in gone.items()}
    for group, units in found:
        for member in group.members:
            if (member.node, member.dim) in left:
                left[member.node, member.dim] &= ~np.isin(member.units, units)
    for (node, dim), which in left.items():
        if which.any():
            kept = torch.from_numpy(~which).to(graph.tensor(node).dtype)
            tensor = graph.tensor(node)
            graph.put_constant(node, tensor * kept.view([-1 if d == dim else 1 for d in range(tensor.dim())]))
    return remove(graph, trace, found)


def _units(group: Group, gone: Gone) -> list[int]:
    """The units of a group that can go, as nothing of them counts in one of its constants."""
    lost = set[int]()
    for member in group.members:
        which = gone.get((member.node, member.dim))
        if which is not None:
            own = member.units >= 0
            lost |= set(member.units[own & which].tolist()) - set(member.units[own & ~which].tolist())
    return group.removable(sorted(lost))
