"""Confidence, calibration, policies, and stages that pass on what they are not sure of."""

import itertools
import math
from typing import Any

import numpy as np
import pytest

from graphopt.policies import Network, Policy, learned, run_stages
from graphopt.policies.calibration import calibration_error, cross_entropy, temperature
from graphopt.policies.confidence import entropy, margin, probabilities, softmax
from graphopt.policies.limits import anytime, budgeted
from graphopt.policies.thresholds import Samples, choose, front
from graphopt.utils.errors import InputError

RANDOM = np.random.default_rng(0)
LOGITS = (3 * RANDOM.standard_normal((64, 5))).astype(np.float32)


def test_confidence_is_what_its_formula_says() -> None:
    p = np.array([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0], [1 / 3] * 3])
    assert softmax(p).tolist() == [0.7, 1.0, 1 / 3]
    assert margin(p) == pytest.approx([0.5, 1.0, 0.0])
    h = -(0.7 * math.log(0.7) + 0.2 * math.log(0.2) + 0.1 * math.log(0.1))
    assert entropy(p) == pytest.approx([1 - h / math.log(3), 1.0, 0.0])


@pytest.mark.parametrize("name", ["softmax", "entropy", "margin", "learned"])
def test_a_sample_gets_the_same_number_alone_and_in_a_batch(name: str) -> None:
    weights = (tuple(RANDOM.standard_normal(5).tolist()),) if name == "learned" else ()
    policy = Policy((0.5,), name, (1.7, 1.0), weights)
    together = policy.of(0, [LOGITS], np.ones(64))
    alone = [policy.of(0, [LOGITS[i : i + 1]], np.ones(1))[0] for i in range(64)]
    assert together.tolist() == alone
    assert 0 <= together.min() < together.max() <= 1


def test_the_temperature_minimizes_the_cross_entropy() -> None:
    labels = np.array([RANDOM.choice(5, p=row) for row in probabilities(LOGITS)])
    found = temperature(4 * LOGITS, labels)
    least = cross_entropy(4 * LOGITS, labels, found)
    assert 2.5 < found < 6.5  # the labels were drawn at a temperature of 4
    assert all(least <= cross_entropy(4 * LOGITS, labels, found * f) for f in (0.97, 1.03))
    assert calibration_error(4 * LOGITS, labels, found) < calibration_error(4 * LOGITS, labels)


def test_calibration_error_of_known_bins() -> None:
    logits = np.log(np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]]))
    assert calibration_error(logits, np.array([0, 1, 0, 0])) == pytest.approx((2 * 0.4 + 2 * 0.4) / 4)


def test_learned_confidence_tells_right_from_wrong() -> None:
    p = probabilities(LOGITS)
    found = learned.features(p, np.ones(64), 0)
    right = p.max(axis=1) > 0.75
    sure = learned.confidence(found, learned.fit(found, right))
    assert sure[right].min() > sure[~right].max()
    assert learned.confidence(found, learned.fit(found, np.ones(64, bool))).min() > 0.95


def stage(table: Any, ran: list[int] | None = None) -> Any:
    """A stage whose answer for sample i is table[i], and which hands on i; notes how many samples it was given."""

    def run(inputs: list[Any]) -> list[Any]:
        if ran is not None:
            ran.append(len(inputs[0]))
        rows = inputs[0][:, 0].astype(int)
        return [np.asarray(table, np.float32)[rows], inputs[0]]

    return run


SURE, UNSURE = [9.0, 0.0], [0.1, 0.0]
ROWS = [np.arange(4, dtype=np.float32)[:, None]]
CASCADE = Network((((-1, 0),), ((-1, 0),), ((-1, 0),)))
EXITS = Network((((-1, 0),), ((0, 1),), ((1, 1),)))


@pytest.mark.parametrize("network", [CASCADE, EXITS], ids=["cascade", "exits"])
def test_samples_leave_where_a_stage_is_sure_and_the_others_move_together(network: Network) -> None:
    ran = list[int]()
    first, second = [SURE, UNSURE, UNSURE, SURE], [[0, 0], [0.0, 9.0], UNSURE, [0, 0]]
    third = [[5.0, 5.0]] * 4
    compute = [stage(first, ran), stage(second, ran), stage(third, ran)]
    found = run_stages(network, compute, Policy((0.9, 0.9)), ROWS)
    assert found.path.tolist() == [0, 1, 2, 0]
    assert ran == [4, 2, 1]
    assert found.outputs[0].tolist() == np.array([SURE, [0, 9.0], [5.0, 5.0], SURE], np.float32).tolist()


def test_a_stage_at_which_nothing_stops_is_left_out_where_nobody_reads_it() -> None:
    for network, expected in ((CASCADE, [4, 4]), (EXITS, [4, 4, 4])):
        ran = list[int]()
        compute = [stage([UNSURE] * 4, ran) for _ in range(3)]
        found = run_stages(network, compute, Policy((0.99, None)), ROWS)
        assert found.path.tolist() == [2] * 4
        assert ran == expected


def test_agreement_is_patience() -> None:
    """One stage must repeat what the one before it said; whoever changes its mind goes on."""
    a, b = [2.0, 0.0], [0.0, 2.0]
    compute = [stage([a, a, b, a]), stage([a, b, b, b]), stage([a, b, a, a])]
    found = run_stages(CASCADE, compute, Policy((1.0, 1.0), "agreement"), ROWS)
    assert found.path.tolist() == [1, 2, 1, 2]


def test_anytime_takes_the_stages_that_fit() -> None:
    compute = [stage([UNSURE] * 4)] * 3
    for budget, last in ((1, 0), (1500, 1), (10_000, 2)):
        limit = anytime([1.0, 1000.0, 3000.0], budget)
        assert run_stages(EXITS, compute, Policy((None, None)), [ROWS[0][:1]], limit).path.tolist() == [last]


def test_a_budget_lets_those_go_on_that_a_stage_is_least_sure_of() -> None:
    first = [[3.0, 0.0], [0.5, 0.0], [2.0, 0.0], [1.0, 0.0]]
    limit = budgeted([0.0, 1000.0, 1e9], 2900.0)
    found = run_stages(CASCADE, [stage(first)] * 3, Policy((None, None)), ROWS, limit)
    assert found.path.tolist() == [0, 1, 0, 1]
    with pytest.raises(InputError, match="budget_ms must be over 0, got 0"):
        budgeted([1.0], 0)


def samples(stages: int, count: int) -> Samples:
    easy = RANDOM.random(count)
    score = np.stack([(RANDOM.random(count) < 0.5 + 0.12 * k + 0.3 * easy) for k in range(stages)]).astype(float)
    sure = np.clip(easy + RANDOM.normal(0, 0.3, (stages - 1, count)), 0, 1)
    return Samples(sure, score, [1.0 + k for k in range(stages)], [False] * (stages - 1))


def judged(known: Samples, thresholds: tuple[float | None, ...]) -> tuple[float, float]:
    """Mean cost and score, sample by sample."""
    cost = score = 0.0
    for i in range(known.score.shape[1]):
        for k in range(len(known.cost)):
            cost += known.cost[k]
            if k == len(known.cost) - 1 or ((t := thresholds[k]) is not None and known.confidence[k, i] >= t):
                score += known.score[k, i]
                break
    return cost / known.score.shape[1], score / known.score.shape[1]


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_every_choice_costs_and_scores_what_it_says(stages: int) -> None:
    known = samples(stages, 40)
    for found in front(known):
        assert judged(known, found.thresholds) == pytest.approx((found.cost, found.score))
        assert sum(found.rates) == pytest.approx(1)


@pytest.mark.parametrize("stages", [2, 3])
def test_no_choice_of_thresholds_is_better_than_the_front(stages: int) -> None:
    known = samples(stages, 12)
    levels = [[None, 0.0, *sorted(set(sure.tolist()))] for sure in known.confidence]
    found = front(known)
    for thresholds in itertools.product(*levels):
        cost, score = judged(known, thresholds)
        assert any(c.cost <= cost + 1e-9 and c.score >= score - 1e-9 for c in found), thresholds


def test_four_stages_come_close_to_the_best() -> None:
    """States of nearly the same number of samples are one, so the front is not exact: it stays within one sample of forty."""
    known = samples(4, 40)
    found = front(known)
    levels = [[None, 0.0, *np.quantile(sure, np.linspace(0.1, 0.9, 9)).tolist()] for sure in known.confidence]
    for thresholds in itertools.product(*levels):
        cost, score = judged(known, thresholds)
        assert any(c.cost <= cost + 1e-9 and c.score >= score - 1 / 40 - 1e-9 for c in found), thresholds


def test_the_cheapest_that_is_good_enough_or_the_best_within_a_cost() -> None:
    found = front(samples(3, 200))
    good = choose(found, least_score=found[-1].score - 0.05)
    assert all(c.cost >= good.cost for c in found if c.score >= found[-1].score - 0.05)
    assert choose(found, most_cost=1e9) is found[-1]
    with pytest.raises(InputError, match=r"no thresholds keep to 0\.1 milliseconds; the cheapest take"):
        choose(found, most_cost=0.1)
    with pytest.raises(InputError, match=r"no thresholds reach a score of 1\.5"):
        choose(found, least_score=1.5)


def test_a_stage_that_can_be_left_out_costs_nothing_there() -> None:
    known = Samples(np.zeros((1, 4)), np.array([[0.0] * 4, [1.0] * 4]), [1.0, 2.0], [True])
    assert choose(front(known), least_score=1.0) == ((None,), 2.0, 1.0, (0.0, 1.0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Policy((1.5,)), r"the threshold of stage 0 is 1\.5; confidence is from 0 to 1"),
        (lambda: Policy((-0.1,)), r"the threshold of stage 0 is -0\.1"),
        (lambda: Policy((0.5,), "sofmax"), "unknown confidence 'sofmax'; did you mean 'softmax'"),
        (lambda: Policy((0.5,), "softmax", (1.0,)), "1 temperatures for 2 stages"),
        (lambda: Policy((0.5,), "softmax", (1.0, 0.0)), "temperatures must be over 0"),
        (lambda: Policy((0.5,), "learned"), "weights of its own, which Cascade.fit finds"),
        (lambda: Policy((0.5,)).of(0, [LOGITS.reshape(64, 5, 1)], np.ones(64)), r"of stage 0 is float32 \[64, 5, 1\]"),
        (lambda: Policy((0.5,)).of(0, [LOGITS.astype(np.int64)], np.ones(64)), "logits of classes"),
        (lambda: Policy((0.5,), lambda outputs: [2.0] * 64).of(0, [LOGITS], np.ones(64)), "values from 2 to 2"),
        (lambda: Policy((0.5,), lambda outputs: [0.5]).of(0, [LOGITS], np.ones(64)), r"each of 64 samples, got \[1\]"),
        (lambda: Policy((0.5,), len).to_dict(), "a function of your program, which no file holds"),
        (lambda: run_stages(CASCADE, [stage([])] * 3, Policy((0.5, 0.5)), [np.zeros((0, 1))]), "the batch is empty"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_a_policy_is_the_same_behind_a_file() -> None:
    policy = Policy((0.25, None), "learned", (1.5, 2.0, 1.0), ((0.1,) * 5, (0.2,) * 5))
    assert Policy.from_dict(policy.to_dict()) == policy


def test_a_stage_reads_only_what_is_there() -> None:
    with pytest.raises(ValueError, match="stage 0 reads"):
        Network((((0, 1),),))
    with pytest.raises(ValueError, match="stage 1 reads"):
        Network((((-1, 0),), ((0, 0),)))  # an answer is not handed on
