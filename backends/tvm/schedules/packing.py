"""Signs as bits: a layer's data, padded, 32 channels to a word.

    codes s8 around 0: -1, 1      negative where the highest bit is set
    codes u8 around 1: 0, 2       negative where the second bit is not

x86 gathers the highest bits of 32 bytes by pmovmskb. Elsewhere four codes at a time: with a bit in each byte of a word m,

    (m * (2^24 + 2^17 + 2^10 + 2^3)) >> 24        has byte i's bit in bit i: 8 i + (24 - 7 i) = 24 + i, and no two products meet
"""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.backends.tvm.machine import Machine
from graphopt.backends.tvm.schedules import emit
from graphopt.backends.tvm.schedules.emit import Expr, Flat
from graphopt.backends.tvm.schedules.specs import Conv
from graphopt.backends.tvm.schedules.staging import Staging

WORD = 32
MASK = "llvm.x86.avx2.pmovmskb"
GATHER = (1 << 24) | (1 << 17) | (1 << 10) | (1 << 3)  # byte i's bit goes to bit 24 + i


@dataclass(frozen=True)
class PackedRows:
    """A padded copy of a spec's data in words; padding has no bit set: +1."""

    spec: Conv
    machine: Machine

    @property
    def words(self) -> int:
        return -(-self.spec.shape[3] // WORD)

    @property
    def _staging(self) -> Staging:
        return Staging.of(self.spec, self.spec.data, overreaches=True)  # for its sizes

    @property
    def rows(self) -> int:
        return self._staging.rows

    @property
    def columns(self) -> int:
        return self._staging.columns

    def emit(self, x: Flat) -> Flat:
        n, h, w, c = self.spec.shape
        (top, _), (left, _) = self.spec.padding
        copied = min(w, self.columns - left)
        width = self.columns * self.words
        packed = emit.workspace(n * self.rows * width, "int32")

        def blank(start: Expr, count: int) -> None:
            if count > 0:
                with emit.serial(count) as i:
                    packed.store(emit.constant(0, "int32"), start + i)

        with emit.tasks(n * self.rows, n * self.rows * width * WORD, self.machine) as task:
            image, row = task // self.rows, task % self.rows - top
            start = task * width
            with emit.choice((row >= 0) & (row < h)) as (then, otherwise):
                with then:
                    blank(start, left * self.words)
                    with emit.serial(copied) as column:
                        source = ((image * h + row) * w + column) * c
                        self._pixel(x, source, packed, start + (left + column) * self.words)
                    blank(start + (left + copied) * self.words, (self.columns - left - copied) * self.words)
                with otherwise:
                    blank(start, width)
        return packed

    def _pixel(self, x: Flat, source: Expr, packed: Flat, target: Expr) -> None:
        whole, rest = divmod(self.spec.shape[3], WORD)
        if whole:
            with emit.serial(whole) as word:
                packed.store(self._word(x, source + word * WORD, WORD), target + word)
        if rest:
            packed.store(self._word(x, source + whole * WORD, rest), target + whole)

    def _word(self, x: Flat, at: Expr, count: int) -> Expr:
        """The bits of `count` codes, a multiple of 4."""
        if count == WORD and self.machine.packs and self.machine.vector_bytes >= WORD:
            codes = x.load(at, WORD)
            if self.spec.zero_point:
                codes = codes - emit.constant(self.spec.zero_point, self.spec.data, WORD)
            return emit.intrinsic("int32", MASK, emit.bits(codes, f"int8x{WORD}"))
        found: Expr = None
        for i in range(0, count, 4):
            four = emit.bits(x.load(at + i, 4), "int32")
            bit = (four >> 1) & 0x01010101 if self.spec.zero_point else (four >> 7) & 0x01010101
            bit = bit ^ 0x01010101 if self.spec.zero_point else bit
            some = ((bit * GATHER) >> 24) & 15
            found = some if found is None else found | (some << i)
        return found
