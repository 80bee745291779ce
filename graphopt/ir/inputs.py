"""What a graph is called with, checked: nesting, types, sizes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from graphopt.ir import sizes
from graphopt.ir.structure import unpacked
from graphopt.utils import printing
from graphopt.utils.errors import InputError

if TYPE_CHECKING:
    from graphopt.ir.graph import Graph


def check_inputs(graph: Graph, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """See `Graph.check_inputs`."""
    tensors = []
    for node, leaf in zip(graph.placeholders, _leaves(graph, args, kwargs), strict=True):
        fake = node.meta["val"]
        if isinstance(fake, Tensor):
            tensors.append(leaf)
        elif type(leaf) is not type(fake) or leaf != fake:
            raise InputError(f"argument {node.name!r} was captured as {fake!r}, got {leaf!r}; capture once per value")
    check_tensors(graph, tensors)
    return tensors


def check_tensors(graph: Graph, tensors: Sequence[Any]) -> None:
    """See `Graph.check_tensors`."""
    fakes = [node.meta["val"] for node in graph.inputs]
    wanted = sizes.labels(graph.free_sizes, [fake.shape for fake in fakes])
    for name, fake, shape, tensor in zip(graph.input_names, fakes, wanted, tensors, strict=True):
        check_tensor(name, tensor, shape, fake.dtype)
    sizes.read(graph.free_sizes, graph.input_names, [tensor.shape for tensor in tensors])


def check_tensor(name: str, value: Any, shape: tuple[Any, ...], dtype: torch.dtype) -> None:
    """Raise `InputError` where `value` is not a tensor of this type and shape, which names the sizes that are free."""
    if not isinstance(value, Tensor):
        raise InputError(f"input {name!r} must be a tensor, got {type(value).__name__}")
    if not sizes.fits(value.shape, shape) or value.dtype != dtype:
        wanted = f"{printing.dtype(dtype)}[{', '.join(map(str, shape))}]"
        came = f"{printing.dtype(value.dtype)}[{', '.join(map(str, value.shape))}]"
        raise InputError(f"input {name!r} must be {wanted}, got {came}")


def _leaves(graph: Graph, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """The leaves of a call's arguments, which must be nested like the example's."""
    structure = graph.module.graph._codegen.pytree_info.in_spec  # type: ignore[attr-defined]
    wanted = _describe(graph.example.args, graph.example.kwargs)
    args, kwargs = unpacked(args, kwargs, graph.example.takes_dictionary)
    try:
        arguments = inspect.signature(graph.module.forward).bind(*args, **kwargs).arguments
    except TypeError:
        raise InputError(f"the model takes {wanted}, got {_describe(args, kwargs)}") from None
    expected = [kind.child(i) for kind in map(structure.child, (0, 1)) for i in range(kind.num_children)]
    leaves: list[Any] = []
    for (name, value), nesting in zip(arguments.items(), expected, strict=True):
        found, came = pytree.tree_flatten(value)
        if came != nesting:
            raise InputError(f"argument {name!r} must be nested like the example: the model takes {wanted}")
        leaves += found
    return leaves


def _describe(args: Any, kwargs: Mapping[str, Any]) -> str:
    leaves = len(pytree.tree_leaves((tuple(args), dict(kwargs))))
    named = f" and keywords {', '.join(kwargs)}" if kwargs else ""
    return f"{len(args)} positional input{'s' * (len(args) != 1)}{named} ({leaves} tensor{'s' * (leaves != 1)})"
