"""Fix the batch size of a graph, where that leaves every sample its answer: for runtimes whose programs have fixed shapes.

A call with more samples, or fewer, is then computed in slices of that size (`graphopt.artifacts.sliced`). `kernels` in what is
refused names what has fixed shapes: "TVM kernels".
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.node import Node

from graphopt.data.batches import nested
from graphopt.ir.batches import batched
from graphopt.ir.calls import shape
from graphopt.ir.graph import Example, Graph
from graphopt.ir.ops import aten
from graphopt.ir.quantizers import is_quantizer
from graphopt.ir.shapes import is_free, label, resized
from graphopt.utils.errors import InputError

SAME = (
    1e-3  # of the largest number of a value: what may be between kernels that compute a sample alone, first or second
)
PROBES = (0.9, 1.1)  # what numbers of a sample are multiplied by: near one, for some are indices to be


def example_batch(graph: Graph) -> int:
    """The batch size of the example a graph with a free batch was captured with."""
    return next(len(t) for t, counts in zip(graph.example.tensors(), batched(graph), strict=True) if counts)


def check_only_batch(graph: Graph, kernels: str) -> None:
    """Raise `InputError` where a size other than the batch is free: programs are made for one shape."""
    for size in graph.free_sizes:
        if size is not graph.batch:
            place = size.places[0]
            raise InputError(
                f"dimension {place.dimension} of input {graph.input_names[place.input]!r} ({size.label(place)!r}) is free, and "
                f"{kernels} are made for one shape; capture without it in dynamic_shapes, which fixes it at the example's size, "
                "or use a target of ONNX Runtime (arm, x86)"
            )


def check_slices(graph: Graph, kernels: str) -> None:
    """Whether a free batch can be computed in slices of any size.

    Raises:
        InputError: a batch of one sample is not taken, an output has other rows than one for each sample, or samples are mixed.
    """
    check_one_sample(graph, kernels)
    check_rows(graph)
    check_independent(graph, kernels)


def check_one_sample(graph: Graph, kernels: str) -> None:
    """Raise `InputError` where the free batch is not taken in every size: slices may hold any number of samples."""
    batch = graph.batch
    if batch is not None and (batch.min > 1 or batch.step > 1):
        raise InputError(
            f"the free batch of input {graph.input_names[batch.places[0].input]!r}, {batch}, and {kernels} compute it in "
            "slices, down to one sample; capture with dynamic_batch=False"
        )


def check_rows(graph: Graph) -> None:
    """Raise `InputError` where an output has not one row for each sample, as what is computed in slices must."""
    for name, node in zip(graph.output_names, graph.outputs, strict=True):
        first, *others = shape(node) or (None,)
        if is_free(first) and first.node.expr.is_Symbol and not any(map(is_free, others)):
            continue
        sizes = ", ".join(label(n, graph.size_names) or str(n) for n in shape(node))
        raise InputError(
            f"output {name!r} of shape [{sizes}] has not one row for each sample, so a free batch cannot be computed in slices; "
            "capture with dynamic_batch=False"
        )


def fix_batch(graph: Graph, batch: int) -> Graph:
    """A copy of a graph whose free batch is this size."""
    fixed = graph.clone(share_weights=True)
    mode = FakeTensorMode()
    for node in fixed.placeholders:
        fake: Any = node.meta["val"]
        if isinstance(fake, Tensor):
            sizes = [batch if is_free(s) else int(s) for s in fake.shape]
            with mode:
                node.meta["val"] = torch.empty(sizes, dtype=fake.dtype)
    for node in fixed.calls(aten.sym_size.int):
        node.replace_all_uses_with(batch)  # type: ignore[arg-type]
    tensors = zip(graph.example.tensors(), batched(graph), strict=True)
    fixed.example = Example(*nested(graph.example, [resized(t, batch) if free else t for t, free in tensors]))
    fixed.free_sizes = ()
    fold_numbers(fixed)
    fixed.refresh()
    return fixed


def fold_numbers(graph: Graph) -> None:
    """Compute what is computed of numbers alone, such as the batch times the number of heads."""
    for node in graph.calls():
        if not node.all_input_nodes and not isinstance(node.target, torch._ops.OpOverload):
            target: Any = node.target
            node.replace_all_uses_with(target(*node.args, **node.kwargs))


def check_independent(graph: Graph, kernels: str) -> None:
    """Of two samples one is changed, then the other: the answer for the one that is left must stay as it is, to the last bit.

    It must also be the same, up to rounding, where the sample is alone, and where it is the second.

    Raises:
        InputError: it is not, so a batch cannot be computed in slices; names the first operator that mixes samples, or that
            asks for their number or place.
    """
    fakes = [node.meta["val"] for node in graph.placeholders]
    tensors = iter(graph.example.tensors())
    leaves = [next(tensors) if isinstance(fake, Tensor) else fake for fake in fakes]
    counts = [_counts(fake) for fake in fakes]
    leaves = [resized(x, 2) if free else x for x, free in zip(leaves, counts, strict=True)]
    ways: list[Callable[[Tensor], Tensor]] = [*(partial(_changed, factor=factor) for factor in PROBES), _repeated]
    for change, second in itertools.product(ways, (True, False)):
        turned = _turned(change, second)
        changed = [turned(x) if free else x for x, free in zip(leaves, counts, strict=True)]
        if _mixing(graph, graph.outputs, leaves, changed, second) is not None:
            node = _mixing(graph, graph.nodes, leaves, changed, second)
            assert node is not None
            raise InputError(
                f"{graph.site(node)}: {node.target} mixes the samples of a batch, and {kernels} compute a free batch in "
                "slices; capture with dynamic_batch=False"
            )
    if _placed(graph, graph.outputs, leaves, counts) is not None:
        node = _placed(graph, graph.nodes, leaves, counts)
        assert node is not None
        raise InputError(
            f"{graph.site(node)}: what {node.target} gives of a sample depends on how many there are, or on which it is, and "
            f"{kernels} compute a free batch in slices; capture with dynamic_batch=False"
        )


def _counts(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and is_free(value.shape[0])


def _turned(change: Callable[[Tensor], Tensor], second: bool) -> Callable[[Tensor], Tensor]:
    """The same change of the first sample, for the second one to stay; or of the second, for the first to stay."""
    return change if second else lambda x: change(x.flip(0)).flip(0)


def _changed(x: Tensor, factor: float) -> Tensor:
    """With another first sample; integers keep their range."""
    turned = x[0].flip(tuple(range(x.dim() - 1)))
    first = turned * factor + 0.1 if x.is_floating_point() else turned
    return torch.cat([first[None].to(x.dtype), x[1:]])


def _repeated(x: Tensor) -> Tensor:
    """With the second sample as the first, too: whoever asks whether samples are equal gets another answer."""
    return torch.cat([x[1:2], x[1:]])


def _mixing(graph: Graph, watched: list[Node], leaves: list[Any], changed: list[Any], second: bool) -> Node | None:
    """The first of these nodes whose second sample (or first, where it is not `second`) moves with the other."""
    free = _rows(watched)
    before, after = (_Watched(graph.module, free, int(second)).values(given) for given in (leaves, changed))
    moved = (n for n in watched if n in free and not torch.equal(before[n], after[n]))
    return next(moved, None)


def _placed(graph: Graph, watched: list[Node], leaves: list[Any], counts: list[bool]) -> Node | None:
    """The first of these nodes that gives something else of the first sample alone, or behind another one."""
    free = _rows(watched)
    turned = [x.flip(0) if free_ else x for x, free_ in zip(leaves, counts, strict=True)]
    alone = [x[:1] if free_ else x for x, free_ in zip(leaves, counts, strict=True)]
    first = _Watched(graph.module, free, 0).values(leaves)
    others = [_Watched(graph.module, free, 1).values(turned), _Watched(graph.module, free, None).values(alone)]
    return next((n for n in watched if n in free and any(_differ(first[n], other[n]) for other in others)), None)


def _rows(watched: list[Node]) -> set[Node]:
    """Those with one row for each sample."""
    values = {n: n.meta["val"] for n in watched if n.op == "call_function" and _counts(n.meta.get("val"))}
    return {n for n, value in values.items() if value.shape[0].node.expr.is_Symbol}


def _differ(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return True
    return bool(one.numel()) and float((one - other).abs().max()) > SAME * float(one.abs().max())


class _Watched(fx.Interpreter):
    """Keeps some values, or a half of each, 0 or 1. Quantizers let everything pass: beyond their range nothing would move."""

    def __init__(self, module: fx.GraphModule, watched: set[Node], half: int | None) -> None:
        super().__init__(module)
        self.watched, self.half, self.kept = watched, half, dict[Node, Tensor]()

    def values(self, leaves: list[Any]) -> dict[Node, Tensor]:
        with torch.no_grad():
            self.run(*leaves, enable_io_processing=False)
        return self.kept

    def run_node(self, n: Node) -> Any:
        result = self.env[n.args[0]] if is_quantizer(n) else super().run_node(n)  # type: ignore[index]
        if n in self.watched:  # where what is no number equals itself
            part = result if self.half is None else result.tensor_split(2)[self.half]
            self.kept[n] = part.double().nan_to_num(nan=1e300)
        return result
