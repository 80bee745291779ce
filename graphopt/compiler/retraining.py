"""The stage of `graphopt.optimize` that trains: what passes have left of the model, with the model itself as its teacher.

The state that is kept is the best by `evaluate`; without one, by data that training does not see. Of tensors, a tenth is held
out, and judged by mixtures (`graphopt.training.judges`), as the model has learned them by heart; otherwise the calibration data
that were held out, by how far the answers are from the original's. The state before training is one of them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graphopt.analysis.output_error import Probe
from graphopt.compiler.work import Work
from graphopt.data.calibration import Calibration
from graphopt.data.loaders import Named
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.ir.quantizers import quantizers
from graphopt.passmanager.step import Step
from graphopt.training import Compression, QuantizationAware, Response, TrainingReport, Unseen, train
from graphopt.training.batches import Batches, tensors_of
from graphopt.training.distillation.teachers import evaluating
from graphopt.training.losses import output

SHARE, MOST = 0.1, 1000  # of the training samples, held out
MOSTLY = 50.0  # per cent right that a teacher has to have to be judged by
Score = Callable[[Callable[..., Any]], float]


def check(work: Work) -> None:
    """Raises InputError, before any work, where the training data do not fit the model."""
    work.training_data = _data(work)
    next(Batches(work.training_data, work.original, batch_size=work.options.training.batch_size).inputs())


def retrain(work: Work) -> None:
    """Train the graph; the report gets what that did."""
    chosen, graph = work.options.training, work.graph
    data, score = _split(work)
    with work.timings.stage("train"):
        report = train(
            graph,
            data,
            compress=_compressions(work),
            evaluate=work.request.evaluate or score,
            checkpoint=chosen.training_checkpoint,
            epochs=chosen.epochs,
            batch_size=chosen.batch_size,
            rate=chosen.rate,
            loss=chosen.loss,
        )
        graph.refresh()
    work.report.steps.append(_step(graph, report, work))


def _compressions(work: Work) -> list[Compression]:
    """The quantizers, where there are any, and the teacher, unless none is wanted."""
    chosen, found = work.options.training, list[Compression]()
    if quantizers(work.graph):
        found.append(QuantizationAware(chosen.quantizers))
    if chosen.teacher is not False:
        teacher = work.original if chosen.teacher is None else chosen.teacher
        found.append(Response(teacher, temperature=chosen.temperature))
    return found


def _data(work: Work) -> Any:
    data = work.request.train
    return _named(work, str(data)) if isinstance(data, (str, Path)) else data


def _split(work: Work) -> tuple[Any, Score | None]:
    """What to train on, and a score by what is held out of it, where nothing else gives one."""
    data = work.training_data
    if work.request.evaluate is not None:
        return data, None
    found = tensors_of(data)
    if found is None or len(found[0]) < 2:
        return data, _closeness(work, work.held_out or work.data)
    held = min(MOST, max(2, round(SHARE * len(found[0]))))
    order = torch.randperm(len(found[0]), generator=torch.Generator().manual_seed(0))
    x, y = found[0][order], None if found[1] is None else found[1][order]
    rest = x[held:] if y is None else (x[held:], y[held:])
    return rest, _unseen(work, x[:held], None if y is None else y[:held])


def _unseen(work: Work, x: Tensor, y: Tensor | None) -> Score:
    """By mixtures of what was held out; where the teacher is not right on most of it, as with other labels than it was trained
    on, by the share of right answers."""
    chosen = work.options.training
    # several teachers, and answers on disk, cannot be asked about other inputs
    teacher = chosen.teacher if callable(chosen.teacher) else work.original
    if y is not None and y.dim() == 1 and not y.is_floating_point():
        accuracy = _accuracy(x, y, chosen.batch_size)
        with evaluating(teacher):
            right = accuracy(teacher)
        if right <= MOSTLY:
            return accuracy
    return Unseen(x, teacher, classes=chosen.temperature is not None, batch_size=chosen.batch_size)


def _accuracy(x: Tensor, y: Tensor, size: int) -> Score:
    """Per cent of samples whose class is right."""

    def score(model: Callable[..., Any]) -> float:
        with torch.no_grad():
            found = torch.cat([output(model(batch)).argmax(1).cpu() for batch in torch.split(x, size)])
        return 100 * float((found == y).double().mean())

    return score


def _named(work: Work, name: str) -> Any:
    """Training data by name: what a function returns, labels included; files and folders of images have none, so the teacher
    alone is learned from."""
    source, _ = work.request.named(Named(name, limit=sys.maxsize), work.graph).load(work.graph)
    return source if ":" in name and not Path(name).exists() else Calibration(source, work.graph)


def _closeness(work: Work, data: Iterable[list[Tensor]]) -> Score:
    """In dB, how close a model's answers are to those of the original."""
    probe = Probe(work.original, data)

    def score(model: Callable[..., Any]) -> float:
        assert isinstance(model, Graph)
        return -10 * math.log10(max(probe.damage(model), 1e-20))

    return score


def _step(graph: Graph, report: TrainingReport, work: Work) -> Step:
    chosen = work.options.training
    options = {
        "epochs": chosen.epochs,
        "quantizers": chosen.quantizers,
        "rate": chosen.rate,
        "batch_size": chosen.batch_size,
    }
    size = cost.parameters(graph), cost.macs(graph), cost.weight_bytes(graph)
    return Step("Train", options, changes(report), sum(e.seconds for e in report.epochs), *size)


def changes(report: TrainingReport) -> list[tuple[str, str]]:
    """What a training did, in the words of a pass."""
    found = []
    for epoch in report.epochs:
        figures = [
            f"{name} {value:.4g}" for name, value in (("loss", epoch.loss), ("score", epoch.score)) if value is not None
        ]
        kept = ["kept"] if epoch.number == report.kept else []
        found.append((f"epoch {epoch.number}" if epoch.number else "before", ", ".join(figures + kept)))
    return found
