"""Anytime answers on spoken digits: a multi-scale dense network beside an ensemble of plain networks of the same work.

    python benchmarks/anytime.py --rows rows.jsonl [--seeds 0 1 2]

MSDNet answers behind each of four blocks. The ensemble answers with the mean probability of as many plain residual networks as
have the multiply-accumulates that MSDNet has by then; one of them has those of MSDNet's first answer. All are trained for as many
epochs on takes 10 to 49, and tested on takes 0 to 4. int8: the same through `graphopt.optimize(target="x86")`.

Each run is a line of `--rows`; those that are there are not run again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import common
import torch
from distillation import Digits
from torch import Tensor, nn
from training_rows import read, record

import graphopt
from graphopt import Graph
from graphopt.execution.subgraph import subgraph
from graphopt.ir import cost
from graphopt.networks import msdnet
from graphopt.training.exits import ExitLoss

EPOCHS, BATCH, RATE = 12, 32, 5e-3
BLOCKS = 4


def network() -> nn.Module:
    return msdnet(10, blocks=BLOCKS, layers=2, step=1, channels=4, growth=2, head=16, image_channels=1)


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.two = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)])
        plain = stride == 1 and inputs == outputs
        self.shortcut: nn.Module = nn.Identity() if plain else nn.Conv2d(inputs, outputs, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norms[0](self.one(x)).relu()
        found: Tensor = self.norms[1](self.two(inner)) + self.shortcut(x)
        return found.relu()


class Residual(nn.Module):
    """[N, 1, 40, 51] to logits [N, 10]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width]
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.stages = nn.Sequential(
            *(Block(a, b, 1 + (b > width)) for a, b in zip([width, *widths], widths, strict=False))
        )
        self.head = nn.Linear(widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.stages(self.stem(x)).mean((2, 3)))
        return found


class Study:
    def __init__(self, seed: int) -> None:
        self.digits, self.seed = Digits(), seed

    def captured(self, model: nn.Module) -> Graph:
        return Graph.capture(model.eval(), self.digits.train[0][:2])

    def trained(self, model: nn.Module, **options: Any) -> Graph:
        graph = self.captured(model)
        graphopt.train(graph, self.digits.train, epochs=EPOCHS, batch_size=BATCH, rate=RATE, seed=self.seed, **options)
        return graph

    def answers(self, graph: Graph, quantized: bool) -> list[Tensor]:
        """Probabilities of the test takes, by each answer."""
        x, run = self.digits.test[0], graph
        if quantized:
            calibration = self.digits.train[0][:256]
            run = graphopt.optimize(graph, x[:1], target="x86", calibration=calibration, measure=False).artifact
        with torch.no_grad():
            found = run(x)
        return [logits.softmax(1) for logits in (found if isinstance(found, (list, tuple)) else [found])]

    def right(self, probabilities: Tensor) -> float:
        return 100 * float((probabilities.argmax(1) == self.digits.test[1]).double().mean())


def work_by_answer(graph: Graph) -> list[int]:
    """Multiply-accumulates until each answer, those of all earlier ones included."""
    inputs = {"x": graph.inputs[0]}
    return [
        cost.macs(subgraph(graph, inputs, {f"y{n}": y for n, y in enumerate(graph.outputs[: last + 1])}))
        for last in range(len(graph.outputs))
    ]


def plain_width(study: Study, work: int) -> int:
    """Of the plain network next to so many multiply-accumulates."""
    return min(range(4, 33), key=lambda width: abs(cost.macs(study.captured(Residual(width))) - work))


def multi_scale(study: Study) -> dict[str, Any]:
    torch.manual_seed(study.seed)
    graph = study.trained(network(), loss=ExitLoss(share=0.3))
    return {
        "macs": work_by_answer(graph),
        "test": [study.right(p) for p in study.answers(graph, False)],
        "int8": [study.right(p) for p in study.answers(graph, True)],
    }


def ensemble(study: Study) -> dict[str, Any]:
    work = work_by_answer(study.captured(network()))
    width = plain_width(study, work[0])
    one = cost.macs(study.captured(Residual(width)))
    floats, integers = [], []
    for number in range(work[-1] // one):
        torch.manual_seed(100 * study.seed + number)
        graph = study.trained(Residual(width))
        floats += study.answers(graph, False)
        integers += study.answers(graph, True)
    counts = [max(1, min(round(budget / one), len(floats))) for budget in work]
    mean = [[study.right(torch.stack(each[:n]).mean(0)) for n in counts] for each in (floats, integers)]
    return {"macs": [n * one for n in counts], "test": mean[0], "int8": mean[1], "networks": counts, "width": width}


WAYS = {"MSDNet": multi_scale, "ensemble": ensemble}


def tables(path: Path) -> dict[str, list[dict[str, Any]]]:
    rows = read(path)
    lines = []
    for way in WAYS:
        runs = [row for row in rows if row["way"] == way]
        for budget in range(BLOCKS if runs else 0):
            test = torch.tensor([run["test"][budget] for run in runs])
            int8 = torch.tensor([run["int8"][budget] for run in runs])
            lines.append({
                "by": way, "budget": budget + 1, "million MACs": runs[0]["macs"][budget] / 1e6, "test": float(test.mean()),
                "lowest": float(test.min()), "highest": float(test.max()), "int8": float(int8.mean()), "seeds": len(runs),
            })  # fmt: skip
    return {"Anytime answers on spoken digits": lines}


def main() -> None:
    options = common.arguments(__doc__, rows="anytime.jsonl", seeds=[0, 1, 2])
    torch.set_num_threads(1)
    path = Path(options.rows)
    for seed in options.seeds:
        for way, run in WAYS.items():
            record(path, {"way": way, "seed": int(seed)}, lambda r=run, s=seed: r(Study(int(s))))  # type: ignore[misc]
    common.finish(tables(path), options.json)


if __name__ == "__main__":
    main()
