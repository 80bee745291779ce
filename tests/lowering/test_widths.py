"""Activations of several widths in one graph: few bits where layers multiply, eight where sums are added."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rewriting import Model, apply, capture
from torch import Tensor, nn

import graphopt
from graphopt.backends.onnxruntime import lower
from graphopt.formats import Format
from graphopt.ir.cost import sqnr
from graphopt.passes.quantization import LayerFormat, Quantize
from graphopt.targets import architecture, find, machine_here
from graphopt.utils.errors import InputError

pytestmark = pytest.mark.skipif(
    architecture() != "x86_64", reason="aarch64 kernels were never compared with the runtime"
)
X = torch.randn(8, 3, 14, 14, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two, self.head = (nn.Conv2d(n, m, 3) for n, m in ((3, 8), (8, 8), (8, 8), (8, 2)))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.two(torch.relu(self.one(x))) + x[..., 2:-2, 2:-2])
        found: Tensor = self.head(x)
        return found


class Linears(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))


def optimized(target: str, bits: int, *, signed: bool) -> graphopt.Optimized:
    torch.manual_seed(0)

    def format(bits: int) -> Format:
        return Format(bits, signed=signed, symmetric=False)

    formats = {
        "add*": LayerFormat(activations=format(8)),
        "*": LayerFormat(Format(4, per_channel=True), format(bits)),
    }
    return graphopt.optimize(Residual().eval(), X, target=target, calibration=X, formats=formats, measure=False)


@pytest.mark.parametrize("bits", [4, 2, 7])
@pytest.mark.parametrize(("target", "signed"), [("x86", False), ("tvm-x86", False), ("arm", True)])
def test_all_of_it_computes_in_integer_bit_for_bit_as_simulated(target: str, signed: bool, bits: int) -> None:
    if target.startswith("tvm"):
        pytest.importorskip("tvm", reason="needs graphopt[tvm]")
    result = optimized(target, bits, signed=signed)
    assert result.report.integer_macs == 1.0
    assert not [warning for warning in result.report.warnings if "float" in warning]
    machine = None if target.startswith("tvm") else machine_here()
    simulation = graphopt.simulate(result.graph, target, machine=machine)
    assert torch.equal(simulation(X), torch.as_tensor(result.artifact(X)))


@pytest.mark.thorough
@pytest.mark.parametrize("target", ["arm", "x86", "tvm-x86"])
def test_work_that_stays_in_float_because_signs_differ_is_a_warning(target: str) -> None:
    """The input has the target's sign, and the results of layers the other one."""
    if target.startswith("tvm"):
        pytest.importorskip("tvm", reason="needs graphopt[tvm]")
    report = optimized(target, 8, signed=target != "arm").report
    (said,) = [w for w in report.warnings if "stay in float" in w]
    reason = "it reads and writes codes of different types (int8, uint8)"
    assert "% of the multiply-accumulates" in said
    assert reason in said
    assert {(o.site, o.reason) for o in report.float_operators if o.macs} == {("stem", reason)}


def test_a_quantized_model_that_runs_nothing_in_integer_is_warned_of() -> None:
    """ONNX Runtime has no kernel of signed values and unsigned weights."""
    formats = {"*": LayerFormat(weights=Format(8, signed=False, symmetric=False, per_channel=True))}
    report = graphopt.optimize(Residual().eval(), X, target="arm", calibration=X, formats=formats, measure=False).report
    assert report.integer_macs == 0
    (said,) = [w for w in report.warnings if "nothing of it computes in integer" in w]
    assert "100.0%: it multiplies int8 values by uint8 weights" in said


@pytest.mark.parametrize("options", [{"passes": []}, {"weight_only": 8}])
def test_what_was_never_meant_for_integer_kernels_is_not_warned_of(options: dict[str, Any]) -> None:
    report = graphopt.optimize(Linears().eval(), ROWS, target="x86", calibration=ROWS, measure=False, **options).report
    assert report.integer_macs == 0
    assert not [w for w in report.warnings if "integer" in w]


# ---- More than eight bits -------------------------------------------------------------------------------------------

OPERATORS: dict[str, Any] = {
    "relu": lambda m, x: x.relu(), "hard_sigmoid": lambda m, x: x * F.hardsigmoid(x), "where": lambda m, x: x.clamp(-1, 1).abs(),
    "add": lambda m, x: x + m.b(x), "cat": lambda m, x: torch.cat([x, x * 0.5], 1)[:, ::2], "pad": lambda m, x: F.pad(x, (1, 2)),
    "max_pool": lambda m, x: F.max_pool2d(x, 2, ceil_mode=True), "mean": lambda m, x: F.adaptive_avg_pool2d(x, 1),
    "slice": lambda m, x: x[:, :, 1:], "split": lambda m, x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "resize": lambda m, x: F.interpolate(x, scale_factor=2.0), "shuffle": lambda m, x: F.channel_shuffle(x, 2),
}  # fmt: skip


WIDE = [Format(16), Format(16, symmetric=False), Format(9, signed=False, symmetric=False), Format(12, full_range=True)]


def pairs() -> list[Any]:
    """Every operator with every format; each of both in turns for one target and the other."""
    return [
        pytest.param(("arm", "x86")[(i + j) % 2], operator, format, id=f"{operator}-{format}")
        for i, operator in enumerate(OPERATORS)
        for j, format in enumerate(WIDE)
    ]


@pytest.mark.thorough
@pytest.mark.parametrize(("target", "operator", "format"), pairs())
def test_codes_of_more_than_a_byte_run_as_simulated(target: str, operator: str, format: Format) -> None:
    """In float between codes, clipped to fewer than 16 bits, or without the lowest code of a symmetric grid."""
    torch.manual_seed(0)
    model = Model(lambda m, x: m.b(OPERATORS[operator](m, m.a(x))), a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 4, 1)).eval()
    graph, chosen = capture(model, X), find(target).replace(activations=format)
    apply(Quantize(chosen, [[X]], estimator="minmax"), graph)
    artifact = lower(graph, chosen)
    for x in (X, X * 4):  # values outside the grids are clipped
        lines = graphopt.simulate(graph, chosen, machine=machine_here()).mismatches(artifact, x)
        assert (
            max(line.largest for line in lines) <= 1
        )  # float sums that fall on a tie: they have 8 bits more than the codes
        assert sum(line.differing for line in lines) <= 2**-8 * sum(line.total for line in lines)
    with torch.no_grad():
        assert sqnr(model(X), artifact(X)) > (20 if format.bits < 16 else 30)


def test_codes_of_more_than_a_byte_are_refused_by_name_for_tvm() -> None:
    pytest.importorskip("tvm", reason="needs graphopt[tvm]")
    formats = {"*": LayerFormat(activations=Format(16))}
    with pytest.raises(InputError, match=r"its codes are int16.*8 bits or fewer.*formats=\{'\d': None\}"):
        graphopt.optimize(Linears().eval(), ROWS, target="tvm-x86", calibration=ROWS, formats=formats, measure=False)
