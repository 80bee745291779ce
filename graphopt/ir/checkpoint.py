"""A captured model's own checkpoint, as its graph takes it.

"head.weight" of a tied layer          ->   the weight's first name
"bn.num_batches_tracked", "mask"       ->   nothing: no output depends on it
"proj.weight" [in, out] of x @ W       ->   "proj.weight" [out, in] of linear(x, W^T)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Entry:
    """A constant of the graph that is a tensor of the model's `state_dict`.

    Attributes:
        name: of the constant.
        transposed: whether it is the transpose.
    """

    name: str
    transposed: bool = False


Entries = dict[
    str, tuple[Entry, ...]
]  # name in the model's `state_dict` -> the constants that it is, which may be none


def entries(model: nn.Module, first_names: Mapping[str, str], constants: Collection[str]) -> Entries:
    """For each name of the model's `state_dict` that the graph calls otherwise, or does not have, what becomes of it."""
    names = {name: first_names.get(name, name) for name in model.state_dict()}
    found = {name: (Entry(first),) if first in constants else () for name, first in names.items()}
    return {name: entry for name, entry in found.items() if entry != (Entry(name),)}


def translated(state: Mapping[str, Tensor], known: Entries) -> dict[str, Tensor]:
    """A checkpoint of the model with the graph's names; other names stay, and what belongs to no constant is left out."""
    return {
        entry.name: tensor.T if entry.transposed else tensor
        for name, tensor in state.items()
        for entry in known.get(name, (Entry(name),))
    }
