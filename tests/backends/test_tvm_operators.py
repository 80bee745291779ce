"""Every operator through TVM answers what torch answers, whatever its arguments, or is refused by name."""

from __future__ import annotations

import pytest
from against_torch import refused, wrong
from operators import OPERATORS

from graphopt.ir.graph import Graph
from graphopt.targets import architecture, find

pytest.importorskip("tvm", reason="the TVM backend needs graphopt[tvm]")
pytestmark = pytest.mark.skipif(architecture() != "x86_64", reason="compiles for the x86-64 machine at hand")

from graphopt.backends.tvm import lower
from graphopt.backends.tvm.build import Code
from graphopt.backends.tvm.lowering import compiled

TARGET = find("tvm-x86")
# What has no right rule, by a word of the refusal.
REFUSED: dict[str, int] = {}


def emitted(graph: Graph) -> object:
    return compiled(graph, Code.of(TARGET))


@pytest.mark.parametrize("kind", OPERATORS)
def test_operators_answer_what_torch_answers_or_are_refused_by_name(kind: str) -> None:
    samples = OPERATORS[kind]
    reasons = refused(samples, emitted)
    taken = [sample for n, sample in enumerate(samples) if n not in reasons]
    found = wrong(taken, lambda graph: lower(graph, TARGET))
    assert found == []
    assert reasons == {}
