"""Quantities: counts, bytes, ratios and decibels as people read them; numbers of channels as kernels like them."""

from __future__ import annotations

import math
from collections.abc import Sequence


def count(value: int) -> str:
    """1234567 -> "1.23 M"."""
    for limit, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if value >= 0.9995 * limit:  # what would round to 1000 of the smaller unit
            scaled = value / limit
            return f"{scaled:.3g} {unit}" if scaled < 999.5 else f"{scaled:,.0f} {unit}"
    return str(value)


def size(value: int) -> str:
    """Bytes in decimal units: 1234567 -> "1.23 MB"."""
    shown = count(value)
    return f"{shown}B" if " " in shown else f"{shown} B"


def ratio(value: float, better: str, worse: str) -> str:
    """2.0 -> "2.00x faster", 0.5 -> "2.00x slower", what rounds to one -> "the same"."""
    if f"{value:.2f}" == "1.00":
        return "the same"
    return f"{value:.2f}x {better}" if value >= 1 else f"{1 / value:.2f}x {worse}"


def few(words: Sequence[str], most: int) -> str:
    """The first of some words, and dots where there are more: "a, b, ..."."""
    return ", ".join(words[:most]) + (", ..." if len(words) > most else "")


def decibel(value: float | None) -> str:
    """27.5 -> "27.5 dB"; infinity, where nothing differs, is "equal"."""
    if value is None:
        return "not measured"
    return "equal" if value == math.inf else f"{value:.1f} dB"


def multiple_within(multiple: int, whole: int) -> int:
    """`multiple`, but where that is more than half of the whole, the largest power of two that is not: so much can be left."""
    return multiple if 2 * multiple <= whole else max(1, min(multiple, 2 ** ((whole // 2).bit_length() - 1)))
