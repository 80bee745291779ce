"""How a batch is computed: layout in memory, precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from training import X, Y, accuracy, few_bits, network, simulated

from graphopt.formats import FAKE_QUANTIZE
from graphopt.ir.graph import Graph
from graphopt.training import Compression, QuantizationAware, Response, Run, train
from graphopt.training import forward as forwards
from graphopt.utils.errors import InputError


class Sees(Compression):
    """Remembers types and layouts of values in a training."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, torch.dtype, bool]] = []

    def watched(self, graph: Graph) -> Any:
        return [node for node in graph.calls() if "conv" in str(node.target) or node.target is FAKE_QUANTIZE]

    def loss(self, run: Run) -> Tensor | None:
        for node, value in run.values.items():
            last = value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last)
            self.seen.append((str(node.target), value.dtype, last))
        assert run.outputs.dtype == torch.float32
        return None


def test_images_lie_channels_last_while_they_train_and_weights_as_before_afterwards() -> None:
    graph, sees = Graph.capture(network(), X[:2]), Sees()
    train(graph, (X, Y), compress=[sees])
    assert all(last for target, _, last in sees.seen if "conv" in target)
    assert all(p.is_contiguous() for p in graph.parameters())


def test_layers_are_computed_in_bfloat16_and_rounded_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwards, "full", lambda value: value if value.dim() == 4 else value.float())
    graph, sees = simulated(few_bits(4, 8)), Sees()
    train(graph, (X, Y), compress=[sees], precision="bfloat16")
    types = {(target, dtype) for target, dtype, _ in sees.seen}
    assert ("aten.conv2d.default", torch.bfloat16) in types
    assert {dtype for target, dtype in types if "fake_quantize" in target} == {torch.float32}


@pytest.mark.parametrize("precision", ["bfloat16", "auto"])
def test_a_quantized_graph_learns_in_lower_precision(precision: str) -> None:
    graph = simulated(few_bits())
    aware = QuantizationAware()
    report = train(
        graph, (X, Y), compress=[aware], precision=precision, epochs=6, batch_size=16, rate=1e-2, evaluate=accuracy
    )
    assert report.gain is not None
    assert report.gain > 0
    assert all(t.dtype != torch.bfloat16 for t in graph.state_dict().values())


class Asked(torch.nn.Module):
    """A teacher that remembers how it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.seen = network(), set[tuple[bool, bool]]()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add((torch.is_autocast_enabled("cpu"), x.is_contiguous(memory_format=torch.channels_last)))
        found: Tensor = self.inner(x)
        return found


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_teacher_answers_in_the_precision_of_the_training(precision: str) -> None:
    teacher, answers = Asked().eval(), list[torch.dtype]()

    class Heard(Response):
        def _term(self, place: Any, comparisons: Any, student: Any, teachers: Any, weights: Any) -> Tensor:
            answers.extend(value.dtype for values in teachers for value in values.values())
            return super()._term(place, comparisons, student, teachers, weights)

    graph = Graph.capture(network(), X[:2])
    teacher.seen.clear()
    train(graph, (X, Y), compress=[Heard(teacher)], precision=precision)
    assert (precision == "bfloat16", True) in teacher.seen
    assert {lower for lower, _ in teacher.seen} <= {False, precision == "bfloat16"}
    assert set(answers) == {torch.float32}


@pytest.mark.parametrize(("features", "lower"), [({"avx2"}, False), ({"avx512_bf16"}, True), ({"amx_bf16"}, True)])
def test_auto_asks_the_processor(features: set[str], lower: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwards, "cpu_features", lambda: frozenset(features))
    assert forwards.lower_precision("auto") == lower
    assert not forwards.lower_precision("float32")


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(InputError, match="precision must be one of float32, bfloat16, auto"):
        train(Graph.capture(network(), X[:2]), (X, Y), precision="float16")
