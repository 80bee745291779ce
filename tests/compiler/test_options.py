"""The options of `optimize`: groups, and the keywords that stand for their fields."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import graphopt
from graphopt import Measurement, Quantization, Shrinking, Storage, Training, Tuning
from graphopt.compiler.options import KEYWORDS, Options, Shortcuts
from graphopt.utils.errors import InputError


def options(**shortcuts: Any) -> Options:
    return Options.of(None, None, None, None, None, None, shortcuts)


def test_every_field_of_a_group_is_a_keyword_and_every_keyword_a_field() -> None:
    groups = {
        "shrinking": Shrinking, "quantization": Quantization, "tuning": Tuning, "measurement": Measurement, "training": Training,
        "stored": Storage,
    }  # fmt: skip
    named = {(group, f.name) for group, kind in groups.items() for f in fields(kind)} - {("tuning", "device")}
    assert set(KEYWORDS.values()) == named
    assert set(KEYWORDS) == set(Shortcuts.__annotations__)


def test_a_keyword_is_its_field_in_the_group() -> None:
    short = options(keep_macs=0.5, rounding="gptq", tune=8, threads=2, device="rpc://pi:9090")
    assert short == Options(
        Shrinking(keep_macs=0.5), Quantization(rounding="gptq"), Tuning(8, device="rpc://pi:9090"),
        Measurement(threads=2, device="rpc://pi:9090"),
    )  # fmt: skip


def test_keywords_go_before_the_group() -> None:
    both = Options.of(
        None, Quantization(rounding="gptq", estimator="minmax"), None, None, None, None, {"rounding": "nearest"}
    )
    assert both.quantization == Quantization(rounding="nearest", estimator="minmax")


def test_an_unknown_keyword_is_refused_with_the_nearest() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'keep_mac'; did you mean 'keep_macs'"):
        options(keep_mac=0.5)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"keep_macs": 1.5}, "keep_macs must be over 0 and under 1, got 1.5"),
        ({"max_latency": 0.0}, "max_latency must be over 0"),
        ({"shrink_by": "magic"}, "shrink_by must be 'prune' or 'factorize', got 'magic'"),
        ({"shrink_by": "factorize", "keep_macs": 0.5, "max_latency": 0.5}, "give keep_macs or max_latency"),
        ({"rounding": "up"}, "rounding must be one of nearest, gptq, adaround, got 'up'"),
        ({"weight_only": 3}, "weight_only must be 2, 4 or 8 bits, got 3"),
        ({"weight_only": 4, "rounding": "gptq"}, "leave out rounding"),
        ({"max_drop": -1.0}, "max_drop is the accuracy that may be lost"),
        ({"max_drop": 1.0, "rounding": "gptq"}, "max_drop chooses the rounding itself"),
        ({"storage": "zip"}, "unknown coding 'zip'; known codings: huffman, ans, entropy"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(given: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        options(**given)


@pytest.mark.thorough
def test_the_original_is_lowered_only_to_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt.backends.onnxruntime import backend

    lowered, ours = [], backend.BACKEND
    counting = replace(ours, lower=lambda *args, **kwargs: lowered.append(args) or ours.lower(*args, **kwargs))
    monkeypatch.setattr(backend, "BACKEND", counting)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.randn(16, 4)
    result = graphopt.optimize(model, x, target="host", calibration=x, measure=False)
    assert len(lowered) == 1
    assert result.report.size_before is None
    assert result.report.size_after
    assert graphopt.optimize(model, x, target="x86", calibration=x).report.size_before
    assert len(lowered) == 3
    graphopt.optimize(model, x, target="host", runtime="onnxruntime", calibration=x)
    assert len(lowered) == 5, "the quantized network, and the original, which kernels and the whole are compared with"


@pytest.mark.thorough
@pytest.mark.parametrize("shrink_by", ["prune", "factorize"])
def test_a_checkpoint_remembers_the_layers_that_are_fitted_while_shrinking(shrink_by: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = [layer for n, m in ((3, 32), (32, 32), (32, 8)) for layer in (nn.Conv2d(n, m, 3, padding=1), nn.ReLU())]
    model, x = nn.Sequential(*layers).eval(), torch.randn(16, 3, 8, 8)
    graphopt.optimize(model, x, calibration=x, keep_macs=0.5, shrink_by=shrink_by, checkpoint=tmp_path, measure=False)
    assert list(tmp_path.glob("*/*.pt"))
