"""What must hold before a model is captured: eval mode, on the CPU, finite weights, inputs that can be captured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from graphopt.frontend import signature
from graphopt.utils import printing
from graphopt.utils.errors import CaptureError, InputError, NonFiniteError


def check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(
            f"a model must be an nn.Module, an ExportedProgram or the path of a .pt2 file, got {type(model).__name__}"
        )
    who = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError(f"{who} is TorchScript, which cannot be captured; pass the Python module it was made from")
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise InputError(f"{who} is a wrapper for training on several devices; pass model.module")
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if nn.parameter.is_lazy(value):
            raise InputError(
                f"{name!r} of {who} has no shape yet (a lazy module); call the model once on an example first"
            )
        if value.device.type != "cpu":
            raise InputError(
                f"{name!r} of {who} is on device {str(value.device)!r}; capture needs the CPU: call model.cpu() first"
            )
    _check_modes(model, who)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if not value.is_floating_point() or value.layout != torch.strided:
            continue
        # Masks hold -inf on purpose; a learned value never does.
        wrong = ~torch.isfinite(value) if isinstance(value, nn.Parameter) else torch.isnan(value)
        if bad := int(wrong.sum()):
            raise NonFiniteError(f"{name!r} of {who} holds NaN or infinity in {bad} of {value.numel()} elements")


def _check_modes(model: nn.Module, who: str) -> None:
    """Training behaviour anywhere would be captured for good."""
    if isinstance(model, fx.GraphModule) and not list(model.children()):
        return
    from torch.nn.modules.batchnorm import _NormBase
    from torch.nn.modules.dropout import _DropoutNd

    behaves = [(n, m) for n, m in model.named_modules() if m.training and isinstance(m, (_NormBase, _DropoutNd))]
    if model.training:
        raise InputError(
            f"{who} is in training mode, so batch norm and dropout would be captured with training behaviour; "
            "call model.eval() first"
        )
    if behaves:
        name, module = behaves[0]
        raise InputError(
            f"{name!r} ({type(module).__name__}) of {who} is in training mode, so it would be captured with training "
            "behaviour; call model.eval() first"
        )


def check_inputs(args: tuple[Any, ...], kwargs: dict[str, Any], who: str) -> None:
    leaves = pytree.tree_leaves((args, kwargs))
    if not tensors(leaves):
        raise InputError(
            f"{who} needs example inputs to be captured; pass a tensor, or a tuple of the inputs of forward"
        )
    if (odd := signature.unsupported_leaf((args, kwargs))) is not None:
        hint = (
            "torch.from_numpy(...)"
            if type(odd).__module__ == "numpy"
            else "a tensor, number, string or nested tuple, list, dict"
        )
        raise InputError(f"an example input is a {type(odd).__name__}, which cannot be captured; pass {hint}")
    for value in leaves:
        if isinstance(value, Tensor) and value.device.type != "cpu":
            raise InputError(
                f"an example input is on device {str(value.device)!r}, the model on the CPU; pass it through .cpu()"
            )
        if isinstance(value, Tensor) and value.dim() and value.shape[0] == 0:
            raise InputError(
                f"an example input is empty ({printing.dtype(value.dtype)}{list(value.shape)}); pass at least one sample"
            )


def tensors(leaves: Sequence[Any]) -> list[Tensor]:
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]
