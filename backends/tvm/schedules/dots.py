"""Multiply-accumulate on one vector of channels: what each machine has for it, and the layout its weights want.

    float     acc[v] += x w[v]                            one element of the data a step
    vnni      acc[v] += sum of 4 u8 x s8                  vpdpbusd
    sdot      acc[v] += sum of 4 s8 x s8                  sdot
    madd      acc[v] += sum of 2 s16 x s16                pmaddwd, x86 before VNNI; exact, where pmaddubsw would saturate
    none      acc[v] += s16 x s16                         smlal and its like

Data of the other sign is moved by 128 on the way in (and its zero point with it), so one form of weights, s8, serves both.
Cores whose `smlad` adds two s16 x s16 to a sum in a general register have kernels of their own, `pairs.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from graphopt.backends.tvm.machine import Machine
from graphopt.backends.tvm.schedules import emit
from graphopt.backends.tvm.schedules.emit import Expr, Flat
from graphopt.backends.tvm.schedules.epilogue import INTEGER

HALF = 8  # lanes; no machine multiplies narrower vectors faster
WASTEFUL = 1.5  # times the channels that there are; 24 channels in 2 x 16 lanes take 0.7 of their time in 3 x 8
MADD = {64: "llvm.x86.avx512.pmaddw.d.512", 32: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.sse2.pmadd.wd"}


@dataclass(frozen=True)
class Dot:
    """One step of a sum.

    Attributes:
        kind: which of the above.
        depth: elements of the data that a step takes.
        data, weight, sum: dtypes.
        lanes: of the sum.
    """

    kind: Literal["float", "vnni", "sdot", "madd", "none"]
    depth: int
    data: str
    weight: str
    sum: str
    lanes: int

    @property
    def scratch(self) -> int:
        """Registers for products that are not yet added: the one kind whose products x86 does not add as it multiplies."""
        return int(self.kind == "madd")

    def load(self, x: Flat, index: Expr, steps: int) -> Expr:
        """The data of this many steps, as one vector with one element a step."""
        if self.depth == 1:
            return x.load(index, steps)
        return emit.bits(x.load(index, steps * self.depth), emit.vector("int32", steps))

    def operand(self, loaded: Expr, step: int, steps: int) -> Expr:
        """One step of what was loaded, in every lane."""
        if self.depth == steps == 1:
            return emit.splat(emit.cast(loaded, self.sum), self.lanes)
        one = emit.splat(loaded if steps == 1 else emit.element(loaded, step), self.lanes)
        if self.depth == 1:  # widened last, as LLVM then sees a widening multiplication by an element
            return emit.cast(one, self.sum, self.lanes)
        return emit.bits(one, f"{'int16' if self.kind == 'madd' else 'int8'}x{self.depth * self.lanes}")

    def step(self, acc: Expr, operand: Expr, weights: Expr) -> Expr:
        """acc + operand * weights, a vector that lies [lanes, depth]."""
        dtype, bits = emit.vector("int32", self.lanes), 32 * self.lanes
        if self.kind == "vnni":
            return emit.intrinsic(dtype, f"llvm.x86.avx512.vpdpbusd.{bits}", acc, operand, weights)
        if self.kind == "sdot":
            return emit.intrinsic(dtype, "llvm.aarch64.neon.sdot", acc, weights, operand)
        if self.kind == "madd":
            return acc + emit.intrinsic(dtype, MADD[bits // 8], operand, weights)
        return acc + operand * emit.cast(weights, self.sum, self.lanes)

    def together(self, machine: Machine) -> int:
        """Steps whose data is best loaded at once."""
        return 16 // (self.depth * np.dtype(self.data).itemsize) if machine.by_element else 1


def fitting(data: str, channels: int, machine: Machine) -> Dot:
    """The same, with half of the widest vectors where these would be padding for a good part, and half ones are full."""
    dot = choose(data, machine)
    padded = -(-channels // dot.lanes) * dot.lanes
    if dot.lanes > HALF and channels % HALF == 0 and padded >= WASTEFUL * channels:
        return replace(dot, lanes=HALF)
    return dot


def choose(data: str, machine: Machine) -> Dot:
    """What a machine has for data of a type, in its widest vectors."""
    lanes = machine.lanes("float32")
    if data not in INTEGER:
        return Dot("float", 1, "float32", data, "float32", lanes)
    if machine.dot == "vnni":
        return Dot("vnni", 4, "uint8", "int8", "int32", lanes)
    if machine.dot == "sdot":
        return Dot("sdot", 4, "int8", "int8", "int32", lanes)
    if machine.dot == "madd":
        return Dot("madd", 2, "int16", "int16", "int32", lanes)
    return Dot("none", 1, "int16", "int16", "int32", lanes)


def halves(word: Expr) -> tuple[Expr, Expr]:
    """The signed bytes (b0, b2) and (b1, b3) of a 32-bit word, each as two signed 16-bit numbers in one word (Thumb DSP)."""
    turned = emit.intrinsic("int32", "llvm.fshr", word, word, emit.constant(8, "int32"))
    return emit.intrinsic("int32", "llvm.arm.sxtb16", word), emit.intrinsic("int32", "llvm.arm.sxtb16", turned)


def smlad(acc: Expr, x: Expr, w: Expr) -> Expr:
    """acc + x[0] w[0] + x[1] w[1], where x and w are words of two signed 16-bit numbers (Thumb DSP)."""
    return emit.intrinsic("int32", "llvm.arm.smlad", x, w, acc)
