import json
import math
from pathlib import Path

import pytest

from graphopt.artifacts.report import FloatOperator, Latency, Report
from graphopt.artifacts.report_text import slower
from graphopt.passmanager.step import Step
from graphopt.utils.errors import InputError
from graphopt.utils.quantities import count, size

ORIGINAL = Step("captured", {}, [], 0.2, 11_700_000, 1_810_000_000, 46_800_000)
FOLDED = Step("FoldBatchNorm", {}, [("conv1", "bn1")], 0.1, 11_690_000, 1_810_000_000, 46_760_000, 120.5)
CHANGES = [("fc", "int8"), ("conv1", "int8")]
QUANTIZED = Step("Quantize", {"bits": 8}, CHANGES, 3, 11_690_000, 1_810_000_000, 11_690_000, 28.25)
FULL = Report(
    model="ResNet",
    target="host",
    notes=["batch fixed at 1"],
    warnings=["no calibration data"],
    original=ORIGINAL,
    steps=[FOLDED, QUANTIZED],
    latency=Latency(34.2, 10.0, 3.43, "PyTorch", "ONNX Runtime", 1, "a processor (x86_64), 2 cores, avx512_vnni"),
    size_before=46_800_000,
    size_after=11_700_000,
    accuracy_before=0.94,
    accuracy_after=0.938,
    agreement=0.991,
    sqnr_db=27.5,
    integer_macs=0.9987,
    weight_only_macs={4: 0.001},
    float_operators=[FloatOperator(f"block{i}.act", "gelu", "no integer kernel") for i in range(5)],
)

TEXT = """\
ResNet for host

 step            changes   seconds   parameters     MACs   weights       SQNR
 ────────────────────────────────────────────────────────────────────────────
 captured                      0.2       11.7 M   1.81 G   46.8 MB
 FoldBatchNorm         1       0.1       11.7 M   1.81 G   46.8 MB   120.5 dB
 Quantize              2       3.0       11.7 M   1.81 G   11.7 MB    28.2 dB

latency      34.2 ms (PyTorch) -> 10 ms (ONNX Runtime), 3.43x faster
             medians, 1 thread, a processor (x86_64), 2 cores, avx512_vnni
file size    46.8 MB -> 11.7 MB, 4.00x smaller
accuracy     0.9400 -> 0.9380 (-0.0020)
agreement    99.1% same prediction as float
output SQNR  27.5 dB
integer      99.9% of MACs
weight-only  0.1% of MACs with 4-bit weights
stays float  5 gelu: no integer kernel (block0.act, block1.act, block2.act, ...)
note: batch fixed at 1
warning: no calibration data"""


def test_the_whole_report_as_text() -> None:
    assert str(FULL) == TEXT


def test_what_was_not_measured_says_so_with_the_reason() -> None:
    report = Report("Net", "arm", missing={"latency": "this machine is x86_64, not aarch64"})
    assert str(report).splitlines() == [
        "Net for arm",
        "latency    not measured: this machine is x86_64, not aarch64",
        "file size  not measured: nothing was lowered",
        "accuracy   not measured: no evaluate function was given",
        "agreement  not measured: no calibration data was given",
        "integer    not measured: nothing was quantized",
    ]


def test_one_sided_numbers_are_not_compared() -> None:
    assert Report("a", "b", size_after=2_000_000).results()["file size"] == "2 MB"
    assert Report("a", "b", accuracy_before=0.9).results()["accuracy"].startswith("not measured")


def test_a_pipe_gets_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    FULL.print()
    assert capsys.readouterr().out == TEXT + "\n"


def test_markup_in_names_is_not_interpreted() -> None:
    assert "[bold]x[/bold]" in str(Report("[bold]x[/bold]", "t", notes=["a [red]note"]))
    assert "[red]" in str(Report("x", "t", notes=["a [red]note"]))


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_report_survives_json_even_with_infinities(tmp_path: Path, value: float) -> None:
    step = Step("Fold", "Fold()", [("a", "b")], 0.1, 1, 2, 3, value)
    report = Report("m", "t", original=ORIGINAL, steps=[step], latency=FULL.latency, sqnr_db=value)
    report.save(tmp_path / "report.json")
    data = json.loads((tmp_path / "report.json").read_text(), parse_constant=lambda c: pytest.fail(c))
    again = Report.from_dict(data)
    assert str(again) == str(report)
    assert again.steps[0].changes == [("a", "b")]
    if not math.isnan(value):
        assert again == report
    assert Report.from_dict(FULL.to_dict()) == FULL


def test_entries_with_a_default_may_be_left_out() -> None:
    assert Report.from_dict({"model": "m", "target": "t"}) == Report("m", "t")
    with pytest.raises(InputError, match="a Report lacks target"):
        Report.from_dict({"model": "m"})


def test_altered_reports_are_refused() -> None:
    with pytest.raises(InputError, match="a Report cannot hold surprise"):
        Report.from_dict({**FULL.to_dict(), "surprise": 1})
    with pytest.raises(InputError, match="a Step lacks seconds"):
        Report.from_dict(
            {**FULL.to_dict(), "original": {k: v for k, v in FULL.to_dict()["original"].items() if k != "seconds"}}
        )
    with pytest.raises(InputError, match="a Report cannot hold list"):
        Report.from_dict([])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value, says",
    [
        (0, "0"),
        (999, "999"),
        (1000, "1 k"),
        (1_234_567, "1.23 M"),
        (999_999, "1 M"),
        (999_499, "999 k"),
        (2_500_000_000_000, "2,500 G"),
    ],
)
def test_counts_are_short(value: int, says: str) -> None:
    assert count(value) == says


def test_a_loss_is_called_a_loss() -> None:
    slower = Latency(1.0, 2.0, 0.5, "PyTorch", "ONNX Runtime", 2, "host")
    results = Report("a", "b", latency=slower, size_before=100, size_after=150).results()
    assert "2.00x slower\nmedians, 2 threads" in results["latency"]
    assert results["file size"] == "100 B -> 150 B, 1.50x larger"


def timed(speedup: float) -> Latency:
    return Latency(1.0, 1 / speedup, speedup, "float", "integer", 1, "host")


def test_a_slower_result_is_warned_of_with_the_figure_and_the_remedy() -> None:
    warning = slower(timed(0.77), [])
    assert warning is not None
    assert warning.startswith("the integer model is slower than float here: 0.77x; its layers are too small")
    assert "leave the model in float" in warning
    assert "formats={pattern: None}" in warning


def test_the_warning_of_a_slower_result_names_what_stays_float() -> None:
    operators = [
        FloatOperator("a", "Mul", "why"),
        FloatOperator("b", "Sigmoid", "why"),
        FloatOperator("c", "Mul", "why"),
    ]
    assert "; 2 Mul, Sigmoid stay float, and activations are converted" in str(slower(timed(0.77), operators))
    assert "; Mul stays float" in str(slower(timed(0.77), operators[:1]))


@pytest.mark.parametrize("speedup", [0.96, 1.0, 2.9])
def test_a_result_that_is_not_slower_is_not_warned_of(speedup: float) -> None:
    assert slower(timed(speedup), FULL.float_operators) is None


def test_sizes_are_decimal() -> None:
    assert (size(12), size(46_800_000)) == ("12 B", "46.8 MB")
