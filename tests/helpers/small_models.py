"""Small networks that every pass is tried on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from blocks import BLOCKS, conv
from rewriting import Model, randomised
from torch import Tensor, nn


def upsampling() -> nn.Module:
    return nn.Sequential(
        conv(3, 6), nn.BatchNorm2d(6), nn.PReLU(6), nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2), nn.BatchNorm2d(4),
        nn.LeakyReLU(0.1), nn.Upsample(scale_factor=2), conv(4, 3), nn.Sigmoid(),
    )  # fmt: skip


def pre_activation() -> nn.Module:
    def body(m: Any, x: Tensor) -> Tensor:
        y = m.stem(x)
        y = y + m.second(F.relu(m.norm(m.first(F.relu(m.front(y))))))
        return m.head(y.mean((2, 3)))  # type: ignore[no-any-return]

    return Model(
        body, stem=conv(3, 8), front=nn.BatchNorm2d(8), first=conv(8, 8), norm=nn.BatchNorm2d(8), second=conv(8, 8),
        head=nn.Linear(8, 5),
    )  # fmt: skip


def shuffling() -> nn.Module:
    def body(m: Any, x: Tensor) -> Tensor:
        keep, change = m.stem(x).chunk(2, 1)
        y = F.channel_shuffle(torch.cat([keep, m.branch(change).relu()], 1), 2)
        return m.head(y).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]

    return Model(body, stem=conv(3, 8), branch=conv(4, 4), head=conv(8, 4))


def dying() -> nn.Module:
    """Channels whose weights are all but gone, and biases far above zero."""
    first, norm = conv(3, 6, 1), nn.BatchNorm2d(6)
    model = nn.Sequential(
        first,
        norm,
        nn.ReLU(),
        nn.Dropout(0.2),
        conv(6, 6, 1),
        nn.ReLU6(),
        nn.Flatten(),
        nn.Linear(384, 5),
    )
    randomised(model)
    with torch.no_grad():
        first.weight[[1, 2]] = 1e-20
        norm.get_buffer("running_var")[[1, 2]] = 1e-35
        norm.bias[0] = 30.0
    return model


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(192, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 5), nn.Softmax(1)
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    **BLOCKS, "upsampling": upsampling, "pre-activation": pre_activation, "shuffling": shuffling, "dying": dying,
    "perceptron": perceptron,
}  # fmt: skip
