"""Codes of types that no kernel takes together, signed beside unsigned: why an operator between codes is left in float."""

from __future__ import annotations

from collections.abc import Iterable


def disagreement(values: Iterable[str], weight: str | None = None) -> str | None:
    """What is wrong with the types of the codes around an operator, in words; None where nothing is.

    Args:
        values: of what it reads and writes, such as `int8`. weight: of the constant that it multiplies with.
    """
    types = sorted(set(values))
    if len(types) > 1:
        return f"it reads and writes codes of different types ({', '.join(types)})"
    if types == ["int8"] and weight == "uint8":
        return "it multiplies int8 values by uint8 weights, for which there is no kernel"
    return None
