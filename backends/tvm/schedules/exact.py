"""Arithmetic that must round exactly where it says, in the words of what compiles it: LLVM, CUDA or OpenCL.

              LLVM                      CUDA                   OpenCL
    fma       llvm.fma                  __fmaf_rn(a, b, c)     fma(a, b, c)
    product   llvm.arithmetic.fence     __fmul_rn(a, b)        fma(a, b, -0)
    total     llvm.arithmetic.fence     __fadd_rn(a, b)        fma(a, 1, b)
    quotient  a / b                     __fdiv_rn(a, b)        a / b, which may be 2.5 units in the last place off
    nearest   nearbyint                 rintf                  rint

TVM itself takes (a + b) - b for a, whatever that rounds. A plain `a * b + c` may be fused on all three, and CUDA's `a / b` is
rough under `--use_fast_math`, which TVM takes when it compiles kernels on the device. TVM writes constants of OpenCL with seven
digits, which are not enough: others are given by their bits, as_float(1262485504).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
from tvm import tirx

from graphopt.backends.tvm.machine import Gpu, Processor

Expr = Any  # of TIR
_LANGUAGE: ContextVar[str] = ContextVar("language", default="llvm")


@contextmanager
def written_for(machine: Processor) -> Iterator[None]:
    """What is written inside is in the language of this processor."""
    token = _LANGUAGE.set(machine.language if isinstance(machine, Gpu) else "llvm")
    try:
        yield
    finally:
        _LANGUAGE.reset(token)


def fma(a: Expr, b: Expr, c: Expr, lanes: int = 1) -> Expr:
    """a * b + c, rounded once."""
    if _LANGUAGE.get() == "llvm":
        return _intrinsic("llvm.fma", lanes, a, b, c)
    return _call("__fmaf_rn" if _LANGUAGE.get() == "cuda" else "fma", a, b, c)


def product(a: Expr, b: Expr, lanes: int = 1) -> Expr:
    """a * b, rounded before anything is added to it."""
    if _LANGUAGE.get() == "llvm":
        return _intrinsic("llvm.arithmetic.fence", lanes, a * b)
    return _call("__fmul_rn", a, b) if _LANGUAGE.get() == "cuda" else _call("fma", a, b, tirx.const(-0.0, "float32"))


def total(a: Expr, b: Expr, lanes: int = 1) -> Expr:
    """a + b, rounded before anything is taken from it."""
    if _LANGUAGE.get() == "llvm":
        return _intrinsic("llvm.arithmetic.fence", lanes, a + b)
    return _call("__fadd_rn", a, b) if _LANGUAGE.get() == "cuda" else _call("fma", a, tirx.const(1.0, "float32"), b)


def quotient(a: Expr, b: Expr) -> Expr:
    return _call("__fdiv_rn", a, b) if _LANGUAGE.get() == "cuda" else a / b


def nearest(a: Expr) -> Expr:
    """The whole number next to a, of two the even one."""
    return (
        tirx.nearbyint(a) if _LANGUAGE.get() == "llvm" else _call("rintf" if _LANGUAGE.get() == "cuda" else "rint", a)
    )


def number(value: float, dtype: str) -> Expr:
    """A constant, to its last bit."""
    if _LANGUAGE.get() == "opencl" and dtype == "float32" and np.isfinite(value):
        single = np.float32(value)
        if np.float32(f"{single:e}") != single:
            return _call("as_float", tirx.const(int(single.view(np.int32)), "int32"))
    return tirx.const(value, dtype)


def _intrinsic(name: str, lanes: int, *operands: Expr) -> Expr:
    return tirx.call_llvm_pure_intrin("float32" if lanes == 1 else f"float32x{lanes}", name, *operands)


def _call(name: str, *operands: Expr) -> Expr:
    return tirx.call_pure_extern("float32", name, *operands)
