"""Where kernels are timed: on this machine, or on a device over the network."""

from __future__ import annotations

import itertools
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from graphopt.backends.tvm.build import Code, link, refusal, use_threads
from graphopt.backends.tvm.connection import Connection
from graphopt.backends.tvm.schedules import PASS_CONFIG
from graphopt.errors import ArtifactError, InputError, last_line

Call = Callable[[], Any]
AT_ONCE = 3  # calls that a device makes for one time of its clock


class Place(ABC):
    """Attributes:
    code: what kernels are compiled to.
    clocked: calls return the milliseconds they took, by a clock of its own.
    """

    code: Code
    clocked = False

    @abstractmethod
    def load(self, function: Any, arrays: Sequence[np.ndarray[Any, Any]]) -> tuple[Call, Any]:
        """A call of a compiled function of TIR on these arrays, the last being its result; and the tensor of that."""

    def compiled(self, function: Any) -> Any:
        with tvm.transform.PassContext(config=PASS_CONFIG):
            return tvm.compile(function, self.code.target())


class Here(Place):
    """This machine, one thread of it. Raises InputError where the code does not run here."""

    def __init__(self, code: Code) -> None:
        if refusal(code.to_dict()):
            raise InputError(
                f"tuning measures on this machine, but the code is for {code} and does not run here; name the device that has "
                "such a CPU, or leave out tune"
            )
        self.code = code
        use_threads(1)

    def load(self, function: Any, arrays: Sequence[np.ndarray[Any, Any]]) -> tuple[Call, Any]:
        run = self.compiled(function)["main"]
        tensors = [tvm.runtime.tensor(a) for a in arrays]
        return lambda: run(*tensors), tensors[-1]


class There(Place):
    """A device, one thread of it.

    Args:
        command: that links for it.

    Raises:
        ArtifactError: it is of another architecture; or, while kernels run, the connection is lost.
    """

    clocked = True

    def __init__(self, code: Code, connection: Connection, command: list[str]) -> None:
        connection.check(code.to_dict(), "what is tuned")
        self.code, self._connection, self._command = code, connection, command
        self._numbers = itertools.count()
        connection.use_threads(1)

    def load(self, function: Any, arrays: Sequence[np.ndarray[Any, Any]]) -> tuple[Call, Any]:
        executable, session = self.compiled(function), self._connection.session
        name = f"kernel{id(self)}-{next(self._numbers)}.so"
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, name)
                link(executable, path, self._command)
                session.upload(str(path), name)
            module = session.load_module(name)
            session.remove(name)
            tensors = [tvm.runtime.tensor(a, session.cpu()) for a in arrays]
            timer = module.time_evaluator("main", session.cpu(), number=AT_ONCE)
        except RuntimeError as error:
            raise self._lost(error) from error

        def call() -> float:
            try:
                return 1e3 * float(timer(*tensors).results[0])
            except RuntimeError as error:
                raise self._lost(error) from error

        return call, tensors[-1]

    def _lost(self, error: Exception) -> ArtifactError:
        self._connection.close()
        return ArtifactError(
            f"a kernel for {self.code} failed on {self._connection}: {last_line(error)}. Its CPU may lack instructions; what was "
            "measured until now is in the database"
        )
