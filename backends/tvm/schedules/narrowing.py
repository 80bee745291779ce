"""From vectors of float32 to vectors of codes: rounded, saturated, four at a time where x86 packs them.

    x86      vcvtps2dq rounds halves to even; vpackssdw, + zero point in 16 bits, vpackuswb or vpacksswb: each saturates.
             Packs work in parts of 128 bits, so the 32-bit words of the result are put in order at the end.
    others   the sum with M = 1.5 * 2^23 rounds, and its low bits are the integer: see `rounding.whole`

A packed result costs half of the instructions that narrowing vectors one by one does.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.backends.tvm.machine import Machine, Processor
from graphopt.backends.tvm.schedules import emit
from graphopt.backends.tvm.schedules.emit import Expr
from graphopt.backends.tvm.schedules.epilogue import Codes

TOGETHER = 4  # vectors of 32 bits that make one of 8
ROUND = {4: "llvm.x86.sse2.cvtps2dq", 8: "llvm.x86.avx.cvt.ps2dq.256", 16: "llvm.x86.avx512.mask.cvtps2dq.512"}
PACK = {4: "llvm.x86.sse2.{}.128", 8: "llvm.x86.avx2.{}", 16: "llvm.x86.avx512.{}.512"}
"""By lanes of the vectors that are packed."""


def packs(machine: Processor, lanes: int) -> bool:
    """Whether a machine has packs for vectors of so many floats."""
    return isinstance(machine, Machine) and machine.packs and lanes in PACK and 4 * lanes <= machine.vector_bytes


def packed(values: Sequence[Expr], codes: Codes, lanes: int, zero_point: int, *, bounded: bool = False) -> Expr:
    """sat(rne(value) + zero_point) of up to `TOGETHER` vectors, behind one another; the last one fills up what is missing.

    Args:
        bounded: whether int32 holds every value, so that packing alone saturates.
    """
    low, high = codes.ends
    natural = Codes(codes.dtype).ends
    whole = []
    for value in values:
        # What is beyond int32 gets its lowest, and so does what is no number, which a minimum leaves where it is the second.
        if not bounded or high != natural[1]:
            value = emit.minimum(emit.constant(high - zero_point, "float32", lanes), value)
        if low != natural[0]:
            value = emit.maximum(value, emit.constant(low - zero_point, "float32", lanes))
        whole.append(emit.let(_rounded(value, lanes)))
    whole += whole[-1:] * (TOGETHER - len(whole))
    pairs = [_pack("packssdw", "int16", a, b, lanes) for a, b in (whole[:2], whole[2:])]
    if zero_point:
        shift = emit.constant(zero_point, "int16", 2 * lanes)
        pairs = [emit.intrinsic(f"int16x{2 * lanes}", "llvm.sadd.sat", pair, shift) for pair in pairs]
    narrow = _pack("packuswb" if codes.dtype == "uint8" else "packsswb", "int8", pairs[0], pairs[1], lanes)
    parts = lanes // 4
    order = [part * TOGETHER + vector for vector in range(TOGETHER) for part in range(parts)]
    if parts > 1:
        narrow = emit.shuffled([emit.bits(narrow, f"int32x{lanes}")], order)
    return emit.let(emit.bits(narrow, f"{codes.dtype}x{TOGETHER * lanes}"))


def _rounded(value: Expr, lanes: int) -> Expr:
    integers = f"int32x{lanes}"
    if lanes < 16:
        return emit.intrinsic(integers, ROUND[lanes], value)
    everywhere, as_set = emit.constant(-1, "int16"), emit.constant(4, "int32")
    return emit.intrinsic(integers, ROUND[lanes], value, emit.constant(0, "int32", lanes), everywhere, as_set)


def _pack(name: str, dtype: str, a: Expr, b: Expr, lanes: int) -> Expr:
    count = {"int16": 2, "int8": 4}[dtype] * lanes
    return emit.intrinsic(f"{dtype}x{count}", PACK[lanes].format(name), a, b)
