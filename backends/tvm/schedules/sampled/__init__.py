"""Kernels whose schedule was sampled, by MetaSchedule, from a space of schedules around the ones written by hand.

conv(spec, machine, sample)                 a `Kernel`, like any other
applies(spec, machine)                      whether a layer has such a space
"""

from __future__ import annotations

from graphopt.backends.tvm.machine import Machine
from graphopt.backends.tvm.schedules import constants
from graphopt.backends.tvm.schedules.emit import Kernel
from graphopt.backends.tvm.schedules.sampled.lowering import lowered
from graphopt.backends.tvm.schedules.sampled.space import Sample, scheduled, spaces
from graphopt.backends.tvm.schedules.sampled.workload import Workload, applies
from graphopt.backends.tvm.schedules.specs import Conv

__all__ = ["Sample", "Workload", "applies", "conv", "scheduled", "spaces"]


def conv(spec: Conv, machine: Machine, sample: Sample) -> Kernel:
    """A layer by the schedule of a sample. Raises tvm.error.Error where that is of another layer."""
    work = Workload(spec, machine)
    function = lowered(work, scheduled(work, sample))
    return Kernel(function, spec.result_shape, spec.result_dtype, work.pack, constants.arrange(spec))
