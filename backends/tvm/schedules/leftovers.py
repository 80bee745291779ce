"""A schedule for what has no kernel of its own: operators of TVM, which come as plain loops.

    one element for one     loops fused to one, vectors innermost
    other elementwise       vectors along the innermost dimension
    sums, maxima, products  vectors along the innermost dimension that is kept, the sum outside of them, in its order

Outer loops go over all cores where that is worth waking them. What cannot be scheduled so stays as it is.
"""

from __future__ import annotations

from math import gcd, prod
from typing import Any

from tvm import s_tir, tirx

from graphopt.backends.tvm.machine import Machine
from graphopt.backends.tvm.schedules.emit import WORTH_WAKING

KEPT, SUMMED = tirx.IterVar.DataPar, tirx.IterVar.CommReduce
INTERLEAVED = 4  # vectors of a sum at once, which hides the latency of adding


def scheduled(function: Any, machine: Machine) -> Any:
    """A function of TIR with its blocks scheduled; kernels, which have none, are returned as they are."""
    plan = s_tir.Schedule(function)
    try:
        blocks = _blocks(plan)
        for block in blocks[:-1]:
            _inline(plan, block)
        for block in _blocks(plan):
            _schedule(plan, block, machine)
    except s_tir.ScheduleError:
        return function
    return plan.mod["main"].with_attrs(function.attrs) if blocks else function


def _blocks(plan: Any) -> list[Any]:
    return list(plan.get_child_blocks(plan.get_sblock("root")))


def _inline(plan: Any, block: Any) -> None:
    """Compute an element where it is read, if it is read once."""
    readers = plan.get_consumers(block)
    if len(readers) != 1 or _sums(plan, block) or _sums(plan, readers[0]):
        return
    if _count(plan, block) < _count(plan, readers[0]):
        return  # it is repeated, and would be computed for every copy
    plan.compute_inline(block)


def _schedule(plan: Any, block: Any, machine: Machine) -> None:
    loops, statement = plan.get_loops(block), plan.get(block)
    if len(loops) != len(statement.iter_vars) or not loops:
        return
    work = prod(int(plan.get(loop).extent) for loop in loops)
    kept, summed = ([n for n, k in zip(loops, _kinds(statement), strict=True) if k == kind] for kind in (KEPT, SUMMED))
    if not kept:
        return
    lanes = machine.lanes(str(statement.writes[0].source.dtype))
    if summed:
        lanes = lanes * INTERLEAVED if _reads_along(statement, len(kept) - 1) else 1
    elif _one_for_one(statement):
        kept = [plan.fuse(*kept)]
    *outer, inner = kept
    width = gcd(int(plan.get(inner).extent), lanes)
    chunks, vector = plan.split(inner, [None, width])
    plan.reorder(*outer, chunks, *summed, vector)
    tasks = plan.fuse(*outer, chunks)
    if width > 1:
        plan.vectorize(vector)
    if machine.cores > 1 and work > WORTH_WAKING:
        plan.parallel(tasks)
    if summed:
        plan.decompose_reduction(block, summed[0])


# ---- Facts about a block --------------------------------------------------------------------------------------------


def _kinds(block: Any) -> list[Any]:
    return [iteration.iter_type for iteration in block.iter_vars]


def _sums(plan: Any, block: Any) -> bool:
    return SUMMED in _kinds(plan.get(block))


def _count(plan: Any, block: Any) -> int:
    return prod(int(iteration.dom.extent) for iteration in plan.get(block).iter_vars)


def _one_for_one(block: Any) -> bool:
    """Does every element come from those at the same place of operands of the same shape?"""
    variables = [iteration.var for iteration in block.iter_vars]
    shape = list(map(int, block.writes[0].source.shape))
    return all(
        list(map(int, region.source.shape)) == shape
        and all(at.min.same_as(variable) for at, variable in zip(region.region, variables, strict=True))
        for region in [*block.reads, *block.writes]
    )


def _reads_along(block: Any, dimension: int) -> bool:
    """Does the innermost dimension of an operand go along this one of the result?"""
    variable = block.iter_vars[dimension].var
    innermost = [region.region[-1].min for region in block.reads if len(region.region)]
    return any(at.same_as(variable) for at in innermost)
