"""A k x k convolution with few filters, and a 1x1 convolution that mixes them.

    W [out, in * k * k] = U_r V_r        k x k with r filters, then 1x1:   in -> r -> out

    MACs per position   in out k^2  ->  r (in k^2 + out)
    error               as of any truncated SVD: the dropped singular values of W flattened to [out, in k^2]

Paper:  Zhang et al. 2015, "Accelerating Very Deep Convolutional Networks for Classification and Detection", section 3.1;
        Denton et al. 2014, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.ir.layer import Layer
from graphopt.passes.factorization.method import kernel_of
from graphopt.passes.factorization.svd import SVD


@dataclass(frozen=True)
class ChannelWise(SVD):
    """Convolutions of any kernel, dimension and direction; one rank."""

    def refuses(self, layer: Layer) -> str | None:
        if all(k == 1 for k in kernel_of(layer)):
            return "it has no kernel larger than 1; see SVD"
        return None
