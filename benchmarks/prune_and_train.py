"""What training wins back of ResNet-20 pruned to half of its multiply-accumulates, with and without a teacher, beside others.

    python benchmarks/prune_and_train.py --rows rows.jsonl [--ways ours labels] [--minutes 10 | --epochs 5] [--seeds 0 1 2]

    ours            `Prune`, then `train` with labels and the answers of ResNet-56 (temperature 4)
    labels          the same without a teacher
    plain           the same pruned network in a plain loop of PyTorch, labels alone
    torchdistill    Torch-Pruning (L2 magnitude, every group the same share), then torchdistill's KDLoss (temperature 4, alpha
                    0.5) of the same teacher, in a plain loop

All: 9,000 training images of CIFAR-10, flipped and shifted, AdamW of one rate, cosine. As many epochs as have steps that fit in
the CPU minutes of one thread (or `--epochs`); evaluations are not counted. `test` is of the best epoch by 1,000 held-out images,
`last` of the last one; 10,000 test images.

Each run is a line of `--rows`; those that are there are not run again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import common
import torch
import torch.nn.functional as F
from cifar_training import TEMPERATURE, Augmented, Cifar, Judge, Loss, affordable, plain_loop
from pruning import Case, pruned_by_reference
from torch import Tensor, nn
from training_rows import record, summary

import graphopt
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.passes.pruning import Prune
from graphopt.training import Compression, Response

RATIO, STEPS = 0.5, 6


class Study:
    """One network, pruned once."""

    def __init__(self, rate: float) -> None:
        self.cifar, self.case, self.rate = Cifar(), Case("ResNet-20"), rate
        self.pruned = self.case.graph.clone()
        Prune(RATIO, data=self.case.batches)(self.pruned)
        self.pruned.refresh()

    def run(self, way: str, minutes: float, epochs: int, seed: int) -> dict[str, Any]:
        train, model = WAYS[way](self)
        kept = {name: t.clone() for name, t in model.state_dict().items()}
        few = self.cifar.train.first(STEPS)
        train(few, 1, seed, None)
        with torch.no_grad():
            for name, value in model.state_dict().items():
                value.copy_(kept[name])
        batches, epochs = self.cifar.train, epochs or affordable(minutes, few)
        judge = Judge(self.cifar, epochs)
        train(batches, epochs, seed, judge)
        graph = model if isinstance(model, Graph) else Graph.capture(model.eval(), self.case.x[:2])
        macs = cost.macs(graph) / self.case.macs
        return {**judge.row(model.eval()), "MACs kept": macs, "CPU min": batches.minutes}

    # ---- Ways -------------------------------------------------------------------------------------------------------

    def ours(self, *, teacher: bool) -> tuple[Any, Graph]:
        graph = self.pruned.clone()
        compress: list[Compression] = [Response(self.cifar.teacher, temperature=TEMPERATURE)] if teacher else []

        def train(batches: Augmented, epochs: int, seed: int, judge: Judge | None) -> None:
            graphopt.train(graph, batches, compress=compress, epochs=epochs, evaluate=judge, rate=self.rate, seed=seed)

        return train, graph

    def plain(self) -> tuple[Any, nn.Module]:
        model = self.pruned.clone().module
        return partial(self.loop, model, lambda x, logits, y: F.cross_entropy(logits, y)), model

    def torchdistill(self) -> tuple[Any, nn.Module]:
        from torchdistill.losses.mid_level import KDLoss

        model = pruned_by_reference(self.case, RATIO)
        distance = KDLoss("", "output", "", "output", temperature=TEMPERATURE, alpha=0.5)

        def loss(x: Tensor, logits: Tensor, y: Tensor) -> Tensor:
            with torch.no_grad():
                wanted = self.cifar.teacher(x)
            found: Tensor = distance({"": {"output": logits}}, {"": {"output": wanted}}, y)
            return found

        return partial(self.loop, model, loss), model

    def loop(
        self, model: nn.Module, loss: Loss, batches: Augmented, epochs: int, seed: int, judge: Judge | None
    ) -> None:
        torch.manual_seed(seed)
        plain_loop(model, loss, batches, epochs, self.rate, judge)


WAYS: dict[str, Callable[[Study], tuple[Any, Any]]] = {
    "ours": partial(Study.ours, teacher=True),
    "labels": partial(Study.ours, teacher=False),
    "plain": Study.plain,
    "torchdistill": Study.torchdistill,
}


def main() -> None:
    options = common.arguments(
        __doc__, rows="pruned.jsonl", ways=list(WAYS), minutes=10.0, epochs=0, rate=1e-3, seeds=[0, 1, 2]
    )
    torch.set_num_threads(1)
    study, path = Study(options.rate), Path(options.rows)
    for seed, way in itertools.product(options.seeds, options.ways):
        key = {"way": way, "rate": options.rate, "seed": seed}
        key |= {"epochs given": options.epochs} if options.epochs else {"minutes": options.minutes}
        record(path, key, partial(study.run, way, options.minutes, options.epochs, seed))
    by = ("way", "rate", "MACs kept", "minutes", "epochs given")
    common.finish({"ResNet-20 at half of its multiply-accumulates": summary(path, by)}, options.json)


if __name__ == "__main__":
    main()
