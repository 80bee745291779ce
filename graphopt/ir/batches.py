"""Batches of input tensors: how many samples there are, and some of them.

Of some inputs the first dimension counts samples, others (a table, a scale) come whole with every batch. What stands behind the
inputs of the graph, such as labels, is cut with them where its length is theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor
from torch.fx.node import Node

from graphopt.ir.graph import Graph
from graphopt.ir.shapes import is_free


def batched(graph: Graph) -> list[bool]:
    """Of each input tensor whether its first dimension counts samples: where the batch size is fixed, those whose size is that of
    the first input that has one."""
    if graph.batch is not None:
        counting = {place.input for place in graph.batch.places}
        return [index in counting for index in range(len(graph.inputs))]
    shapes = [node.meta["val"].shape for node in graph.inputs]
    firsts = [None if len(shape) == 0 or is_free(shape[0]) else shape[0] for shape in shapes]
    size = next((n for n, shape in zip(firsts, shapes, strict=True) if len(shape)), None)
    return [n is not None and n == size for n in firsts]


def of_samples(graph: Graph, node: Node) -> bool:
    """Whether a value's first dimension counts samples, or parts of samples such as windows; that of [tokens, samples, width]
    does not. Where the batch size is fixed, it has to be a multiple of that."""
    shape = node.meta["val"].shape
    if len(shape) == 0:
        return False
    if graph.batch is not None:
        free = shape[0].node.expr.free_symbols if is_free(shape[0]) else ()
        return any(graph.size_names.get(symbol) == graph.batch.name for symbol in free)
    sizes = (given.meta["val"].shape for given, counts in zip(graph.inputs, batched(graph), strict=True) if counts)
    size = next((shape[0] for shape in sizes), 1)
    return is_free(shape[0]) or (not is_free(size) and shape[0] % size == 0)


def count(graph: Graph, batch: Sequence[Tensor]) -> int:
    """How many samples a batch has; 1 where no input counts samples."""
    return next((len(t) for t, counts in zip(batch, batched(graph), strict=False) if counts), 1)


def cut(graph: Graph, batch: Sequence[Tensor], start: int, end: int) -> list[Tensor]:
    """The samples from `start` to `end`; a graph of a fixed batch size takes no part of one."""
    if not graph.dynamic_batch:
        return list(batch)
    size, counts = count(graph, batch), batched(graph)
    counts += [t.dim() > 0 and len(t) == size for t in batch[len(counts) :]]
    return [t[start:end] if cuts else t for t, cuts in zip(batch, counts, strict=True)]


def split(graph: Graph, batch: Sequence[Tensor], size: int) -> Iterator[list[Tensor]]:
    """A batch in parts of so many samples; whole where the graph's batch size is fixed."""
    if not graph.dynamic_batch:
        yield list(batch)
        return
    for start in range(0, count(graph, batch), size):
        yield cut(graph, batch, start, start + size)


def first(graph: Graph, data: Iterable[Sequence[Tensor]], samples: int) -> Iterator[list[Tensor]]:
    """The batches with the first so many samples; the last one is cut."""
    left = samples
    for batch in data:
        yield cut(graph, batch, 0, left)
        left -= count(graph, batch)
        if left <= 0:
            return
