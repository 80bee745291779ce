"""Kernels of TIR as an object of plain C functions: `void model_conv(const void *x, ..., void *y, void *scratch)`.

TVM's own calling convention packs arguments, and its kernels ask a runtime for threads and for large temporaries. Here they take
raw pointers: a loop over threads becomes a loop, and a temporary that does not fit a small stack becomes one more pointer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import PointerType, PrimType
from tvm.ir.instrument import pass_instrument

from graphopt.backends.tvm.build import Code, explained
from graphopt.backends.tvm.machine import processor
from graphopt.backends.tvm.schedules import PASS_CONFIG, written_for
from graphopt.backends.tvm.schedules.emit import OVER
from graphopt.utils.errors import InputError

STACK_BYTES = 1024  # from which on TVM asks its runtime for a temporary
AS_IT_IS = 1  # the calling convention of functions whose arguments TVM leaves alone
CALLS_A_RUNTIME = "tirx.tvm_call_packed"
FOR_A_RUNTIME = {
    "tirx.MakePackedAPI",
    "tirx.AnnotateEntryFunc",
    "tirx.FP8StorageLegalize",  # these two expect packed arguments; there is neither type in a graph
    "tirx.BF16StorageLegalize",
}


class Needs(NamedTuple):
    """Of an object's kernels, by name.

    Attributes:
        scratch: bytes of the temporaries that each takes behind its tensors.
        over: the operand whose memory its result may take, a number among its arguments; kernels without one are left out.
    """

    scratch: dict[str, tuple[int, ...]]
    over: dict[str, int]


@pass_instrument
class _Plain:
    """Leaves out the passes that make functions for TVM's runtime."""

    def should_run(self, module: Any, info: Any) -> bool:
        return str(info.name) not in FOR_A_RUNTIME


def compile_kernels(kernels: Any, code: Code, prefix: str, path: Path) -> Needs:
    """Write the object; what its kernels need of memory.

    Raises:
        InputError: a kernel calls a function of TVM's runtime; names it. GraphoptError: TVM cannot compile them.
    """
    target = code.target()
    target = target.with_host(target)
    functions = {
        variable.name_hint: function.with_attr("global_symbol", f"{prefix}_{variable.name_hint}")
        .with_attr("calling_conv", AS_IT_IS)
        .with_attr("target", target)
        for variable, function in kernels.functions_items()
    }
    for name, function in functions.items():
        refuse_runtime_calls(name, function)
    lowered, finish, _ = tirx.get_default_tir_pipeline(target)
    context = tvm.transform.PassContext(config=PASS_CONFIG, instruments=[_Plain()])
    with explained(code), context, written_for(processor(target)):
        plain = {v.name_hint: on_pointers(f) for v, f in lowered(tvm.IRModule(functions)).functions_items()}
        module = finish()(tvm.IRModule({name: function for name, (function, _) in plain.items()}))
        tvm.get_global_func("target.build.llvm")(module, target).write_to_file(str(path), "o")
    over = {name: int(f.attrs[OVER]) for name, f in functions.items() if f.attrs and OVER in f.attrs}
    return Needs({name: scratch for name, (_, scratch) in plain.items()}, over)


def refuse_runtime_calls(name: str, function: Any) -> None:
    """Raises InputError where a kernel calls what is compiled into TVM's runtime."""
    called: list[str] = []

    def look(call: Any) -> None:
        if str(getattr(call.op, "name", "")) == CALLS_A_RUNTIME:
            called.append(str(call.args[0].value))

    tvm_ffi.structural_walk(function.body, (tvm.ir.Call, look))
    if called:
        raise InputError(
            f"the kernel {name} calls {called[0]} of TVM's runtime, which C without it cannot do; leave that operator out of the "
            "model, or deploy the artifact as it is"
        )


def on_pointers(function: Any) -> tuple[Any, tuple[int, ...]]:
    """A function on one thread whose parameters are pointers, behind its tensors those to temporaries; and their bytes."""
    pointers = [_pointer(buffer) for buffer in function.params]
    places = [
        *(tirx.Bind(b.elem_offset, tirx.const(0, b.elem_offset.ty.dtype)) for b in function.params if _has_offset(b)),
        *(tirx.DeclBuffer(buffer, data=pointer) for buffer, pointer in zip(function.params, pointers, strict=True)),
    ]
    scratch: list[int] = []

    def given(allocated: Any) -> Any:
        size = int(np.prod([int(s) for s in allocated.buffer.shape])) * np.dtype(str(allocated.buffer.dtype)).itemsize
        if "disable_lower_builtin" in allocated.annotations or size < STACK_BYTES:
            return allocated
        scratch.append(size)
        pointers.append(_pointer(allocated.buffer))
        return tirx.DeclBuffer(allocated.buffer, data=pointers[-1])

    def in_turn(loop: Any) -> Any:
        if loop.kind != tirx.ForKind.PARALLEL:
            return loop
        return tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.SERIAL, loop.body, step=loop.step)

    body = tvm_ffi.structural_map(function.body, [(tirx.AllocBuffer, given), (tirx.For, in_turn)])
    return tirx.PrimFunc(pointers, tirx.SeqStmt([*places, body]), function.ret_type, function.attrs), tuple(scratch)


def _has_offset(buffer: Any) -> bool:
    """It could begin behind its pointer, by a variable."""
    return isinstance(buffer.elem_offset, tirx.Var)


def _pointer(buffer: Any) -> Any:
    return tirx.Var(buffer.name, PointerType(PrimType(str(buffer.dtype))))
