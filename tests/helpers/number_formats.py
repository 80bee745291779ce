"""Every number format, and tensors of every kind for them."""

from __future__ import annotations

import pytest

from graphopt.formats import (
    BFLOAT16,
    FLOAT16,
    FLOAT16_WITHOUT_SUBNORMALS,
    Binary,
    BlockFloat,
    Codebook,
    FloatFormat,
    Format,
    LogFormat,
    NumberFormat,
    Ternary,
)

FORMATS: list[NumberFormat] = [
    Format(8), Format(4, per_channel=True), Format(16), Format(16, signed=False, symmetric=False), Format(8, power_of_two=True),
    LogFormat(8), LogFormat(4), LogFormat(4, per_channel=True, steps=2), LogFormat(8, steps=1), LogFormat(16), LogFormat(2),
    FLOAT16, FLOAT16_WITHOUT_SUBNORMALS, BFLOAT16, FloatFormat(5, 2), FloatFormat(4, 3, subnormals=False),
    BlockFloat(8), BlockFloat(4, block=3), BlockFloat(2, block=5), BlockFloat(16, block=4),
    Codebook(4), Codebook(2, per_channel=True), Codebook(8),
    Binary(), Binary(per_channel=True), Ternary(), Ternary(per_channel=True), Ternary(per_channel=True, two_scales=True),
]  # fmt: skip

ALL = pytest.mark.parametrize("format", FORMATS, ids=str)
