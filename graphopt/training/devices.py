"""Where a graph trains: on the processor, or on another device that torch has.

Everything that takes part is moved here, and nowhere else: the graph, modules that learn beside it, teachers, and each batch with
its targets. What is inserted before the training and folded behind it is computed where the graph was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch

from graphopt.ir.graph import Graph
from graphopt.ir.structure import to_device
from graphopt.training.batches import Batch
from graphopt.training.compression import Compression
from graphopt.utils.errors import InputError, first_line


def device_of(name: str) -> torch.device:
    """The device of this name.

    Raises:
        InputError: torch has none of this name here, or it holds no elements (`meta`).
    """
    try:
        found = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"there is no device {name!r} to train on here: {first_line(error)}") from error
    if found.type == "meta":
        raise InputError("tensors on the device 'meta' have no elements to train; give 'cpu', or a GPU such as 'cuda'")
    return found


@contextmanager
def moved(graph: Graph, compress: Sequence[Compression], name: str | None) -> Iterator[None]:
    """Inside, a graph and the modules of compressions are on a device; afterwards each is where it was. None: they stay."""
    with ExitStack() as stack:
        if name is not None:
            device = device_of(name)
            stack.enter_context(_creating(graph, device))
            modules = [module for each in compress for module in (*each.helpers(), *each.networks())]
            for module in (graph.module, *modules):
                before = next((p.device for p in [*module.parameters(), *module.buffers()]), device)
                stack.callback(module.to, before)
                module.to(device)
        yield


@contextmanager
def _creating(graph: Graph, device: torch.device) -> Iterator[None]:
    """Inside, calls that make tensors (`arange`, `zeros`) make them on a device."""
    before = {node: node.kwargs["device"] for node in graph.calls() if node.kwargs.get("device") is not None}
    try:
        for node in before:
            node.update_kwarg("device", device)
        graph.module.recompile()
        yield
    finally:
        for node, place in before.items():
            node.update_kwarg("device", place)
        graph.module.recompile()


def placed(batch: Batch, name: str | None) -> Batch:
    """A batch on a device: inputs, targets, and what the data gave. None: where it is."""
    if name is None:
        return batch
    inputs, targets, given = to_device((batch.inputs, batch.targets, batch.given), torch.device(name))
    return batch._replace(inputs=inputs, targets=targets, given=given)
