"""What each kernel takes, from the file that a session of ONNX Runtime writes."""

from __future__ import annotations

import json
import re
from pathlib import Path

from graphopt.artifacts.profile import WARM, KernelTime, middle

TIMED = "_kernel_time"
# What the runtime appends to a node's name where it fuses it or changes its layout; behind a name of the model's.
ADDED = re.compile(r"(_token_\d+|_nchwc|_quant|_qdq|/[A-Za-z]+)+_?$")


def kernel_times(path: Path) -> list[KernelTime]:
    """The time of each kernel, in the order of the first run, from a profile; the first `WARM` runs do not count."""
    taken: dict[str, list[float]] = {}
    kernels: dict[str, str] = {}
    for event in json.loads(path.read_text()):
        if event.get("cat") == "Node" and event["name"].endswith(TIMED):
            name = event["name"].removesuffix(TIMED)
            kernels[name] = event["args"]["op_name"]
            taken.setdefault(name, []).append(event["dur"] / 1000)
    return [KernelTime(kernels[n], middle(ms[WARM:] or ms), ADDED.sub("", n)) for n, ms in taken.items()]
