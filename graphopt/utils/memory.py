"""Memory of what was dropped, given back to the system.

A graph refers to itself, so the weights of a copy that was dropped stay until the collector looks; and what glibc's allocator has
free of blocks below 32 MB it keeps, which for networks of such layers is a multiple of their size.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import sys
from collections.abc import Callable

LARGE = 2**26  # bytes of weights from which looking, some tenths of a second each time, is worth it


def give_back(weight_bytes: int) -> None:
    """Collect what is garbage and return free memory to the system, where a network is large enough for that to matter."""
    if weight_bytes >= LARGE:
        gc.collect()
        _trim()(0)


@functools.cache
def _trim() -> Callable[[int], object]:
    """glibc's `malloc_trim`; nothing where the C library is another."""
    if sys.platform == "linux":
        found = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if found is not None:
            return found  # type: ignore[no-any-return]
    return lambda pad: None
