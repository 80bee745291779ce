"""Statistics over many batches equal those of all the data at once; NumPy says what those are."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rewriting import Model, capture
from torch import Tensor, nn

from graphopt.execution.observers import BINS, SAMPLES, Histogram, Range, observe
from graphopt.ir.graph import Graph
from graphopt.utils.errors import NonFiniteError


def relu_net() -> Graph:
    return capture(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), torch.randn(2, 4))


def histogram(batches: list[Tensor]) -> Histogram:
    found = Histogram()
    for batch in batches:
        found.update(batch)
    return found


@settings(max_examples=30, deadline=None)
@given(seeds=st.lists(st.integers(0, 1000), min_size=1, max_size=5), growth=st.floats(0.3, 50), one_sided=st.booleans())
def test_the_histogram_is_numpys_on_all_batches_together(seeds: list[int], growth: float, one_sided: bool) -> None:
    batches = []
    for number, seed in enumerate(seeds):
        batch = torch.randn(500, generator=torch.Generator().manual_seed(seed)) * growth**number
        batches.append(batch.relu() if one_sided else batch)
    found, everything = histogram(batches), torch.cat(batches).numpy()
    assert (found.low, found.high) == (everything.min(), everything.max())
    assert found.reach >= np.abs(everything).max()
    assert found.counts.sum() == len(everything)
    expected, _ = np.histogram(everything.astype(np.float64), BINS, (-found.reach, found.reach))
    # an element on the edge of a bin may round to either side of it
    assert np.abs(np.cumsum(found.counts.numpy()) - np.cumsum(expected)).max() <= max(2, len(everything) // 200)


def test_the_histogram_grows_by_doubling() -> None:
    found = histogram([torch.tensor([1.0]), torch.tensor([100.0]), torch.tensor([-3.0])])
    assert found.reach == 128.0
    used = found.centers[found.counts > 0]
    assert torch.equal(found.counts[found.counts > 0], torch.ones(3).double())
    np.testing.assert_allclose(used.numpy(), [-3, 1, 100], atol=found.width)


def test_the_order_of_batches_does_not_matter() -> None:
    batches = [torch.randn(200) * size for size in (0.1, 30.0, 2.0)]
    one, other = histogram(batches), histogram(batches[::-1])
    assert (one.low, one.high, one.reach) == (other.low, other.high, other.reach)
    assert torch.equal(one.counts, other.counts)


def test_numbers_next_to_the_largest_are_counted() -> None:
    histogram = Histogram()
    for value in (1.0, -3.0e38, 3.0e38):
        histogram.update(torch.full((8,), value))
    assert (histogram.low, histogram.high) == pytest.approx((-3.0e38, 3.0e38))
    assert float(histogram.counts.sum()) == 24
    assert int(histogram.counts.count_nonzero()) == 3


def test_a_histogram_of_zeros_is_a_spike() -> None:
    found = histogram([torch.zeros(10), torch.tensor([2.0])])
    assert found.counts.sum() == 11
    assert (found.low, found.high) == (0.0, 2.0)


def test_large_values_are_sampled_evenly_and_their_range_is_exact() -> None:
    value = torch.randn(3 * SAMPLES)
    value[1234] = 77.0
    found = histogram([value])
    assert found.high == 77.0
    assert float(found.counts.sum()) == pytest.approx(len(value), rel=1e-3)


def test_empty_batches_change_nothing() -> None:
    found = Range()
    found.update(torch.empty(0, 3))
    found.update(torch.tensor([1.0, -2.0]))
    assert (found.low, found.high) == (-2.0, 1.0)


def test_watched_values_are_those_of_the_model() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    graph = capture(model, torch.randn(2, 4))
    batches = [torch.randn(3, 4) for _ in range(4)]
    middle, source, both = Range(), Range(), Histogram()
    relu = graph.calls(torch.ops.aten.relu.default)[0]
    seen = observe(graph, {relu: [middle, both], graph.inputs[0]: source}, [[b] for b in batches])
    expected = model[1](model[0](torch.cat(batches))).detach()
    assert seen == 4
    assert (middle.low, middle.high) == pytest.approx((float(expected.min()), float(expected.max())))
    assert both.counts.sum() == expected.numel()
    assert source.high == float(torch.cat(batches).max())


def test_no_batches_are_counted_as_none() -> None:
    assert observe(relu_net(), {}, []) == 0


def test_several_inputs_come_in_the_graphs_order() -> None:
    graph = capture(Model(lambda m, a, b: a - 2 * b), torch.zeros(2, 3), torch.zeros(2, 3))
    found = Range()
    observe(graph, {graph.outputs[0]: found}, [[torch.full((2, 3), 5.0), torch.ones(2, 3)]])
    assert (found.low, found.high) == (3.0, 3.0)


def test_memory_does_not_grow_with_the_number_of_batches() -> None:
    graph = relu_net()
    relu = graph.calls(torch.ops.aten.relu.default)[0]

    def stream(count: int) -> Iterator[list[Tensor]]:
        for _ in range(count):
            yield [torch.randn(64, 4)]

    def peak(count: int) -> int:
        live: list[int] = []

        class Counting(Histogram):
            def update(self, value: Tensor) -> None:
                super().update(value)
                live.append(len([s for s in vars(self).values() if isinstance(s, Tensor)]) + self.counts.numel())

        tracemalloc.start()
        observe(graph, {relu: Counting()}, stream(count))
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert set(live) == {BINS + 1}
        return top

    peak(2)
    assert peak(60) < peak(6) + 50_000


# ---- Not finite -----------------------------------------------------------------------------------------------------


def test_an_input_that_is_not_a_number_is_blamed_on_the_data() -> None:
    graph = relu_net()
    with pytest.raises(NonFiniteError, match=r"input '.*' contains NaN in a calibration batch"):
        observe(graph, {graph.outputs[0]: Range()}, [[torch.full((2, 4), torch.nan)]])


@pytest.mark.parametrize(("function", "bad"), [(torch.log, "NaN"), (lambda y: 1 / y.relu(), "infinity")])
def test_the_first_operator_that_produces_it_is_named(function: object, bad: str) -> None:
    def body(m: nn.Module, x: Tensor) -> Tensor:
        return m.late(function(m.early(x)))  # type: ignore[no-any-return, operator]

    graph = capture(Model(body, early=nn.Linear(4, 3), late=nn.Linear(3, 2)), torch.randn(2, 4))
    with pytest.raises(NonFiniteError, match=rf"first operator to produce {bad}") as caught:
        observe(graph, {graph.outputs[0]: Range()}, [[torch.randn(8, 4)]])
    assert "\n" not in str(caught.value)
    assert "linear" not in str(caught.value)


@pytest.mark.parametrize("statistic", [Range, Histogram])
def test_every_statistic_refuses_it(statistic: type[Range]) -> None:
    graph = relu_net()
    with pytest.raises(NonFiniteError, match="contains infinity"):
        observe(graph, {graph.outputs[0]: statistic()}, [[torch.full((2, 4), torch.inf)]])
