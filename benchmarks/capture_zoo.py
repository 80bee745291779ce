"""Capture every model of the zoo and print what came out: python benchmarks/capture_zoo.py [part of a name ...]

Columns: operators in the graph, seconds to capture, largest difference to the original on the example (batch 1) and
on a batch of 3, whether the batch is free, and what could not be done.
"""

from __future__ import annotations

import copy
import sys
import time
from pathlib import Path

import torch
import torch.utils._pytree as pytree

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/helpers"))
import zoo

from graphopt.ir.graph import Graph


def difference(a: object, b: object) -> float:
    pairs = zip(pytree.tree_leaves(a), pytree.tree_leaves(b), strict=True)
    return max(float((x - y).abs().max()) for x, y in pairs if isinstance(x, torch.Tensor))


def row(name: str) -> str:
    model, args, kwargs = zoo.make(name)
    start = time.perf_counter()
    graph = Graph.capture(model, args, kwargs)
    seconds = time.perf_counter() - start
    with torch.no_grad():
        small = difference(graph(*args, **kwargs), model(*args, **kwargs))
        args, kwargs = pytree.tree_map(lambda t: torch.cat([t, t.flip(1), t]), (args, kwargs))
        large = difference(graph(*args, **kwargs), model(*args, **kwargs)) if graph.dynamic_batch else float("nan")
    assert str(copy.deepcopy(graph)) == str(graph) == str(graph.clone())
    free = "free" if graph.dynamic_batch else "fixed"
    return f"{len(graph.calls()):6} {seconds:7.1f} {small:9.1e} {large:9.1e}  {free:6} {'; '.join(graph.notes)}"


def main(parts: list[str]) -> None:
    torch.set_num_threads(1)
    print(f"{'model':44} {'ops':>6} {'seconds':>7} {'batch 1':>9} {'batch 3':>9}  {'batch':6}")
    for name in zoo.names():
        if parts and not any(p in name for p in parts):
            continue
        try:
            print(f"{name:44} {row(name)}", flush=True)
        except Exception as error:
            print(f"{name:44} {type(error).__name__}: {str(error).splitlines()[0][:300]}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
