"""What the options of several passes have in common: shares, counts, and patterns for names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

from graphopt.utils.errors import InputError, alternatives

T = TypeVar("T")


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


def matching(
    known: Sequence[T], patterns: str | Sequence[str], name: Callable[[T], str], missing: str, kind: str
) -> list[T]:
    """Of what is known those whose name a pattern has; all for `auto`.

    Args:
        missing: begins the message about a pattern that names none. kind: what they are called there.

    Raises:
        InputError: a pattern names none.
    """
    if isinstance(patterns, str):
        return list(known)
    names = [name(each) for each in known]
    for pattern in patterns:
        if not any(fnmatchcase(each, pattern) for each in names):
            raise InputError(f"{missing} {pattern!r}; {alternatives(pattern, names, kind)}")
    return [each for each in known if any(fnmatchcase(name(each), pattern) for pattern in patterns)]
