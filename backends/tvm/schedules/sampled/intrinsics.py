"""Dot products for schedules to put in place of loops: sums[lane] += sum over depth of data[depth] weight[lane, depth]."""

from __future__ import annotations

from functools import cache
from typing import Any

from tvm import s_tir, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as tir

from graphopt.backends.tvm.schedules import emit
from graphopt.backends.tvm.schedules.dots import Dot


@cache
def registered(dot: Dot) -> str:
    """The name that TVM knows it by; registered at the first call. For dot products of more than one element."""
    name = f"graphopt.{dot.kind}.{dot.lanes}x{dot.depth}"
    s_tir.TensorIntrin.register(name, _function(dot, loops=True), _function(dot, loops=False), override=True)
    return name


def _function(dot: Dot, *, loops: bool) -> Any:
    """As loops, which are searched for, or as the instruction that replaces them."""
    lanes, depth = dot.lanes, dot.depth
    with IRBuilder() as builder, tir.prim_func(s_tir=True):
        tir.func_name("main")
        data = tir.arg("data", tir.buffer((depth,), dot.data, offset_factor=1))
        weight = tir.arg("weight", tir.buffer((lanes, depth), dot.weight, offset_factor=1))
        sums = tir.arg("sums", tir.buffer((lanes,), dot.sum, scope="local", offset_factor=1))
        with tir.sblock("root"):
            tir.reads([sums[0:lanes], data[0:depth], weight[0:lanes, 0:depth]])
            tir.writes([sums[0:lanes]])
            (_in_loops if loops else _in_one)(dot, sums, data, weight)
    return builder.get()


def _in_loops(dot: Dot, sums: Any, data: Any, weight: Any) -> None:
    with tir.grid(dot.lanes, dot.depth) as (i, k), tir.sblock("update"):
        lane, step = tir.axis.spatial(dot.lanes, i), tir.axis.reduce(dot.depth, k)
        product = data[step].astype(dot.sum) * weight[lane, step].astype(dot.sum)
        tir.buffer_store(sums, sums[lane] + product, [lane])


def _in_one(dot: Dot, sums: Any, data: Any, weight: Any) -> None:
    acc = sums.vload([0], emit.vector(dot.sum, dot.lanes))
    x = emit.bits(data.vload([0], emit.vector(dot.data, dot.depth)), "int32")
    w = weight.vload([0, 0], emit.vector(dot.weight, dot.lanes * dot.depth))
    tir.buffer_store(sums, dot.step(acc, dot.operand(x, 0, 1), w), [tirx.expr.Ramp(0, 1, dot.lanes)])
