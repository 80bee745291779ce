"""What a module does, as data: kernels called in order on inputs, outputs, constants and buffers.

lv = call_tir(quantize, (x,))             Call("quantize", [input 0], [buffer 0])
lv1 = reshape(lv)                         the same place by another name
lv2 = call_tir(conv, (lv1, weight))       Call("conv", [buffer 0, constant 0], [output 0])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, NamedTuple

import numpy as np
import tvm
from tvm import relax, tirx
from tvm.ir.expr import GenericConst

from graphopt.utils.errors import InputError

Array = np.ndarray[Any, Any]


class Slot(NamedTuple):
    """Where a tensor lies: the `number`-th of its kind."""

    kind: Literal["input", "output", "constant", "buffer"]
    number: int


class Call(NamedTuple):
    """One kernel: the places it reads, then those it writes."""

    kernel: str
    reads: tuple[Slot, ...]
    writes: tuple[Slot, ...]


@dataclass(frozen=True)
class Calls:
    """A module as a list of calls.

    Attributes:
        kernels: the module of the functions of TIR.
        calls: in order; no buffer is written twice.
        buffers: bytes of each.
        constants: read only.
        copies: outputs that are another's memory: (output, where it is).
    """

    kernels: Any
    calls: tuple[Call, ...]
    buffers: tuple[int, ...]
    constants: tuple[Array, ...]
    copies: tuple[tuple[int, Slot], ...] = ()


def recorded(module: Any) -> Calls:
    """Read them from a module behind `build.kernels_of`.

    Raises:
        InputError: it calls what only TVM's runtime has; names it.
    """
    return _Reader(module).read()


class _Reader:
    def __init__(self, module: Any) -> None:
        self.module, self.main = module, module["main"]
        self.calls: list[Call] = []
        self.buffers: list[int] = []
        self.constants: list[Array] = []
        self.known: dict[Any, Any] = {}  # variable -> its place, or a list for a tuple

    def read(self) -> Calls:
        for number, variable in enumerate(self.main.params):
            self.known[variable] = Slot("input", number)
        for block in self.main.body.blocks:
            for binding in block.bindings:
                self.known[binding.var] = self.value(binding.value)
        results = self.value(self.main.body.body)
        kernels = {v.name_hint: f for v, f in self.module.functions_items() if isinstance(f, tirx.PrimFunc)}
        used = {call.kernel for call in self.calls}
        return self.with_outputs(
            results if isinstance(results, list) else [results],
            tvm.IRModule({name: f for name, f in kernels.items() if name in used}),
        )

    def with_outputs(self, results: Sequence[Slot], kernels: Any) -> Calls:
        """Buffers that are returned become outputs; what is returned otherwise is copied."""
        moved: dict[Slot, Slot] = {}
        copies = []
        for number, place in enumerate(results):
            if place.kind == "buffer" and place not in moved:
                moved[place] = Slot("output", number)
            else:
                copies.append((number, moved.get(place, place)))
        places = [[tuple(moved.get(p, p) for p in places) for places in (c.reads, c.writes)] for c in self.calls]
        calls = tuple(Call(c.kernel, *found) for c, found in zip(self.calls, places, strict=True))
        return Calls(kernels, calls, tuple(self.buffers), tuple(self.constants), tuple(copies))

    def value(self, expression: Any) -> Any:
        if isinstance(expression, relax.Var):
            return self.known[expression]
        if isinstance(expression, GenericConst):
            self.constants.append(expression.value.numpy())
            return Slot("constant", len(self.constants) - 1)
        if isinstance(expression, relax.Tuple):
            return [self.value(field) for field in expression.fields]
        if isinstance(expression, relax.TupleGetItem):
            return self.value(expression.tuple_value)[expression.index]
        name = str(expression.op.name) if hasattr(expression.op, "name") else str(expression.op)
        if name == "relax.reshape":
            return self.value(expression.args[0])
        if name == "relax.call_tir":
            return self.call(expression)
        raise InputError(
            f"{_called(expression, name)} runs in TVM's runtime, which C without it cannot call; leave that operator out of "
            "the model, or deploy the artifact as it is"
        )

    def call(self, expression: Any) -> Any:
        read = self.value(expression.args[1])
        written = expression.ty_args[0]
        results = [self.buffer(t) for t in (written.fields if hasattr(written, "fields") else [written])]
        self.calls.append(Call(str(expression.args[0].name_hint), tuple(read), tuple(results)))
        return results if hasattr(written, "fields") else results[0]

    def buffer(self, tensor: Any) -> Slot:
        self.buffers.append(prod(int(s) for s in tensor.shape) * np.dtype(str(tensor.dtype)).itemsize)
        return Slot("buffer", len(self.buffers) - 1)


def _called(expression: Any, name: str) -> str:
    """The function that an operator of Relax calls, where its first argument says so."""
    first = expression.args[0] if len(expression.args) else None
    return str(getattr(first, "global_symbol", None) or name)
