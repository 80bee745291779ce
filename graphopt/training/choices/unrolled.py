"""The gradient of a validation loss behind one step of the weights: DARTS, second order.

    w' = w - xi dL_train/dw (w, a)                                     a: what weights of choices are computed from
    d/da L_val(w', a) = dL_val/da (w', a) - xi d2L_train/(da dw) (w, a) v             v = dL_val/dw' (w', a)
    d2L_train/(da dw) v = (dL_train/da (w + eps v, a) - dL_train/da (w - eps v, a)) / 2 eps        eps = 0.01 / |v|

Four gradients in place of one, and no second derivatives.

Paper: Liu et al. 2019, "DARTS: Differentiable Architecture Search", section 2.3, equations 6 to 8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Objective = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]  # of weights and alphas, a scalar with gradient
EPS = 0.01  # times a direction of length one


def unrolled_gradient(
    training: Objective, validation: Objective, weights: Sequence[Tensor], alphas: Sequence[Tensor], rate: float
) -> list[Tensor]:
    """The gradient for each of alphas, in their shapes; `rate` is xi. Random numbers are the same in all calls."""
    fixed = [w.detach() for w in weights]
    slopes = _gradients(training, _leaves(fixed), alphas, of_weights=True)[0]
    ahead = _leaves([w - rate * g for w, g in zip(fixed, slopes, strict=True)])
    v, direct = _gradients(validation, ahead, alphas, of_weights=True)
    length = torch.sqrt(torch.stack([g.square().sum() for g in v]).sum())
    if not float(length) > 0:
        return direct
    eps = EPS / length
    above, below = (
        _gradients(training, [w + sign * eps * g for w, g in zip(fixed, v, strict=True)], alphas)[1] for sign in (1, -1)
    )
    return [d - rate * (a - b) / (2 * eps) for d, a, b in zip(direct, above, below, strict=True)]


def _leaves(values: Sequence[Tensor]) -> list[Tensor]:
    return [value.detach().requires_grad_() for value in values]


def _gradients(
    objective: Objective, weights: Sequence[Tensor], alphas: Sequence[Tensor], *, of_weights: bool = False
) -> tuple[list[Tensor], list[Tensor]]:
    """Those of the weights, where they are wanted, and those of alphas; zeros for what does not count."""
    leaves = _leaves(alphas)
    wanted = [*(weights if of_weights else ()), *leaves]
    with torch.random.fork_rng(devices=[]):
        found = torch.autograd.grad(objective(weights, leaves), wanted, allow_unused=True, materialize_grads=True)
    return list(found[: len(found) - len(leaves)]), list(found[len(found) - len(leaves) :])
