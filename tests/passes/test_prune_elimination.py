"""Units removed one by one from a least-squares problem: as fitting again from scratch does it, whatever is kept waiting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from graphopt.passes.pruning import elimination
from graphopt.passes.pruning.elimination import RIDGE, Elimination
from graphopt.passes.pruning.surgeon import removal_order

UNITS = {
    "rows of a kernel": np.repeat(np.arange(6), 4),
    "scattered": np.tile(np.arange(6), 4),
    "of unlike size": np.array([0] * 5 + [1] * 3 + [2] * 1 + [3] * 7 + [4] * 4 + [5] * 4),
    "some of no unit": np.array([-1, 0, 0, 1, -1, 1, 2, 2, 3, 3, -1, 4, 4, 5, 5, 5]),
    "one without columns": np.array([0, 0, 1, 1, 2, 2, 3, 3, 5, 5]),
}
BUDGETS = [(1, 0.99), (7, 0.8), (10_000, 0.0)]  # rows that wait, and the share at which columns are dropped


class Free:
    """A group whose units may go in any order, up to the last."""

    def __len__(self) -> int:
        return 6

    def spare(self, left: Any) -> list[int]:
        return [int(u) for u in np.flatnonzero(left)]


def problem(units: Any, out: int = 5) -> tuple[Tensor, Tensor, Any]:
    inputs = torch.randn(3 * len(units), len(units), dtype=torch.float64) @ torch.randn(len(units), len(units)).double()
    return torch.randn(out, len(units)), inputs.T @ inputs / len(inputs), units


def again(weight: Tensor, moments: Tensor, units: Any, gone: list[int]) -> tuple[Tensor, float]:
    """The best weight on the columns that are left, by its normal equations; and its error, with the ridge's share of it."""
    ridge = RIDGE * moments.diagonal().mean()
    metric = moments + ridge * torch.eye(len(moments), dtype=torch.float64)
    left = torch.from_numpy(~np.isin(units, gone))
    fitted = torch.zeros(weight.shape, dtype=torch.float64)
    fitted[:, left] = torch.linalg.solve(metric[left][:, left], (weight.double() @ metric)[:, left].T).T
    lost = fitted - weight.double()
    power = ((weight.double() @ moments) * weight.double()).sum()
    return fitted, float(((lost @ metric) * lost).sum() / power)


@pytest.mark.parametrize("budget", BUDGETS, ids=["at once", "a few", "all"])
@pytest.mark.parametrize("units", UNITS.values(), ids=UNITS)
def test_every_removal_is_the_best_fit_without_the_unit(
    units: Any, budget: tuple[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elimination, "WAITING", budget[0])
    monkeypatch.setattr(elimination, "KEPT", budget[1])
    weight, moments, _ = problem(units)
    work, gone, total = Elimination(weight, moments, units, 6), [], 0.0
    for unit in (2, 5, 0, 3, 4):
        total += float(work.costs(torch.tensor([unit]))[0])
        work.remove(unit)
        gone.append(unit)
        expected, error = again(weight, moments, units, gone)
        assert total == pytest.approx(error, rel=1e-9)
        if unit != 5 or budget[0] != 10_000:  # one look is left out, so that more than one removal waits
            torch.testing.assert_close(work.fitted(), expected, rtol=1e-9, atol=1e-9)


def test_the_cheapest_unit_goes_first_and_errors_of_several_readers_add_up() -> None:
    problems = [problem(UNITS["rows of a kernel"]), problem(UNITS["scattered"], 3)]
    order, fitted = removal_order(problems, Free(), levels=[2])  # type: ignore[arg-type]
    gone: list[int] = []
    for unit, error in zip(order.units, order.error, strict=True):
        costs = {u: sum(again(*p, [*gone, u])[1] for p in problems) for u in range(6) if u not in gone}
        assert unit == min(costs, key=costs.__getitem__)
        assert error == pytest.approx(costs[unit], rel=1e-9)
        gone.append(unit)
    for weight, p in zip(fitted[2], problems, strict=True):
        torch.testing.assert_close(weight, again(*p, order.units[:2])[0], rtol=1e-9, atol=1e-9)


def test_memory_that_waits_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elimination, "WAITING", 8)
    work = Elimination(*problem(UNITS["rows of a kernel"]), 6)
    most = 0
    for unit in range(5):
        work.remove(unit)
        most = max(most, work.waiting)
    assert most == 4
    assert len(work.left) < 24
