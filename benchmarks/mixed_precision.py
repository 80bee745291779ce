"""Bits per layer under a budget against the same bits everywhere, on real images and trained weights.

    uniform    the most bits that all layers can have within the budget
    sqnr, kl, hessian    MixedPrecision with that sensitivity, by integer linear programming
    agent      MixedPrecision(solver="agent"), rewarded by the output's SQNR

each followed by LearnRounding(method="gptq"). Budgets: an average number of bits of the weights, with 8-bit activations; or the
bit operations of 4-bit weights and activations, in all layers, or (`ends 8`) with 8-bit weights in the first and the last one.
512 unlabeled training images of CIFAR-10 (256 of Imagenette), measured on the whole test set in the simulated graph.
"""

from __future__ import annotations

import time
from typing import Any

import common
import torch
from pruning import Case
from torch import Tensor

from graphopt.compiler.recipes import clean
from graphopt.formats import Format
from graphopt.ir import cost as measure
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.passes.quantization import LayerFormat, MixedPrecision, Quantize
from graphopt.passes.rounding import LearnRounding
from graphopt.targets import find

TARGET = find("x86")
ACTIVATIONS = (2, 3, 4, 5, 6, 8)
WANTED = {
    ("ResNet-20", "4"): (91.81, 98.3),
    ("ResNet-20", "W4A4 ends 8"): (90.38, 95.0),
    ("MobileNetV1", "4"): (94.20, 98.6),
}


def ends(graph: Graph) -> list[str]:
    """The first and the last layer."""
    sites = [graph.site(node) for node in graph.calls() if Layer.of(node)]
    return [sites[0], sites[-1]]


def uniform(graph: Graph, budget: str) -> dict[str, LayerFormat | None]:
    if not budget.startswith("W4A4"):
        return {"*": LayerFormat(Format(int(float(budget)), per_channel=True))}
    low = Format(4, signed=False, symmetric=False)
    pinned = ends(graph) if budget.endswith("ends 8") else []
    eight = LayerFormat(Format(8, per_channel=True), low)
    return {**dict.fromkeys(pinned, eight), "*": LayerFormat(Format(4, per_channel=True), low)}


def mixed(case: Case, graph: Graph, budget: str, method: str, episodes: int) -> MixedPrecision:
    how: dict[str, Any] = {"sensitivity": method} if method != "agent" else {"solver": "agent", "episodes": episodes}
    if not budget.startswith("W4A4"):
        return MixedPrecision(TARGET, case.batches, average_bits=float(budget), **how)
    pins = dict.fromkeys(ends(graph), 8) if budget.endswith("ends 8") else {}
    return MixedPrecision(TARGET, case.batches, max_bit_operations=(4, 4), activations=ACTIVATIONS, layers=pins, **how)


def answers(case: Case, graph: Graph) -> Tensor:
    with torch.no_grad():
        return torch.cat([graph(x) for x in case.x.split(125)])


def row(case: Case, start: Graph, wanted: Tensor, budget: str, method: str, episodes: int) -> dict[str, Any]:
    graph, began, taken, cost = start.clone(), time.process_time(), "", None
    if method == "uniform":
        formats = uniform(graph, budget)
    else:
        plan = mixed(case, graph, budget, method, episodes).plan(graph)
        formats, taken, cost = dict(plan.formats), plan.chosen, plan.cost
        common.log(f"{plan}")
    planned = time.process_time()
    Quantize(TARGET, case.batches, formats=formats)(graph)
    graph.refresh()
    LearnRounding(case.batches, method="gptq")(graph)
    learned = time.process_time()
    graph.refresh()
    found = answers(case, graph)
    p, q = (torch.log_softmax(z.double(), 1) for z in (wanted, found))
    return {
        "network": case.name,
        "budget": budget,
        "method": method,
        "taken": taken,
        "cost": cost,
        "top-1": 100 * float((found.argmax(1) == case.y).double().mean()),
        "agreement": 100 * float((found.argmax(1) == wanted.argmax(1)).double().mean()),
        "KL": float((p.exp() * (p - q)).sum(1).mean()),
        "SQNR": measure.sqnr(wanted, found),
        "CPU seconds": planned - began,
        "of gptq": learned - planned,
        "wanted top-1": WANTED.get((case.name, budget), (None, None))[0],
    }


def main() -> None:
    chosen = common.arguments(
        __doc__,
        networks=["ResNet-20", "MobileNetV1"],
        budgets=["4", "3", "2.5", "W4A4", "W4A4 ends 8"],
        methods=["uniform", "sqnr", "kl", "hessian", "agent"],
        episodes=150,
    )
    torch.set_num_threads(1)
    rows: common.Rows = []
    for name in chosen.networks:
        case = Case(name)
        graph = case.graph.clone()
        for transform in clean(TARGET):
            transform(graph)
            graph.refresh()
        wanted = answers(case, graph)
        for budget in chosen.budgets:
            if name == "MobileNetV1" and budget.startswith("W4A4"):
                continue
            for method in chosen.methods:
                rows.append(row(case, graph, wanted, budget, method, chosen.episodes))
                common.log(str(rows[-1]))
    common.finish({"bits per layer": rows}, chosen.json)


if __name__ == "__main__":
    main()
