"""Compound scaling: the largest network within the limit, factors chosen by score."""

import pytest
import torch
from torch import Tensor, nn

from graphopt import InputError
from graphopt.spaces.compound import compound_scaling, macs


def family(depth: float, width: float, resolution: float) -> tuple[nn.Module, Tensor]:
    channels, layers, size = max(1, round(16 * width)), max(1, round(3 * depth)), max(1, round(16 * resolution))
    body = [nn.Conv2d(3 if n == 0 else channels, channels, 3, padding=1) for n in range(layers)]
    return nn.Sequential(*body), torch.randn(1, 3, size, size)


@pytest.mark.parametrize("share", [0.3, 1.0, 3.7])
def test_the_largest_within_the_limit_is_found(share: float) -> None:
    limit = share * macs(*family(1, 1, 1))
    found = compound_scaling(family, limit)
    assert found.cost == macs(found.model, found.example) <= limit
    assert found.cost > 0.7 * limit
    larger = family(found.depth * 1.2, found.width * 1.1, found.resolution * 1.15)
    assert macs(*larger) > limit


def test_a_score_chooses_what_grows() -> None:
    def prefers_depth(model: nn.Module, example: Tensor) -> float:
        layers = list(model.children())
        return len(layers) - 0.1 * layers[-1].out_channels - 0.1 * example.shape[-1]

    found = compound_scaling(family, 4 * macs(*family(1, 1, 1)), score=prefers_depth)
    assert found.depth > found.width


def test_bad_limits_are_named() -> None:
    with pytest.raises(InputError, match="limit must be over 0"):
        compound_scaling(family, 0)
    with pytest.raises(InputError, match="begin with a smaller base"):
        compound_scaling(family, 1.0)
    with pytest.raises(InputError, match="ratios"):
        compound_scaling(family, 1e6, ratios=(0.5, 1.0, 1.0))
    with pytest.raises(InputError, match="hardly depends"):
        compound_scaling(lambda d, w, r: family(1, 1, 1), 1e12)
