"""exp and log from additions, products and quotients alone, so that every machine computes the same bits.

    exp x = 2^k exp r         k = round(x / log 2), r = x - k log 2
    log x = k log 2 + log m   x = 2^k m, sqrt(1/2) <= m < sqrt 2; log m = 2 atanh s = 2 (s + s^3/3 + ...), s = (m - 1) / (m + 1)

IEEE 754 fixes how those are rounded; libraries of mathematics, and NumPy from one CPU to the next, differ in the last bit, and
with them which stage answers. `backends/tvm/bare/decision.py` writes the same steps in C. Errors are below 3 units in the last
place.

Source: the rational approximation of exp r is that of fdlibm, e_exp.c (Sun Microsystems 1993).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
LEAST = -700.0  # exp of less is that of it, so that nothing is subnormal
PER_LOG2 = 1.44269504088896338700  # 1 / log 2
LOG2_HIGH, LOG2_LOW = (
    6.93147180369123816490e-01,
    1.90821492927058770002e-10,
)  # log 2 in two parts: k times the first is exact
REMEZ = (
    1.66666666666666019037e-01, -2.77777777770155933842e-03, 6.61375632143793436117e-05, -1.65339022054652515390e-06,
    4.13813679705723846039e-08,
)  # fmt: skip
HALF_ROOT = 0.70710678118654752  # sqrt(1/2)
TERMS = 11  # of the series of atanh


def exp(x: Array) -> Array:
    """Of numbers that are 0 or less, float64 [...]; what is no number counts as the least."""
    x = np.fmax(x, LEAST)
    k = np.trunc(x * PER_LOG2 - 0.5)
    high = x - k * LOG2_HIGH
    low = k * LOG2_LOW
    r = high - low
    t = r * r
    series = t * REMEZ[-1]
    for factor in REMEZ[-2::-1]:
        series += factor
        series *= t
    c = r - series
    found: Array = np.ldexp(1.0 - ((low - (r * c) / (2.0 - c)) - high), k.astype(np.int32))
    return found


def log(x: Array) -> Array:
    """Of normal numbers over 0, float64 [...]."""
    m, k = np.frexp(x)
    low = m < HALF_ROOT
    m, k = np.where(low, m * 2.0, m), np.where(low, k - 1.0, k)
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    series = np.full_like(s, 1.0 / (2 * TERMS - 1))
    for n in range(TERMS - 2, -1, -1):
        series *= z
        series += 1.0 / (2 * n + 1)
    found: Array = k * (LOG2_HIGH + LOG2_LOW) + 2.0 * s * series
    return found


class Functions(NamedTuple):
    """What confidence is computed with."""

    exp: Callable[[Array], Array]
    log: Callable[[Array], Array]


EXACT = Functions(exp, log)
QUICK = Functions(np.exp, np.log)  # NumPy's own, several times as fast: their last bits depend on the machine
NEAR = 1e-9  # confidence by the one is nearer than that to confidence by the other
