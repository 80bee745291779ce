"""Sub-networks of an elastic ResNet-20 that was not trained as one: with their own batch-norm statistics, and fitted.

    python benchmarks/refit.py --rows rows.jsonl [--networks half] [--json figures.json]

    statistics   extracted, batch norms measure their statistics on 512 training images (`supernets.scores`)
    fitted       extracted, layers fitted to the largest network on the same images (`supernets.refit`)
    Prune        `Prune` to the same multiply-accumulates on the same images: widths by measured damage, fitted likewise

Widths inside blocks, the same share in all; `smallest`: half of them, and one block of each stage gone. Accuracy is on the 10,000
test images of CIFAR-10; `CPU s` is what fitting took. Each network is a line of `--rows`; those that are there are not run again.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import common
import torch
from cifar_training import Cifar, accuracy
from ladder import apply
from supernet import ELASTIC, original
from training_rows import read, record

from graphopt.analysis.choices import extract
from graphopt.data import Calibration
from graphopt.ir import cost
from graphopt.ir.choices import LiveChoice, choices
from graphopt.passes.pruning import Prune
from graphopt.supernets.refit import refitted
from graphopt.training.choices.sampled import settle_norms

NETWORKS = {"three quarters": (1, 0), "half": (2, 0), "smallest": (2, 1)}  # options of widths and of blocks


def row(cifar: Cifar, name: str) -> dict[str, Any]:
    whole = original(cifar)
    graph = apply(whole.clone(), [ELASTIC])
    width, block = NETWORKS[name]
    options = tuple(_option(choice, width, block) for choice in choices(graph))
    data = [[part] for part in cifar.calibration.split(128)]
    plain = extract(graph, options)
    settle_norms(plain, data)
    began = time.process_time()
    fitted = refitted(graph, options, data)
    seconds = time.process_time() - began
    share = cost.macs(plain) / cost.macs(whole)
    pruned = apply(whole.clone(), [Prune(keep_ratio=share, data=Calibration(cifar.calibration, whole))])
    return {
        "share": share,
        "statistics": accuracy(plain, *cifar.test),
        "fitted": accuracy(fitted, *cifar.test),
        "CPU s": seconds,
        "Prune": accuracy(pruned, *cifar.test),
    }


def _option(choice: LiveChoice, width: int, block: int) -> int:
    return width if choice.kind == "width" else block


def main() -> None:
    options = common.arguments(__doc__, rows="refit.jsonl", networks=list(NETWORKS))
    torch.set_num_threads(1)
    cifar, path = Cifar(), Path(options.rows)
    for name in options.networks:
        record(path, {"network": name}, partial(row, cifar, name))
    common.finish({"Sub-networks of ResNet-20, not trained": read(path)}, options.json)


if __name__ == "__main__":
    main()
