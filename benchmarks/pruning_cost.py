"""What pruning itself costs: CPU seconds of choosing channels and of fitting the layers behind again, torchvision's networks.

Random weights, batch norms randomised, made-up images of 224 x 224; half of the multiply-accumulates in multiples of 16 channels.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import common
import torch
import zoo

from graphopt import Graph
from graphopt.data import Calibration
from graphopt.passes.pruning import Prune, l2_norm

KEPT, MULTIPLE = 0.5, 16


def seconds(call: Callable[[], Any]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def rows(name: str, count: int) -> common.Rows:
    model = common.randomise(getattr(zoo.torchvision().models, name)())
    images = torch.cat(list(common.images(count)))
    graph = Graph.capture(model, images[:1])
    data = Calibration(images, graph)
    ways: dict[str, dict[str, Any]] = {
        "sensitivity (default)": {"data": data},
        "uniform, L2 norm": {"data": data, "scope": "uniform", "criterion": l2_norm},
        "uniform, L2 norm, without data": {},
    }
    found: common.Rows = []
    for way, options in ways.items():
        common.log(f"{name}, {way}")
        prune = Prune(KEPT, round_to=MULTIPLE, **options)
        found.append(
            {
                "network": name, "way": way, "CPU s of the plan": seconds(lambda: prune.plan(graph)),  # noqa: B023
                "of the whole": seconds(lambda: prune(graph.clone())),  # noqa: B023
            }
        )  # fmt: skip
    return found


def main() -> None:
    options = common.arguments(__doc__, networks=["resnet18"], images=32)
    torch.set_num_threads(1)
    found = [row for name in options.networks for row in rows(name, options.images)]
    common.finish({f"Half of the multiply-accumulates, {options.images} images, one thread": found}, options.json)


if __name__ == "__main__":
    main()
