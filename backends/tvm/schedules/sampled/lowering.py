"""From a schedule to a function of plain loops, like those of the kernels written by hand: tiles of sums stay in registers."""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx

from graphopt.backends.tvm.schedules.emit import ON_STACK
from graphopt.backends.tvm.schedules.sampled.workload import Workload

_TO_LOOPS = tvm.transform.Sequential(
    [
        s_tir.transform.CanonicalizeLoop(),
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.CompactBufferAllocation(),
        s_tir.transform.LowerMatchBuffer(),
        s_tir.transform.StmtSimplify(),
        s_tir.transform.LowerOpaqueBlock(),
    ]
)


def lowered(work: Workload, plan: Any) -> Any:
    """The function of a schedule, with tensors of the shapes of the layer as it was given."""
    function = _TO_LOOPS(plan.mod)["main"]
    body = tvm_ffi.structural_map(function.body, [(tirx.AllocBuffer, _in_registers)])
    result = work.outer.result_shape
    outer = {"x": work.outer.shape, "residual": result, "result": result}
    given = [_as(buffer, outer.get(str(buffer.name), buffer.shape)) for buffer in function.params]
    seen = [tirx.DeclBuffer(old, data=new.data) for old, new in zip(function.params, given, strict=True)]
    return tirx.PrimFunc(given, tirx.SeqStmt([*seen, body]), function.ret_type, function.attrs)


def _in_registers(allocated: Any) -> Any:
    return tirx.AllocBuffer(allocated.buffer, ON_STACK) if allocated.buffer.scope() == "local" else allocated


def _as(buffer: Any, shape: Any) -> Any:
    return tirx.decl_buffer(tuple(map(int, shape)), buffer.dtype, str(buffer.name))
