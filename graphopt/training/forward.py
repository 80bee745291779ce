"""One batch through the graph that trains, as the processor computes it fastest.

Images lie in memory channel by channel for each pixel (`torch.channels_last`), as convolutions want them. With
`precision="bfloat16"`, layers are computed in that type where torch's autocast says so; rounding to grids stays in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.fx.node import Node

from graphopt.execution.executor import Executor
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.targets import cpu_features
from graphopt.training import rounding
from graphopt.training.batches import Batch
from graphopt.training.compression import Run
from graphopt.utils.errors import InputError

Precision = Literal["float32", "bfloat16", "auto"]
FAST = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # instructions that multiply bfloat16, as kernels name them


def lower_precision(precision: str) -> bool:
    """Whether layers are computed in bfloat16: where asked for, and with `auto`, where the processor multiplies it.

    Raises:
        InputError: an unknown precision.
    """
    if precision not in get_args(Precision):
        raise InputError(f"precision must be one of {', '.join(get_args(Precision))}, got {precision!r}")
    return precision == "bfloat16" or (precision == "auto" and bool(FAST & cpu_features()))


class Forward:
    """Runs batches with gradients for what is learned, in training behaviour.

    Args:
        learned: parameters that gradients are wanted for.
        watched: calls whose values losses want.
    """

    def __init__(self, graph: Graph, learned: Sequence[Tensor], watched: Sequence[Node], precision: str) -> None:
        self.lower = lower_precision(precision)
        wanted = {id(p) for p in learned}
        nodes = (n for n in graph.nodes if n.op == "get_attr")
        constants = {n: graph.parameter(n) for n in nodes if id(graph.parameter(n)) in wanted}
        self.nodes = [*graph.results, *watched]
        faster = rounding.overrides(graph, self.nodes)
        self.executor = Executor(graph, constants=constants, overrides=faster, gradients=True, training=True)

    def __call__(self, batch: Batch) -> Run:
        inputs = [in_channels_last(x) for x in batch.inputs]
        with self._precision():
            values = self.executor.run(self.nodes, inputs)
        if self.lower:
            values = pytree.tree_map_only(Tensor, full, values)
        again, nested = partial(self, batch), self.executor.nested(values)
        return Run(batch, nested, values, again=again, precision=self._precision)

    def _precision(self) -> AbstractContextManager[Any]:
        if not self.lower:
            return nullcontext()
        return torch.autocast(self.executor.graph.device.type, torch.bfloat16)


def full(value: Tensor) -> Tensor:
    """float32 in place of bfloat16."""
    return value.float() if value.dtype == torch.bfloat16 else value


def in_channels_last(x: Any) -> Any:
    """Images as convolutions want them."""
    return x.to(memory_format=torch.channels_last) if isinstance(x, Tensor) and x.dim() == 4 else x


@contextmanager
def channels_last(graph: Graph) -> Iterator[None]:
    """Inside, kernels of convolutions over images lie in memory as images do; afterwards as they did before."""
    layers = (layer for node in graph.calls() if (layer := Layer.of(node)) and layer.dims == 2)
    roots = {id(p): p for layer in layers for p in _constants(graph, layer.weight) if p.dim() == 4}
    for parameter in roots.values():
        parameter.data = parameter.data.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for parameter in roots.values():
            parameter.data = parameter.data.contiguous()


def _constants(graph: Graph, weight: Node) -> list[Tensor]:
    """The trainable constants that a weight is computed of."""
    found, todo = list[Tensor](), [weight]
    while todo:
        node = todo.pop()
        todo += node.all_input_nodes if node.op == "call_function" else []
        if node.op == "get_attr" and isinstance(parameter := graph.parameter(node), nn.Parameter):
            found.append(parameter)
    return found
