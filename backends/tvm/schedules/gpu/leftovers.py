"""Threads for what has no kernel of its own: operators of TVM, by its own rules (`dlight`), the last of which takes any loops."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.s_tir import dlight

from graphopt.utils.errors import GraphoptError


def threaded(module: Any) -> Any:
    """A module whose functions all run on threads.

    Raises:
        GraphoptError: one cannot; names it.
    """
    for variable, function in module.functions_items():
        if isinstance(function, tirx.PrimFunc) and has_threads(function):
            module.update_func(variable, function.with_attr("tirx.is_scheduled", True))
    rules = dlight.gpu
    module = dlight.ApplyDefaultSchedule(
        rules.Matmul(), rules.GEMV(), rules.Reduction(), rules.GeneralReduction(), rules.Transpose(), rules.Fallback()
    )(module)
    for variable, function in module.functions_items():
        if isinstance(function, tirx.PrimFunc) and not has_threads(function):
            raise GraphoptError(
                f"TVM has no schedule with which {variable.name_hint} runs on the threads of a GPU; "
                "leave it out of the model, or use a target of a CPU"
            )
    return module


def has_threads(function: Any) -> bool:
    """Whether a function of TIR says which thread computes what."""
    return "blockIdx.x" in function.script()
