"""Devices over the network, through TVM's RPC server: a `Device` is where one is, a `Connection` a session on it.

A server has one client at a time, so all that a process runs there shares one connection, and it ends with the last of them.
"""

from __future__ import annotations

import contextlib
import re
import socket
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import rpc

from graphopt.targets import Target
from graphopt.utils.errors import ArtifactError, InputError, last_line

SECONDS = 5.0  # that a device has to answer the first time
_connections: weakref.WeakValueDictionary[Device, Connection] = weakref.WeakValueDictionary()


@dataclass(frozen=True)
class Device:
    """Where it is.

    Attributes:
        host, port: of its server, or of the tracker.
        key: by which the tracker knows it; empty for a server.
    """

    host: str
    port: int
    key: str = ""

    @classmethod
    def parse(cls, text: str) -> Device:
        """Raises InputError where it is neither `rpc://host:port` nor `tracker://host:port/key`."""
        found = re.fullmatch(r"(?:rpc://([^:/]+):(\d+)/?)|(?:tracker://([^:/]+):(\d+)/([^/]+))", text)
        if found is None or not 0 < int(found[2] or found[4]) < 2**16:
            raise InputError(f"a device is rpc://host:port, or tracker://host:port/key, got {text!r}")
        return cls(found[1] or found[3], int(found[2] or found[4]), found[5] or "")

    def __str__(self) -> str:
        return f"{'tracker' if self.key else 'rpc'}://{self.host}:{self.port}" + (f"/{self.key}" if self.key else "")

    def request(self) -> Any:
        """A session of TVM's client.

        Raises:
            InputError: nothing answers there; says what to start.
        """
        program = "rpc_tracker" if self.key else "rpc_server"
        try:
            socket.create_connection((self.host, self.port), timeout=SECONDS).close()
        except OSError as error:
            raise InputError(
                f"no device answers at {self} ({error}); start there, with graphopt[tvm] installed: "
                f"python -m tvm.exec.{program} --host 0.0.0.0 --port {self.port}"
            ) from error
        try:
            if not self.key:
                return rpc.connect(self.host, self.port)
            tracker = rpc.connect_tracker(self.host, self.port)
            known = {str(entry["key"]).removeprefix("server:") for entry in tracker.summary()["server_info"]}
            if self.key not in known:
                raise InputError(
                    f"the tracker at {self.host}:{self.port} knows no device {self.key!r}, but {sorted(known) or 'none'}; start "
                    f"on it: python -m tvm.exec.rpc_server --tracker {self.host}:{self.port} --key {self.key}"
                )
            return tracker.request(self.key)
        except (RuntimeError, OSError) as error:  # what TVM raises
            raise InputError(f"{self} is no {program} of TVM {tvm.__version__}: {last_line(error)}") from error


class Connection:
    """A session on a device.

    Attributes:
        triple: of the machine as TVM's compiler there calls it; empty where only its runtime is installed.
        uploaded: names of files there.
    """

    def __init__(self, device: Device) -> None:
        self.device, self.session = device, device.request()
        self.uploaded: set[str] = set()
        # tensors and modules over there may outlive this object, and would keep the server from its next client
        self._end = weakref.finalize(self, _close, self.session)
        try:
            self.triple = str(self.session.get_function("target.llvm_get_system_triple")())
        except (AttributeError, RuntimeError):
            self.triple = ""

    def check(self, code: Mapping[str, Any], what: str) -> None:
        """Raises ArtifactError where code, described as by `Code.to_dict`, is for another architecture; of `what`."""
        there = self.triple.partition("-")[0].replace("arm64", "aarch64")
        if there in ("x86_64", "aarch64", "riscv64") and there != code["architecture"]:
            raise ArtifactError(
                f"{what} was compiled for {code['cpu']} ({code['triple']}); {self} is another architecture: take a target for "
                f"{there}"
            )

    def use_threads(self, threads: int) -> None:
        """Let kernels over there use this many from now on."""
        self.session.get_function("runtime.config_threadpool")(1, threads)

    def close(self) -> None:
        """The server is free for its next client; artifacts on this connection no longer run."""
        if _connections.get(self.device) is self:
            del _connections[self.device]
        self._end()

    def __str__(self) -> str:
        return f"{self.device}" + (f" ({self.triple})" if self.triple else "")


def _close(session: Any) -> None:
    with contextlib.suppress(RuntimeError):  # lost already
        session._sess["CloseRPCConnection"]()


def connect(device: str, target: Target | None = None) -> Connection:
    """The connection to a device; the one there is, or a new one. It is asked what it is, whatever the target.

    Raises:
        InputError: nothing answers there.
    """
    place = Device.parse(device)
    found = _connections.get(place)
    if found is None:
        found = _connections[place] = Connection(place)
    return found
