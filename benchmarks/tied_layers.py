"""Repeated layers that share their weights, on a sentence encoder: the ranking of similarities that is kept.

    python benchmarks/tied_layers.py [--json figures.json] [--keep 5 4 3 2 1] [--train 3]

The encoder is all-MiniLM-L6-v2, of 6 layers (`embeddings.py` has the data and the measures). Whose weights a run of layers shares
is chosen on 64 docstrings. `trained` is one epoch on 3,000 docstrings with the original as teacher (mean squared error of
embeddings), all layers learning. 0: nothing is trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import common
import torch
from embeddings import Bench
from encoder import embedded, kept

from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.passes import TieLayers
from graphopt.passmanager import run

LAYERS = "model.encoder.layer"


def figures(bench: Bench, graph: Graph) -> dict[str, Any]:
    answers = kept(embedded(lambda b: graph(**b), bench.compared), bench.reference)
    return {"M parameters": cost.parameters(graph) / 1e6, "MB": cost.weight_bytes(graph) / 1e6, **answers}


def rows(bench: Bench, keep: int, train: bool) -> Iterator[dict[str, Any]]:
    graph = bench.graph()
    middle = len(bench.batches) // 2
    run([TieLayers(keep, LAYERS, bench.batches[middle : middle + 2])], graph)
    yield {"layers": keep, "way": "post-training", **figures(bench, graph)}
    if train:
        bench.train(graph, LAYERS, 1e-4)
        yield {"layers": keep, "way": "trained", **figures(bench, graph)}


def main() -> None:
    options = common.arguments(__doc__, keep=[5, 4, 3, 2, 1], train=3)
    torch.set_num_threads(1)
    bench = Bench()
    table: common.Rows = []
    for keep in options.keep:
        common.log(f"{keep} of 6 layers")
        table += rows(bench, keep, keep == options.train)
    common.finish({"Layers of all-MiniLM-L6-v2": table}, options.json)


if __name__ == "__main__":
    main()
