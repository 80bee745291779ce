"""Losses that need no labels: the network's own answers stand in for them.

A loss takes what the model returns and the batch it was given, and gives one number summed over the samples. Classes lie along
dimension 1 of images ([N, C], [N, C, H, W]) and along the last one of sequences ([N, T, C]).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from graphopt.ir.cost import class_dim
from graphopt.ir.structure import tensors
from graphopt.utils.errors import InputError

Loss = Callable[[Any, list[Tensor]], Tensor]


def own_labels(output: Any, batch: list[Tensor]) -> Tensor:
    """Cross-entropy of the first floating-point output against the class the network itself gives."""
    logits = _logits(output)
    return F.cross_entropy(logits, logits.detach().argmax(1), reduction="sum")


def own_outputs(output: Any, batch: list[Tensor]) -> Tensor:
    """r z, with random signs r for the elements of all outputs z: the squared distance to what the network itself gives.

    The mean over r of the squared gradient is sum over k of (dz_k / dw)^2, the diagonal of that distance's Hessian
    (Gauss-Newton). It needs no classes, and a network that is sure of its classes hides nothing from it. Of several outputs,
    each counts by its own size.
    """
    leaves = _floating(output)
    if len(leaves) > 1:
        leaves = [z / z.detach().norm().clamp(min=1e-30) for z in leaves]
    return torch.stack([(torch.randint_like(z, 2) * 2 - 1).mul(z).sum() for z in leaves]).sum()


def _floating(output: Any) -> list[Tensor]:
    return [tensor for tensor in tensors(output) if tensor.is_floating_point()]


def _logits(output: Any) -> Tensor:
    """The first floating-point output with its classes along dimension 1."""
    logits = next(iter(_floating(output)), None)
    if logits is None or logits.dim() < 2:
        shape = "there is none" if logits is None else f"it is {list(logits.shape)}"
        raise InputError(
            f"a loss of classes needs two dimensions or more of the first floating-point output, but {shape}; choose a loss of "
            "outputs, or give one of your own"
        )
    return logits.movedim(class_dim(logits), 1)


# ---- What a changed network answers, against the original's answer --------------------------------------------------

Comparison = Callable[[Any, Any], Tensor]


def against_labels(output: Any, original: Any) -> Tensor:
    """Cross-entropy of the first floating-point output against the class the original gives."""
    return F.cross_entropy(_logits(output), _logits(original).argmax(1), reduction="sum")


def divergence(output: Any, original: Any) -> Tensor:
    """Kullback-Leibler divergence of the class probabilities from the original's."""
    one, other = (F.log_softmax(_logits(z), 1) for z in (output, original))
    return F.kl_div(one, other, reduction="sum", log_target=True)


def squared_error(output: Any, original: Any) -> Tensor:
    """Sum over all floating-point outputs of the squared distance to the original's, in shares of that output's power, times the
    samples."""
    pairs = [(a.double(), b.double()) for a, b in zip(_floating(output), _floating(original), strict=True)]
    shares = [(a - b).square().sum() / b.square().sum().clamp(min=1e-300) for a, b in pairs]
    return torch.stack(shares).sum() * max(len(b) if b.dim() else 1 for _, b in pairs)


COMPARISONS: dict[str, Comparison] = {
    "labels": against_labels,
    "divergence": divergence,
    "outputs": squared_error,
}
