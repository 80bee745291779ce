"""Multiply-accumulate on one vector of channels: what each machine has for it, and the layout its weights want.

    float     acc[v] += x w[v]                            one element of the data a step
    vnni      acc[v] += sum of 4 u8 x s8                  vpdpbusd
    sdot      acc[v] += sum of 4 s8 x s8                  sdot
    madd      acc[v] += sum of 2 s16 x s16                pmaddwd, x86 before VNNI; exact, where pmaddubsw would saturate
    none      acc[v] += s16 x s16                         smlal and its like

Data of the other sign is moved by 128 on the way in (and its zero point with it), so one form of weights, s8, serves both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from graphopt.backends.tvm.machine import Machine
from graphopt.backends.tvm.schedules import emit
from graphopt.backends.tvm.schedules.emit import Expr, Flat
from graphopt.backends.tvm.schedules.specs import INTEGER

MADD = {64: "llvm.x86.avx512.pmaddw.d.512", 32: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.sse2.pmadd.wd"}


@dataclass(frozen=True)
class Dot:
    """One step of a sum.

    Attributes:
        depth: elements of the data that a step takes.
        data, weight, sum: dtypes.
        lanes: of the sum.
        step: (acc, data, its index, weights, their index) -> acc. Weights lie [lanes, depth].
    """

    depth: int
    data: str
    weight: str
    sum: str
    lanes: int
    step: Callable[[Expr, Flat, Expr, Flat, Expr], Expr]


def choose(data: str, machine: Machine) -> Dot:
    lanes = machine.lanes("float32")
    if data not in INTEGER:
        return Dot(1, "float32", data, "float32", lanes, _multiply_add("float32", lanes))
    if machine.dot == "vnni":
        name = f"llvm.x86.avx512.vpdpbusd.{8 * machine.vector_bytes}"
        return Dot(4, "uint8", "int8", "int32", lanes, _dot_of_four(name, "uint8", lanes))
    if machine.dot == "sdot":
        return Dot(4, "int8", "int8", "int32", lanes, _dot_of_four("llvm.aarch64.neon.sdot", "int8", lanes))
    if machine.dot == "madd":
        return Dot(2, "int16", "int16", "int32", lanes, _dot_of_two(MADD[machine.vector_bytes], lanes))
    return Dot(1, "int16", "int16", "int32", lanes, _multiply_add("int32", lanes))


def _multiply_add(wide: str, lanes: int) -> Callable[[Expr, Flat, Expr, Flat, Expr], Expr]:
    def step(acc: Expr, x: Flat, i: Expr, w: Flat, j: Expr) -> Expr:
        return acc + emit.splat(emit.cast(x.load(i), wide), lanes) * emit.cast(w.load(j, lanes), wide, lanes)

    return step


def _dot_of_four(name: str, data: str, lanes: int) -> Callable[[Expr, Flat, Expr, Flat, Expr], Expr]:
    def step(acc: Expr, x: Flat, i: Expr, w: Flat, j: Expr) -> Expr:
        four = emit.splat(emit.bits(x.load(i, 4), "int32"), lanes)
        operand = emit.bits(four, f"int8x{4 * lanes}")
        return emit.intrinsic(f"int32x{lanes}", name, acc, operand, w.load(j, 4 * lanes))

    return step


def _dot_of_two(name: str, lanes: int) -> Callable[[Expr, Flat, Expr, Flat, Expr], Expr]:
    def step(acc: Expr, x: Flat, i: Expr, w: Flat, j: Expr) -> Expr:
        two = emit.bits(emit.splat(emit.bits(x.load(i, 2), "int32"), lanes), f"int16x{2 * lanes}")
        return acc + emit.intrinsic(f"int32x{lanes}", name, two, w.load(j, 2 * lanes))

    return step
