"""Factors that answer like a layer on its data, rather than look like its weight.

    minimize over the factors   tr( (D - W) M (D - W)^T )         D: the chain's dense weight [out, d]
                                                                  W: wanted [out, d]    M: second moments of its input [d, d]

Two stages with one rank have a closed form, the principal components of the responses W x (`principal`). Any other chain is
a product of its factors, so the error is a polynomial in them: it is searched by L-BFGS from the factors of the weight
(`descend`). The data enter through M alone, in constant memory.

Paper:  Zhang et al. 2015, "Accelerating Very Deep Convolutional Networks", section 3.1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from graphopt.passes.factorize.chain import Chain

WIDE = 1536  # inputs of a layer from which on the search uses float32


def principal(weight: Tensor, metric: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """[out, r] and [r, d], whose product is the matrix of rank r with the least error in the metric."""
    _, vectors = torch.linalg.eigh(weight @ metric @ weight.T)
    basis = vectors[:, -rank:].flip(1)
    return basis, basis.T @ weight


def error(chain: Chain, weight: Tensor, metric: Tensor) -> float:
    """The share of the responses' power that is lost."""
    return float(_lost(chain.dense().flatten(1).to(weight), weight, metric) / _power(weight, metric))


def descend(chain: Chain, weight: Tensor, metric: Tensor, iterations: int = 60) -> Chain:
    """The chain with its factors moved to lessen the error; never worse than it was."""
    if len(metric) > WIDE:
        weight, metric = weight.float(), metric.float()
    power = _power(weight, metric)
    factors = [
        w.detach().to(weight).clone(memory_format=torch.contiguous_format).requires_grad_() for w in chain.weights
    ]
    search = torch.optim.LBFGS(factors, max_iter=iterations, history_size=12, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        loss = _lost(chain.with_weights(factors).dense().flatten(1), weight, metric) / power
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        before = float(closure().detach())
        search.step(closure)  # type: ignore[no-untyped-call]
    found = chain.with_weights([f.detach() for f in factors])
    return found if error(found, weight, metric) < before else chain.with_weights([w.to(weight) for w in chain.weights])


def level(chain: Chain, metric: Tensor | None) -> Chain:
    """Scale the channels between stages to one deviation (without data: factors on both sides to equal size), for one scale per
    tensor to fit them all when they are quantized. The chain computes the same."""
    weights = [w.clone() for w in chain.weights]
    for number in range(len(weights) - 1):
        behind = chain.stages[number + 1]
        inside = weights[number + 1].shape[1]
        if metric is None:
            down = weights[number].flatten(1).norm(dim=1)
            grouped = weights[number + 1].reshape(behind.geometry.groups, -1, *weights[number + 1].shape[1:])
            up = grouped.transpose(1, 2).flatten(0, 1).flatten(1).norm(dim=1)
            scale = (down / up.clamp(min=1e-30)).clamp(min=1e-12).sqrt()
        else:
            features = Chain(chain.stages[: number + 1]).with_weights(weights[: number + 1]).dense()
            features = _padded(features, chain).flatten(1).to(metric)
            scale = ((features @ metric) * features).sum(1).clamp(min=0).sqrt()
        scale = torch.where(scale > 1e-6 * scale.max(), scale, torch.ones_like(scale)).to(weights[number])
        ones = [1] * (weights[number].dim() - 1)
        weights[number] = weights[number] / scale.reshape(-1, *ones)
        groups = behind.geometry.groups
        share = scale.reshape(groups, 1, inside).expand(-1, len(weights[number + 1]) // groups, -1).flatten(0, 1)
        weights[number + 1] = weights[number + 1] * share.reshape(*share.shape, *ones[1:])
    return chain.with_weights(weights)


def _padded(features: Tensor, chain: Chain) -> Tensor:
    """A kernel of the first stages in the frame of the whole chain's."""
    frame = chain.dense().shape[2:]
    extra = [amount for k, full in zip(features.shape[2:], frame, strict=True) for amount in (full - k, 0)]
    return F.pad(features, extra[::-1])


def _lost(dense: Tensor, weight: Tensor, metric: Tensor) -> Tensor:
    apart = dense - weight
    return ((apart @ metric) * apart).sum()


def _power(weight: Tensor, metric: Tensor) -> Tensor:
    return ((weight @ metric) * weight).sum().clamp(min=1e-30)
