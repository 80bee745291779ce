"""A graph that takes pixels in uint8 and normalizes them itself, from one that takes normalized images.

    x = (u * scale - mean) / std      u: uint8, [N, channels, height, width] or channels last; mean, std: for each channel

`FoldInputNormalization` moves that into the first layers; integer kernels then read the bytes as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten
from graphopt.utils.errors import InputError


def of_pixels(
    graph: Graph, scale: float, mean: Sequence[float], std: Sequence[float], dim: int, *, raw: bool = False
) -> Graph:
    """A copy whose one input is in uint8.

    Args:
        scale, mean, std: as the head of this file has them; of `mean` and `std` one number for all channels, or one for each.
        dim: of the channels.
        raw: the graph's example holds pixels, as floats.

    Raises:
        InputError: the graph takes something else than one image in float32.
    """
    takes = graph.inputs
    if len(takes) != 1 or takes[0].meta["val"].dtype != torch.float32:
        raise InputError("input='uint8' is for models that take one image in float32 and nothing else")
    graph = graph.clone()
    node = graph.inputs[0]
    fake = node.meta["val"]
    readers, behind = list(node.users), graph.after(node)
    node.meta["val"] = fake.to(torch.uint8)
    value = graph.call(aten.to.dtype, node, torch.float32, before=behind)
    value = graph.call(aten.mul.Tensor, value, scale, before=behind)
    for target, name, numbers in ((aten.sub.Tensor, "mean", mean), (aten.div.Tensor, "std", std)):
        constant = graph.add_constant(f"{node.name}_{name}", _along(numbers, dim, fake.dim()), before=behind)
        value = graph.call(target, value, constant, before=behind)
    for reader in readers:
        reader.replace_input_with(node, value)
    given = (1.0, [0.0], [1.0]) if raw else (scale, mean, std)
    args, kwargs = pytree.tree_map_only(
        Tensor, lambda x: _pixels(x, *given, dim), (graph.example.args, dict(graph.example.kwargs))
    )
    graph.example = replace(graph.example, args=args, kwargs=kwargs)
    graph.refresh()
    return graph


def _along(numbers: Sequence[float], dim: int, rank: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32).reshape([-1 if d == dim else 1 for d in range(rank)])


def _pixels(x: Tensor, scale: float, mean: Sequence[float], std: Sequence[float], dim: int) -> Tensor:
    """The pixels that an image was made of, as near as there are."""
    s, m = (_along(numbers, dim, x.dim()) for numbers in (std, mean))
    return ((x * s + m) / scale).nan_to_num(0).round().clamp(0, 255).to(torch.uint8)
