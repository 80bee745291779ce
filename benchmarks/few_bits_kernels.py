"""Kernels of few bits beside those of 8 and of floats: microseconds of one thread, the tenth percentile of interleaved rounds.

Every answer is compared with that of the 8-bit kernel, which has the same weights, before it is timed. `x int8` is the time of 8
bits over a kernel's own. Bytes are those of the weights in the library.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import common
import numpy as np
from tvm_kernels import QUANTILE, ours

from graphopt.backends.tvm.few_bits import few
from graphopt.backends.tvm.machine import host, machine
from graphopt.backends.tvm.schedules import Codes, Conv, Epilogue, conv
from graphopt.ir import cost

LAYERS = {  # pixels, channels, result channels, kernel
    "3x3, 64 at 56": (56, 64, 64, 3),
    "3x3, 128 at 28": (28, 128, 128, 3),
    "3x3, 256 at 14": (14, 256, 256, 3),
    "3x3, 512 at 7": (7, 512, 512, 3),
    "1x1, 256 -> 512 at 14": (14, 256, 512, 1),
    "3x3, 16 at 32 (ResNet-20)": (32, 16, 16, 3),
    "3x3, 64 at 8 (ResNet-20)": (8, 64, 64, 3),
}


def tables(repeats: int) -> dict[str, Any]:
    os.environ["TVM_NUM_THREADS"] = "1"  # read when the first kernel runs
    return {"kernels": [row(name, layer, repeats) for name, layer in LAYERS.items() if common.log(name) is None]}


def row(name: str, layer: tuple[int, ...], repeats: int) -> dict[str, Any]:
    pixels, channels, out, size = layer
    edge, rng = (size // 2, size // 2), np.random.default_rng(0)
    shape: dict[str, Any] = {"channels": out, "kernel": (size, size), "padding": (edge, edge)}
    real = Conv((1, pixels, pixels, channels), **shape, epilogue=Epilogue(clamp=(0.0, None)))
    codes = Conv(real.shape, **shape, data="uint8", zero_point=1, epilogue=Epilogue(result=Codes("uint8", 3)))
    one, two = replace(codes, bits=1), replace(codes, bits=2)
    signs = rng.integers(0, 2, codes.weight_shape).astype(np.int8) * 2 - 1
    ternary = (signs * rng.integers(0, 2, codes.weight_shape)).astype(np.int8)
    x, few_x = rng.integers(0, 256, real.shape, np.uint8), (2 * rng.integers(0, 2, real.shape)).astype(np.uint8)
    bias, scale = rng.integers(-100, 100, out, np.int32), np.full(out, 0.05, np.float32)
    floats = [rng.standard_normal(s).astype(np.float32) for s in (real.shape, real.weight_shape, (out,))]
    calls = {
        "float": ours(real, *floats),
        "int8": ours(codes, few_x, signs, bias, scale),
        "XNOR": ours(replace(one, signs=True), few_x, signs, bias, scale),
        "1 bit x int8": ours(one, x, signs, bias, scale),
        "2 bits x int8": ours(two, x, ternary, bias, scale),
    }
    wanted = {
        "XNOR": calls["int8"],
        "1 bit x int8": ours(codes, x, signs, bias, scale),
        "2 bits x int8": ours(codes, x, ternary, bias, scale),
    }
    for kind, same in wanted.items():
        np.testing.assert_array_equal(calls[kind]().numpy(), same().numpy())
    taken = cost.timings(calls, repeats).ms
    us = {kind: 1000 * float(np.quantile(times, QUANTILE)) for kind, times in taken.items()}
    return {
        "layer": name,
        **{f"{kind}, us": time for kind, time in us.items()},
        **{f"{kind}, x int8": us["int8"] / us[kind] for kind in wanted},
        "XNOR, x float": us["float"] / us["XNOR"],
        **{f"{kind}, bytes": _bytes(spec, signs) for kind, spec in (("int8", codes), ("1 bit", one), ("2 bits", two))},
        "int8 is kept beside 8-bit data": few.pixels(codes) < few.WORTH,
    }


def _bytes(spec: Conv, weight: Any) -> int:
    kernel = conv(spec, machine(host()))
    return int(kernel.constants(weight, None, np.ones(spec.channels, np.float32))[0].nbytes)
