"""Attention of linear complexity beside softmax attention: where it begins to pay, and what a sentence encoder loses by it.

    python benchmarks/linear_attention.py [--json figures.json] [--parts times encoder] [--train "linear, elu" ...]

Times: self-attention as it is in encoders, 12 heads of 32, a mask of keys, batch 1, lowered to ONNX Runtime for any number of
tokens, one thread; all methods in turn, medians of CPU time, `times faster` the median of the ratios within a round. `layer` has
the linear layers for queries, keys, values and the result, `attention` has none.

Encoder: all-MiniLM-L6-v2 (`encoder.py`), all 6 layers replaced. Spearman's rank correlation of the similarities of all pairs with
float's, on the sentences of `sentences.py` (about 13 tokens) and on 58 texts of 128 tokens, docstrings in a row. `as it is`:
nothing is fitted; `fitted`: layer by layer on 56 docstrings and rows of them; `trained`: then on 320 docstrings and 80 rows,
once, with the original as teacher (mean squared error of embeddings), all layers learning.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import common
import torch
from embeddings import Bench
from encoder import LENGTH, NAMES, by_processor, embedded, encoder, kept
from sentences import docstrings
from torch import Tensor, nn

from graphopt.backends.onnxruntime import lower
from graphopt.backends.onnxruntime.artifact import MODEL
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.passes import ReplaceAttention, Simplify
from graphopt.passes.attention import Blocks, Linear, Linformer, Sinkhorn, Star
from graphopt.passmanager import run
from graphopt.targets import find

WAYS: dict[str, Any] = {
    "softmax": None,
    "linear, elu": Linear("elu"),
    "linear, relu": Linear("relu"),
    "linear, exp of 64": Linear("exp", 64),
    "efficient": "efficient",
    "linformer, 64 slots": Linformer(64),
    "blocks of 32": Blocks(32),
    "sinkhorn, blocks of 32": Sinkhorn(32),
    "star": Star(),
}
LONGEST = 4096
LONG_TEXTS, LONG_BATCH = 58, 29
TRAINED, BATCH = 320, 16
FREE = {name: {0: "batch", 1: torch.export.Dim("length", max=512)} for name in NAMES}


class SelfAttention(nn.Module):
    """As in encoders; `alone`: without linear layers."""

    def __init__(self, heads: int, size: int, alone: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        width = heads * size
        self.heads, self.alone = heads, alone
        self.query, self.key, self.value, self.out = (
            nn.Identity() if alone else nn.Linear(width, width) for _ in range(4)
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        n, tokens, width = x.shape
        layers = (self.query, self.key, self.value)
        q, k, v = (layer(x).view(n, tokens, self.heads, -1).transpose(1, 2) for layer in layers)
        found = nn.functional.scaled_dot_product_attention(q, k, v, mask[:, None, None] > 0)
        answer: Tensor = self.out(found.transpose(1, 2).reshape(n, tokens, width))
        return answer


class Layers:
    """One layer for each way, lowered for any number of tokens."""

    def __init__(self, ways: list[str], heads: int, size: int, alone: bool) -> None:
        self.width = heads * size
        self.sessions = {way: self.lowered(way, SelfAttention(heads, size, alone).eval()) for way in ways}

    def lowered(self, way: str, model: nn.Module) -> Any:
        length = torch.export.Dim("length", max=LONGEST)
        free = {"x": {1: length}, "mask": {1: length}}
        graph = Graph.capture(model, self.inputs(LENGTH), dynamic_shapes=free, dynamic_batch=False)
        run([Simplify()] if WAYS[way] is None else [Simplify(), ReplaceAttention(WAYS[way])], graph, verify=False)
        with common.workplace() as folder:
            return common.session(lower(graph, find("x86")).save(folder / "layer") / MODEL)

    def inputs(self, tokens: int) -> tuple[Tensor, Tensor]:
        return torch.randn(1, tokens, self.width), torch.ones(1, tokens, dtype=torch.long)

    def times(self, tokens: int, seconds: float) -> cost.Timings:
        given = [t.numpy() for t in self.inputs(tokens)]

        def call(session: Any) -> Callable[[], Any]:
            feeds = dict(zip([i.name for i in session.get_inputs()], given, strict=True))
            return by_processor(lambda: session.run(None, feeds))

        calls = {way: call(session) for way, session in self.sessions.items()}
        return cost.timings(calls, repeats=40, warmup=1, budget_seconds=seconds, clocked=True, in_a_row=2)


def begins(rows: common.Rows, kind: str) -> common.Rows:
    """From how many tokens on each is faster than softmax attention."""
    found: common.Rows = []
    for way in dict.fromkeys(row["method"] for row in rows if row["method"] != "softmax"):
        own = [(r["tokens"], r["times faster"]) for r in rows if r["method"] == way]
        slower = [tokens for tokens, ratio in own if ratio < 1]
        pays = [tokens for tokens, _ in own if not slower or tokens > max(slower)]
        found.append(
            {"method": way, f"{kind} pays from": min(pays) if pays else None, **{f"at {n}": r for n, r in own}}
        )
    return found


def time(tables: dict[str, common.Rows], options: Any) -> None:
    """Layers and attention alone, at every number of tokens that is not in the tables yet."""
    for kind in options.kinds:
        rows = tables.setdefault(f"Times: {kind}", [])
        left = [tokens for tokens in options.tokens if not any(row["tokens"] == tokens for row in rows)]
        layers = Layers(["softmax", *options.ways], options.heads, options.size, kind == "attention") if left else None
        for tokens in left:
            common.log(f"{kind}, {tokens} tokens")
            assert layers is not None
            used = layers.times(tokens, options.seconds)
            for way in used.ms:
                ratio = used.speedup("softmax", way)
                rows.append({"tokens": tokens, "method": way, "ms": used.median(way), "times faster": ratio})
            tables[f"Where each begins to pay: {kind}"] = begins(rows, kind)
            common.finish(tables, options.json)


class Encoder(Bench):
    """The encoder on short and on long texts."""

    def __init__(self) -> None:
        self.model, batch = encoder()
        from sentences import sentences

        compared, _ = sentences()
        self.compared = [batch(compared[n : n + 29]) for n in range(0, len(compared), 29)]
        texts = docstrings(8000)
        rows = [" ".join(texts[n : n + 14]) for n in range(TRAINED, len(texts) - 14, 14)]
        whole = {"padding": "max_length", "truncation": True, "max_length": LENGTH}
        self.long = [batch(rows[n : n + LONG_BATCH], **whole) for n in range(0, LONG_TEXTS, LONG_BATCH)]
        rest = rows[LONG_TEXTS:]
        long = [batch(rest[n : n + 8], **whole) for n in range(0, 80, 8)]
        short = sorted(texts[:TRAINED], key=len)
        self.data = [*(batch(short[n : n + BATCH]) for n in range(0, len(short), BATCH)), *long]
        self.fitted = [*self.data[3:20:8], *long[:1]]
        self.example = batch([" ".join(compared)], **whole)
        self.references = [embedded(lambda b: self.model(**b), batches) for batches in (self.compared, self.long)]

    @cached_property
    def whole(self) -> Graph:  # type: ignore[override]
        graph = Graph.capture(self.model, kwargs=self.example, dynamic_shapes=FREE)
        run([Simplify()], graph)
        return graph

    def row(self, way: str, train: bool) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        batches = [list(batch.values()) for batch in self.fitted]
        method = WAYS[way]
        for name, data in (("as it is", None), ("fitted", batches)):
            graph = self.whole.clone()
            run([ReplaceAttention(method, data=data, iterations=100)], graph)
            yield {"method": way, "state": name, **self.judged(graph)}
        if not train:
            return
        self.train(graph, "encoder", 2e-4)
        yield {"method": way, "state": "trained", **self.judged(graph)}

    def judged(self, graph: Graph) -> dict[str, float]:
        found: dict[str, float] = {}
        kinds = (("short texts", self.compared), ("128 tokens", self.long))
        for (kind, batches), reference in zip(kinds, self.references, strict=True):
            answers = kept(embedded(lambda b: graph(**b), batches), reference)
            found |= {f"Spearman, {kind}": answers["Spearman"], f"cosine, {kind}": answers["cosine"]}
        return found | {"M MACs": cost.macs(graph) / 1e6}


def main() -> None:
    options = common.arguments(
        __doc__, tokens=[128, 256, 512, 1024, 2048, 4096], heads=12, size=32, ways=[w for w in WAYS if WAYS[w]], seconds=25.0,
        parts=["times", "encoder"], train=[w for w in WAYS if WAYS[w]], kinds=["attention", "layer"],
    )  # fmt: skip
    torch.set_num_threads(1)
    tables: dict[str, common.Rows] = {}
    if options.json is not None and options.json.exists():
        tables = json.loads(options.json.read_text())["tables"]
    if "times" in options.parts:
        time(tables, options)
    if "encoder" in options.parts:
        rows, bench = tables.setdefault("Attention of all-MiniLM-L6-v2 replaced", []), Encoder()
        for way in options.ways:
            if not any(row["method"] == way for row in rows):
                common.log(way)
                rows += bench.row(way, way in options.train)
                common.finish(tables, options.json)


if __name__ == "__main__":
    main()
