"""Files of one operator or a few, which tests of the file audit share."""

from __future__ import annotations

from typing import Any

import numpy as np
from qdq import File

import graphopt

IMAGE = (1, 4, 8, 8)


def rules(found: graphopt.FileAudit) -> list[str]:
    return [reason.rule for region in found.float_regions for reason in region.reasons]


def example(*shape: int, seed: int = 1) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def spatial_mean(f: File, x: str) -> str:
    mean = f.op("ReduceMean", f.on_grid(f.conv(x)), f.constant([2, 3], np.int64), keepdims=1)
    return f.on_grid(f.op("Conv", f.on_grid(mean, 0.01), f.weight(4, 4, 1, 1)))


def float_between(f: File, x: str) -> str:
    return f.on_grid(f.op("Add", f.conv(x), f.conv(f.on_grid(f.conv(x)))), 0.06)
