"""`optimize` with weights of few bits: rounding, bits on average, weight-only formats and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from blocks import images, model_of
from rewriting import weight_sizes
from torch import Tensor, nn

from graphopt.compiler.optimize import Optimized, optimize
from graphopt.formats import Format
from graphopt.ir.cost import sqnr
from graphopt.passes.quantization import LayerFormat
from graphopt.passes.rounding.codes import Codes
from graphopt.targets import find
from graphopt.utils.errors import InputError

DATA = [[images(8, seed=s)] for s in range(4)]
FOUR = find("x86").replace(weights=Format(4, per_channel=True))


def residual(target: Any = FOUR, **options: Any) -> Optimized:
    options = {"calibration": DATA, "measure": False} | options
    return optimize(model_of("residual"), images(2), target=target, **options)


def quality(done: Optimized) -> float:
    x = images(256, seed=9)  # one of 32 images can outweigh the others
    with torch.no_grad():
        return sqnr(model_of("residual")(x), done.artifact(x))


@pytest.mark.thorough
def test_few_bits_are_rounded_on_data_by_default_and_better_for_it() -> None:
    assert any(step.name == "LearnRounding" for step in residual().report.steps)
    assert any(step.name == "CorrectBias" for step in residual(target="x86").report.steps)
    assert quality(residual()) > quality(residual(rounding="nearest")) + 1


@pytest.mark.thorough
def test_bits_on_average_are_kept_and_better_than_the_same_everywhere() -> None:
    done = residual(target="x86", average_bits=4)
    sizes = weight_sizes(done.graph)
    total = sum(count for _, count in sizes.values())
    assert sum(bits * count for bits, count in sizes.values()) <= 4 * total
    assert quality(done) > quality(residual()) - 0.5


@pytest.mark.thorough
def test_fewer_bits_than_there_are_give_the_fewest_and_a_warning() -> None:
    done = residual(target="x86", average_bits=1)
    assert {bits for bits, _ in weight_sizes(done.graph).values()} == {2}
    assert any("2 of 1 bits per weight" in warning for warning in done.report.warnings)


@pytest.mark.thorough
def test_a_layer_named_in_formats_keeps_its_bits_beside_an_average() -> None:
    formats = {"head*": LayerFormat(Format(8, per_channel=True)), "second": None}
    sizes = weight_sizes(residual(target="x86", average_bits=4, formats=formats).graph)
    assert (sizes["head"][0], sizes["second"][0]) == (8, 32)


class Words(nn.Module):
    """Two linear layers of a size that weight-only kernels take, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.up, self.down = nn.LayerNorm(64), nn.Linear(64, 128), nn.Linear(128, 64)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


def words(seed: int, count: int = 16) -> Tensor:
    """Tokens near a few directions, as those of texts are."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(6, 64, generator=torch.Generator().manual_seed(99))
    return torch.randn(count, 8, 6, generator=generator) @ directions + 0.1 * torch.randn(
        count, 8, 64, generator=generator
    )


def weight_only(**options: Any) -> Optimized:
    options = {"calibration": [[words(s)] for s in range(4)], "measure": False} | options
    return optimize(Words().eval(), words(0, 2), target="x86", weight_only=4, **options)


def error(done: Optimized) -> float:
    x = words(50)
    with torch.no_grad():
        return float((done.artifact(x) - Words().eval()(x)).norm())


@pytest.mark.thorough
def test_weights_alone_are_quantized_and_their_codes_chosen_on_data() -> None:
    by_data, nearest = weight_only(), weight_only(calibration=None)
    assert by_data.artifact.size_bytes < 0.35 * sum(4 * p.numel() for p in Words().parameters())
    assert error(by_data) < 0.8 * error(nearest)
    once = weight_only(calibration=iter([[words(s)] for s in range(4)]))
    assert error(once) == pytest.approx(error(nearest))
    assert any("several times" in note for note in once.report.notes)


def test_layers_named_in_formats_keep_float_or_more_bits_when_weights_alone_are_quantized() -> None:
    done = weight_only(formats={"up": None, "down": LayerFormat(Format(8, per_channel=True))})
    bits = {name: bits for name, (bits, _) in weight_sizes(done.graph).items()}
    assert bits == {"up": 32, "down": 8}


@pytest.mark.thorough
@pytest.mark.parametrize("kind", [residual, weight_only])
def test_an_interrupted_call_goes_on_where_it_was(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = kind(checkpoint=tmp_path).graph.module.state_dict()
    pieces = list(tmp_path.rglob("*.pt"))
    assert pieces

    def again(*_: Any, **__: Any) -> None:
        raise AssertionError("what was remembered is computed again")

    monkeypatch.setattr(Codes, "solve", again)
    found = kind(checkpoint=tmp_path).graph.module.state_dict()
    assert list(tmp_path.rglob("*.pt")) == pieces
    assert all(torch.equal(expected[name], tensor) for name, tensor in found.items())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rounding": "best"}, "rounding must be one of"),
        ({"average_bits": 1.0, "passes": ()}, "belong to"),
        ({"weight_only": 4, "average_bits": 4.0}, "weight_only leaves activations in float"),
        ({"weight_only": 5}, "bits"),
        ({"rounding": "gptq", "calibration": iter(DATA)}, "several times"),
    ],
)
def test_what_does_not_fit_together_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        residual(**options)
