"""Where kernels are timed: on this machine, or on a device over the network.

Each call is timed by itself, by the clock of the place, with weights out of the caches and data in them, as in a network whose
other layers have used the caches in between.
"""

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
from graphopt.backends.tvm.machine import machine
from graphopt.backends.tvm.schedules import PASS_CONFIG
from graphopt.utils.errors import ArtifactError, InputError, last_line

OUT_OF_CACHE = "cache_flush_cpu_non_first_arg"  # of TVM's runtime


class TuningDevice(ABC):
    """Attributes:
    code: what kernels are compiled to. target, machine: the same for TVM, and for schedules.
    device: of tensors.
    """

    def __init__(self, code: Code, device: Any) -> None:
        self.code, self.device = code, device
        self.target = code.target()
        self.machine = machine(self.target)

    def load(self, function: Any, arrays: Sequence[np.ndarray[Any, Any]]) -> tuple[Callable[[], float], Any]:
        """(call, tensor): a call of a function of TIR on these arrays, in milliseconds; the last of them, its result."""
        with tvm.transform.PassContext(config=PASS_CONFIG):
            module = self._loaded(tvm.compile(function, self.target))
        tensors = [tvm.runtime.tensor(a, self.device) for a in arrays]
        timer = module.time_evaluator("main", self.device, number=1, f_preproc=OUT_OF_CACHE)
        return lambda: 1e3 * self._timed(timer, tensors), tensors[-1]

    @abstractmethod
    def _loaded(self, executable: Any) -> Any:
        """The module there."""

    def _timed(self, timer: Any, tensors: list[Any]) -> float:
        """Seconds."""
        return float(timer(*tensors).results[0])


class Here(TuningDevice):
    """This machine, one thread of it. Raises InputError where the code does not run here."""

    def __init__(self, code: Code) -> None:
        if refusal(code.to_dict()):
            raise InputError(
                f"tuning measures on this machine, but the code is for {code} and does not run here; name the device that has "
                "such a CPU, or leave out tune"
            )
        super().__init__(code, tvm.cpu())
        use_threads(1)

    def _loaded(self, executable: Any) -> Any:
        return executable.jit()


class There(TuningDevice):
    """A device, one thread of it.

    Args:
        command: that links for it.

    Raises:
        ArtifactError: it is of another architecture; or, while kernels run, the connection is lost.
    """

    def __init__(self, code: Code, connection: Connection, command: list[str]) -> None:
        connection.check(code.to_dict(), "what is tuned")
        super().__init__(code, connection.session.cpu())
        self._connection, self._command = connection, command
        self._numbers = itertools.count()
        connection.use_threads(1)

    def _loaded(self, executable: Any) -> Any:
        session, name = self._connection.session, f"kernel{id(self)}-{next(self._numbers)}.so"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, name)
            link(executable, path, self._command)
            try:
                session.upload(str(path), name)
                module = session.load_module(name)
                session.remove(name)
            except RuntimeError as error:
                raise self._lost(error) from error
        return module

    def _timed(self, timer: Any, tensors: list[Any]) -> float:
        try:
            return super()._timed(timer, tensors)
        except RuntimeError as error:
            raise self._lost(error) from error

    def _lost(self, error: Exception) -> ArtifactError:
        self._connection.close()
        return ArtifactError(
            f"a kernel for {self.code} failed on {self._connection}: {last_line(error)}. Its CPU may lack instructions; what was "
            "measured until now is in the database"
        )
