"""What goes wrong in ONNX Runtime only when a model runs: indices beyond the end, and images that it has turned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rewriting import Model, capture
from torch import Tensor, nn

import graphopt
from graphopt.backends.onnxruntime import lower
from graphopt.backends.onnxruntime.running import failure
from graphopt.ir.graph import Graph
from graphopt.targets import find, machine_here
from graphopt.utils.errors import ArtifactError, ExecutionError

X86 = find("x86")
INDEXED: dict[str, tuple[Callable[[Any, Tensor, Tensor], Tensor], str]] = {
    "embedding": (lambda m, x, i: m.words(i), "^words: ONNX Runtime cannot compute Gather on these inputs: indices"),
    "gather": (
        lambda m, x, i: x.gather(0, i[:, None]),
        "^gather: .* GatherElements on these inputs: GatherElements op: Out",
    ),
    "scatter": (lambda m, x, i: x[:, 0].scatter(0, i, 2.0), "^scatter: .* ScatterElements on these inputs: indices"),
}


@pytest.mark.parametrize("case", INDEXED)
def test_an_index_beyond_the_end_is_refused_by_the_name_of_its_operator(case: str) -> None:
    body, says = INDEXED[case]
    model, x, good = Model(body, words=nn.Embedding(7, 5)).eval(), torch.randn(7, 1), torch.tensor([0, 6, 3])
    artifact = lower(Graph.capture(model, (x, good), dynamic_batch=False), X86)
    with torch.no_grad():
        torch.testing.assert_close(artifact(x, good), model(x, good))
    with pytest.raises(ExecutionError, match=says + r".*; give inputs that the original model takes$"):
        artifact(x, torch.tensor([0, 17, 3]))


@pytest.mark.parametrize(
    "compute",
    [
        lambda m, x: F.interpolate(x.double(), scale_factor=2),
        lambda m, x: F.interpolate(x.double(), size=(7, 9), mode="bicubic"),
        lambda m, x: F.grid_sample(x.double(), torch.zeros(1, 3, 3, 2, dtype=torch.double)),
    ],
)
def test_types_without_a_kernel_are_refused_by_the_operators_name(compute: Callable[[Any, Tensor], Tensor]) -> None:
    x = torch.randn(1, 2, 5, 6)
    graph = Graph.capture(Model(compute).eval(), (x,), dynamic_batch=False)
    says = r"^[\w/]+: ONNX Runtime [\d.]+ has no kernel for (Resize|GridSample) of float64; compute it in another"
    with pytest.raises(ArtifactError, match=says):
        lower(graph, X86)(x)


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("upsamplebase.h:579 ScalesValidation ", "'Cubic' mode only supports"),
        (
            "/src/core/gather_elements.cc:150 void onnxruntime::core_impl(const Tensor*, int64_t) [with T = long int] ",
            "index 7",
        ),
        (
            "/src/core/pad.cc:1 onnxruntime::common::Status onnxruntime::Pad::Compute(OpKernelContext*) const ",
            "(a) is b",
        ),
        ("", "indices element out of data bounds"),
    ],
)
def test_a_reason_stands_without_its_place_in_the_source_of_the_runtime(place: str, reason: str) -> None:
    message = f"[ONNXRuntimeError] : 1 : FAIL : running Op node. Name:'' Status Message: {place}"
    expected = f"ONNX Runtime cannot compute Op on these inputs: {reason}; give inputs that the original model takes"
    assert failure(message + reason) == expected


TURNED = [
    ("bilinear", (0, 2, 3, 1), False), ("bilinear", (0, 2, 3, 1), True), ("bicubic", (0, 2, 3, 1), False),
    ("bicubic", (0, 3, 1, 2), False), ("bicubic", (0, 2, 3, 1), True),
]  # fmt: skip


@pytest.mark.parametrize(("mode", "order", "antialias"), TURNED)
@pytest.mark.parametrize("shape", [(2, 3, 5, 6), (1, 5, 6, 1), (1, 1, 5, 6)])
def test_images_between_permutations_are_resized(
    mode: str, order: tuple[int, ...], antialias: bool, shape: tuple[int, ...]
) -> None:
    """The runtime would move the permutation behind the resizing, of which it has no such kernel."""
    back = [order.index(d) for d in range(4)]
    for size in ([3, 9], [9, 3], [9, 9]):

        def body(m: nn.Module, x: Tensor) -> Tensor:
            resized = F.interpolate(x.permute(order).relu(), size, mode=mode, antialias=antialias)  # noqa: B023
            return resized.permute(back).sigmoid()

        model, x = Model(body), torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(lower(capture(model, x), X86)(x), model(x), rtol=1e-4, atol=1e-5)


LAYERS = {2: nn.Conv2d, 3: nn.Conv3d}


@pytest.mark.parametrize(
    ("mode", "size"),
    [("bilinear", (3, 9)), ("bicubic", (3, 9)), ("trilinear", (3, 9, 7)), ("trilinear", (9, 9, 9))],
)
def test_images_between_integer_convolutions_are_resized_as_they_are_simulated(
    mode: str, size: tuple[int, ...]
) -> None:
    """The runtime orders their dimensions with channels last."""
    layer, x = LAYERS[len(size)], torch.randn(2, 3, 5, 6, 4)[(..., *[0] * (3 - len(size)))]
    model = Model(lambda m, x: m.b(F.interpolate(m.a(x), size, mode=mode)), a=layer(3, 4, 1), b=layer(4, 2, 1)).eval()
    target = "x86-avx2" if machine_here() == "avx2" else "x86"  # whose sums do not saturate here
    result = graphopt.optimize(model, x, target=target, calibration=[x], measure=False)
    simulation = graphopt.simulate(result.graph, target, machine=machine_here())
    assert [m for m in simulation.mismatches(result.artifact, x) if m.kernel != "quantize" and m.differing] == []
    with torch.no_grad():
        wanted = model(x)
    for batch in (x, torch.cat([x, x])):
        found = result.artifact(batch)[:2]
        assert float((found - wanted).abs().max()) < 0.05 * float(wanted.abs().max())
