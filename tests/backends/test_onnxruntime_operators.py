"""Every operator through ONNX Runtime answers what torch answers, whatever its arguments, or is refused by name."""

from __future__ import annotations

import pytest
from against_torch import Refused, captured, refusals, spread, taken, wrong
from operators import OPERATORS, Sample

from graphopt.backends.onnxruntime import lower
from graphopt.targets import find
from graphopt.utils.errors import GraphoptError

TARGET = find("x86")
REFUSED: Refused = {
    "statistics": {10: "prod"},
    "pools": {3: "_adaptive_avg_pool3d"},
    "recurrent layers": {2: "proj_size=2"},
}


@pytest.mark.parametrize("kind", OPERATORS)
def test_operators_answer_what_torch_answers(kind: str) -> None:
    assert wrong(spread(taken(kind, REFUSED)), lambda graph: lower(graph, TARGET)) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", OPERATORS)
def test_operators_answer_what_torch_answers_with_all_their_arguments(kind: str) -> None:
    assert wrong(taken(kind, REFUSED), lambda graph: lower(graph, TARGET)) == []


@pytest.mark.parametrize("sample,word", refusals(REFUSED), ids=str)
def test_what_the_exporter_does_not_write_is_refused_by_name(sample: Sample, word: str) -> None:
    with pytest.raises(GraphoptError, match=word):
        lower(captured([sample]), TARGET)
