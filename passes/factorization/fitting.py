"""Factors that answer like a layer on its data, rather than look like its weight.

    minimize over the factors   tr( (D - W) M (D - W)^T )         D: the chain's dense weight [out, d]
                                                                  W: wanted [out, d]    M: second moments of its input [d, d]

Two stages with one rank have a closed form, the principal components of the responses W x (`Problem.principal`). Any other
chain is a product of its factors, so the error is a polynomial in them: it is searched by L-BFGS from the factors of the weight
(`descend`). The data enter through M alone, in constant memory.

Paper:  Zhang et al. 2015, "Accelerating Very Deep Convolutional Networks", section 3.1.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from graphopt.passes.factorization.chain import Chain, Stage

WIDE = 1536  # inputs of a layer from which on the search uses float32


class Problem:
    """A layer to be approximated: the wanted weight [out, d], and the metric [d, d] that errors are measured in; float64."""

    def __init__(self, weight: Tensor, metric: Tensor) -> None:
        self.weight, self.metric = weight, metric
        self.power = float(((weight @ metric) * weight).sum().clamp(min=1e-30))

    def error(self, chain: Chain) -> float:
        """The share of the responses' power that a chain loses."""
        return float(self.lost(chain.dense().flatten(1).to(self.weight)))

    def lost(self, dense: Tensor) -> Tensor:
        apart = dense - self.weight
        return ((apart @ self.metric) * apart).sum() / self.power

    def principal(self, rank: int) -> tuple[Tensor, Tensor]:
        """[out, r] and [r, d], whose product is the matrix of rank r with the least error."""
        basis = self.components[:, -rank:].flip(1)
        return basis, basis.T @ self.weight

    @cached_property
    def components(self) -> Tensor:
        """Principal components of the responses, rising: [out, out]."""
        vectors: Tensor = torch.linalg.eigh(self.weight @ self.metric @ self.weight.T)[1]
        return vectors

    @cached_property
    def single(self) -> Problem:
        """The same in float32, for wide layers."""
        return self if len(self.metric) <= WIDE else Problem(self.weight.float(), self.metric.float())


def descend(chain: Chain, problem: Problem, iterations: int) -> Chain:
    """The chain with its factors moved to lessen the error; never worse than it was."""
    fast = problem.single
    start = [w.detach().to(fast.weight).clone(memory_format=torch.contiguous_format) for w in chain.weights]
    factors = [w.clone().requires_grad_() for w in start]
    search = torch.optim.LBFGS(factors, max_iter=iterations, history_size=12, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        loss = fast.lost(chain.with_weights(factors).dense().flatten(1))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        before = float(closure().detach())
        search.step(closure)  # type: ignore[no-untyped-call]
    found = chain.with_weights([f.detach() for f in factors])
    return found if fast.error(found) < before else chain.with_weights(start)


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
