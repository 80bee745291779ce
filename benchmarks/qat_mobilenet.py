"""What three epochs on 256 images win back of MobileNetV1: per tensor in 8 bits, and with weights of 4 bits.

    python benchmarks/qat_mobilenet.py --rows rows.jsonl [--formats W4A8] [--rates 1e-5] [--seeds 0]

Keras's MobileNetV1 with ten classes of Imagenette, 94.0 % in float. It begins with the codes of `gptq`; learned scales, batch
norms alive, the answers of the float network (temperature 4) and no labels; 224 images to train on, flipped, 32 held out. The
state that is kept is the best by mixtures of these (`graphopt.training.Unseen`). `test`: that state, `last`: behind the last
epoch; 500 images.

Each run is a line of `--rows`; those that are there are not run again.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import common
import torch
from ladder import Row, quantized
from pruning import Case
from torch import Tensor
from training_rows import record, summary

import graphopt
from graphopt.training import QuantizationAware, Response, Unseen

ROWS = {"W8A8 per tensor": Row(8, 8, per_channel=False), "W4A8": Row(4, 8)}
EPOCHS, BATCH, HELD_OUT = 3, 32, 32


class Flipped:
    """Batches of images, half of them mirrored, in another order every epoch."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return -(-len(self.x) // BATCH)

    def __iter__(self) -> Iterator[Tensor]:
        for places in torch.randperm(len(self.x)).split(BATCH):
            mirrored = torch.rand(len(places)) < 0.5
            x = self.x[places]
            yield torch.where(mirrored[:, None, None, None], x.flip(-1), x)


def run(case: Case, formats: str, rate: float, seed: int) -> dict[str, Any]:
    graph, seconds = quantized(case, ROWS[formats], "gptq")
    x = torch.cat([batch for (batch,) in case.batches])
    judge, tested = Unseen(x[-HELD_OUT:], case.model), list[float]()

    def evaluate(model: Any) -> float:
        tested.append(case.top1(model))
        return judge(model)

    began = time.process_time()
    report = graphopt.train(
        graph, Flipped(x[:-HELD_OUT]), compress=[QuantizationAware("lsq"), Response(case.model)], epochs=EPOCHS,
        evaluate=evaluate, rate=rate, seed=seed,
    )  # fmt: skip
    minutes = (time.process_time() - began) / 60
    figures = {"before": tested[0], "last": tested[-1], "test": tested[report.kept], "kept": report.kept}
    return {**figures, "every epoch": tested, "CPU min": minutes, "CPU min of gptq": seconds / 60}


def main() -> None:
    options = common.arguments(__doc__, rows="mobilenet.jsonl", formats=list(ROWS), rates=[1e-5], seeds=[0])
    torch.set_num_threads(1)
    case, path = Case("MobileNetV1"), Path(options.rows)
    for seed, formats, rate in itertools.product(options.seeds, options.formats, options.rates):
        key = {"formats": formats, "rate": rate, "seed": seed}
        record(path, key, partial(run, case, formats, rate, seed))
    common.finish({"MobileNetV1": summary(path, ("formats", "rate"))}, options.json)


if __name__ == "__main__":
    main()
