"""What the options of several passes have in common: shares, counts, and patterns for names."""

from __future__ import annotations

from fnmatch import fnmatchcase

from graphopt.utils.errors import InputError


def check_share(name: str, share: float) -> None:
    """Raise `ValueError` where a share is not over 0 and under 1."""
    if not 0 < share < 1:
        raise InputError(f"{name} must be over 0 and under 1, got {share}")


def check_count(name: str, count: int, least: int = 1) -> None:
    """Raise `ValueError` where a count is no whole number of at least `least`."""
    if not isinstance(count, int) or isinstance(count, bool) or count < least:
        raise InputError(f"{name} must be a whole number of at least {least}, got {count!r}")


def check_repeatable(data: object) -> None:
    """Raise `ValueError` where data can be gone through only once."""
    if getattr(data, "one_shot", False):
        raise InputError("the data is gone through several times; give a list or a DataLoader, not an iterator")


def names_weight(pattern: str, parameter: str) -> bool:
    """Whether a pattern (`fnmatch`) names a layer's weight: by the parameter's name, or by the layer's."""
    return fnmatchcase(parameter, pattern) or fnmatchcase(parameter.removesuffix(".weight"), pattern)
