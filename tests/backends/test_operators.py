"""Every operator through each runtime answers what torch answers, whatever its arguments, or is refused by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from against_torch import Refused, captured, refusals, spread, taken, wrong
from operator_samples import Sample
from operators import OPERATORS
from rewriting import Model, capture
from torch import Tensor, nn

from graphopt.artifacts.artifact import Artifact
from graphopt.artifacts.registry import available, backend
from graphopt.ir.graph import Graph
from graphopt.targets import architecture, find
from graphopt.utils.errors import GraphoptError

REFUSED: dict[str, Refused] = {
    "onnxruntime": {
        "recurrent layers": {2: "proj_size=2"},
    },
    "executorch": {
        "functions": {18: "round.decimals"},
        "reductions": {16: "cumprod", 36: "cumprod"},
        "statistics": {10: "cumprod"},
        "orders": dict.fromkeys((7, 8, 9, 17, 18, 19), "sort"),
        "moves": dict.fromkeys((33, 71), "float64"),
        "indexing": {8: "gather", 11: "one_hot"},
        "pools": {1: "avg_pool3d", 2: "max_pool3d", 3: "adaptive_avg_pool3d", 4: "adaptive_max_pool2d"},
        "resizes": {9: "ratio of sizes", 16: "_upsample_bicubic2d_aa", 17: "_upsample_bicubic2d_aa"},
        "products": {len(OPERATORS["products"]) - 2: "_trilinear"},
        "convolutions": dict.fromkeys(range(10, 15), "three dimensions|3 dimensions"),
        "norms": {6: "avg_pool3d"},
    },
    "tvm": {"products": {len(OPERATORS["products"]) - 2: "_trilinear"}},
}
TARGETS = {"onnxruntime": find("x86"), "executorch": find("executorch"), "tvm": find("tvm-x86")}
COMPILES = pytest.mark.skipif(
    architecture() != "x86_64" or not available("tvm"),
    reason="needs graphopt[tvm], and compiles for the x86-64 machine at hand",
)
MARKS = {
    "onnxruntime": [],
    "executorch": [
        pytest.mark.thorough,
        pytest.mark.skipif(not available("executorch"), reason="needs graphopt[executorch]"),
    ],
    "tvm": [COMPILES],
}


def through(runtime: str) -> Callable[[Graph], Artifact]:
    """Lowering for a target of this runtime."""
    return lambda graph: backend(runtime).lower(graph, TARGETS[runtime])


KINDS = [pytest.param(runtime, kind, marks=MARKS[runtime]) for runtime in TARGETS for kind in OPERATORS]


@pytest.mark.parametrize("runtime, kind", KINDS)
def test_operators_answer_what_torch_answers(runtime: str, kind: str) -> None:
    assert wrong(spread(taken(kind, REFUSED[runtime])), through(runtime)) == []


@pytest.mark.slow
@pytest.mark.parametrize("runtime, kind", KINDS)
def test_operators_answer_what_torch_answers_with_all_their_arguments(runtime: str, kind: str) -> None:
    assert wrong(taken(kind, REFUSED[runtime]), through(runtime)) == []


@pytest.mark.parametrize(
    "runtime, sample, word",
    [
        pytest.param(runtime, *refused, marks=MARKS[runtime], id=f"{runtime}-{refused[1]}")
        for runtime in TARGETS
        for refused in refusals(REFUSED[runtime])
    ],
)
def test_what_a_backend_has_no_right_rule_for_is_refused_by_name(runtime: str, sample: Sample, word: str) -> None:
    with pytest.raises(GraphoptError, match=word):
        through(runtime)(captured([sample]))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("body", "says"),
    [
        (lambda x: x.cummax(1)[0], r"aten\.cummax\.default has no translation"),
        (lambda x: torch.special.bessel_j0(x), r"aten\.special_bessel_j0\.default has no translation"),
    ],
)
def test_a_refusal_to_write_onnx_is_one_sentence_of_the_models_operator_and_a_remedy(
    body: Callable[[Tensor], Tensor], says: str
) -> None:
    model = Model(lambda m, x: body(m.inner(x)), inner=nn.Softsign())
    with pytest.raises(
        GraphoptError,
        match=rf"^the graph cannot be written as ONNX: \S+: {says}; compute it with other operators of torch$",
    ):
        through("onnxruntime")(capture(model, torch.randn(2, 3, 5, 6, 7)))
