"""Embedding tables replaced by something smaller, on a sentence encoder: the ranking of similarities that is kept, beside SVD.

    python benchmarks/embeddings.py [--json figures.json] [--keep 0.25 0.125 0.0625] [--train 0.125]

The encoder is all-MiniLM-L6-v2 (`encoder.py`); its table of 30,522 x 384 words is half of its weights. Each method has so much of
the table's bytes. Tokens are counted, and what is trained is trained, on 3,000 first sentences of docstrings; compared are all
pairs of the sentences of `sentences.py`: Spearman's rank correlation of their similarities with float's, and the mean cosine of
embeddings with float's. `row error` is the mean squared error of the table's rows as a share of their variance, each token by its
count. `trained` is one epoch on these docstrings with the original as teacher (mean squared error of embeddings), the table's
replacement alone learning. MACs are of one sentence of 128 tokens. Rows that are in the file already are not measured again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import common
import numpy as np
import torch
from encoder import FREE, LENGTH, embedded, encoder, kept, vocabulary
from sentences import docstrings, sentences
from torch import Tensor

import graphopt
from graphopt.execution.executor import Executor
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten
from graphopt.passes import ReplaceEmbedding, Simplify
from graphopt.passes.embeddings.replace_embedding import METHODS
from graphopt.passmanager import run
from graphopt.utils.errors import InputError

TABLE = "model.embeddings.word_embeddings.weight"
TEXTS, BATCH = 3000, 32


class Bench:
    """The encoder, what it is judged by, and what it learns from."""

    def __init__(self) -> None:
        self.model, batch = encoder()
        self.tokens = vocabulary()
        compared, _ = sentences()
        self.compared = [batch(compared[n : n + 29]) for n in range(0, len(compared), 29)]
        texts = sorted(docstrings(TEXTS), key=len)
        self.data = [batch(texts[n : n + BATCH]) for n in range(0, len(texts), BATCH)]
        self.example = batch([" ".join(compared)], padding="max_length", truncation=True, max_length=LENGTH)
        self.reference = embedded(lambda b: self.model(**b), self.compared)
        self.whole = self.graph()

    @property
    def batches(self) -> list[list[Tensor]]:
        return [list(batch.values()) for batch in self.data]

    def graph(self) -> Graph:
        graph = Graph.capture(self.model, kwargs=self.example, dynamic_shapes=FREE)
        run([Simplify()], graph)
        return graph

    def row(self, method: str, keep: float, train: bool) -> Iterator[dict[str, Any]]:
        graph = self.graph()
        head = {"keep": keep, "method": method}
        try:
            run([ReplaceEmbedding(method, keep, layers=TABLE, data=self.batches, tokens=self.tokens)], graph)  # type: ignore[arg-type]
        except InputError as error:
            yield head | {"note": str(error).partition(";")[0]}
            return
        yield head | self.figures(graph)
        if train:
            self.train(graph, "word_embeddings", 1e-3)
            yield head | {"method": f"{method}, trained"} | self.figures(graph)

    def figures(self, graph: Graph) -> dict[str, Any]:
        whole = self.whole
        rest = cost.weight_bytes(whole) - self.table.numel() * 4
        answers = kept(embedded(lambda b: graph(**b), self.compared), self.reference)
        return {
            "table MB": (cost.weight_bytes(graph) - rest) / 1e6, **answers, "row error": self.row_error(graph),
            "M MACs more": (cost.macs(graph) - cost.macs(whole)) / 1e6,
        }  # fmt: skip

    @property
    def table(self) -> Tensor:
        return self.model.get_parameter(TABLE)

    def row_error(self, graph: Graph) -> float:
        """By what comes out of the words' embedding in the graph: the first sum's first operand."""
        ids = torch.cat([batch["input_ids"][batch["attention_mask"] > 0] for batch in self.data])
        counts = torch.bincount(ids, minlength=len(self.table)).double()
        seen = counts.nonzero()[:, 0]
        rows = torch.cat([self.rows(graph, part) for part in seen.split(LENGTH)])
        weights, table = counts[seen][:, None], self.table[seen]
        mean = (weights * table).sum(0) / weights.sum()
        return float((weights * (rows - table).square()).sum() / (weights * (table - mean).square()).sum())

    def rows(self, graph: Graph, ids: Tensor) -> Tensor:
        (norm, *_) = graph.calls(aten.layer_norm.default)
        words = norm.args[0].args[0].args[0]  # ((words + types) + places)
        return Executor(graph).run([words], [ids[None], torch.ones_like(ids)[None]])[words][0]

    def train(self, graph: Graph, part: str, rate: float) -> None:
        """Parameters with this in their name, for an epoch."""
        for name, parameter in graph.module.named_parameters():
            parameter.requires_grad_(part in name)
        order = np.random.default_rng(0).permutation(len(self.data))
        with torch.no_grad():
            data = [(list(self.data[n].values()), self.model(**self.data[n])) for n in order]
        graphopt.train(graph, data, loss="mse", epochs=1, rate=rate, decay=0.0, warmup=0.05)


def main() -> None:
    options = common.arguments(__doc__, keep=[0.25, 0.125, 0.0625], train=0.125, methods=list(METHODS))
    torch.set_num_threads(1)
    tables: dict[str, common.Rows] = {}
    if options.json is not None and options.json.exists():
        tables = json.loads(options.json.read_text())["tables"]
    title = "Words of all-MiniLM-L6-v2"
    table = tables.setdefault(title, [])
    bench = Bench()
    for keep in options.keep:
        for method in options.methods:
            if any((row["keep"], row["method"]) == (keep, method) for row in table):
                continue
            common.log(f"{method}, {keep}")
            table += bench.row(method, keep, keep == options.train)
            table.sort(key=lambda row: -row["keep"])
            common.finish(tables, options.json)


if __name__ == "__main__":
    main()
