"""Average pools as runtimes count: what padding a mean is taken over, and whether it counts.

torch divides by the elements of a window inside the padded image, a runtime's integer kernel by the whole window or by the
elements inside the image. They agree unless padding counts and a last window, begun by `ceil_mode`, reaches beyond it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from graphopt.ir.calls import shape
from graphopt.ir.layer import Pool


@dataclass(frozen=True)
class Averages:
    """An average pool with ONNX's attributes.

    Attributes:
        ends: padding at the end of each dimension, as much as before it or less.
        rounds_up: ONNX's `ceil_mode`.
        counts: whether padding counts.
    """

    ends: tuple[int, ...]
    rounds_up: bool
    counts: bool


def averages(pool: Pool, *, divided: bool = False) -> Averages | None:
    """What gives torch's sizes and divisors where windows are counted whole or inside the image; None where nothing does.

    Args:
        divided: sums are divided by a number of their own afterwards, so that all windows are to be counted whole.

    torch leaves a last window out that would begin in the padding. So does ONNX Runtime's kernel, but its plan for memory counts
    that window, and may share memory with a value of that size: there, only so much is padded as the other windows read.
    """
    image, result, begin = shape(pool.input)[-pool.dims :], shape(pool.node)[-pool.dims :], pool.padding
    counts = divided or (pool.includes_padding and any(begin))
    if not pool.rounds_up:
        return Averages(begin, False, counts)
    if not all(isinstance(n, int) for n in image):
        return None if counts else Averages(begin, True, counts)
    reached = beyond(pool, image, result)
    if counts and any(map(int.__gt__, reached, begin)):
        return None
    read = tuple(map(min, reached, begin))
    for rounds_up, ends in ((False, begin), (True, begin), (False, read), (True, read)):
        room = [i + p + e - k for i, p, e, k in zip(image, begin, ends, pool.kernel, strict=True)]
        steps = [-(-n // s) if rounds_up else n // s for n, s in zip(room, pool.stride, strict=True)]
        if [n + 1 for n in steps] == list(result):
            return Averages(ends, rounds_up, counts)
    return None


def beyond(pool: Pool, image: Sequence[Any], result: Sequence[Any]) -> list[int]:
    """How far torch's last windows reach behind the image, 0 where they end inside: a number for each dimension."""
    reach = [d * (k - 1) + 1 for d, k in zip(pool.dilation, pool.kernel, strict=True)]
    used = [(n - 1) * s + r for n, s, r in zip(result, pool.stride, reach, strict=True)]
    return [max(u - i - b, 0) for u, i, b in zip(used, image, pool.padding, strict=True)]
