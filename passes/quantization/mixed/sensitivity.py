"""How much the network's output minds each choice, measured: one layer, or the values on one grid, rounded, all else in float.

    kl      mean over samples of  sum_k p_k log(p_k / q_k)          p, q: softmax of the first output, float and rounded
    sqnr    mean over outputs of sum |z' - z|^2 / sum |z|^2         each term is 10^(-SQNR / 10) of one output

Classes lie along dimension 1 of images ([N, C], [N, C, H, W]) and along the last one of sequences ([N, T, C]).

Papers: Cai et al. 2020, "ZeroQ", section 3.3 (KL divergence); Sheng et al. 2018 (SQNR of one quantized layer).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.output_error import add_up, relative, squares
from graphopt.ir.batches import count
from graphopt.ir.cost import class_dim
from graphopt.passes.quantization.mixed.cost import Numbers
from graphopt.passes.quantization.mixed.roundings import Roundings
from graphopt.passes.quantization.mixed.trials import NOTHING, Network, Trial
from graphopt.utils.errors import InputError, NonFiniteError
from graphopt.utils.progress import progress

Distance = Literal["kl", "sqnr"]


class Divergence:
    """How far the outputs of changed networks are from those of the float one, on some samples."""

    def __init__(self, network: Network, batches: Sequence[list[Tensor]], distance: Distance) -> None:
        self.network, self.batches, self.distance = network, batches, distance
        self.wanted = [network.outputs(batch) for batch in batches]
        for outputs in self.wanted:
            if not all(bool(torch.isfinite(z).all()) for z in outputs):
                raise NonFiniteError("an output of the float network is not finite on the data; clean the data")
        if distance == "kl" and classes_along(self.wanted[0][0]) is None:
            shape = list(self.wanted[0][0].shape)
            raise InputError(f"the first output {shape} has no classes to compare; use sensitivity='sqnr'")
        self.weight = float(sum(self._weight(outputs) for outputs in self.wanted)) if distance == "kl" else 1.0
        self.power = add_up(map(squares, self.wanted))

    @property
    def samples(self) -> int:
        return sum(count(self.network.executor.graph, batch) for batch in self.batches)

    def __call__(self, trial: Trial) -> float:
        """Of the network changed by a trial."""
        pairs = zip(self.batches, range(len(self.batches)), strict=True)
        return sum(self.part(self.network.outputs(batch, trial), number) for batch, number in pairs)

    def part(self, outputs: Sequence[Tensor], number: int) -> float:
        """What the outputs for one batch add to the divergence."""
        wanted = self.wanted[number]
        if self.distance == "kl":
            p, q = (log_classes(z[0]) for z in (wanted, outputs))
            lost = float((p.exp() * (p - q)).sum())
        else:
            lost = relative(squares(outputs, wanted), self.power)
        return (lost if np.isfinite(lost) else 1e12) / max(self.weight, 1e-30)

    def _weight(self, wanted: Sequence[Tensor]) -> float:
        return wanted[0].numel() / wanted[0].shape[classes_along(wanted[0])]  # type: ignore[index]


def classes_along(output: Tensor) -> int | None:
    """Along which dimension classes lie; None where there are none."""
    dim = class_dim(output) if output.dim() else None
    return dim if dim is not None and output.shape[dim] > 1 else None


def log_classes(output: Tensor) -> Tensor:
    """Log-probabilities, classes along `classes_along`; an output that is probabilities already is taken as it is."""
    dim, z = classes_along(output), output.double()
    assert dim is not None
    if bool((z >= 0).all()) and bool(((z.sum(dim) - 1).abs() < 1e-3).all()):
        return z.clamp(min=1e-12).log()
    return torch.log_softmax(z, dim)


def measured(divergence: Divergence, roundings: Roundings) -> list[Numbers]:
    """Of every decision, the divergence that each of its choices causes alone."""
    network, executor = divergence.network, divergence.network.executor
    found = [np.zeros(len(trials)) for trials in roundings.trials]
    starts: dict[Node, list[tuple[int, int]]] = {}
    for number, trials in enumerate(roundings.trials):
        for index, trial in enumerate(trials):
            if trial != NOTHING and len(trials) > 1:
                starts.setdefault(trial.first, []).append((number, index))
    steps = len(starts) * len(divergence.batches)
    with progress("measuring sensitivities", steps) as advance:
        for place, batch in enumerate(divergence.batches):
            values = executor.inputs(batch)
            for node in executor.walk(values, (), keep=executor.graph.outputs):
                for number, index in starts.get(node, ()):
                    outputs = network.outputs(values, roundings.trials[number][index], start=node)
                    found[number][index] += divergence.part(outputs, place)
                if node in starts:
                    advance()
    return found


def rising(sensitivities: Iterable[Numbers]) -> list[Numbers]:
    """Fewer bits never count as less damage, whatever a few samples say; choices go from the most bits to the least."""
    return [np.maximum.accumulate(each) for each in sensitivities]
