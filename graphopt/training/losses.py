"""What training minimizes: a loss by name, or a function of outputs and targets.

    cross_entropy    classes by number (integers [N, ...]), or shares of classes [N, classes, ...], of logits [N, classes, ...]
    mse, l1          numbers of the outputs' own shape
    bce              truth values or probabilities of the outputs' own shape, of logits

By default classes by number, or shares, are compared by cross entropy and everything else by squared error. A model that returns
several things, such as a detection network, takes a function: `loss(outputs, targets) -> Tensor`, with outputs as the model
nests them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor

from graphopt.utils.errors import InputError, alternatives

Loss = Callable[[Any, Any], Tensor]


def loss_of(loss: str | Loss | None, *, label_smoothing: float = 0.0) -> Loss:
    """The function that a name stands for.

    Raises:
        InputError: an unknown name.
    """
    if callable(loss):
        return loss
    if loss is None:
        return lambda outputs, targets: _guessed(outputs, targets, label_smoothing)
    if loss not in LOSSES:
        raise InputError(f"unknown loss {loss!r}; {alternatives(loss, LOSSES, 'losses')}, or a function")
    chosen = LOSSES[loss]
    return lambda outputs, targets: chosen(output(outputs), _needed(targets), label_smoothing)


def output(outputs: Any) -> Tensor:
    """The tensor that a loss by name compares: the model's only output, or its `logits`.

    Raises:
        InputError: there are several and none is called logits.
    """
    named = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    if isinstance(named, Tensor):
        return named
    leaves = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
    if len(leaves) != 1:
        raise InputError(f"the model returns {len(leaves)} tensors; give a function, loss(outputs, targets) -> Tensor")
    return leaves[0]


def _guessed(outputs: Any, targets: Any, smoothing: float) -> Tensor:
    found, wanted = output(outputs), _needed(targets)
    classes = not wanted.is_floating_point() or (
        wanted.dim() == found.dim() > 1 and bool((wanted.sum(1) - 1).abs().max() < 1e-3)
    )
    return (_cross_entropy if classes else _mse)(found, wanted, smoothing)


def _needed(targets: Any) -> Tensor:
    if targets is None:
        raise InputError(
            "the training data has no targets, which the loss wants; give (inputs, targets), or a teacher alone"
        )
    if not isinstance(targets, Tensor):
        raise InputError(f"targets are a {type(targets).__name__}; give a function, loss(outputs, targets) -> Tensor")
    return targets


def _cross_entropy(found: Tensor, wanted: Tensor, smoothing: float) -> Tensor:
    if not wanted.is_floating_point():
        wanted = wanted.long().reshape(found.shape[:1] + found.shape[2:])
        classes = found.shape[1]
        if wanted.numel() and int(wanted.max()) >= classes:
            raise InputError(f"a target is class {int(wanted.max())}, the model has {classes}: 0 to {classes - 1}")
    return F.cross_entropy(found, wanted, label_smoothing=smoothing)


def _mse(found: Tensor, wanted: Tensor, smoothing: float) -> Tensor:
    return F.mse_loss(found, _alike(found, wanted))


def _l1(found: Tensor, wanted: Tensor, smoothing: float) -> Tensor:
    return F.l1_loss(found, _alike(found, wanted))


def _bce(found: Tensor, wanted: Tensor, smoothing: float) -> Tensor:
    wanted = _alike(found, wanted)
    return F.binary_cross_entropy_with_logits(found, wanted * (1 - smoothing) + smoothing / 2)


def _alike(found: Tensor, wanted: Tensor) -> Tensor:
    """Targets [N] of outputs [N, 1] are meant for them; other shapes would be broadcast to each other in silence."""
    if wanted.shape != found.shape and wanted.numel() == found.numel() and wanted.shape[:1] == found.shape[:1]:
        wanted = wanted.reshape(found.shape)
    if wanted.shape != found.shape:
        raise InputError(f"targets {list(wanted.shape)} do not have the outputs' shape {list(found.shape)}")
    return wanted.to(found.dtype)


LOSSES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "cross_entropy": _cross_entropy, "mse": _mse, "l1": _l1, "bce": _bce,
}  # fmt: skip
