"""Linear layers of a sentence encoder made small: blocks on the diagonal and product quantization beside SVD at equal bytes.

    python benchmarks/encoder_weights.py [--json figures.json] [--ways "SVD, 1/2" ...]

The encoder is all-MiniLM-L6-v2 (`embeddings.py` has the measures); its 36 linear layers of the blocks are changed, 42.5 of 90 MB,
embeddings stay. Everything is fitted on 192 docstrings (`--texts`), nothing is trained. Rows that are in the file already are not
measured again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import common
import torch
from encoder import LENGTH, embedded, encoder, kept
from linear_attention import FREE
from sentences import docstrings, sentences

from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.passes import SVD, BlockDiagonal, ProductQuantize, Simplify
from graphopt.passmanager import run

ENCODER = "model.encoder.layer*"
BATCH = 16


WAYS: dict[str, Callable[..., Any]] = {
    "SVD, 1/2": partial(SVD, 0.5, layers={ENCODER: 0.5, "*": None}),
    "blocks, 1/2": partial(BlockDiagonal, 2, layers={ENCODER: 2, "*": None}),
    "SVD, 1/4": partial(SVD, 0.25, layers={ENCODER: 0.25, "*": None}),
    "blocks, 1/4": partial(BlockDiagonal, 4, layers={ENCODER: 4, "*": None}),
    "vectors of 2": partial(ProductQuantize, 2, layers={ENCODER: 2, "*": None}),
    "vectors of 4": partial(ProductQuantize, 4, layers={ENCODER: 4, "*": None}),
    "SVD, 1/8": partial(SVD, 0.125, layers={ENCODER: 0.125, "*": None}),
    "vectors of 8": partial(ProductQuantize, 8, layers={ENCODER: 8, "*": None}),
}


def main() -> None:
    options = common.arguments(__doc__, ways=list(WAYS), texts=192)
    torch.set_num_threads(1)
    title = "Linear layers of all-MiniLM-L6-v2"
    tables: dict[str, common.Rows] = {title: []}
    if options.json is not None and options.json.exists():
        tables = json.loads(options.json.read_text())["tables"]
    model, batch = encoder()
    compared, _ = sentences()
    batches = [batch(compared[n : n + 29]) for n in range(0, len(compared), 29)]
    texts = sorted(docstrings(options.texts), key=len)
    data = [list(batch(texts[n : n + BATCH]).values()) for n in range(0, len(texts), BATCH)]
    example = batch([" ".join(compared)], padding="max_length", truncation=True, max_length=LENGTH)
    whole = Graph.capture(model, kwargs=example, dynamic_shapes=FREE)
    run([Simplify()], whole)
    rest = cost.weight_bytes(whole) - sum(
        t.nbytes for n, t in whole.state_dict().items() if n.startswith("model.encoder") and t.dim() == 2
    )
    reference = embedded(lambda b: model(**b), batches)
    for way in options.ways:
        if any(row["way"] == way for row in tables[title]):
            continue
        common.log(way)
        graph = whole.clone()
        run([WAYS[way](data=data)], graph, verify=False)
        answers = kept(embedded(lambda b, graph=graph: graph(**b), batches), reference)
        size = (cost.weight_bytes(graph) - rest) / 1e6
        tables[title].append({"way": way, "MB of layers": size, **answers, "M MACs": cost.macs(graph) / 1e6})
        common.finish(tables, options.json)


if __name__ == "__main__":
    main()
