"""Every operator through ONNX Runtime answers what torch answers, whatever its arguments, or is refused by name."""

from __future__ import annotations

import pytest
from against_torch import refused, wrong
from operators import OPERATORS, Sample

from graphopt.backends.onnxruntime import lower
from graphopt.ir.graph import Graph
from graphopt.targets import find

TARGET = find("x86")
# kind -> a word of each refusal, in order
REFUSED = {
    "statistics": ["prod"],
    "pools": ["_adaptive_avg_pool3d"],
    "recurrent layers": ["proj_size=2"],
    "products": [],
}
LONG = {"activations", "functions", "reductions", "moves", "resizes", "comparisons", "indexing", "pools"}


def lowered(graph: Graph) -> object:
    return lower(graph, TARGET)


def assert_right_or_refused(samples: list[Sample], words: list[str]) -> None:
    reasons = refused(samples, lowered) if words else {}
    assert len(reasons) == len(words)
    assert all(word in reason for word, reason in zip(words, reasons.values(), strict=True))
    taken = [sample for n, sample in enumerate(samples) if n not in reasons]
    assert wrong(taken, lambda graph: lower(graph, TARGET)) == []


@pytest.mark.parametrize("kind", OPERATORS)
def test_operators_answer_what_torch_answers_or_are_refused_by_name(kind: str) -> None:
    if kind in LONG:
        assert_right_or_refused(OPERATORS[kind][::6], [])
    else:
        assert_right_or_refused(OPERATORS[kind], REFUSED.get(kind, []))


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(LONG))
def test_operators_of_long_lists_answer_what_torch_answers(kind: str) -> None:
    assert_right_or_refused(OPERATORS[kind], REFUSED.get(kind, []))
