"""Experts in a real sentence encoder: how much of the ranking of similarities is left where tokens take some of the neurons.

    python benchmarks/experts.py --rows rows.jsonl

The encoder is all-MiniLM-L6-v2 (6 layers, 1,536 neurons between the linear layers of each), as in `encoder.py`. Its neurons are
split into experts by `MakeExperts`, which is fitted on the first sentences of docstrings; nothing is trained. Compared are all
pairs of other sentences (`sentences.py`): Spearman's rank correlation of their similarities with the whole network's, in float.
`MLP work` is that of the experts taken, of routers and of what stands for the others, over that of all neurons. `chance` has
routers of random numbers.

Each run is a line of `--rows`; those that are there are not run again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import common
import torch
from encoder import FREE, embedded, encoder, kept
from sentences import docstrings, sentences
from torch import Tensor
from training_rows import read, record

from graphopt import Graph
from graphopt.passes import MakeExperts
from graphopt.passes.experts.sites import mlps

FITTED, SAMPLES = 480, 6000  # sentences, and tokens of them
WAYS = (
    {"experts": 64, "take": 22}, {"experts": 64, "take": 30, "rest": "mean"}, {"experts": 64, "take": 8},
    {"experts": 64, "take": 40}, {"experts": 64, "take": 22, "by": "activity"}, {"experts": 64, "take": 22, "chance": True},
)  # fmt: skip


def made(graph: Graph, data: list[list[Tensor]], way: dict[str, Any]) -> Graph:
    options = {name: value for name, value in way.items() if name != "chance"}
    MakeExperts(data=data, samples=SAMPLES, **options)(graph)
    if way.get("chance"):
        for name, value in graph.state_dict().items():
            if "experts_router" in name:
                value.normal_(generator=torch.Generator().manual_seed(0))
    return graph


def work(graph: Graph, way: dict[str, Any]) -> float:
    """Of the experts taken and the routers, as a share of all neurons."""
    found = mlps(graph)
    shapes = [(mlp.neurons, int(mlp.up.args[1].meta["val"].shape[1])) for mlp in found]  # type: ignore[union-attr]
    full = sum(2 * neurons * width for neurons, width in shapes)
    square = 0 if way.get("rest") == "mean" else 1
    return way["take"] / way["experts"] + sum(width * (way["experts"] + square * width) for _, width in shapes) / full


def main() -> None:
    options = common.arguments(__doc__, rows="experts.jsonl")
    torch.set_num_threads(1)
    model, batch = encoder()
    compared, _ = sentences()
    texts = docstrings(FITTED)
    batches = [batch(compared[n : n + 29]) for n in range(0, len(compared), 29)]
    fitted = [batch(sorted(texts, key=len)[n : n + 16]) for n in range(0, FITTED, 16)]
    graph = Graph.capture(model, kwargs=batches[0], dynamic_shapes=FREE)
    data = [[found[name] for name in graph.input_names] for found in fitted]
    reference = embedded(lambda b: graph(**b), batches)
    path = Path(options.rows)
    for way in WAYS:
        key = {"by": "weights", "rest": "affine", "chance": False, **way}

        def run(way: dict[str, Any] = way) -> dict[str, float]:
            changed = made(graph.clone(), data, way)
            return {"work": work(graph, way), **kept(embedded(lambda b: changed(**b), batches), reference)}

        record(path, key, run)
    table = [
        {"experts": row["experts"], "taken": row["take"], "sorted by": row["by"], "rest": row["rest"],
         "router": "chance" if row["chance"] else "fitted",
         "MLP work": row["work"], "Spearman": row["Spearman"], "cosine": row["cosine"]}
        for row in read(path)
    ]  # fmt: skip
    common.finish({f"{len(compared)} sentences, all pairs": table}, options.json)


if __name__ == "__main__":
    main()
