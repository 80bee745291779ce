"""Times of whole networks correct the sum of their parts."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from graphopt.artifacts.profile import KernelTime, Profile
from graphopt.compiler.budget import clock
from graphopt.compiler.budget.correction import Correction, PartTerm, drawn
from graphopt.searching import Assignment, Choice, Option, Problem

LAYERS = 6


def choices() -> list[Choice]:
    widths = [Choice(f"layer{n}", "channels", tuple(Option(str(o), 0.1 * o) for o in range(4))) for n in range(LAYERS)]
    return [*widths, Choice("layer2", "block", (Option("there", 0.0), Option("gone", 0.1)))]


def part(layer: int) -> PartTerm:
    """A layer that takes less with fewer channels; the third is in a block."""

    def ms(options: Assignment) -> float:
        return 0.0 if len(options) > 1 and options[1] else (1 - 0.2 * options[0]) * (1 + layer % 2)

    return PartTerm((layer, LAYERS) if layer == 2 else (layer,), ms, "depthwise" if layer % 2 else "conv")


PARTS = [part(layer) for layer in range(LAYERS)]


def measured(assignment: Assignment) -> float:
    """Depthwise layers take half again as much in a network, each call a bit, and a removed block a conversion."""
    options = [tuple(assignment[c] for c in p.scope) for p in PARTS]
    times = [p.of(o) * (1.5 if p.kind == "depthwise" else 1.0) for p, o in zip(PARTS, options, strict=True)]
    return 0.1 * (sum(times) + 0.05 * sum(map(bool, times)) + 0.3 * assignment[-1])


def corrected(count: int) -> Correction:
    correction = Correction(choices(), PARTS)
    for assignment in islice(drawn(choices()), count):
        correction.see(assignment, measured(assignment))
    return correction


def misses(correction: Correction) -> float:
    """The largest relative error over networks that were not seen."""
    problem = Problem(choices(), {"ms": correction.terms()}, {})
    others = list(islice(drawn(choices(), seed=1), 2, 42))
    return max(abs(problem.cost("ms", each) / measured(each) - 1) for each in others)


def test_what_networks_take_more_than_their_parts_is_learned() -> None:
    assert misses(corrected(1)) > 0.05
    assert misses(corrected(24)) < 0.02


def test_the_network_as_it_is_takes_what_was_measured() -> None:
    for count in (1, 24):
        problem = Problem(choices(), {"ms": corrected(count).terms()}, {})
        assert problem.cost("ms", problem.first) == pytest.approx(measured(problem.first), rel=0.01)


def test_the_agreement_is_of_networks_that_were_left_out() -> None:
    assert corrected(3).agreement() is None
    whole = corrected(24)
    found = whole.agreement()
    assert found is not None
    assert found.networks == len(whole.seen) - 1
    errors, times = [], []
    for left_out in list(whole.seen)[1:]:
        others = Correction(choices(), PARTS)
        for assignment, ms in whole.seen.items():
            if assignment != left_out:
                others.see(assignment, ms)
        problem = Problem(choices(), {"ms": others.terms()}, {})
        errors.append(problem.cost("ms", left_out) - measured(left_out))
        times.append(measured(left_out))
    assert found.error == pytest.approx(np.median(np.abs(np.array(errors) / np.array(times))), rel=1e-6)
    assert found.r2 == pytest.approx(1 - np.square(errors).sum() / np.square(times - np.mean(times)).sum(), rel=1e-6)
    assert str(found).startswith("R^2 ")


def test_drawn_networks_begin_with_the_widest_and_the_narrowest_and_repeat_with_the_seed() -> None:
    first, narrow, *rest = islice(drawn(choices()), 40)
    assert first == (0,) * 7
    assert narrow == (3,) * LAYERS + (0,)
    assert rest == list(islice(drawn(choices()), 40))[2:]
    assert rest != list(islice(drawn(choices(), seed=1), 40))[2:]
    assert len({sum(each) for each in rest}) > 8


def test_a_clock_takes_what_was_not_disturbed() -> None:
    ticks = {"a": iter([9.0, 1.0, 1.2, 1.1, 5.0, 1.3] * clock.ROUNDS), "b": iter([9.0] + [2.0] * 200)}
    assert clock.in_turn(lambda: next(ticks["a"]), lambda: next(ticks["b"])) == [1.0, 2.0]


def test_what_watching_adds_to_kernels_is_known() -> None:
    kernels = [KernelTime("conv", 0.4, "a"), KernelTime("conv", 0.6, "b")]
    assert Profile(kernels, 0.8, 10, "onnxruntime", 1).watching_ms == pytest.approx(0.1)
    assert Profile(kernels, 1.2, 10, "onnxruntime", 1).watching_ms == 0.0
