"""Integer codes that minimize a quadratic error."""

from __future__ import annotations

import torch

from graphopt.fitting import rounding as q


def test_descent_is_as_good_as_trying_all_codes():
    torch.manual_seed(0)
    d = 4
    weight, half = torch.randn(1, 3, d).double(), torch.randn(1, d, d).double()
    metric = half @ half.transpose(1, 2) + 0.3 * torch.eye(d).double()
    lattice = q.Lattice(torch.full((1, 3, 1), 0.7).double(), torch.zeros(1, 3, 1).double(), -1, 1)
    every = torch.cartesian_prod(*[torch.arange(-1.0, 2)] * d).double()
    lost = every[:, None] * 0.7 - weight[0]
    best = torch.einsum("krd,de,kre->kr", lost, metric[0], lost).min(0).values
    codes, _ = q.fit(weight, metric, lattice, scales=False)
    found = q.cost(weight, metric, lattice.weight(codes))[0]
    assert (found <= 1.3 * best + 1e-9).all()
    nearest = q.cost(weight, metric, lattice.weight(lattice.codes(weight)))[0]
    assert found.sum() < nearest.sum()


def test_the_best_scale_is_a_minimum():
    torch.manual_seed(0)
    weight, half = torch.randn(2, 3, 5).double(), torch.randn(2, 5, 5).double()
    metric = half @ half.transpose(1, 2)
    lattice = q.Lattice(torch.full((2, 3, 1), 0.4).double(), torch.zeros(2, 3, 1).double(), -7, 7)
    codes = lattice.codes(weight)
    scaled = q.rescale(weight, metric, lattice, codes)
    for factor in (0.99, 1.01):
        other = q.Lattice(scaled.scale * factor, lattice.zero, -7, 7)
        assert (q.cost(weight, metric, scaled.weight(codes)) <= q.cost(weight, metric, other.weight(codes))).all()
