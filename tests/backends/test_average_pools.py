"""Means over windows: torch's answers from integers, whatever counts where windows reach beyond an image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from blocks import conv, target_of
from onnx_files import X86
from quantizing import quantized
from rewriting import Model, apply, assert_close
from torch import Tensor

import graphopt
from graphopt.backends.onnxruntime import lower as lower_onnx
from graphopt.ir.cost import sqnr
from graphopt.ir.graph import Graph
from graphopt.passes.quantization import Quantize
from graphopt.targets import machine_here
from graphopt.utils.errors import InputError

WINDOWS: list[dict[str, Any]] = [
    {"kernel_size": 3, "stride": 2},  # the last windows reach beyond images of even size
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (3, 1), "stride": 2},  # one dimension reaches beyond, the other loses a window
    {"kernel_size": (2, 3), "stride": (3, 2), "padding": (1, 0)},
    {"kernel_size": 2, "stride": 3, "padding": 1},
]
SIZES = ((6, 6), (2, 2), (5, 8))


def network(counts: bool, **options: Any) -> Model:
    torch.manual_seed(3)

    def body(m: Any, x: Tensor) -> Tensor:
        return F.avg_pool2d(m.inner(x), ceil_mode=True, count_include_pad=counts, **options)

    return Model(body, inner=conv(3, 4, 1)).eval()


@pytest.mark.parametrize("counts", [True, False], ids=["padding counts", "padding does not count"])
@pytest.mark.parametrize("options", WINDOWS, ids=str)
@pytest.mark.parametrize("name", ["x86", "arm", "tvm-x86"])
def test_windows_that_reach_beyond_an_image_are_divided_by_what_torch_divides_by(
    name: str, options: dict[str, Any], counts: bool
) -> None:
    target, machine = target_of(name), None if name.startswith("tvm") else machine_here()
    if name.startswith("tvm"):
        pytest.importorskip("tvm")
        from graphopt.backends.tvm import lower
    else:
        lower = lower_onnx
    for size in SIZES:
        model, x = network(counts, **options), torch.randn(2, 3, *size)
        graph = quantized(model, x, target=target)
        artifact = lower(graph, target)
        with torch.no_grad():
            assert sqnr([model(x)], [artifact(x)]) > 30
        lines = graphopt.simulate(graph, target, machine=machine).mismatches(artifact, x)
        assert not [line for line in lines if line.largest > (line.kernel == "quantize")]


def test_images_of_any_size_are_averaged_as_torch_does_or_refused() -> None:
    """In float by ONNX Runtime's own kernel; that for codes divides by whole windows."""
    free = {"inputs_0": {2: "height", 3: "width"}}
    model, x = network(True, kernel_size=3, stride=2, padding=1), torch.randn(1, 3, 8, 10)
    artifact = lower_onnx(Graph.capture(model, x, dynamic_shapes=free), X86)
    for size in ((8, 10), (7, 6), (9, 9)):
        other = torch.randn(1, 3, *size)
        with torch.no_grad():
            assert_close(artifact(other), model(other))
    graph = Graph.capture(model, x, dynamic_shapes=free)
    apply(Quantize(X86, [[x]]), graph)
    with pytest.raises(InputError, match=r"avg_pool2d: .*whose padding counts.*capture with fixed sizes"):
        lower_onnx(graph, X86)
    graph = Graph.capture(network(False, kernel_size=3, stride=2, padding=1), x, dynamic_shapes=free)
    apply(Quantize(X86, [[x]]), graph)
    artifact = lower_onnx(graph, X86)
    for size in ((8, 10), (7, 6), (9, 9)):
        other = torch.randn(1, 3, *size) * 0.5
        with torch.no_grad():
            assert sqnr([network(False, kernel_size=3, stride=2, padding=1)(other)], [artifact(other)]) > 25
