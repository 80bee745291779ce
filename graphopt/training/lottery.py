"""Lottery tickets: which weights to keep is found by training, and the kept ones are trained again from early values.

    reports = lottery_ticket(graph, (images, labels), share=0.9, rounds=3, rewind=0.1, epochs=10)

1. Train; remember the weights at the progress `rewind`.
2. Mask the smallest weights of what is left, of all layers together, so that after the k-th of n rounds
   1 - (1 - share)^(k / n) are masked.
3. Give the kept weights, and all else that is trained, their early values; train again; and so on.

`rewind=0` is the hypothesis as it was stated; larger networks want values from a little later. `rewind=None` keeps the weights
that were trained, and rewinds the rates alone.

Papers: Frankle and Carbin 2019, "The Lottery Ticket Hypothesis"; Frankle et al. 2020, "Linear Mode Connectivity and the Lottery
        Ticket Hypothesis" (rewinding to later values); Renda et al. 2020, "Comparing Rewinding and Fine-tuning" (rates).
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.ir.graph import Graph
from graphopt.ir.masks import masks, put_mask
from graphopt.training.compression import Compression
from graphopt.training.pruning import weights_to_mask
from graphopt.training.report import TrainingReport
from graphopt.training.trainer import train
from graphopt.utils.checks import check_count, check_share
from graphopt.utils.errors import InputError


def lottery_ticket(
    graph: Graph,
    data: Any,
    *,
    share: float,
    rounds: int = 3,
    rewind: float | None = 0.05,
    layers: Sequence[str] = ("*",),
    compress: Sequence[Compression] = (),
    **options: Any,
) -> list[TrainingReport]:
    """Mask weights and train the others, in place; the masks stay (`graphopt.ir.masks`).

    Args:
        share: of the weights, over 0 and under 1, that are masked in the end.
        rounds: of masking; there is one training more.
        rewind: the progress, from 0 to under 1, of the first training whose values the kept weights go back to; None: they stay.
        layers: name patterns of the layers that are masked.
        compress, **options: of every training; see `graphopt.train`.

    Returns:
        What each training did, that of the ticket last.

    Raises:
        InputError: options that do not fit, a `checkpoint`, or no layer whose weights are constants.
    """
    check_share("share", share)
    check_count("rounds", rounds)
    if rewind is not None and not 0 <= rewind < 1:
        raise InputError(f"rewind is a progress of the training, at least 0 and under 1, or None, got {rewind}")
    if options.get("checkpoint") is not None:
        raise InputError("lottery_ticket trains several times and keeps no checkpoint; leave it out")
    weights = list(weights_to_mask(graph, lambda name: next((p for p in layers if fnmatchcase(name, p)), None)))
    early = Remember(rewind or 0.0)
    reports = [train(graph, data, compress=[early, *compress], **options)]
    for number in range(1, rounds + 1):
        mask_smallest(graph, weights, 1 - (1 - share) ** (number / rounds))
        if rewind is not None:
            early.restore(graph)
        reports.append(train(graph, data, compress=compress, **options))
    return reports


class Remember(Compression):
    """Keeps what a graph's weights and statistics are when a training reaches a progress."""

    def __init__(self, progress: float) -> None:
        self.at = progress
        self.values: dict[str, Tensor] = {}

    def attach(self, graph: Graph) -> list[Any]:
        self.graph, self.values = graph, {}
        return []

    def step(self, progress: float) -> None:
        if not self.values and progress >= self.at:
            self.values = {name: t.detach().clone() for name, t in self.graph.state_dict().items()}

    @torch.no_grad()
    def restore(self, graph: Graph) -> None:
        """Give a graph these values, in place; what it did not have then, such as masks, stays."""
        for name, value in graph.state_dict().items():
            if name in self.values:
                value.copy_(self.values[name])
        for node in graph.nodes:
            if node.op == "get_attr" and str(node.target) in self.values:
                graph.changed_in_place(node)


@torch.no_grad()
def mask_smallest(graph: Graph, weights: Sequence[Node], share: float) -> None:
    """Mask the smallest of some weights, all layers together, until this share is; what is masked already stays masked."""
    known = {found.weight: graph.tensor(found.mask) for found in masks(graph)}
    sizes = [
        graph.tensor(w).abs().masked_fill(known[w] == 0, -1.0) if w in known else graph.tensor(w).abs() for w in weights
    ]
    every = torch.cat([size.flatten() for size in sizes])
    kept = torch.ones(len(every), dtype=torch.bool)
    kept[torch.argsort(every, stable=True)[: round(share * len(every))]] = False
    for weight, part, size in zip(weights, torch.split(kept, [s.numel() for s in sizes]), sizes, strict=True):
        put_mask(graph, weight, part.view_as(size))
    graph.refresh()
