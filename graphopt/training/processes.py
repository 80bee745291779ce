"""Training in several processes, as `torchrun` starts them: each takes its part of every batch, and gradients are averaged.

    torchrun --nproc-per-node 2 train.py

Tensors are shared out here: a batch of 64 is 32 samples for each of two processes. A loader gives each process its own part
(`torch.utils.data.DistributedSampler`). The first process evaluates and writes checkpoints; all go on from the same one, so a job
that torchrun starts again after a failure continues.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@contextmanager
def joined() -> Iterator[None]:
    """Inside, this process belongs to the group that torchrun started, if it did."""
    ours = dist.is_available() and not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if ours:
        _join()
    try:
        yield
    finally:
        if ours:
            dist.destroy_process_group()


def _join() -> None:
    """Meet the others at a place of this start alone: after a failure, addresses of the start before are still in the store."""
    torch_dist: Any = dist  # which exports what it does not say it does
    store, rank, size = next(torch_dist.rendezvous("env://"))
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    place = torch_dist.PrefixStore(f"graphopt/{start}", store)
    dist.init_process_group("gloo", store=place, rank=rank, world_size=size)


def size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this one, from 0."""
    return dist.get_rank() if size() > 1 else 0


def is_first() -> bool:
    return rank() == 0


def part(places: Tensor) -> Tensor:
    """The samples of a batch that are for this process. Where there are fewer samples than processes, all."""
    return places if len(places) < size() else places[rank() :: size()]


def average(parameters: Iterable[Tensor]) -> None:
    """Let every process have the mean of all gradients."""
    found = [p.grad for p in parameters if p.grad is not None]
    if size() == 1 or not found:
        return
    together = torch.cat([g.reshape(-1) for g in found])
    dist.all_reduce(together)
    together /= size()
    for gradient, mean in zip(found, torch.split(together, [g.numel() for g in found]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def from_first(tensors: Sequence[Tensor]) -> None:
    """Let every process have what the first one has."""
    if size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def told(number: float) -> float:
    """A number that the first process found out; what others say does not count."""
    if size() == 1:
        return number
    box = torch.tensor([number], dtype=torch.float64)
    dist.broadcast(box, 0)
    return float(box)


def wait() -> None:
    """Until all are here."""
    if size() > 1:
        dist.barrier()
