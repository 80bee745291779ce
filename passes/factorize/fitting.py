"""Factors that answer like a layer on its data, rather than look like its weight.

    minimize over the factors   tr( (D - W) M (D - W)^T )         D: the chain's dense weight [out, d]
                                                                  W: wanted [out, d]    M: second moments of its input [d, d]

Two stages with one rank have a closed form, the principal components of the responses W x (`principal`). Any other chain is
a product of its factors, so the error is a polynomial in them: it is searched by L-BFGS from the factors of the weight
(`descend`). The data enter through M alone, in constant memory.

Paper:  Zhang et al. 2015, "Accelerating Very Deep Convolutional Networks", section 3.1.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from graphopt.passes.factorize.chain import Chain, Stage

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
    tensor to fit them all when they are quantized. The chain computes the same.

    Behind a view several channels of a stage may be read as one, or one as several: those have one scale.
    """
    weights = [w.clone() for w in chain.weights]
    for number in range(len(weights) - 1):
        ahead, behind = chain.stages[number], chain.stages[number + 1]
        left, right = _shared(ahead, behind)
        rows = weights[number].flatten(1)
        grouped = weights[number + 1].reshape(behind.geometry.groups, -1, *weights[number + 1].shape[1:])
        columns = grouped.transpose(1, 2).flatten(0, 1).flatten(1)
        if metric is None:
            scale = (_norm(rows, left) / _norm(columns, right).clamp(min=1e-30)).clamp(min=1e-12).sqrt()
        else:
            features = Chain(chain.stages[: number + 1]).with_weights(weights[: number + 1]).dense()
            features = _padded(features, chain).flatten(1).to(metric)
            power = ((features @ metric) * features).sum(1, keepdim=True).clamp(min=0).sqrt()
            labels = left[_channels(ahead, 1)]
            scale = _norm(power, labels) / labels.bincount().to(power).sqrt()
        scale = torch.where(scale > 1e-6 * scale.max(), scale, torch.ones_like(scale)).to(weights[number])
        weights[number] = weights[number] / scale[left].reshape(-1, *[1] * (weights[number].dim() - 1))
        share = scale[right].reshape(behind.geometry.groups, 1, -1).expand(-1, grouped.shape[1], -1).flatten(0, 1)
        weights[number + 1] = weights[number + 1] * share.reshape(*share.shape, *[1] * (weights[number + 1].dim() - 2))
    return chain.with_weights(weights)


def _norm(rows: Tensor, labels: Tensor) -> Tensor:
    """The norm of all rows of one label: [labels]."""
    return rows.new_zeros(int(labels.max()) + 1).index_add(0, labels, rows.square().sum(1)).sqrt()


def _channels(stage: Stage, side: int) -> Tensor:
    """The channel of every feature into (0) or out of (1) a stage, in the operator's order."""
    channels = torch.arange(stage.channels[side])
    positions = stage.width[side] // len(channels)
    return channels.repeat(positions) if stage.geometry.kind == "linear" else channels.repeat_interleave(positions)


def _shared(ahead: Stage, behind: Stage) -> tuple[Tensor, Tensor]:
    """A label for every channel out of a stage, and into the one behind it, equal where they have to have one scale."""
    out, inside = ahead.channels[1], behind.channels[0]
    if behind.geometry.view is None:
        return torch.arange(out), torch.arange(out)
    sources = _channels(ahead, 1).reshape(behind.geometry.view.sizes).permute(behind.geometry.view.order).flatten()
    readers = _channels(behind, 0)
    joined = coo_matrix((np.ones(len(sources)), (sources, readers)), (out, inside))
    links = coo_matrix((joined.data, (joined.row, joined.col + out)), (out + inside, out + inside))
    labels = torch.from_numpy(connected_components(links, directed=False)[1]).long()
    return labels[:out], labels[out:]


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
