"""What `optimize` needs: the most memory a process held, beyond what it held with the model loaded, in sizes of the model.

Stacked linear layers with ReLU, random weights, 8 rows of calibration, for x86, without measuring latency; each network in a
process of its own, as the peak of a process never falls.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import common

WIDTHS = [2048, 4096]
DEPTH = 6


def measured(width: int, depth: int, target: str) -> dict[str, Any]:
    """In this process; megabytes, and the growth as a multiple of the model's size."""
    import torch
    from torch import nn

    import graphopt

    torch.manual_seed(0)
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())]
    model = nn.Sequential(*layers).eval()
    size = sum(p.nbytes for p in model.parameters())
    data = torch.randn(8, width)
    small = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval()  # what is imported at first use is none of the model's
    graphopt.optimize(small, torch.randn(1, 8), target=target, calibration=torch.randn(8, 8), measure=False)
    before = peak()
    graphopt.optimize(model, data[:1], target=target, calibration=data, measure=False)
    after = peak()
    return {
        "network": f"{depth} linear layers of {width}",
        "model_mb": size / 1e6,
        "before_mb": before / 1e6,
        "peak_mb": after / 1e6,
        "growth": (after - before) / size,
    }


def peak() -> int:
    """The most memory this process has held so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def alone(width: int, depth: int = DEPTH, target: str = "x86") -> dict[str, Any]:
    """`measured` in a fresh process."""
    command = [sys.executable, str(Path(__file__)), "--alone", str(width), str(depth), target]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, Any] = json.loads(answer.splitlines()[-1])
    return found


def main() -> None:
    if sys.argv[1:2] == ["--alone"]:
        width, depth, target = sys.argv[2:]
        print(json.dumps(measured(int(width), int(depth), target)))
        return
    options = common.arguments(__doc__, widths=WIDTHS, depth=DEPTH)
    rows = [alone(width, options.depth) for width in options.widths]
    common.finish({"memory of optimize: growth in sizes of the model": rows}, options.json)


if __name__ == "__main__":
    main()
