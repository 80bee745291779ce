"""TVM's RPC server on loopback, in a process of its own: what `python -m tvm.exec.rpc_server` starts.

Run as a program, it serves on a free port and prints which. Arguments are the port of a tracker and the key to register there, or
`tracker` to be one.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

HOST = "127.0.0.1"


@contextmanager
def serving(*arguments: str, command: Sequence[str] = (sys.executable, __file__)) -> Iterator[int]:
    """A server while the block runs; its port."""
    with subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


def wait_for(tracker: int, key: str, seconds: float = 60.0) -> None:
    """Until a tracker knows the device of a key: a server registers some time after it has its port."""
    from tvm import rpc

    last = time.monotonic() + seconds
    while key not in str(rpc.connect_tracker(HOST, tracker).summary().get("server_info")):
        if time.monotonic() > last:
            raise TimeoutError(f"no device {key!r} has registered within {seconds:g} s")
        time.sleep(0.1)


def main(*arguments: str) -> None:
    if arguments == ("tracker",):
        from tvm.rpc.tracker import PopenTrackerServerState

        tracker = PopenTrackerServerState(HOST, 9190, 9290, silent=True)
        print(tracker.port, flush=True)
        tracker.thread.join()
        return
    from tvm.rpc.server import PopenRPCServerState

    known = {"tracker_addr": (HOST, int(arguments[0])), "key": arguments[1]} if arguments else {}
    server = PopenRPCServerState(HOST, 9090, 9190, silent=True, **known)
    if known:
        wait_for(int(arguments[0]), arguments[1])
    print(server.port, flush=True)
    server.thread.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
