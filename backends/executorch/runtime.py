"""ExecuTorch itself, imported when it is first needed: what is installed, what it runs, and running a program.

Its libraries log to standard error when they are loaded and whenever they refuse; what matters of that is in errors raised here.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import logging
import re
import warnings
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from graphopt.artifacts.sliced import Arrays
from graphopt.utils.errors import ArtifactError, ExecutionError, InputError, first_line
from graphopt.utils.silence import ERR, OUT, heard, silent

OLDEST = (1, 2)  # release whose API this is written for
METHOD = "forward"
BACKEND = "XnnpackBackend"
FAILED = re.compile(r"in operator (\S+?)(?:\.\w+)?: 0x")  # in what the runtime logs
REASON = re.compile(r"Check failed \((.*?)\):(.*)")
INSTALL = "install it with: pip install 'graphopt[executorch]'"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Around their code: nothing is printed, no warnings, and handlers of logs are what they were."""
    handlers = list(logging.root.handlers)
    with warnings.catch_warnings(), silent(OUT, ERR):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.root.handlers[:] = handlers  # one of their modules calls basicConfig


@lru_cache(maxsize=1)
def modules() -> tuple[Any, Any]:
    """`executorch.runtime`, and the library behind it.

    Raises:
        InputError: ExecuTorch is missing, too old, or cannot be imported; says how to install it.
    """
    check_release()
    try:
        with quiet():
            runtime = importlib.import_module("executorch.runtime")
            library = importlib.import_module("executorch.extension.pybindings.portable_lib")
    except ImportError as error:
        raise InputError(f"ExecuTorch cannot be imported ({first_line(error)}); {INSTALL}") from error
    if BACKEND not in library._get_registered_backend_names():
        raise InputError(f"this build of ExecuTorch has no XNNPACK ({BACKEND}), which programs are made for; {INSTALL}")
    return runtime, library


def check_release() -> None:
    """Raise `InputError` where ExecuTorch is missing or too old."""
    try:
        found = importlib.metadata.version("executorch")
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError(f"the runtime 'executorch' is not installed; {INSTALL}") from error
    release = tuple(int(part) for part in re.findall(r"\d+", found)[:2])
    if release < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise InputError(f"executorch {found} is too old, graphopt needs {oldest} or newer; {INSTALL}")


def operators() -> frozenset[str]:
    """The operators that the runtime here has kernels for, such as `aten::add.out`."""
    return frozenset(modules()[1]._get_operator_names())


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
            try:
                with silent(OUT, ERR):
                    program = runtime.Runtime.get().load_program(self.content)
                    self._opened = program, program.load_method(METHOD)  # methods do not keep their program
            except (RuntimeError, KeyError) as error:
                release = importlib.metadata.version("executorch")
                raise ArtifactError(f"ExecuTorch {release} cannot load {self.name}: {first_line(error)}") from error
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
        method, tensors = self.open(threads=1), _tensors(inputs)
        try:
            with silent(ERR):
                method.execute(tensors)
        except RuntimeError as error:
            what = self._failure(tensors, error)
            raise InputError(
                f"ExecuTorch's runtime cannot compute {what}; write that otherwise, or use a target of ONNX Runtime or TVM (arm, "
                "tvm-arm64)"
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
