"""From what users call a batch to the list of tensors a graph takes, with an explanation where it does not fit.

A batch may be a tensor, a numpy array, an (input, label) pair, a tuple of inputs, or a dictionary by input name.
Whatever comes beyond the inputs the graph takes (labels, file names) is dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor

from graphopt.ir import sizes
from graphopt.ir.batches import batched
from graphopt.ir.graph import Example, Graph
from graphopt.ir.sizes import FreeSize
from graphopt.utils import printing
from graphopt.utils.errors import InputError
from graphopt.utils.printing import dtype_name

BATCH = 32  # samples taken at a time where the source does not say


@dataclass(frozen=True)
class Input:
    """What a graph takes at one place.

    Attributes:
        name: the graph's name for it.
        keys: the names users may know it by: `name`, and its key where the model takes keywords or a dictionary.
        shape: the example's sizes.
        dtype: the element type.
        batched: whether the first dimension counts samples.
        sizes: the sizes, names in place of those that are free.
    """

    name: str
    keys: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    batched: bool
    sizes: tuple[int | str, ...] = ()

    @property
    def wanted(self) -> tuple[int | str, ...]:
        """The sizes of batches, names in place of numbers that may be others."""
        return ("N", *(self.sizes or self.shape)[1:]) if self.batched else self.sizes or self.shape

    @property
    def type_name(self) -> str:
        """The element type as NumPy and manifests call it."""
        return dtype_name(self.dtype)

    @property
    def fixed(self) -> tuple[int | None, ...]:
        """The sizes, None where they may be others."""
        return tuple(size if isinstance(size, int) else None for size in self.wanted)

    def __str__(self) -> str:
        return f"{printing.dtype(self.dtype)}[{', '.join(map(str, self.wanted))}]"


@dataclass(frozen=True)
class Signature:
    """What a model that is no graph takes. `dynamic_batch`: any number of samples at once."""

    inputs: tuple[Input, ...]
    dynamic_batch: bool


def nested(example: Example, tensors: Iterable[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Input tensors, one by one, as the arguments of the model with this example."""
    leaves, spec = pytree.tree_flatten((example.args, dict(example.kwargs)))
    stream = iter(tensors)
    filled = [next(stream) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    return pytree.tree_unflatten(filled, spec)  # type: ignore[no-any-return]


def inputs(graph: Graph | Signature) -> list[Input]:
    """What a graph takes, in order."""
    if isinstance(graph, Signature):
        return list(graph.inputs)
    example = (graph.example.args, dict(graph.example.kwargs))
    leaves = [(p, t) for p, t in pytree.tree_leaves_with_path(example) if isinstance(t, Tensor)]
    out = []
    shapes = sizes.labels(graph.free_sizes, [t.shape for _, t in leaves])
    for name, (path, tensor), counts, shape in zip(graph.input_names, leaves, batched(graph), shapes, strict=True):
        key = getattr(path[-1], "key", None)
        keys = (name, key) if isinstance(key, str) and key != name else (name,)
        out.append(Input(name, keys, tuple(tensor.shape), tensor.dtype, counts, shape))
    return out


def to_tensors(batch: Any, takes: list[Input], where: str) -> list[Tensor]:
    """The tensors of one batch in the graph's order.

    Args:
        batch: a tensor, an array, a tuple, list or dictionary of them.
        takes: the graph's inputs.
        where: what errors call the batch, for instance "batch 3 of the calibration data".

    Raises:
        InputError: an input is missing, of another type or shape, or not finite; the message says what it looks like.
    """
    tensors = _named(batch, takes, where) if _is_named(batch) else _in_order(batch, takes, where)
    for takes_one, tensor in zip(takes, tensors, strict=True):
        if reason := misfit(takes_one, tensor):
            raise InputError(f"{where} does not fit the model: {reason}")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{where} has NaN or infinity in input {takes_one.name!r}; remove or repair those samples")
    counts = {i.name: t.shape[0] for i, t in zip(takes, tensors, strict=True) if i.batched}
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{name}: {size}" for name, size in counts.items())
        raise InputError(f"{where} has a different number of samples per input ({shown}); they must be equal")
    return tensors


def check_sizes(free: Iterable[FreeSize], takes: list[Input], tensors: list[Tensor], where: str) -> None:
    """Raise `InputError` where a batch has free sizes that the graph does not take, or two that must be equal and are not."""
    try:
        sizes.read(free, [i.name for i in takes], [t.shape for t in tensors])
    except InputError as error:
        raise InputError(f"{where} does not fit the model: {error}") from None


def misfit(takes: Input, tensor: Tensor) -> str | None:
    """Why a tensor cannot be this input, in words for its owner; None where it fits."""
    shape = tuple(tensor.shape)
    came = f"{printing.dtype(tensor.dtype)}[{', '.join(map(str, shape))}]"
    begin = f"input {takes.name!r} is {takes}, but got {came}"
    rank, floating = len(takes.shape), takes.dtype.is_floating_point
    if floating and not tensor.is_floating_point() and tensor.ndim <= 1 < rank:
        return f"{begin}, which looks like labels; give the images, or (image, label) pairs"
    if takes.batched and tensor.ndim == rank - 1:
        return f"{begin}, which looks like a single sample; add the batch dimension with a DataLoader or torch.stack"
    if floating and tensor.dtype == torch.uint8:
        return f"{begin}, which looks like raw pixels; convert and normalize them as in training, e.g. x.float() / 255"
    fits = sizes.fits(shape, takes.wanted)
    if rank == 4 and tensor.ndim == 4 and not fits:
        channels_first = (shape[0], shape[3], shape[1], shape[2])
        if sizes.fits(channels_first, takes.wanted):
            return f"{begin}, which looks like channels last; use x.permute(0, 3, 1, 2)"
    if not fits:
        return f"{begin}; give it the shape the model was captured with"
    if takes.dtype == torch.uint8 and tensor.is_floating_point() and not _of_bytes(tensor):
        return f"{begin}, which looks like normalized images; give pixels from 0 to 255, in uint8, before they are normalized"
    if tensor.dtype != takes.dtype:
        return f"{begin}; convert it with .to({takes.dtype})"
    return None


def _of_bytes(tensor: Tensor) -> bool:
    return bool(((tensor == tensor.round()) & (tensor >= 0) & (tensor <= 255)).all())


def as_tensor(value: Any) -> Tensor | None:
    """A tensor or numeric array as a plain CPU tensor; None for anything else."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.tensor(value)  # a copy: arrays may be read-only or mapped from a file
    return None


def _is_named(batch: Any) -> bool:
    return isinstance(batch, Mapping) or (isinstance(batch, (tuple, list)) and bool(batch) and _is_named(batch[0]))


def _named(batch: Any, takes: list[Input], where: str) -> list[Tensor]:
    while not isinstance(batch, Mapping):  # ({"ids": ...}, label)
        batch = batch[0]
    tensors = {str(k): t for k, v in batch.items() if (t := as_tensor(v)) is not None}
    found = [next((tensors[key] for key in i.keys if key in tensors), None) for i in takes]
    if found == [None]:  # one input under a name of the user's own: unmistakable where exactly one entry fits
        fitting = [t for t in tensors.values() if misfit(takes[0], t) is None]
        found = [fitting[0] if len(fitting) == 1 else None]
    missing = [i.keys[-1] for i, t in zip(takes, found, strict=True) if t is None]
    if missing:
        have = ", ".join(map(repr, tensors)) or "no tensors"
        raise InputError(f"{where} lacks {', '.join(map(repr, missing))} (it has {have}); use the model's input names")
    return [t for t in found if t is not None]


def _in_order(batch: Any, takes: list[Input], where: str) -> list[Tensor]:
    leaves = pytree.tree_leaves(batch) if isinstance(batch, (tuple, list)) else [batch]
    tensors = [t for leaf in leaves if (t := as_tensor(leaf)) is not None]
    if len(tensors) < len(takes):
        names = ", ".join(f"{i.name}: {i}" for i in takes)
        raise InputError(
            f"{where} is {_kind(batch)} with {len(tensors)} tensor{'s' * (len(tensors) != 1)}, "
            f"but the model takes {len(takes)} ({names}); give one tensor per input"
        )
    return tensors[: len(takes)]


def _kind(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
