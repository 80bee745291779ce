"""A function of codes as 256 entries, looked up while the codes are in registers.

    permute   vpermi2b on tables of 128 entries, chosen by a code's highest bit                                    AVX512-VBMI
    shuffle   pshufb on 16 rows of 16 entries. It gives 0 where a byte is negative, so with codes lowered by 16, 32, ... only the
              rows up to a code's own answer; these hold what they differ by from the row before, and are combined by exclusive
              or. Codes from 128 on are negative, and go the same way after their highest bit is flipped             SSSE3, AVX2
    select    tbl on 64 entries gives 0 beyond them, and tbx keeps what it was given, for the next 64, ...          64-bit ARM
    none      a load for each code

Entries lie by the bits of a code: 0 to 127, then for signed codes those of -128 to -1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphopt.backends.tvm.machine import Lookup, Machine, Processor
from graphopt.backends.tvm.schedules import emit
from graphopt.backends.tvm.schedules.emit import Array, Expr, Flat

ENTRIES = 256
ROW = 16
SHUFFLE = {16: "llvm.x86.ssse3.pshuf.b.128", 32: "llvm.x86.avx2.pshuf.b", 64: "llvm.x86.avx512.pshuf.b.512"}
WIDEST = 64
PERMUTE = "llvm.x86.avx512.vpermi2var.qi.512"


def arranged(entries: Array, data: str) -> Array:
    """[256], of the lowest code of type `data` first -> what a function takes: [2, 256], entries and differences of rows."""
    by_bits = np.roll(entries, ENTRIES // 2) if data == "int8" else entries
    if by_bits.dtype.itemsize > 1:
        return np.stack([by_bits, np.zeros_like(by_bits)])
    rows = by_bits.reshape(2, -1, ROW).view(np.uint8)
    before = np.concatenate([np.zeros_like(rows[:, :1]), rows[:, :-1]], 1)
    return np.stack([by_bits, (rows ^ before).reshape(-1).view(by_bits.dtype)])


@dataclass(frozen=True)
class Rows:
    """A table in memory, as `arranged` makes it."""

    flat: Flat
    machine: Processor

    SHAPE = (2, ENTRIES)

    def of(self, codes: Expr, lanes: int) -> Expr:
        """The entries of some codes."""
        way = "none" if np.dtype(self.flat.dtype).itemsize > 1 else _way(self.machine, lanes)
        if way == "none":
            found = self.flat.buffer[index_of(codes, lanes)]
            return found if lanes == 1 else emit.let(found)
        signed = emit.let(emit.bits(codes, f"int8x{lanes}"))
        found = {"permute": self._permuted, "shuffle": self._shuffled, "select": self._selected}[way](signed, lanes)
        return emit.let(emit.bits(found, f"{self.flat.dtype}x{lanes}"))

    def _permuted(self, codes: Expr, lanes: int) -> Expr:
        low, high = (
            emit.intrinsic(
                f"int8x{lanes}", PERMUTE, self._repeated(start, lanes), codes, self._repeated(start + lanes, lanes)
            )
            for start in (0, ENTRIES // 2)
        )
        return emit.chosen(codes < emit.constant(0, "int8", lanes), high, low)

    def _shuffled(self, codes: Expr, lanes: int) -> Expr:
        flipped = emit.let(codes ^ emit.constant(-128, "int8", lanes))
        found = None
        for row in range(ENTRIES // ROW):
            if row % 8 == 0:
                at = flipped if row else codes
            else:
                step = emit.constant(ROW, "int8", lanes)
                at = emit.let(emit.intrinsic(f"int8x{lanes}", "llvm.ssub.sat", at, step))
            one = emit.intrinsic(f"int8x{lanes}", SHUFFLE[lanes], self._repeated(ENTRIES + row * ROW, lanes, ROW), at)
            found = emit.let(one if found is None else found ^ one)
        return found

    def _selected(self, codes: Expr, lanes: int) -> Expr:
        found = None
        for start in range(0, ENTRIES, 4 * ROW):
            rows = [self._repeated(start + ROW * i, ROW) for i in range(4)]
            at = codes - emit.constant(start - ENTRIES * (start > 127), "int8", lanes) if start else codes
            if found is None:
                found = emit.intrinsic(f"int8x{lanes}", "llvm.aarch64.neon.tbl4", *rows, at)
            else:
                found = emit.intrinsic(f"int8x{lanes}", "llvm.aarch64.neon.tbx4", found, *rows, at)
            found = emit.let(found)
        return found

    def _repeated(self, start: int, lanes: int, count: int | None = None) -> Expr:
        """`count` entries from there on, over and over."""
        count = count or lanes
        loaded = emit.bits(self.flat.load(start, count), f"int8x{count}")
        return loaded if count == lanes else emit.shuffled([loaded] * (lanes // count), range(lanes))


def index_of(codes: Expr, lanes: int) -> Expr:
    """Where their entries lie."""
    return emit.cast(emit.bits(codes, emit.vector("uint8", lanes)), "int32", lanes)


def _way(machine: Processor, lanes: int) -> Lookup:
    """How a vector of so many codes is looked up."""
    if not isinstance(machine, Machine) or machine.vector_bytes < lanes:
        return "none"
    if machine.lookup == "select":
        return "select" if lanes == ROW else "none"
    if machine.lookup == "permute" and lanes == WIDEST:
        return "permute"
    return "shuffle" if machine.lookup != "none" and lanes in SHUFFLE else "none"
