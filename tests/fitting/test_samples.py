"""What regions are fitted on, and what is held out."""

from __future__ import annotations

import pytest
import torch

from graphopt.fitting import samples as module
from graphopt.fitting.samples import Part, Samples


def parts(*sizes: int) -> list[Part]:
    """Samples whose values are their numbers."""
    numbers = torch.arange(float(sum(sizes))).split(sizes)
    return [Part([n[:, None].expand(-1, 3)], 10 * n[:, None]) for n in numbers]


def numbers(samples: Samples) -> list[list[float]]:
    return [part.inputs[0][:, 0].tolist() for part in samples.batches()]


def test_every_eighth_sample_is_held_out_across_batches() -> None:
    samples = Samples(parts(5, 1, 12), by_sample=True)
    assert samples.held == [0, 8, 16]
    assert numbers(samples) == [[1, 2, 3, 4], [5], [6, 7, 9, 10, 11, 12, 13, 14, 15, 17]]


def test_a_batch_whose_samples_are_all_held_out_is_left_out() -> None:
    assert numbers(Samples(parts(8, 1, 3), by_sample=True)) == [[1, 2, 3, 4, 5, 6, 7], [9, 10, 11]]


def test_where_samples_cannot_be_told_apart_batches_are_held_out() -> None:
    samples = Samples(parts(*[2] * 9), by_sample=False)
    assert samples.held == [0, 8]
    assert [row[0] for row in numbers(samples)] == [2, 4, 6, 8, 10, 12, 14]
    assert samples.take([3]).wanted.flatten().tolist() == [60, 70]


@pytest.mark.parametrize("by_sample", [True, False])
def test_one_alone_is_fitted_on_and_held_out(by_sample: bool) -> None:
    samples = Samples(parts(1), by_sample=by_sample)
    assert samples.held == samples.fitted == [0]
    assert numbers(samples) == [[0]]


def test_samples_are_taken_in_any_order_with_all_that_belongs_to_them() -> None:
    given = [part._replace(importance=part.wanted / 10) for part in parts(2, 3)]
    taken = Samples(given, by_sample=True).take([4, 0, 2])
    assert taken.inputs[0].tolist() == [[4] * 3, [0] * 3, [2] * 3]
    assert taken.wanted.flatten().tolist() == [40, 0, 20]
    assert taken.importance is not None
    assert taken.importance.flatten().tolist() == [4, 0, 2]


def test_errors_count_by_importance_on_samples_held_out_and_as_a_share_of_what_is_wanted() -> None:
    given = [part._replace(importance=torch.full_like(part.wanted, 3.0)) for part in parts(10)]
    samples = Samples(given, by_sample=True)  # held out: 0 and 8, of which 0 and 80 are wanted
    found = samples.error(lambda part: part.wanted + part.inputs[0][:, :1], lambda result: result)
    assert found == pytest.approx(3 * 8**2 / 80**2)
    assert samples.error(lambda part: part.wanted, lambda result: result) == 0
    doubled = samples.error(lambda part: part.wanted + part.inputs[0][:, :1], lambda result: result.clamp(max=50.0))
    assert doubled == 0  # nothing of it is seen


def test_large_values_are_computed_in_small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = Samples(parts(40), by_sample=True)
    assert samples.cut(samples.held) == [samples.held]
    monkeypatch.setattr(module, "SMALL", 24)  # two samples of three values
    assert samples.cut(samples.held) == [[0, 8], [16, 24], [32]]
    assert samples.cut(samples.held, 4) == [[0, 8, 16, 24], [32]]
