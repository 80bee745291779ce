"""Networks that NNSmith draws, and the text that traced modules become."""

from __future__ import annotations

import sys

import nnsmith_networks
import pytest
import torch
from networks import main, try_one
from torch import Tensor, nn


class Traced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 4, 3, stride=2), nn.PReLU(4)
        self.offset = nn.Parameter(torch.zeros(4, 1, 1))

    def forward(self, image: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        y = self.act(self.conv(image)) + self.offset
        return torch.cat([y, other], 1).flatten(2), (y * 2).max(1).values


def test_a_traced_module_is_written_line_by_line() -> None:
    network = nnsmith_networks.network_of(
        Traced(), {"image": "torch.randn(1, 3, 7, 7)", "other": "torch.randn(1, 2, 3, 3)"}
    )
    assert network.parts == {
        "p0": "nn.Conv2d(3, 4, kernel_size=(3, 3), stride=(2, 2))",
        "p1": "nn.PReLU(num_parameters=4)",
    }
    assert [*network.inputs] == ["x0", "x1", "x2"]  # the last is the constant
    assert [*network.steps.values()][:3] == ["self.p0(x0)", "self.p1(v0)", "v1 + x2"]
    model, (image, other, offset) = network.build()
    y = model.p1(model.p0(image)) + offset
    joined, largest = model(image, other, offset)
    assert torch.equal(joined, torch.cat([y, other], 1).flatten(2))
    assert torch.equal(largest, (y * 2).max(1).values)


@pytest.mark.skipif(not nnsmith_networks.missing(), reason="nnsmith is installed")
def test_where_nnsmith_is_missing_the_run_is_skipped_and_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["networks.py", "--generator", "nnsmith", "--seeds", "1"])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 0
    assert "skipped: the package nnsmith is not installed" in capsys.readouterr().err


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.skipif(bool(nnsmith_networks.missing()), reason=nnsmith_networks.missing() or "is there")
def test_networks_of_nnsmith_are_captured_and_rewritten_exactly(seed: int) -> None:
    assert nnsmith_networks.generate(seed).text() == nnsmith_networks.generate(seed).text()
    lines = try_one(seed, ("capture", "saved", "passes"), "nnsmith")
    assert [line for line in lines if line["kind"] in ("wrong", "foreign", "unclear")] == []
