"""Values of very different size, joined."""

from __future__ import annotations

import pytest
import torch
from rewriting import capture
from torch import Tensor, nn

from graphopt.formats import Format
from graphopt.ir.cost import sqnr
from graphopt.passes.quantization import Quantize
from graphopt.targets import find


class Head(nn.Module):
    def __init__(self, pixels: float, *, behind: bool = False) -> None:
        super().__init__()
        self.pixels, self.stem = pixels, nn.Conv2d(3, 8, 3)
        self.boxes, self.scores = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 6, 1)
        self.behind = nn.Conv2d(10, 4, 1) if behind else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).relu()
        joined = torch.cat([self.boxes(y).sigmoid() * self.pixels, self.scores(y).sigmoid()], 1)
        return self.behind(joined).flatten(2)


def quantized(model: nn.Module, x: Tensor, **options: object) -> tuple[Tensor, list[str]]:
    graph = capture(model.eval(), x)
    changes = Quantize(**{"target": find("x86"), "calibration": [[x]], **options})(graph)  # type: ignore[arg-type]
    return graph(x), [change.what for change in changes if "differ in size" in change.what]


@pytest.mark.parametrize("estimator", ["mse", "minmax"])
@pytest.mark.parametrize("target", ["x86", "arm", "tvm-x86", "hexagon", "nvidia", "sigmastar"])
def test_a_join_that_drowns_a_part_stays_float_and_says_so(target: str, estimator: str) -> None:
    torch.manual_seed(0)
    model, x = Head(640), torch.rand(4, 3, 12, 12)
    answer, said = quantized(model, x, target=find(target), estimator=estimator)
    assert sqnr(model(x)[:, 4:], answer[:, 4:]) > 25
    assert len(said) == 1
    assert "would keep" in said[0]


def test_a_join_of_values_of_one_size_stays_integer() -> None:
    torch.manual_seed(0)
    assert quantized(Head(1), torch.rand(4, 3, 12, 12))[1] == []


def test_a_join_that_an_integer_layer_reads_stays_integer() -> None:
    torch.manual_seed(0)
    assert quantized(Head(640, behind=True), torch.rand(4, 3, 12, 12))[1] == []


def test_sixteen_bits_hold_what_eight_do_not() -> None:
    torch.manual_seed(0)
    wide = find("hexagon").replace(activations=Format(16, signed=False, symmetric=False))
    assert quantized(Head(64), torch.rand(4, 3, 12, 12), target=wide)[1] == []
