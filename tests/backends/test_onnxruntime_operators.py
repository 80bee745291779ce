"""Every operator through ONNX Runtime answers what torch answers, whatever its arguments, or is refused by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from against_torch import Refused, captured, refusals, spread, taken, wrong
from operators import OPERATORS, Sample
from rewriting import Model, capture
from torch import Tensor, nn

from graphopt.backends.onnxruntime import lower
from graphopt.targets import find
from graphopt.utils.errors import GraphoptError

TARGET = find("x86")
REFUSED: Refused = {
    "statistics": {10: "prod"},
    "pools": {3: "adaptive_avg_pool3d"},
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


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (lambda x: F.adaptive_avg_pool3d(x, (2, 3, 4)), r"aten\.adaptive_avg_pool3d\.default has no translation"),
        (lambda x: x.cumprod(1), r"aten\.cumprod\.default has no translation"),
        (lambda x: torch.special.bessel_j0(x), r"aten\.special_bessel_j0\.default has no translation"),
    ],
)
def test_a_refusal_is_one_sentence_of_the_models_operator_and_a_remedy(
    body: Callable[[Tensor], Tensor], says: str
) -> None:
    model = Model(lambda m, x: body(m.inner(x)), inner=nn.Softsign())
    with pytest.raises(
        GraphoptError,
        match=rf"^the graph cannot be written as ONNX: \S+: {says}; compute it with other operators of torch$",
    ):
        lower(capture(model, torch.randn(2, 3, 5, 6, 7)), TARGET)
