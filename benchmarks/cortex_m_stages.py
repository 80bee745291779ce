"""Networks that stop early as C on Cortex-M7: instructions of easy and hard images, flash and memory, beside plain networks.

    python benchmarks/cortex_m_stages.py --rows rows.jsonl [--images 4000] [--max-drop 0.5] [--json ...]

exits      ResNet-20 with two exits, whose heads alone are trained, on 10,000 images; CIFAR-10
cascade    MLPerf Tiny's ResNet-8, then ResNet-20 where that is not sure; CIFAR-10

All are int8. Programs run under qemu, which counts instructions (`tests/helpers/cycles.py`). Thresholds and temperatures are
fitted on the simulation of one half of the test images and judged on the other, and the other way round. The program of the last
fit is compared with the simulation, logits and stage, on the first images. Each network is a line of `--rows`; those that are
there are not run again.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import common
import cycles
import numpy as np
import torch
from c_program import answers, program
from cortex_m import COMPILER, EMULATOR, executed, flash
from torch import Tensor, nn
from training_rows import read, record

import graphopt
from graphopt import Cascade, Graph
from graphopt.cascades.answers import answers as stage_answers
from graphopt.passes import AddExits
from graphopt.training.exits import ExitLoss, train_heads

TARGET = "tvm-cortex-m7"
SITES = ["layer1.2", "layer2.2"]
EPOCHS = 3
COMPARED = 24  # images
Data = tuple[Tensor, Tensor]
Simulation = Callable[[Tensor], Tensor]


class Normalized(nn.Module):
    """A network that takes the images of `cifar10_pixels`, 0 to 255, as ResNet-8 does."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", 255 * torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.network((x - self.mean) / self.std)
        return found


def int8(model: Any, x: Tensor) -> Any:
    return graphopt.optimize(model, x[:1], target=TARGET, calibration=x[:512], measure=False)


def with_exits(data: Any, x: Tensor, y: Tensor) -> Graph:
    graph = Graph.capture(data.cifar_resnet(20), x[:2])
    AddExits(sites=SITES)(graph)
    train_heads(graph, (x, y), loss=ExitLoss(share=0.0), epochs=EPOCHS, batch_size=128, rate=1e-2)
    return graph


def answered(simulation: Simulation, x: Tensor) -> Tensor:
    return torch.cat([simulation(part) for part in x.split(500)])


def right(logits: Tensor, y: Tensor) -> float:
    return 100 * float((logits.argmax(1) == y).double().mean())


def objects(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = graphopt.load(folder).manifest.options["objects"]
    return {"kB of flash": flash(folder) / 1e3, "kB of workspace": facts["workspace_bytes"] / 1e3}


def plain(found: Any, data: Data) -> dict[str, Any]:
    """A network that computes the same for all."""
    x, y = data
    simulation = graphopt.simulate(found.graph, TARGET)
    with common.workplace() as place:
        folder = Path(found.artifact.save(place / "bare"))
        code = program(folder, COMPILER)
        (logits,) = answers(code, folder, [x[:COMPARED].numpy()], 1, EMULATOR)
        counted = executed(code, x).instructions / 1e6
        return {
            "test": right(answered(simulation, x), y),
            "M instructions, first stage": counted,
            "all stages": counted,
            "mean": counted,
            **objects(folder),
            "other answers": _others(logits, simulation(x[:COMPARED])),
        }


def staged(cascade: Cascade, data: Data, max_drop: float) -> dict[str, Any]:
    x, y = data
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    halves, scores, rates = order.chunk(2), [], []
    for fitted, judged in (halves, halves[::-1]):
        cascade.fit(x[fitted], y[fitted], max_drop=max_drop)
        known = stage_answers(cascade.artifact, x[judged], y[judged], compute=cascade.simulate().compute)
        path = known.path(cascade.artifact.policy)
        scores.append(100 * known.mean_score(path))
        rates.append((np.bincount(path, minlength=len(known.stages)) / len(path)).tolist())
    simulation = cascade.simulate()
    shares = [statistics.fmean(column) for column in zip(*rates, strict=True)]
    with common.workplace() as place:
        folder = cascade.artifact.compile(place / "bare")
        code, stops = program(folder, COMPILER), simulation.path(x[:500])
        logits, stages = answers(code, folder, [x[:COMPARED].numpy()], 1, EMULATOR)
        assert stages.tolist() == stops[:COMPARED].tolist(), "the program stops elsewhere than its simulation"
        counted = [
            executed(code, x[:500][stops == stage]).instructions / 1e6 if bool((stops == stage).any()) else 0.0
            for stage in range(len(shares))
        ]
        return {
            "test": statistics.fmean(scores),
            "M instructions, first stage": counted[0],
            "all stages": counted[-1],
            "mean": sum(share * count for share, count in zip(shares, counted, strict=True)),
            **objects(folder),
            "other answers": _others(logits, simulation(x[:COMPARED])),
            "answered by stage": " / ".join(f"{share:.0%}" for share in shares),
        }


def _others(found: Any, expected: Tensor) -> int:
    """How many images are answered with other bits."""
    return int((torch.from_numpy(found) != expected).any(1).sum())


def main() -> None:
    options = common.arguments(__doc__, images=4000, max_drop=0.5, rows="cortex_m_stages.jsonl")
    if lack := cycles.missing():
        sys.exit(lack)
    torch.set_num_threads(1)
    data, path = common.data(), Path(options.rows)
    (x, y), (test, labels) = data.cifar10("train10k"), data.cifar10("test")
    (pixels, _), (pixels_test, _) = data.cifar10_pixels("train10k"), data.cifar10_pixels("test")
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(1))[: options.images]
    judged, judged_pixels = (test[order], labels[order]), (pixels_test[order], labels[order])
    small = cache(lambda: int8(data.resnet8(), pixels))
    large = cache(lambda: int8(Normalized(data.cifar_resnet(20)).eval(), pixels))

    def exits() -> dict[str, Any]:
        cascade = Cascade.of_exits(int8(with_exits(data, x, y), x).graph, target=TARGET)
        return staged(cascade, judged, options.max_drop)

    record(path, {"network": "ResNet-8"}, lambda: plain(small(), judged_pixels))
    record(path, {"network": "ResNet-20"}, lambda: plain(large(), judged_pixels))
    together = {"network": "ResNet-8 → ResNet-20"}
    record(path, together, lambda: staged(Cascade([small(), large()]), judged_pixels, options.max_drop))
    record(path, {"network": "ResNet-20, two exits, heads trained"}, exits)
    common.finish({f"CIFAR-10, {TARGET}, one image": read(path)}, options.json)


if __name__ == "__main__":
    main()
