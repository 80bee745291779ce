"""What the schedules know about a processor: the width and number of its vectors, its caches, its 8-bit dot product.

A profile is chosen by the target's `mcpu` and features; an unknown CPU of a known architecture gets that architecture's baseline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Machine:
    """One core.

    Attributes:
        vector_bytes, vector_registers: of the widest registers the kernels use.
        l1_bytes, l2_bytes: of data cache, per core.
        dot: the instruction that adds four 8-bit products to each 32-bit lane: `vpdpbusd` (u8 x s8), `sdot` (s8 x s8), or none.
    """

    vector_bytes: int
    vector_registers: int
    l1_bytes: int = 32 << 10
    l2_bytes: int = 512 << 10
    cores: int = 1
    dot: Literal["vnni", "sdot", "madd", "none"] = "none"

    def lanes(self, dtype: str) -> int:
        """Elements of a type in one vector."""
        return self.vector_bytes // (int("".join(filter(str.isdigit, dtype))) // 8)
