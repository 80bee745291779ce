"""Programs of ExecuTorch, run in the one pool of threads of this process; where an operator fails, which and why."""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
from typing import Any

import torch
from torch import Tensor

from graphopt.artifacts.sliced import Arrays
from graphopt.backends.executorch.runtime import REMEDY, modules
from graphopt.utils.errors import ArtifactError, ExecutionError, InputError, first_line
from graphopt.utils.silence import ERR, OUT, heard, silent

METHOD = "forward"
FAILED = re.compile(r"in operator (\S+?)(?:\.\w+)?: 0x")  # in what the runtime logs
MISSING = re.compile(r"Missing operator: \[\d+\] (\S+)")
REASON = re.compile(r"Check failed \((.*?)\):(.*)")


class _Pool:
    """The one pool of threads of this process.

    Programs hold on to it, and it cannot grow or shrink: another one takes its place, and programs that were opened with the
    former must not run again. `generation` counts them.
    """

    def __init__(self) -> None:
        self.generation = 0

    def use(self, threads: int) -> int:
        """Have so many threads from now on, and return the generation of the pool that has them."""
        library = modules()[1]
        with silent(ERR):
            if library._threadpool_get_thread_count() != threads:
                library._unsafe_reset_threadpool(threads)
                self.generation += 1
        return self.generation


POOL = _Pool()


class Program:
    """A program with one method, opened when it is first called, and again where the number of threads is another one.

    Attributes:
        content: of the file. name: that errors say.
    """

    def __init__(self, content: bytes, name: str) -> None:
        self.content, self.name = content, name
        self._opened: tuple[Any, Any] | None = None
        self._generation = -1

    def open(self, threads: int) -> Any:
        """The method, in a pool of so many threads that all programs of the process share.

        Raises:
            ArtifactError: the runtime refuses the program.
        """
        runtime, generation = modules()[0], POOL.use(threads)
        if self._opened is None or self._generation != generation:
            said: list[str] = []
            try:
                with silent(OUT), heard(ERR) as said:
                    program = runtime.Runtime.get().load_program(self.content)
                    self._opened = program, program.load_method(METHOD)  # methods do not keep their program
            except (RuntimeError, KeyError) as error:
                release, missing = importlib.metadata.version("executorch"), MISSING.findall("\n".join(said))
                why = f"it has no kernel for {', '.join(missing).replace('::', '.')}" if missing else first_line(error)
                raise ArtifactError(f"ExecuTorch {release} cannot load {self.name}: {why}") from error
            self._generation = generation
        return self._opened[1]

    def __call__(self, inputs: Arrays, threads: int) -> Arrays:
        """Compute the outputs.

        Raises:
            ArtifactError: the runtime refuses the program. ExecutionError: an operator does not take its values; names it.
        """
        method, tensors = self.open(threads), _tensors(inputs)
        try:
            outputs = method.execute(tensors)
        except RuntimeError as error:
            what = self._failure(tensors, error)
            raise ExecutionError(
                f"ExecuTorch cannot compute {what} on these inputs; give inputs that the original model takes"
            ) from error
        return [output.numpy() for output in outputs]

    def check(self, inputs: Arrays) -> None:
        """Raise `InputError` where it cannot be computed on inputs that the original model takes; names the operator."""
        tensors = _tensors(inputs)
        try:
            with silent(ERR):
                self.open(threads=1).execute(tensors)
        except ArtifactError as error:
            raise InputError(f"{error}; {REMEDY}") from error
        except RuntimeError as error:
            raise InputError(
                f"ExecuTorch's runtime cannot compute {self._failure(tensors, error)}; {REMEDY}"
            ) from error

    def _failure(self, tensors: list[Tensor], error: RuntimeError) -> str:
        """Which operator fails, and why, as the runtime logs it when it fails again."""
        assert self._opened is not None
        with heard(ERR) as lines, contextlib.suppress(RuntimeError):
            self._opened[1].execute(tensors)
        said = "\n".join(lines)
        operator, reason = FAILED.search(said), REASON.search(said)
        name = operator[1].replace("::", ".") if operator is not None else f"the model ({first_line(error)})"
        return f"{name}: {(reason[2] or reason[1]).strip()}" if reason is not None else name


def _tensors(inputs: Arrays) -> list[Tensor]:
    return [torch.from_numpy(array if array.flags.writeable else array.copy()) for array in inputs]
