"""Weights that flip: what counts as a flip, what is held back, and what is held still."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from training import Stops, X, Y, few_bits, simulated

from graphopt.ir.graph import Graph
from graphopt.training import Compression, DampenOscillations, FreezeOscillations, QuantizationAware, train
from graphopt.training.quantization.grids import rounded_weights
from graphopt.training.quantization.oscillation import Memory, Weight
from graphopt.utils.errors import InputError


def test_a_flip_is_a_change_back() -> None:
    memory, momentum = Memory(torch.zeros(4)), 0.1
    frequency = torch.zeros(4)
    for codes, flips in (
        ([1.0, 0.0, 1.0, 0.0], [0, 0, 0, 0]),  # the first change of each is none
        ([0.0, 1.0, 1.0, 0.0], [1, 0, 0, 0]),
        ([1.0, 1.0, 2.0, 0.0], [1, 0, 0, 0]),  # the third goes on upwards
        ([1.0, 0.0, 1.0, 0.0], [0, 1, 1, 0]),
    ):
        memory.observe(torch.tensor(codes), momentum)
        frequency = (1 - momentum) * frequency + momentum * torch.tensor(flips)
        torch.testing.assert_close(memory.frequency, frequency)


def middle_distance(graph: Graph) -> float:
    """Of the weights that the grid reaches, the mean distance from the middle of their step, in steps."""
    weights = [Weight.of(graph, quantizer.node) for quantizer in rounded_weights(graph)]
    places = [(w.parameter / w.scale - (w.codes - w.zero)).detach() for w in weights]
    return float(torch.cat([p[p.abs() <= 0.5].flatten() for p in places]).abs().mean())


def test_dampening_brings_weights_to_the_middle_of_their_steps() -> None:
    def trained(*further: Compression) -> float:
        graph = simulated(few_bits())
        train(
            graph,
            (X, Y),
            compress=[QuantizationAware("ste"), *further],
            epochs=6,
            batch_size=8,
            rate=5e-3,
            schedule="constant",
        )
        return middle_distance(graph)

    assert trained(DampenOscillations(1.0)) < 0.7 * trained()


def test_frozen_weights_stay_where_they_were_most() -> None:
    graph = simulated(few_bits())
    freeze = FreezeOscillations(0.02, begin=0.02, momentum=0.1)
    aware = QuantizationAware("ste")
    seen: list[tuple[float, torch.Tensor]] = []

    class Watch(Compression):
        def step(self, progress: float) -> None:
            memory = freeze.memories[0]
            seen.append((freeze.frozen, torch.where(memory.frozen, memory.codes, torch.nan)))

    train(graph, (X, Y), compress=[aware, freeze, Watch()], epochs=8, batch_size=8, rate=0.05, schedule="constant")
    shares = [share for share, _ in seen]
    assert shares == sorted(shares)
    assert 0 < shares[-1] < 1
    for (_, before), (_, after) in itertools.pairwise(seen):
        held = ~before.isnan()
        assert not after[held].isnan().any()


@pytest.mark.thorough
def test_what_is_remembered_is_in_checkpoints(tmp_path: Path) -> None:
    def run(stop: int, folder: Path) -> tuple[Graph, float]:
        graph, freeze = simulated(few_bits()), FreezeOscillations(0.05, begin=0.05, momentum=0.1)
        compress = [QuantizationAware("lsq"), freeze, Stops(stop)]
        try:
            train(graph, (X, Y), compress=compress, epochs=4, batch_size=8, rate=0.05, checkpoint=folder)
        except KeyboardInterrupt:
            return graph, 0.0
        return graph, freeze.frozen

    whole, share = run(999, tmp_path / "a")
    run(13, tmp_path / "b")
    resumed, again = run(999, tmp_path / "b")
    assert share == again > 0
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="weight must be over 0"):
        DampenOscillations(0)
    with pytest.raises(InputError, match="threshold must be"):
        FreezeOscillations(1.5)
    with pytest.raises(InputError, match="no weight is rounded straight through"):
        train(simulated(few_bits()), (X, Y), compress=[QuantizationAware("dsq"), FreezeOscillations()])
