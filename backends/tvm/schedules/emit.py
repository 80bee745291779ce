"""Writing TIR: flat buffers, vectors, loops. The one place that knows how TVM spells them.

Kernels are written as explicit loops over flat buffers, with register tiles unrolled here in Python: an accumulator is a local
buffer addressed by constants only, which LLVM keeps in registers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as tir

from graphopt.backends.tvm.machine import Machine
from graphopt.backends.tvm.schedules import exact

Array = NDArray[Any]
Expr = Any  # a TIR expression; indices may be Python integers
Body = Callable[..., None]
WORTH_WAKING = 1 << 17
PASS_CONFIG = {"tirx.disable_storage_rewrite": True}
"""For tvm.transform.PassContext: keeps TVM from moving local buffers off the stack, which costs an allocation for each tile."""
OVER = "graphopt.over"
"""Attribute of a function: the number of the argument whose memory its result may take."""
ON_STACK = {"disable_lower_builtin": tirx.IntImm("bool", 1)}
"""Annotation of a buffer that stays there, under PASS_CONFIG; without it, TVM asks its allocator."""


@dataclass(frozen=True, eq=False)
class Kernel:
    """A function for `call_tir`.

    Attributes:
        function: takes (data[, residual], *constants, result). The result must not share memory with an argument other than
            the one that the attribute `OVER` names.
        shape, dtype: of the result.
        pack: (weight [O, C / groups, kh, kw], bias [O] or None, multiplier [O], [1] or None) -> constants; None without weights.
            With slopes: multiplier [3, O], its own and those above and below zero.
        arrange: a table [256], the entry of the lowest code first -> as the function takes it; None where there is none.
    """

    function: Any
    shape: tuple[int, ...]
    dtype: str
    pack: Callable[[Array, Array | None, Array | None], tuple[Array, ...]] | None = None
    arrange: Callable[[Array], Array] | None = None

    def constants(
        self, weight: Array, bias: Array | None = None, multiplier: Array | None = None, table: Array | None = None
    ) -> tuple[Array, ...]:
        """The function's arguments behind the data (and residual), in order."""
        if self.pack is None:
            raise ValueError("this kernel has no weights, so there are no constants to pack")
        return *self.pack(weight, bias, multiplier), *self.table(table)

    def table(self, entries: Array | None) -> tuple[Array, ...]:
        """The arguments that a function of codes is given in.

        Raises:
            ValueError: it has a table and needs none, or the other way round.
        """
        if (self.arrange is None) != (entries is None):
            raise ValueError("a table must be given to the kernels that look results up, and only to them")
        return () if self.arrange is None or entries is None else (self.arrange(entries),)


@dataclass(frozen=True, eq=False)
class Flat:
    """A buffer seen as one row of elements."""

    buffer: Any

    @property
    def dtype(self) -> str:
        return str(self.buffer.dtype)

    def load(self, index: Expr, lanes: int = 1) -> Expr:
        return self.buffer[span(index, lanes)]

    def store(self, value: Expr, index: Expr, lanes: int = 1) -> None:
        tir.buffer_store(self.buffer, value, [span(index, lanes)])


def function(arguments: Mapping[str, tuple[Sequence[int], str]], body: Body, over: int | None = None) -> Any:
    """A function of buffers {name: (shape, dtype)}, which `body` gets flat, in order.

    `over`: the argument whose memory the result, the last one, may take; None: no two share memory.
    """
    with IRBuilder() as builder, tir.prim_func(s_tir=True):
        tir.func_name("main")
        tir.func_attr({"tirx.noalias": True} if over is None else {OVER: over})
        buffers = [tir.arg(name, tir.buffer(tuple(shape), dtype)) for name, (shape, dtype) in arguments.items()]
        body(*(flattened(buffer, name) for buffer, name in zip(buffers, arguments, strict=True)))
    return builder.get()


def flattened(buffer: Any, name: str) -> Flat:
    return Flat(named(tir.decl_buffer((prod(buffer.shape),), buffer.dtype, data=buffer.data), name))


def named(value: Any, name: str) -> Any:
    """The same, by a name in generated source."""
    IRBuilder.name(name, value)
    return value


@dataclass(frozen=True, eq=False)
class Registers:
    """Vectors that stay in registers: a buffer on the stack, addressed by constants only."""

    flat: Flat
    lanes: int

    @classmethod
    def of(cls, count: int, dtype: str, lanes: int) -> Registers:
        buffer = tir.alloc_buffer((count * lanes,), dtype, scope="local", annotations=ON_STACK)
        return cls(Flat(named(buffer, "registers")), lanes)

    def get(self, i: int) -> Expr:
        return self.flat.load(i * self.lanes, self.lanes)

    def set(self, i: int, value: Expr) -> None:
        self.flat.store(value, i * self.lanes, self.lanes)


def workspace(size: int, dtype: str) -> Flat:
    return Flat(tir.alloc_buffer((size,), dtype))


def shared(name: str, size: int, dtype: str) -> Flat:
    """Memory that the threads of a block share."""
    return Flat(named(tir.alloc_buffer((size,), dtype, scope="shared"), name))


def let(value: Expr) -> Expr:
    """A name for a value that is used more than once."""
    return tir.Bind(value)


serial = tir.serial


def tasks(count: int, work: int, machine: Machine) -> Any:
    """A loop over independent tasks, on all cores where `work` (in operations) is worth waking them."""
    return tir.parallel(count) if machine.cores > 1 and count > 1 and work > WORTH_WAKING else tir.serial(count)


@contextmanager
def choice(condition: Expr) -> Iterator[tuple[Any, Any]]:
    """with choice(c) as (then, otherwise): with then: ...; with otherwise: ..."""
    with tir.If(condition):
        yield tir.Then(), tir.Else()


def span(index: Expr, lanes: int) -> Expr:
    return index if lanes == 1 else tirx.expr.Ramp(index, 1, lanes)


def splat(value: Expr, lanes: int) -> Expr:
    return value if lanes == 1 else tirx.expr.Broadcast(value, lanes)


def constant(value: float, dtype: str, lanes: int = 1) -> Expr:
    return splat(exact.number(value, dtype), lanes)


def cast(value: Expr, dtype: str, lanes: int = 1) -> Expr:
    return value.astype(vector(dtype, lanes))


def element(value: Expr, i: int) -> Expr:
    """One element of a vector."""
    return tirx.Shuffle([value], [i])


def shuffled(vectors: Sequence[Expr], elements: Sequence[int]) -> Expr:
    """A vector of these elements of what the vectors are behind one another."""
    return tirx.Shuffle(list(vectors), list(elements))


def part(value: Expr, start: int, lanes: int) -> Expr:
    """Neighbouring elements of a vector."""
    return shuffled([value], range(start, start + lanes))


def bits(value: Expr, dtype: str) -> Expr:
    """The same bits as another type."""
    return tirx.reinterpret(dtype, value)


def vector(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def intrinsic(dtype: str, name: str, *operands: Expr) -> Expr:
    return tirx.call_llvm_pure_intrin(dtype, name, *operands)


def prefetch(flat: Flat, index: Expr) -> None:
    """Ask for the cache line of an element, into the second-level cache."""
    tir.evaluate(tirx.call_intrin("void", "tirx.prefetch", tirx.address_of(flat.buffer[index]), 0, 2, 1))


def minimum(a: Expr, b: Expr) -> Expr:
    return tirx.min(a, b)


def maximum(a: Expr, b: Expr) -> Expr:
    return tirx.max(a, b)


def chosen(condition: Expr, a: Expr, b: Expr) -> Expr:
    """a where the condition holds, else b."""
    return tirx.Select(condition, a, b)


def lowest(dtype: str) -> float:
    """The least value of a type."""
    return float("-inf") if dtype.startswith("float") else int(np.iinfo(dtype).min)


def in_vectors(count: int, lanes: int, body: Callable[[Expr, int], None]) -> None:
    """body(index, width) over `count` elements: whole vectors, then one element at a time."""
    whole = count // lanes
    if whole == 1:
        body(0, lanes)
    elif whole:
        with serial(whole) as i:
            body(i * lanes, lanes)
    if rest := count - whole * lanes:
        with serial(rest) as i:
            body(whole * lanes + i, 1)


def load_some(source: Flat, index: Expr, valid: int, lanes: int) -> Expr:
    """A vector whose first `valid` elements are read, the others being zero."""
    if valid == lanes:
        return source.load(index, lanes)
    part = Registers.of(1, source.dtype, lanes)
    part.set(0, constant(0, source.dtype, lanes))
    for start, width in _pieces(valid):
        part.flat.store(source.load(index + start, width), start, width)
    return part.get(0)


def store_some(target: Flat, value: Expr, index: Expr, valid: int, lanes: int) -> None:
    """Write a vector's first `valid` elements."""
    if valid == lanes:
        target.store(value, index, lanes)
        return
    part = Registers.of(1, target.dtype, lanes)
    part.set(0, value)
    for start, width in _pieces(valid):
        target.store(part.flat.load(start, width), index + start, width)


def _pieces(count: int) -> Iterator[tuple[int, int]]:
    """(start, width) of powers of two, large ones first: 11 = 8 + 2 + 1."""
    start = 0
    while start < count:
        width = 1 << (count - start).bit_length() - 1
        yield start, width
        start += width
