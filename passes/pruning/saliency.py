"""What a unit is worth, judged by its activations and by the gradient of the loss.

Units are seen behind the batch norm of the layer that makes them (behind the layer where there is none); z is the value there
and g the loss's gradient. Products z g are summed over positions, sample by sample.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.channels.groups import Group, Member
from graphopt.execution.executor import Executor
from graphopt.execution.observers import observe
from graphopt.fitting.losses import Loss, own_labels
from graphopt.ir.calls import shape
from graphopt.ir.graph import Graph
from graphopt.ir.layer import BatchNorm, Layer
from graphopt.ir.ops import info
from graphopt.passes.pruning.criteria import Criterion
from graphopt.utils.errors import InputError
from graphopt.utils.progress import track


@dataclass(frozen=True)
class Activation:
    """How strongly a unit answers: mean absolute value behind its activation.

    Hu et al. 2016, "Network Trimming"; Molchanov et al. 2017, section 2.2.
    `kind`: `mean` of the absolute value, `std`, or `nonzero`, the share of answers that are not zero.
    """

    data: Iterable[list[Tensor]] = field(repr=False)
    kind: str = "mean"

    def __post_init__(self) -> None:
        if self.kind not in ("mean", "std", "nonzero"):
            raise InputError(f"kind must be 'mean', 'std' or 'nonzero', got {self.kind!r}")

    def prepare(self, graph: Graph, groups: list[Group]) -> Criterion:
        watched: dict[Node, _Strength] = {}
        for group in groups:
            for member, node, dim in sources(graph, group):
                last = node
                while len(last.users) == 1 and info(next(iter(last.users))).pointwise:
                    last = next(iter(last.users))
                watched.setdefault(last, _Strength(dim)).parts.append((group.key, member))
        if watched:
            observe(graph, watched, self.data)
        scores = {group.key: torch.zeros(len(group), dtype=torch.float64) for group in groups}
        for strength in watched.values():
            for key, member in strength.parts:
                add_units(scores[key], member, strength.result(self.kind))
        return lambda graph, group: scores[group.key]


class _Strength:
    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.parts: list[tuple[int, Member]] = []
        self.count = 0
        self.sums: Tensor | float = 0.0

    def update(self, value: Tensor) -> None:
        rows = _by_channel(value.detach(), self.dim).movedim(1, 0).flatten(1).double()
        self.sums = self.sums + torch.stack([rows.abs().sum(1), rows.sum(1), (rows**2).sum(1), (rows != 0).sum(1)])
        self.count += rows.shape[1]

    def result(self, kind: str) -> Tensor:
        size, mean, square, nonzero = torch.as_tensor(self.sums) / max(self.count, 1)
        chosen: Tensor = {"mean": size, "std": (square - mean**2).clamp(min=0).sqrt(), "nonzero": nonzero}[kind]
        return chosen


@dataclass(frozen=True)
class _Gradient(ABC):
    """`data`: batches. `loss`: of what the model returns and the batch of inputs, summed over the samples."""

    data: Iterable[list[Tensor]] = field(repr=False)
    loss: Loss = own_labels

    def prepare(self, graph: Graph, groups: list[Group]) -> Criterion:
        found = {group.key: sources(graph, group) for group in groups}
        scores = {group.key: torch.zeros(len(group), dtype=torch.float64) for group in groups}
        wanted = list(dict.fromkeys(node for parts in found.values() for _, node, _ in parts))
        executor = Executor(graph, leaves=wanted)
        for batch in track(self.data, "gradients"):
            values = executor.run([*wanted, *graph.results], batch)
            with torch.enable_grad():
                loss = self.loss(executor.nested(values), batch)
            if not bool(torch.isfinite(loss)):
                raise InputError(f"the loss on a batch is {float(loss)}; check the data and the loss function")
            slopes = torch.autograd.grad(loss, [values[node] for node in wanted], allow_unused=True)
            gradients = dict(zip(wanted, slopes, strict=True))
            for key, parts in found.items():
                for member, node, dim in parts:
                    if (gradient := gradients[node]) is not None:
                        product = _by_channel((values[node] * gradient).detach(), dim).flatten(2).sum(2)
                        add_units(scores[key], member, self.reduce(product).double())
        return lambda graph, group: scores[group.key]

    @abstractmethod
    def reduce(self, product: Tensor) -> Tensor:
        """z g, [samples, channels], to one number per channel."""


@dataclass(frozen=True)
class Taylor(_Gradient):
    """First-order change of the loss when a unit is removed: sum |z g|. Molchanov et al. 2017, section 2.2, equation 8."""

    def reduce(self, product: Tensor) -> Tensor:
        return product.abs().sum(0)


@dataclass(frozen=True)
class Fisher(_Gradient):
    """Second-order change, the Hessian's diagonal as the Fisher information: sum (z g)^2 / 2.

    LeCun et al. 1989, "Optimal Brain Damage", for a gate on each unit as in Theis et al. 2018, section 2.1.
    """

    def reduce(self, product: Tensor) -> Tensor:
        return (product**2).sum(0) / 2


def sources(graph: Graph, group: Group) -> list[tuple[Member, Node, int]]:
    """Where the units of a group are made: the writing member, the value, and the dimension of its channels."""
    found = []
    for member in group.writers:
        for user in member.node.users:
            layer = Layer.of(user)
            if layer is None or layer.weight is not member.node or layer.out_channels != len(member.units):
                continue
            readers = list(user.users)
            norm = BatchNorm.of(readers[0]) if len(readers) == 1 else None
            node = user if norm is None else norm.node
            found.append((member, node, len(shape(node)) - 1 - layer.dims))
    return found


def add_units(scores: Tensor, member: Member, channels: Tensor) -> None:
    """Add scores of channels to those of the units they belong to."""
    owner = torch.from_numpy(member.units)
    scores.index_add_(0, owner[owner >= 0], channels[owner >= 0].to(scores.dtype))


def _by_channel(value: Tensor, dim: int) -> Tensor:
    """A value as [samples, channels, positions]; without a dimension for samples it is one."""
    found = value[None, :, None] if value.dim() == 1 else value.movedim(dim, 1)
    return found if found.dim() > 2 else found[..., None]
