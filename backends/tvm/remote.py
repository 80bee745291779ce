"""Run and time an artifact on a device over the network, through TVM's RPC server.

    there = artifact.on("rpc://raspberrypi:9090")             a server:   python -m tvm.exec.rpc_server --port 9090
    there = artifact.on("tracker://lab:9190/raspberrypi")     a free one of the devices that a tracker knows by this key
    there(images)                                             the answer of the device
    there.milliseconds(images)                                by the clock of the device, without the network

A library is uploaded once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tvm
from tvm import relax

from graphopt.artifacts import calling
from graphopt.artifacts.artifact import Artifact
from graphopt.artifacts.profile import KernelTime
from graphopt.artifacts.sliced import Arrays
from graphopt.backends.tvm.artifact import LIBRARY, TvmArtifact
from graphopt.backends.tvm.connection import Connection
from graphopt.utils.errors import ArtifactError, InputError, last_line


class RemoteArtifact(TvmArtifact):
    """An artifact on a device, called like any other.

    Raises:
        ArtifactError: the device cannot run its code.
    """

    def __init__(self, artifact: TvmArtifact, connection: Connection) -> None:
        super().__init__(artifact.folder, artifact.manifest, graph=artifact.graph, kernels=artifact._kernels)
        self._artifact, self._connection = artifact, connection  # the first owns the folder
        self._tensors: list[Any] = []
        connection.check(self.code, self.manifest.model)
        name = f"{self.manifest.files[LIBRARY].sha256[:16]}.so"
        session = connection.session
        try:
            if name not in connection.uploaded:  # the server would overwrite the file it may be running
                with self._artifact.reading():
                    session.upload(str(Path(self.folder, LIBRARY)), name)
                connection.uploaded.add(name)
            self._machine = relax.VirtualMachine(session.load_module(name), session.cpu())
        except RuntimeError as error:
            connection.close()
            made_for = f"{self.manifest.model} was compiled for {self.code['cpu']} ({self.code['triple']})"
            raise ArtifactError(f"{made_for}; {connection} cannot load it: {last_line(error)}") from error

    @property
    def device(self) -> str:
        return str(self._connection)

    @property
    def refusal(self) -> str:
        return ""

    def _call(self, inputs: Arrays) -> Arrays:
        try:
            self._invoke(inputs)
            outputs = self._machine.get_outputs("main")
            return [tensor.numpy() for tensor in (outputs if isinstance(outputs, tuple) else (outputs,))]
        except RuntimeError as error:
            raise self._lost(error) from error

    def _profile(self, inputs: Arrays, runs: int) -> list[KernelTime]:
        return Artifact._profile(self, inputs, runs)  # nothing here sees the calls there

    def milliseconds(self, *args: Any, **kwargs: Any) -> float:
        inputs = calling.arrays(self.manifest, args, kwargs)
        if not self._fits(inputs):
            raise InputError(f"one call of the kernels computes {self.batch} samples: time so many")
        try:
            self._invoke(inputs)
            timer = self._machine.module.time_evaluator("invoke_stateful", self._connection.session.cpu(), number=1)
            return 1e3 * float(timer("main").results[0])
        except RuntimeError as error:
            raise self._lost(error) from error

    def _invoke(self, inputs: Arrays) -> None:
        session = self._connection.session
        self._connection.use_threads(self.threads)
        self._tensors = [tvm.runtime.tensor(array, session.cpu()) for array in inputs]
        self._machine.set_input("main", *self._tensors)
        self._machine.invoke_stateful("main")

    def _lost(self, error: Exception) -> ArtifactError:
        self._connection.close()  # a new artifact connects again
        return ArtifactError(
            f"{self.manifest.model}, compiled for {self.code['cpu']}, failed on {self.device}: {last_line(error)}. Where the "
            f"connection was lost, the CPU there may lack instructions of {self.code['cpu']}"
        )
