"""Vectors that the weights of a layer are made of: k-means under the moments of what each meets.

    W = [ C[k_11] .. C[k_1m] ; .. ; C[k_o1] .. C[k_om] ]      C: [entries, d]   k: uint8 [out, m]   W: [out, m d]

The place j of a vector decides which inputs it meets, with second moments H_j [d, d] (a block on the diagonal of the layer's), so

    assign    k_oj = argmin_c (w_oj - C_c)^T H_j (w_oj - C_c)
    update    C_c  = (sum H_j)^-1 sum H_j w_oj                over the vectors that have c

Then, with these codes, the entries are moved to where the whole layer's error is least, places with each other:

    minimize  tr (W^ - W) H (W^ - W)^T                        a quadratic in C, by L-BFGS

Papers: Stock et al. 2020, "And the Bit Goes Down: Revisiting the Quantization of Neural Networks", section 3.2; Jegou et al.
        2011, "Product Quantization for Nearest Neighbor Search".
"""

from __future__ import annotations

import torch
from torch import Tensor

TURNS = 15
STEPS = 25  # of L-BFGS


def fitted(
    weight: Tensor, metric: Tensor, entries: int, width: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Entries [entries, d] and codes [out, m] of a weight [out, m d], under a metric [m d, m d]; float64, int64."""
    places = weight.shape[1] // width
    vectors = weight.reshape(len(weight), places, width).transpose(0, 1)  # [m, out, d]
    blocks = metric.reshape(places, width, places, width)[torch.arange(places), :, torch.arange(places)]
    table = _start(vectors, entries, generator)
    codes = _assigned(vectors, blocks, table)
    for _ in range(TURNS):
        table = _updated(vectors, blocks, table, codes)
        before, codes = codes, _assigned(vectors, blocks, table)
        if torch.equal(before, codes):
            break
    codes = codes.T.contiguous()
    return moved(table, codes, weight, metric), codes


def made(table: Tensor, codes: Tensor) -> Tensor:
    """The weight [out, m d]."""
    return table[codes].flatten(1)


def moved(table: Tensor, codes: Tensor, weight: Tensor, metric: Tensor) -> Tensor:
    """Entries of least error with these codes."""
    learned = table.clone().requires_grad_()
    search = torch.optim.LBFGS([learned], max_iter=STEPS, line_search_fn="strong_wolfe")
    power = ((weight @ metric) * weight).sum().clamp(min=1e-30)

    def closure() -> Tensor:
        search.zero_grad()
        lost = made(learned, codes) - weight
        loss = ((lost @ metric) * lost).sum() / power
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        before = float(closure().detach())
        search.step(closure)  # type: ignore[no-untyped-call]
        after = float(closure().detach())
    return learned.detach() if after < before else table


def _start(vectors: Tensor, entries: int, generator: torch.Generator) -> Tensor:
    flat = vectors.reshape(-1, vectors.shape[-1])
    return flat[torch.randperm(len(flat), generator=generator)[:entries]].clone()


def _assigned(vectors: Tensor, blocks: Tensor, table: Tensor) -> Tensor:
    """The nearest entry of each vector, [m, out]."""
    turned = blocks @ table.T  # [m, d, entries]
    sizes = (table.T * turned).sum(1)  # [m, entries]
    codes: Tensor = (sizes[:, None] - 2 * vectors @ turned).argmin(-1)
    return codes


def _updated(vectors: Tensor, blocks: Tensor, table: Tensor, codes: Tensor) -> Tensor:
    """Entries of least error for their vectors; one without any goes on at one of the vectors that are farthest from theirs."""
    places, _, width = vectors.shape
    keys = (torch.arange(places)[:, None] * len(table) + codes).flatten()
    counts = torch.bincount(keys, minlength=places * len(table)).reshape(places, -1).to(vectors.dtype)
    sums = vectors.new_zeros(places * len(table), width).index_add_(0, keys, vectors.reshape(-1, width))
    system = (counts.T @ blocks.flatten(1)).reshape(-1, width, width)
    wanted = torch.einsum("jab,jcb->ca", blocks, sums.reshape(places, -1, width))
    ridge = system.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-30)[:, None, None] * torch.eye(
        width, dtype=vectors.dtype
    )
    found: Tensor = torch.linalg.solve(system + 1e-9 * ridge, wanted[..., None])[..., 0]
    idle = counts.sum(0) == 0
    if bool(idle.any()):
        lost = vectors - table[codes]
        far = ((lost @ blocks) * lost).sum(-1).flatten().topk(int(idle.sum())).indices
        found[idle] = vectors.reshape(-1, width)[far]
    return found
