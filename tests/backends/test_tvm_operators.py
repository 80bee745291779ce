"""Operators through TVM: what rules must read, what is refused, what reports say. (Their answers: `test_operators.py`.)"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from operator_samples import IMAGE
from rewriting import Model, capture
from torch import Tensor, nn

import graphopt
from graphopt.ir.graph import Graph
from graphopt.targets import architecture, find
from graphopt.utils.errors import GraphoptError, InputError

pytest.importorskip("tvm", reason="the TVM backend needs graphopt[tvm]")
pytestmark = pytest.mark.skipif(architecture() != "x86_64", reason="compiles for the x86-64 machine at hand")

from graphopt.backends.tvm import audit, lower, operators
from graphopt.backends.tvm.build import Code
from graphopt.backends.tvm.lowering import compiled

TARGET = find("tvm-x86")


def emitted(graph: Graph) -> object:
    return compiled(graph, Code.of(TARGET.runtime))


def test_an_argument_that_a_rule_does_not_read_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    forgetful = dict(operators.RULES)
    rule = forgetful[torch.ops.aten.leaky_relu.default]

    def forget(program: object, arguments: object) -> object:
        value = rule(program, arguments)  # type: ignore[arg-type]
        arguments._read.discard("negative_slope")  # type: ignore[attr-defined]
        return value

    forgetful[torch.ops.aten.leaky_relu.default] = forget  # type: ignore[assignment]
    monkeypatch.setattr(operators, "RULES", forgetful)
    model = Model(lambda m, x: m.inner(x), inner=nn.LeakyReLU(0.3))
    with pytest.raises(InputError, match=r"inner: the TVM backend .* aten.leaky_relu.default with negative_slope=0.3"):
        emitted(capture(model, IMAGE, dynamic_batch=False))
    emitted(capture(Model(lambda m, x: m.inner(x), inner=nn.LeakyReLU()), IMAGE, dynamic_batch=False))


@pytest.mark.parametrize("half", [lambda x: torch.rand_like(x) + x, lambda x: F.dropout(x, 0.5, training=True)])
def test_what_is_random_is_refused_by_name(half: object) -> None:
    with pytest.raises(GraphoptError, match=r"rand|dropout|bernoulli"):
        emitted(capture(Model(lambda m, x: half(x)), IMAGE, dynamic_batch=False))  # type: ignore[operator]


def test_places_of_the_largest_elements_of_adaptive_windows_are_refused_by_name() -> None:
    model = Model(lambda m, x: F.adaptive_max_pool2d(m.inner(x), 3, return_indices=True)[1], inner=nn.Softsign())
    with pytest.raises(
        InputError, match=r"^adaptive_max_pool2d: .* places of aten\.adaptive_max_pool2d\.default .*; use its values"
    ):
        emitted(capture(model, IMAGE, dynamic_batch=False))


INDEXED: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "embedding": lambda m, x, i: m.words(i),
    "index_select": lambda m, x, i: x.index_select(0, i),
    "gather": lambda m, x, i: x.gather(0, i[:, None]),
    "index": lambda m, x, i: x[i],
    "two indices": lambda m, x, i: x.expand(7, 7)[i, i],
    "scatter": lambda m, x, i: x[:, 0].scatter(0, i, 2.0),
    "scatter_add": lambda m, x, i: x[:, 0].scatter_add(0, i, x[:3, 0]),
}


@pytest.mark.parametrize("case", INDEXED)
def test_an_index_beyond_the_end_reads_and_writes_nothing_but_the_value(case: str) -> None:
    model, x, index = Model(INDEXED[case], words=nn.Embedding(7, 5)).eval(), torch.randn(7, 1), torch.tensor([0, 6, 3])
    artifact = lower(Graph.capture(model, (x, index), dynamic_batch=False), TARGET)
    with torch.no_grad():
        for far in (6, 17, 10**12):  # without an end, the last is an access that stops the process
            torch.testing.assert_close(artifact(x, torch.tensor([0, far, 3])), model(x, index))
        torch.testing.assert_close(artifact(x, torch.tensor([-(10**12), 6, 3])), model(x, index))


def test_an_operator_that_tvm_cannot_compile_is_named() -> None:
    """It has a rule, and fails in code generation, where the whole is one module of nameless kernels."""
    model = Model(
        lambda m, x: torch.atan2(m.inner(x.flatten(2)).half(), x.flatten(2).half()).float() * 2, inner=nn.Softsign()
    )
    with pytest.raises(
        GraphoptError, match=r"^atan2: TVM cannot compile aten\.atan2\.default \(node atan2\) for .*; leave"
    ):
        lower(capture(model, IMAGE, dynamic_batch=False), TARGET)


@pytest.mark.thorough
def test_the_report_names_a_decomposed_operator_once() -> None:
    model = Model(lambda m, x: F.mish(m.conv(x)) * 2, conv=nn.Conv2d(3, 4, 3))
    found = audit(lower(capture(model, IMAGE), TARGET))
    assert [f.operator for f in found.floating] == ["conv2d", "mish", "mul"]


@pytest.mark.thorough
def test_a_transformer_layer_keeps_its_batch_free() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.TransformerEncoderLayer(16, 2, 16, batch_first=True)).eval()
    x = torch.randn(2, 5, 16)
    artifact = lower(capture(model, x), TARGET)
    for batch in (1, 3, 4):
        y = torch.randn(batch, 5, 16)
        with torch.no_grad():
            torch.testing.assert_close(artifact(y), model(y), rtol=1e-4, atol=1e-5)


STRUCTURES = {
    "parts": lambda y: (lambda a: a[0] * a[1])(y.reshape(-1, 2, 2, 12, 12).unbind(1)),
    "split": lambda y: (lambda a, b: a.sigmoid() * b)(*y.split([2, 2], 1)),
    "max over a dimension": lambda y: y.max(1)[0],
    "shuffled pixels": lambda y: F.pixel_shuffle(y, 2),
    "resized": lambda y: F.interpolate(y, scale_factor=1.5, mode="nearest"),
    "squeezed": lambda y: y[:, :1].squeeze(1),
    "a divisor": lambda y: F.avg_pool2d(y, 2, divisor_override=3),
    "a factor": lambda y: torch.add(y, y.relu(), alpha=0.5),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", STRUCTURES)
def test_structures_between_quantized_layers_lower(name: str) -> None:
    torch.manual_seed(0)
    structure, images = STRUCTURES[name], torch.randn(8, 3, 12, 12)

    def body(m: nn.Module, x: Tensor) -> Tensor:
        return structure(m.layer(x))  # type: ignore[operator]

    model = Model(body, layer=nn.Conv2d(3, 4, 3, padding=1)).eval()
    result = graphopt.optimize(model, images, target=TARGET, calibration=images, measure=False)
    with torch.no_grad():
        wanted = model(images)
    assert float((wanted - result.artifact(images)).abs().max()) < 0.05 * float(wanted.abs().max())  # type: ignore[attr-defined]
