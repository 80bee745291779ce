"""Reports say how far the answers are from the original's, and what is to blame."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import graphopt
from graphopt.evaluation.evaluate import FAR, at_most
from graphopt.evaluation.fidelity import Fidelity
from graphopt.formats import Format
from graphopt.ir.graph import Graph
from graphopt.passes.quantization import Quantize
from graphopt.targets import find
from graphopt.utils.errors import InputError

X = torch.rand(8, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def test_sqnr_is_that_of_all_samples_by_output_and_channel() -> None:
    torch.manual_seed(0)
    r, noise = torch.randn(6, 3, 4), torch.randn(6, 3, 4) * torch.tensor([0.1, 0.01, 0.0])[:, None]
    found = Fidelity(["a"])
    for part in (slice(0, 2), slice(2, 6)):
        found.update([r[part]], [(r + noise)[part]])
    db = 10 * torch.log10(r.square().sum() / noise.square().sum())
    assert found.outputs == pytest.approx({"a": float(db)}, abs=1e-3)
    assert found.channels("a")[:2] == pytest.approx([20.0, 40.0], abs=3)
    assert found.channels("a")[2] == float("inf")


class Sizes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.register_buffer("size", torch.tensor([1000.0, 1000, 1000, 1000, 0.5, 0.5]).view(1, 6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.size


@pytest.mark.thorough
def test_channels_that_drown_are_named() -> None:
    torch.manual_seed(0)
    report = graphopt.optimize(Sizes().eval(), X, target="x86", calibration=X, measure=False).report
    (said,) = [warning for warning in report.warnings if "drown" in warning]
    assert "4 (0.0 dB), 5 (0.0 dB)" in said


@pytest.mark.thorough
def test_answers_far_from_the_originals_are_a_warning_that_names_a_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    few = find("x86").replace(weights=Format(2), activations=Format(2, signed=False, symmetric=False))
    report = graphopt.optimize(model, X, target=few, calibration=X, measure=False, rounding="nearest").report
    (said,) = [warning for warning in report.warnings if "far from the original's" in warning]
    assert "costs most" in said
    good = graphopt.optimize(model, X, target="x86", calibration=X, measure=False).report
    assert good.sqnr_db is not None
    assert good.sqnr_db > 20
    assert not [warning for warning in good.warnings if "answers are far" in warning]


@pytest.mark.parametrize("where", ["values", "weights"])
def test_values_too_small_for_any_scale_are_refused_by_name(where: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    with torch.no_grad():
        (model[2].weight if where == "weights" else model[0].weight).mul_(1e-13)  # type: ignore[union-attr, operator]
        model[0].bias.mul_(1e-13 if where == "values" else 1)  # type: ignore[union-attr, operator]
    with pytest.raises(InputError, match="too small"):
        Quantize(find("x86"), [[X]])(Graph.capture(model, X))


@pytest.mark.parametrize("count", [1, 2, 16, 512])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.75, 1.0])
def test_what_a_share_is_at_most_is_wilsons_interval(share: float, count: int) -> None:
    """The bound is the share p that a normal test of p against the share seen just does not refuse."""
    bound = at_most(share, count)
    assert share <= bound <= 1 + 1e-12
    assert abs(bound - share) == pytest.approx(1.96 * math.sqrt(bound * (1 - bound) / count), abs=1e-6)


def test_one_of_two_predictions_that_differ_is_no_cause_for_alarm_and_most_of_many_are() -> None:
    assert at_most(0.5, 2) > FAR > at_most(0.5, 64)
    assert at_most(0.0, 1) < FAR
