"""Of things with a cost and a gain, those that no other one betters in both."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def front(items: Iterable[T], cost: Callable[[T], float], gain: Callable[[T], float], noise: float = 0.0) -> list[T]:
    """The cheapest first, each of more gain than the one before it, by more than `noise`."""
    found: list[T] = []
    for item in sorted(items, key=lambda each: (cost(each), -gain(each))):
        if not found or gain(item) > gain(found[-1]) + noise:
            found.append(item)
    return found
