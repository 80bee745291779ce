"""Name the operator that TVM cannot compile: what fails as a whole is compiled call by call, until one fails alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import tvm
from tvm import relax

from graphopt.backends.tvm.build import Code, build, kernels_of
from graphopt.backends.tvm.operators import ADVICE
from graphopt.utils.errors import GraphoptError, last_line


@contextmanager
def blamed(module: Any, makers: Mapping[str, str], code: Code) -> Iterator[None]:
    """Around what compiles a module that was emitted.

    Args:
        makers: see `graphopt.backends.tvm.emit.Emitted`.

    Raises:
        GraphoptError: TVM cannot compile it; with the operator, where one fails alone.
    """
    try:
        yield
    except GraphoptError as error:
        if error.__cause__ is None:  # a refusal of ours, which names what it is about
            raise
        for maker, alone in _calls(module, makers):
            try:
                build(kernels_of(alone, code), code)
            except GraphoptError as reason:
                if reason.__cause__ is None:  # it computes nothing by itself, a reshape
                    continue
                raise GraphoptError(f"{maker} for {code}: {last_line(reason.__cause__)}; {ADVICE}") from error
        raise


def _calls(module: Any, makers: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """Each call of the main function in a module of its own, with the operator that it is a part of."""
    bindings = [b for block in module["main"].body.blocks for b in block.bindings]
    waiting: list[Any] = []
    for binding in bindings:
        waiting.append(binding)
        if str(binding.var.name) in makers:
            for part in waiting:
                if isinstance(part.value, relax.Call):
                    yield makers[str(binding.var.name)], _alone(module, part.value)
            waiting = []


def _alone(module: Any, call: Any) -> Any:
    """A module that computes one call from its operands."""
    builder = relax.BlockBuilder()
    with builder.function("main", relax.analysis.free_vars(call)):
        with builder.dataflow():
            output = builder.emit_output(builder.emit(call))
        builder.emit_func_output(output)
    made = builder.get()
    for name, function in module.functions_items():
        if isinstance(function, tvm.tirx.PrimFunc):
            made[name] = function
    return made
