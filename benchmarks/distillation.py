"""What each way of distilling gains for a small network on spoken digits, beside training without a teacher.

A teacher is trained once. A small student starts from the same weights for every method (one start for each seed) and learns from
the targets and from the teacher (in schemes by soft targets of weight 0.1). The epoch is chosen by accuracy on takes 5 to 9 of
each digit and speaker, which are not trained on; the accuracy is that on takes 0 to 4, the test set. Every method has its usual
weight, and the same epochs and rates.

    python benchmarks/distillation.py --rows rows.jsonl [--methods hint attention] [--seeds 0 1 2] [--json figures.json]

Each run is a line of `--rows`; those that are there are not run again. The teachers are kept beside it.
"""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from torch import Tensor, nn

import graphopt
from graphopt import Graph
from graphopt.training import Compression, Distill, Response
from graphopt.training.distillation import METHODS, Ensemble, Exits, Mutual, Route, chain, stagewise

PLAIN = "targets alone"
TRANSFORMERS = ("minilm", "internal")  # need attention, which these networks have not
TEACHER, ASSISTANT, STUDENT = (24, 48, 72), (12, 24, 36), (8, 16, 24)  # channels of the stages
TEACHER_EPOCHS, EPOCHS, BATCH, RATE = 15, 10, 32, 2e-2


class Separable(nn.Module):
    """Three stages of depthwise-separable convolutions on [N, 1, 40, 51]; logits [N, 10]."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        first, *others = widths
        self.stem = self._normed(nn.Conv2d(1, first, 3, stride=2, padding=1, bias=False))
        self.stages = nn.Sequential(self._stage(first, first, 1))
        for width in others:
            self.stages.append(self._stage(first, width, 2))
            first = width
        self.head = nn.Linear(first, 10)

    @staticmethod
    def _normed(conv: nn.Conv2d) -> nn.Sequential:
        return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU())

    def _stage(self, inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            self._normed(nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)),
            self._normed(nn.Conv2d(inputs, outputs, 1, bias=False)),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.stages(self.stem(x)).mean((2, 3)))
        return logits


class Digits:
    """Spectra and labels: to train on, to choose the epoch by, and to test on."""

    def __init__(self) -> None:
        zoo = common.data()
        with np.load(common.DATA / "spoken_digits.npz") as file:
            takes = torch.from_numpy(file["take"].astype(np.int64))
            labels = torch.from_numpy(file["y"].astype(np.int64))
            x = zoo.log_mel(torch.from_numpy(file["x"]).float() / 32768)
        self.test = x[takes < 5], labels[takes < 5]
        self.held_out = x[(takes >= 5) & (takes < 10)], labels[(takes >= 5) & (takes < 10)]
        self.train = x[takes >= 10], labels[takes >= 10]

    def accuracy(self, model: Callable[[Tensor], Tensor], part: tuple[Tensor, Tensor]) -> float:
        x, y = part
        with torch.no_grad():
            return 100 * float((model(x).argmax(1) == y).double().mean())


class Study:
    """Trains students, each method's from the same starts."""

    def __init__(self, digits: Digits, epochs: int, kept: Path) -> None:
        self.digits, self.example, self.epochs = digits, digits.train[0][:2], epochs
        self.checkpoints: list[dict[str, Tensor]] = []
        if kept.exists():
            states, self.checkpoints = torch.load(kept, weights_only=True)
            self.teachers = [self.network(TEACHER, seed) for seed in (0, 1)]
            for teacher, state in zip(self.teachers, states, strict=True):
                teacher.load_state_dict(state)
        else:
            self.teachers = [self.teacher(seed) for seed in (0, 1)]
            torch.save([[teacher.state_dict() for teacher in self.teachers], self.checkpoints], kept)

    def network(self, widths: tuple[int, ...], seed: int) -> Graph:
        torch.manual_seed(seed)
        return Graph.capture(Separable(widths).eval(), self.example)

    def options(self, seed: int, epochs: int | None = None) -> dict[str, Any]:
        def held_out(model: Callable[[Tensor], Tensor]) -> float:
            return self.digits.accuracy(model, self.digits.held_out)

        return {
            "evaluate": held_out, "epochs": epochs or self.epochs, "batch_size": BATCH, "rate": RATE, "seed": seed,
        }  # fmt: skip

    def teacher(self, seed: int) -> Graph:
        """Trained on the targets; of the first, states along the way are kept for the route."""
        graph = self.network(TEACHER, seed)
        keeps = [_Keeps(graph, self.checkpoints, (0.1, 0.3, 0.6))] if seed == 0 else []
        graphopt.train(graph, self.digits.train, compress=keeps, **self.options(seed, TEACHER_EPOCHS))
        if seed == 0:
            self.checkpoints.append(copy.deepcopy(graph.state_dict()))
        return graph.eval()

    def run(self, name: str, seed: int) -> Graph:
        student, data = self.network(STUDENT, 100 + seed), self.digits.train
        if name == "assistant":
            graphs = [self.network(ASSISTANT, 200 + seed), student]
            chain(graphs, data, teacher=self.teachers[0], learn=soft, **self.options(seed))
        elif name == "born again":
            chain([self.network(STUDENT, 300 + seed), student], data, learn=soft, **self.options(seed))
        elif name == "stagewise":
            stagewise(
                student, data, self.teachers[0], **self.options(seed)
            )  # each of its four parts as long as the others' whole
        else:
            graphopt.train(student, data, compress=self.compress(name, seed), **self.options(seed))
        return student

    def compress(self, name: str, seed: int) -> list[Compression]:
        teacher = self.teachers[0]
        if name == PLAIN:
            return []
        if name in RESPONSES:
            return [Response(teacher, **RESPONSES[name])]
        if name == "mutual":
            return [Mutual([self.network(STUDENT, 400 + seed)])]
        if name == "exits":
            return [Exits()]
        if name == "route":
            return [soft(Route(teacher, self.checkpoints))]
        if name in ("two teachers", "two teachers by confidence"):
            return [soft(Ensemble(self.teachers, by="confidence" if "confidence" in name else "mean"))]
        if name in ("dissimilarity", "meal"):
            return [Distill(Ensemble(self.teachers, by="random" if name == "meal" else "mean"), name)]
        return [Distill(teacher, name)]


def soft(teacher: Any) -> Response:
    """What schemes teach by."""
    return Response(teacher, weight=0.1)


class _Keeps(Compression):
    """States of a graph at some progress of its training."""

    def __init__(self, graph: Graph, kept: list[dict[str, Tensor]], at: tuple[float, ...]) -> None:
        self.graph, self.kept, self.left = graph, kept, list(at)

    def step(self, progress: float) -> None:
        if self.left and progress >= self.left[0]:
            self.left.pop(0)
            self.kept.append(copy.deepcopy(self.graph.state_dict()))


RESPONSES: dict[str, dict[str, float]] = {
    "response, temperature 2": {"temperature": 2.0},
    "response, weight 0.1": {"weight": 0.1},
}
SCHEMES = [
    "route", "two teachers", "two teachers by confidence", "mutual", "assistant", "born again", "stagewise", "exits",
]  # fmt: skip
NAMES = [PLAIN, *RESPONSES, *(name for name in METHODS if name not in TRANSFORMERS), *SCHEMES]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(rows: list[dict[str, Any]]) -> common.Rows:
    """Mean and spread over seeds, beside training on the targets alone from the same starts."""
    by = {name: {row["seed"]: row for row in rows if row["method"] == name} for name in NAMES}
    out = []
    for name in NAMES:
        found = by[name]
        if not found:
            continue
        scores = [row["accuracy"] for row in found.values()]
        gains = [row["accuracy"] - by[PLAIN][seed]["accuracy"] for seed, row in found.items() if seed in by[PLAIN]]
        out.append(
            {
                "method": name,
                "accuracy %": statistics.mean(scores),
                "lowest": min(scores),
                "highest": max(scores),
                "over targets alone": None if name == PLAIN or not gains else statistics.mean(gains),
                "s": statistics.mean(row["seconds"] for row in found.values()),
                "seeds": len(scores),
            }
        )
    return out


def main() -> None:
    given = common.arguments(__doc__, rows="distillation.jsonl", methods=NAMES, seeds=[0, 1, 2], epochs=EPOCHS)
    path = Path(given.rows)
    done = {(row["method"], row["seed"]) for row in read(path)}
    missing = [(name, seed) for seed in given.seeds for name in given.methods if (name, seed) not in done]
    if missing:
        digits = Digits()
        study = Study(digits, given.epochs, path.with_suffix(".teachers.pt"))
        for name, seed in missing:
            begin = time.perf_counter()
            graph = study.run(name, seed)
            row = {
                "method": name,
                "seed": seed,
                "accuracy": digits.accuracy(graph.eval(), digits.test),
                "held out": digits.accuracy(graph, digits.held_out),
                "seconds": time.perf_counter() - begin,
                "teacher": digits.accuracy(study.teachers[0], digits.test),
                "epochs": given.epochs,
            }
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            common.log(f"{name}, seed {seed}: {row['accuracy']:.1f} %")
    rows = read(path)
    title = f"Spoken digits, teacher {statistics.mean(row['teacher'] for row in rows):.2f} %"
    common.finish({title: table(rows)}, given.json)


if __name__ == "__main__":
    main()
