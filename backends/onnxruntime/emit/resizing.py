"""Resizing and sampling of images.

ONNX Runtime moves transposes of images behind a Resize, and with them the scales: [1, 1, s, t] become [1, s, t, 1], or
[1, t, 1, s]. Its kernels of cubic and linear modes do not take all of those, and a session that opened fails when it runs.
Transposes stop at a reshape, so where one could come by, each channel is resized as an image of its own:

    [N, C, H, W]  ->  [N C, 1, H, W]  ->  Resize  ->  [N C, 1, H', W']  ->  [N, C, H', W']

Not where integer convolutions alone order channels last: linear kernels take that, and are faster so.
"""

from __future__ import annotations

from typing import Any

import torch
from onnx_ir import Value

from graphopt.backends.onnxruntime.emit.rule import NoRule, Rule, reshaped
from graphopt.backends.onnxruntime.emit.windows import by_matrices
from graphopt.backends.onnxruntime.emit.writer import Writer
from graphopt.ir.arguments import Arguments
from graphopt.ir.calls import shape
from graphopt.ir.ops import aten
from graphopt.utils.errors import InputError


def _smooth_by_factors(w: Writer, a: Arguments) -> Value:
    """Rows and columns by the matrices that torch's own answers to the columns of the identity are.

    Raises:
        InputError: the image has no fixed size.
    """
    source, corners, scales = (a[name] for name in ("input", "align_corners", "scale_factors"))
    a.ignore("output_size")
    matrices = []
    for axis, scale in enumerate(scales):
        size, factors = shape(source)[2 + axis], [scale if axis == d else 1.0 for d in range(2)]
        if w.is_free(size):
            raise InputError(
                f"{w.graph.site(a.node)}: {a.target} by factors is written for images of fixed sizes, not {size}"
            )
        columns = torch.eye(size).reshape(size, 1, *([size, 1] if axis == 0 else [1, size]))
        beside = [size, 2] if axis == 0 else [2, size]  # torch's kernels answer wrongly for images of width 1
        answers = a.target(columns.expand(size, 1, *beside).contiguous(), None, corners, factors)
        matrices.append(answers[:, 0, :, 0] if axis == 0 else answers[:, 0, 0])  # [in, out]
    return by_matrices(w, source, matrices)


def _resize(mode: str, dims: int, *, exact: bool = False, smooth: bool = False) -> Rule:
    """To sizes, or by factors."""

    def rule(w: Writer, a: Arguments) -> Value:
        if smooth and a.get("scale_factors") is not None:
            return _smooth_by_factors(w, a)
        source = a["input"] if "input" in a else a["self"]
        corners, factors = bool(a.get("align_corners", False)), a.get("scale_factors")
        places = "align_corners" if corners else "half_pixel" if exact or mode != "nearest" else "asymmetric"
        options: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": places}
        options["nearest_mode"] = None if mode != "nearest" else "round_prefer_ceil" if exact else "floor"
        options["cubic_coeff_a"] = None if mode != "cubic" else -0.5 if smooth else -0.75
        options |= {"antialias": 1, "exclude_outside": 1} if smooth else {}
        if factors is not None:
            a.ignore("output_size")
        if any(a.get(name) is not None for name in a if name.startswith("scales_")):
            raise NoRule
        x, front = w.read(source), shape(source)[:-dims]
        if apart := _needs_planes(mode, dims, x):
            x, front = _planes(w, x, shape(source), dims)
        if factors is not None:
            scales = w.constant([*[1.0] * len(front), *factors], torch.float32)
            resized = w.op("Resize", x, None, scales, **options)
        else:
            resized = w.op("Resize", x, None, None, w.sizes([*front, *a["output_size"]]), **options)
        return reshaped(w, resized, shape(a.node)) if apart else resized

    return rule


def _needs_planes(mode: str, dims: int, x: Value) -> bool:
    """Whether a transpose could make of a Resize what has no kernel; see the head of this file."""
    return mode == "cubic" or (mode == "linear" and dims == 2 and _behind_a_transpose(x))


def _behind_a_transpose(x: Value) -> bool:
    """Whether some order of dimensions is changed between this value and the convolutions that it comes from."""
    waiting, seen = [x], set[Value]()
    while waiting:
        value = waiting.pop()
        maker = value.producer()
        if value in seen or maker is None or maker.op_type in ("Conv", "ConvTranspose"):
            continue
        if maker.op_type == "Transpose":
            return True
        seen.add(value)
        waiting += [v for v in maker.inputs if v is not None]
    return False


def _planes(w: Writer, x: Value, sizes: tuple[Any, ...], dims: int) -> tuple[Value, tuple[Any, ...]]:
    """[N, C, *image] -> [N C, 1, *image], and the sizes in front of the image.

    To the runtime a reshape to the sizes that a value has is none, so of one channel it is [1, N, *image], of one plane [*image].
    """
    samples, channels, *image = sizes
    front: tuple[Any, ...] = (samples * channels, 1)
    if channels == 1:
        front = () if samples == 1 else (1, samples)
    return reshaped(w, x, (*front, *image)), front


def _grid_sample(w: Writer, a: Arguments) -> Value:
    """Modes are called otherwise since opset 20."""
    new = w.opset >= 20
    modes = {0: "linear" if new else "bilinear", 1: "nearest", 2: "cubic" if new else "bicubic"}
    paddings = {0: "zeros", 1: "border", 2: "reflection"}
    return w.op(
        "GridSample", w.read(a["input"]), w.read(a["grid"]), mode=modes[a["interpolation_mode"]],
        padding_mode=paddings[a["padding_mode"]], align_corners=int(a["align_corners"]),
    )  # fmt: skip


RESIZING: dict[Any, Rule] = {
    aten.upsample_nearest1d.vec: _resize("nearest", 1),
    aten.upsample_nearest2d.vec: _resize("nearest", 2),
    aten.upsample_nearest2d.default: _resize("nearest", 2),
    aten.upsample_nearest3d.vec: _resize("nearest", 3),
    aten._upsample_nearest_exact1d.vec: _resize("nearest", 1, exact=True),
    aten._upsample_nearest_exact2d.vec: _resize("nearest", 2, exact=True),
    aten._upsample_nearest_exact3d.vec: _resize("nearest", 3, exact=True),
    aten.upsample_linear1d.vec: _resize("linear", 1),
    aten.upsample_bilinear2d.vec: _resize("linear", 2),
    aten.upsample_trilinear3d.vec: _resize("linear", 3),
    aten.upsample_bicubic2d.vec: _resize("cubic", 2),
    aten._upsample_bilinear2d_aa.vec: _resize("linear", 2, smooth=True),
    aten._upsample_bicubic2d_aa.vec: _resize("cubic", 2, smooth=True),
    aten.grid_sampler.default: _grid_sample,
}
