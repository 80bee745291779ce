"""Codes that cost few bits: fewer than the nearest ones have, at no greater error."""

from __future__ import annotations

import pytest
import torch

from graphopt.fitting.priced import SLOPE, Table, bits, choose, entropy
from graphopt.fitting.rounding import Lattice, cost


def problem(columns: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Two groups of weights, and the second moments of inputs that lie near a few directions."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 400, 6, generator=generator, dtype=torch.float64) @ torch.randn(
        2, 6, columns, generator=generator, dtype=torch.float64
    )
    metric = inputs.transpose(1, 2) @ inputs / 400 + 0.3 * torch.eye(columns, dtype=torch.float64)
    return torch.randn(2, 40, columns, generator=generator, dtype=torch.float64), metric


def grids(step: float) -> list[Table | Lattice]:
    table = Table(torch.arange(-15, 16, dtype=torch.float64) * step)
    return [table, Lattice(torch.full((2, 40, 1), step).double(), torch.zeros(2, 40, 1).double(), -15, 15)]


@pytest.mark.parametrize("kind", [0, 1])
def test_fewer_bits_at_no_greater_error_than_the_nearest_codes(kind: int) -> None:
    weight, metric = problem()
    levels = grids(1.5)[kind]
    nearest, found = levels.codes(weight), choose(weight, metric, levels, SLOPE * 1.5**2)
    assert entropy(found) < 0.92 * entropy(nearest)
    assert cost(weight, metric, levels.weight(found)).sum() < 0.3 * cost(weight, metric, levels.weight(nearest)).sum()


def test_a_table_and_a_lattice_of_the_same_levels_give_the_same_weights() -> None:
    weight, metric = problem()
    found = [levels.weight(choose(weight, metric, levels, SLOPE * 0.25)) for levels in grids(0.5)]
    assert torch.equal(*found)


def test_a_higher_price_takes_fewer_bits_and_loses_more() -> None:
    weight, metric = problem()
    levels = grids(0.5)[0]
    found = [choose(weight, metric, levels, slope) for slope in (0.0, 0.03, 0.3)]
    sizes, losses = [entropy(c) for c in found], [float(cost(weight, metric, levels.weight(c)).sum()) for c in found]
    assert sizes == sorted(sizes, reverse=True)
    assert losses == sorted(losses)


def test_weights_that_are_zero_stay_so() -> None:
    weight, metric = problem()
    held = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.7
    levels = grids(0.5)[0]
    found = levels.weight(choose(weight.masked_fill(held, 0), metric, levels, 0.01, held=held))
    assert bool((found[held] == 0).all())
    assert bool((found[~held] != 0).any())


def test_bits_are_those_of_an_entropy_coder() -> None:
    codes = torch.tensor([0, 0, 0, 0, 1, 1, 2, 3])
    levels = Table(torch.arange(4.0).double())
    assert bits(codes, levels).tolist() == [1, 2, 3, 3]
    assert entropy(codes) == 4 * 1 + 2 * 2 + 3 + 3
