"""Turned images as targets where there are no labels: the network says by how much each was turned.

    train(graph, Rotations(images), compress=[SinglePath()], epochs=10)
    found = search(graph, {"macs": 0.5}, evaluate=rotation_accuracy(held_out), data=...)

Networks are ranked by that about as by the task that they are for (Kendall's tau of 0.8 to 0.9 in the paper's spaces). What is
found is trained on the task afterwards, with a head for it. Of the logits, the first so many as there are turns are for them.

Papers: Gidaris et al. 2018, "Unsupervised Representation Learning by Predicting Image Rotations"; Liu et al. 2020, "Are Labels
        Necessary for Neural Architecture Search?" (UnNAS).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from graphopt.training.losses import output
from graphopt.utils.checks import check_count
from graphopt.utils.errors import InputError

TURNS = (0, 1, 2, 3)  # quarters of a full turn


class Rotations:
    """Training data: batches of images [turns * batch_size, C, H, W], each in all its turns, and the numbers of these.

    Args:
        images: [N, C, H, W]. turns: in quarters; (0, 2) where images are not square.
        batch_size: images of a batch, before they are turned.

    Raises:
        InputError: no images of this form, turns that are not different numbers from 0 to 3, or that images do not fit.
    """

    def __init__(self, images: Tensor, *, turns: Sequence[int] = TURNS, batch_size: int = 16) -> None:
        _check(images, turns)
        check_count("batch_size", batch_size)
        self.images, self.turns, self.size = images, tuple(turns), batch_size

    def __len__(self) -> int:
        return -(-len(self.images) // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for places in torch.split(torch.randperm(len(self.images)), self.size):
            yield turned(self.images[places], self.turns)


def turned(images: Tensor, turns: Sequence[int] = TURNS) -> tuple[Tensor, Tensor]:
    """Images [N, C, H, W] in every turn, [turns * N, C, H, W], and the number of the turn of each, [turns * N]."""
    every = torch.cat([torch.rot90(images, turn, (-2, -1)) for turn in turns])
    return every.contiguous(), torch.arange(len(turns)).repeat_interleave(len(images))


def rotation_accuracy(
    images: Tensor, *, turns: Sequence[int] = TURNS, batch_size: int = 64
) -> Callable[[Callable[..., Any]], float]:
    """For `evaluate`: the share of turns that a model tells, in percent. Arguments as those of `Rotations`."""
    _check(images, turns)

    def accuracy(model: Callable[..., Any]) -> float:
        right = 0
        with torch.no_grad():
            for part in torch.split(images, batch_size):
                x, y = turned(part, turns)
                right += int((output(model(x))[:, : len(turns)].argmax(1) == y).sum())
        return 100 * right / (len(turns) * len(images))

    return accuracy


def _check(images: Tensor, turns: Sequence[int]) -> None:
    if images.dim() != 4 or not len(images):
        raise InputError(f"rotations are of images [N, C, H, W], got a tensor {list(images.shape)}")
    if len(turns) < 2 or len(set(turns)) < len(turns) or not set(turns) <= set(TURNS):
        raise InputError(f"turns are two or more different numbers from 0 to 3, got {tuple(turns)}")
    if images.shape[2] != images.shape[3] and any(turn % 2 for turn in turns):
        raise InputError(f"images of {list(images.shape[2:])} pixels can be turned by half alone: turns=(0, 2)")
