"""Time that may be spent: which samples may go on to the next stage.

    anytime     one sample: the next stage runs if it can be expected to end within the budget
    budgeted    a batch: as many as the budget has time for, those first that a stage is least sure of

Both by the clock, from what stages take of one sample as it was measured before. Huang et al. 2018, "Multi-Scale Dense
Networks for Resource Efficient Image Classification", section 3.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from graphopt.policies.stages import Limit
from graphopt.utils.errors import InputError

Array = np.ndarray[Any, Any]


def anytime(stage_ms: Sequence[float], budget_ms: float) -> Limit:
    """A limit for one sample, whose time begins now.

    Args:
        stage_ms: what each stage takes.

    Raises:
        InputError: a budget that is not over 0.
    """
    end = _end(budget_ms)

    def limit(stage: int, going: Array, sure: Array) -> Array:
        return going & (time.perf_counter() + stage_ms[stage + 1] / 1e3 <= end)

    return limit


def budgeted(stage_ms: Sequence[float], budget_ms: float) -> Limit:
    """A limit for a batch, whose time begins now; arguments as for `anytime`, which are for each sample, and for the batch.

    Raises:
        InputError: a budget that is not over 0.
    """
    end = _end(budget_ms)

    def limit(stage: int, going: Array, sure: Array) -> Array:
        most = max(0, int((end - time.perf_counter()) * 1e3 / max(stage_ms[stage + 1], 1e-9)))
        if int(going.sum()) <= most:
            return going
        kept = np.zeros_like(going)
        order = np.argsort(np.where(going, sure, np.inf), kind="stable")
        kept[order[:most]] = True
        return kept & going

    return limit


def _end(budget_ms: float) -> float:
    if not budget_ms > 0 or not math.isfinite(budget_ms):
        raise InputError(f"budget_ms must be over 0, got {budget_ms}")
    return time.perf_counter() + budget_ms / 1e3
