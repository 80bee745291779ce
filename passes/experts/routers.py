"""Routers: which experts a token needs, from what the first layer reads.

Of a token x, expert e would add  c_e = |W2[:, e] r[e]|  to the answer, where r is how far its neurons are from what stands for
them where the expert is left out. A linear layer predicts that, by ridge regression on samples:

    scores = R [x; 1]      R = argmin  |R [x; 1] - c|^2 + ridge |R|^2
"""

from __future__ import annotations

import torch
from torch import Tensor

RIDGE = 1e-3  # of the mean square of an input


def contributions(active: Tensor, weight: Tensor, experts: int) -> Tensor:
    """What each expert adds, a norm, [samples, experts].

    Args:
        active: neurons in the order of experts, less what stands for them, [samples, neurons].
        weight: of the second layer, in that order.
    """
    parts = zip(active.chunk(experts, 1), weight.chunk(experts, 1), strict=True)
    return torch.stack([(values @ columns.t()).norm(dim=1) for values, columns in parts], 1)


def fitted(x: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Weight [experts, inputs] and bias [experts] of the router, float32.

    Args:
        x: [samples, inputs]. wanted: [samples, experts].
    """
    x, wanted = x.double(), wanted.double()
    mean, middle = x.mean(0), wanted.mean(0)
    centred = x - mean
    gram = centred.t() @ centred
    gram += RIDGE * len(x) * centred.square().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weight = torch.linalg.solve(gram, centred.t() @ (wanted - middle)).t()
    return weight.float(), (middle - weight @ mean).float()
