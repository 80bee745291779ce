"""Quantities as people read them: counts, bytes, ratios, decibels."""

from __future__ import annotations

import math


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
    """2.0 -> "2.00x faster", 0.5 -> "2.00x slower"."""
    return f"{value:.2f}x {better}" if value >= 1 else f"{1 / value:.2f}x {worse}"


def decibel(value: float | None) -> str:
    """27.5 -> "27.5 dB"; infinity, where nothing differs, is "equal"."""
    if value is None:
        return "not measured"
    return "equal" if value == math.inf else f"{value:.1f} dB"
