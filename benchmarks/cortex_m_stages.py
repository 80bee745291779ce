"""Networks that stop early as C on Cortex-M7: instructions of easy and hard images, flash and memory, beside plain networks.

    python benchmarks/cortex_m_stages.py [--images 10000] [--max-drop 0.5] [--json benchmarks/results/cortex_m_stages.json]

exits      ResNet-20 with two exits, whose heads alone are trained, on 10,000 images; CIFAR-10
cascade    MLPerf Tiny's ResNet-8, then ResNet-20 where that is not sure; CIFAR-10

All are int8. Programs run under qemu, which counts instructions (`tests/helpers/cycles.py`). Thresholds and temperatures are
fitted on the simulation of one half of the test images and judged on the other, and the other way round. The program of the last
fit is compared with the simulation, logits and stage, on the first images.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import cycles
import torch
from c_program import answers, program
from cortex_m import COMPILER, EMULATOR, executed, flash
from torch import Tensor, nn

import graphopt
from graphopt import Cascade, Graph
from graphopt.artifacts.artifact import Artifact
from graphopt.passes import AddExits
from graphopt.training.exits import ExitLoss, train_heads

TARGET = "tvm-cortex-m7"
SITES = ["layer1.2", "layer2.2"]
EPOCHS = 10
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
    return graphopt.optimize(model, x[:1], target=TARGET, calibration=x[:512], rounding="gptq", measure=False)


def with_exits(data: Any, x: Tensor, y: Tensor) -> Graph:
    graph = Graph.capture(data.cifar_resnet(20), x[:2])
    AddExits(sites=SITES)(graph)
    train_heads(
        graph,
        (torch.cat([x, x.flip(3)]), torch.cat([y, y])),
        loss=ExitLoss(share=0.0),
        epochs=EPOCHS,
        batch_size=128,
        rate=1e-2,
    )
    return graph


def answered(simulation: Simulation, x: Tensor) -> Tensor:
    return torch.cat([simulation(part) for part in x.split(500)])


def right(logits: Tensor, y: Tensor) -> float:
    return 100 * float((logits.argmax(1) == y).double().mean())


def objects(artifact: Artifact, folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = graphopt.load(folder).manifest.options["objects"]
    return {"kB of flash": flash(folder) / 1e3, "kB of workspace": facts["workspace_bytes"] / 1e3}


def plain(name: str, found: Any, data: Data) -> dict[str, Any]:
    """A network that computes the same for all."""
    x, y = data
    simulation = graphopt.simulate(found.graph, TARGET)
    with common.workplace() as place:
        folder = Path(found.artifact.save(place / "bare"))
        code = program(folder, COMPILER)
        (logits,) = answers(code, folder, [x[:COMPARED].numpy()], 1, EMULATOR)
        counted = executed(code, x).instructions / 1e6
        return {
            "network": name, "test": right(answered(simulation, x), y), "first stage": counted, "all stages": counted,
            "mean": counted, **objects(found.artifact, folder), "other answers": _others(logits, simulation(x[:COMPARED])),
        }  # fmt: skip


def staged(name: str, cascade: Cascade, data: Data, max_drop: float) -> dict[str, Any]:
    x, y = data
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    halves, scores, rates = order.chunk(2), [], []
    for fitted, judged in (halves, halves[::-1]):
        cascade.fit(x[fitted], y[fitted], max_drop=max_drop)
        simulation = cascade.simulate()
        scores.append(right(answered(simulation, x[judged]), y[judged]))
        path = torch.cat([simulation.path(part) for part in x[judged].split(500)])
        rates.append((torch.bincount(path, minlength=len(simulation.stages)) / len(path)).tolist())
    shares = [statistics.fmean(column) for column in zip(*rates, strict=True)]
    with common.workplace() as place:
        folder = cascade.artifact.compile(place / "bare")
        code, path = program(folder, COMPILER), simulation.path(x[:500])
        logits, stages = answers(code, folder, [x[:COMPARED].numpy()], 1, EMULATOR)
        assert stages.tolist() == path[:COMPARED].tolist(), "the program stops elsewhere than its simulation"
        counted = [
            executed(code, x[:500][path == stage]).instructions / 1e6 if bool((path == stage).any()) else 0.0
            for stage in range(len(shares))
        ]
        return {
            "network": name, "test": statistics.fmean(scores), "first stage": counted[0], "all stages": counted[-1],
            "mean": sum(share * count for share, count in zip(shares, counted, strict=True)),
            **objects(cascade.artifact, folder), "other answers": _others(logits, simulation(x[:COMPARED])),
            "answered by stage": " / ".join(f"{share:.0%}" for share in shares),
        }  # fmt: skip


def _others(found: Any, expected: Tensor) -> int:
    """How many images are answered with other bits."""
    return int((torch.from_numpy(found) != expected).any(1).sum())


def main() -> None:
    options = common.arguments(__doc__, images=10_000, max_drop=0.5)
    if lack := cycles.missing():
        sys.exit(lack)
    torch.set_num_threads(1)
    data = common.data()
    (x, y), (test, labels) = data.cifar10("train10k"), data.cifar10("test")
    (pixels, _), (pixels_test, _) = data.cifar10_pixels("train10k"), data.cifar10_pixels("test")
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(1))[: options.images]
    judged, judged_pixels = (test[order], labels[order]), (pixels_test[order], labels[order])
    rows: common.Rows = []
    common.log("ResNet-20")
    large = int8(Normalized(data.cifar_resnet(20)).eval(), pixels)
    rows.append(plain("ResNet-20", large, judged_pixels))
    common.log("ResNet-8")
    small = int8(data.resnet8(), pixels)
    rows.append(plain("ResNet-8", small, judged_pixels))
    common.log("ResNet-8, then ResNet-20")
    rows.append(staged("ResNet-8 → ResNet-20", Cascade([small, large]), judged_pixels, options.max_drop))
    common.log("exits")
    graph = int8(with_exits(data, x, y), x).graph
    exits = Cascade.of_exits(graph, target=TARGET)
    rows.append(staged("ResNet-20, two exits, heads trained", exits, judged, options.max_drop))
    common.finish({f"CIFAR-10, {TARGET}, one image, million instructions": rows}, options.json)


if __name__ == "__main__":
    main()
