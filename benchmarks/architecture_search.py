"""Architecture search on spoken digits: every method beside random search at the same cost.

    python benchmarks/architecture_search.py --rows rows.jsonl [--ways darts fbnet] [--seeds 0 1 2]

The space: cells of six operators on six edges (`graphopt.spaces.darts_cell`), at most `BUDGET` of the multiply-accumulates of
the network with 3x3 convolutions on every edge. Each way searches on three quarters of the training takes and judges by the rest;
the network that it finds is trained anew, the same way for all, and tested on takes 0 to 4.

    random       networks of the budget, trained for two epochs each, for as long as the slowest other way took; the best judged
    spos         single paths sampled, then evolution by shared weights (Guo et al. 2020)
    fairnas      every option once in a step, then evolution (Chu et al. 2021)
    enas         single paths, then REINFORCE by shared weights (after Pham et al. 2018)
    darts        the options mixed by learned weights, first order (Liu et al. 2019)
    darts2       the same, second order
    pcdarts      the same, first order, on half of the channels, edges weighed (Xu et al. 2020)
    optuna       single paths, then tree-structured Parzen estimators by shared weights
    fbnet        Gumbel noise, expected cost in the loss (Wu et al. 2019; SNAS)
    proxylessnas one or two paths at a time (Cai et al. 2019)

`drawn` is the mean of networks of the budget drawn at random and trained alike. int8: the found network through
`graphopt.optimize(target="x86")`. Each run is a line of `--rows`; those that are there are not run again.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import common
import torch
from distillation import Digits
from training_rows import read, record, summary

import graphopt
from graphopt import Graph
from graphopt.analysis.choices import extract
from graphopt.ir.choices import transfer
from graphopt.searching import Assignment
from graphopt.searching.sampled import random_assignments
from graphopt.spaces import darts_cell
from graphopt.supernets import problem_of, search
from graphopt.training.choices import Binary, Gumbel, SinglePath, Softmax

BUDGET = 0.6
EPOCHS = {
    "darts": 8, "darts2": 4, "pcdarts": 10, "fbnet": 8, "proxylessnas": 20, "spos": 16, "enas": 16, "optuna": 16, "fairnas": 3,
}  # fmt: skip  # about the same time
SOLVERS = {"enas": "reinforce", "optuna": "optuna"}
FINAL, RATE, BATCH = 12, 5e-3, 32
SAMPLED = 60  # networks judged by shared weights
DRAWN = 3


class Space:
    """The data, and a new supernet for each search."""

    def __init__(self, seed: int) -> None:
        self.digits, self.seed = Digits(), seed
        order = torch.randperm(len(self.digits.train[0]), generator=torch.Generator().manual_seed(seed))
        x, y = (part[order] for part in self.digits.train)
        quarter = len(x) // 4
        self.validation, self.part = (x[:quarter], y[:quarter]), (x[quarter:], y[quarter:])

    def supernet(self, partial: int = 1) -> Graph:
        torch.manual_seed(self.seed)
        return Graph.capture(darts_cell(1, 10, channels=8, cells=2, partial=partial).eval(), self.part[0][:2])

    def train(self, graph: Graph, data: Any, epochs: int, **options: Any) -> Graph:
        graphopt.train(graph, data, epochs=epochs, batch_size=BATCH, rate=RATE, seed=self.seed, **options)
        return graph

    def judged(self, model: Any) -> float:
        return self.digits.accuracy(model, self.validation)

    def calibration(self) -> list[list[torch.Tensor]]:
        return [[each] for each in self.part[0][:512].split(128)]


def sampled(way: str, space: Space) -> Assignment:
    """By weights that are shared."""
    graph = space.train(space.supernet(), space.part, EPOCHS[way], compress=[SinglePath(fair=way == "fairnas")])
    found = search(
        graph, {"macs": BUDGET}, evaluate=space.judged, data=space.calibration(), evaluations=SAMPLED, seed=space.seed,
        solver=SOLVERS.get(way, "evolution"),
    )  # fmt: skip
    return found.options


def relaxed(way: str, space: Space) -> Assignment:
    """By weights that are learned."""
    make = {"fbnet": Gumbel, "proxylessnas": Binary}.get(way, Softmax)
    more = {"unrolled": RATE} if way == "darts2" else {}
    method = make(validation=space.validation, rate=0.05, budget={"macs": BUDGET}, batch_size=BATCH, delay=0.4, **more)
    graph = space.train(space.supernet(2 if way == "pcdarts" else 1), space.part, EPOCHS[way], compress=[method])
    whole = space.supernet()
    transfer(graph, whole)
    return search(whole, {"macs": BUDGET}, data=space.calibration()).options


def tried(seconds: float, space: Space) -> Assignment:
    """The best of as many networks as can be trained for two epochs in a time."""
    began, best = time.process_time(), (-1.0, ())
    problem = problem_of(space.supernet(), {"macs": BUDGET})
    for options in random_assignments(problem, random.Random(space.seed)):
        small = space.train(extract(space.supernet(), options), space.part, 2)
        best = max(best, (space.judged(small.eval()), options))
        if time.process_time() - began > seconds:
            break
    return best[1]


def trained(space: Space, options: Assignment) -> dict[str, Any]:
    """The network of some options, trained anew, in float and in int8."""
    graph = space.train(
        extract(space.supernet(), options), space.digits.train, FINAL,
        evaluate=lambda model: space.digits.accuracy(model, space.digits.held_out),
    )  # fmt: skip
    graph.eval()
    problem = problem_of(space.supernet(), {"macs": 1.0})
    share = problem.cost("macs", options) / problem.cost("macs", problem.first)
    return {"test": space.digits.accuracy(graph, space.digits.test), "share": share, "graph": graph}


def run(way: str, seed: int, path: Path) -> dict[str, Any]:
    space = Space(seed)
    began = time.process_time()
    if way == "drawn":
        problem = problem_of(space.supernet(), {"macs": BUDGET})
        drawn = itertools.islice(random_assignments(problem, random.Random(100 + seed)), DRAWN)
        found = [trained(space, options) for options in drawn]
        return {name: sum(each[name] for each in found) / DRAWN for name in ("test", "share")}
    if way == "random":
        others = [row["search min"] for row in read(path) if row["seed"] == seed and "search min" in row]
        options = tried(60 * max(others), space)
    else:
        options = (sampled if way in ("spos", "enas", "optuna", "fairnas") else relaxed)(way, space)
    minutes = (time.process_time() - began) / 60
    found = trained(space, options)
    graph = found.pop("graph")
    small = graphopt.optimize(graph, target="x86", calibration=space.digits.train[0][:256], measure=False)
    int8 = space.digits.accuracy(lambda x: torch.as_tensor(small.artifact(x.numpy())), space.digits.test)
    return {**found, "int8": int8, "search min": minutes, "options": list(options)}


WAYS: tuple[str, ...] = (*EPOCHS, "random", "drawn")  # random behind those whose time it gets
Run = Callable[[], dict[str, Any]]


def main() -> None:
    options = common.arguments(__doc__, rows="architectures.jsonl", ways=list(WAYS), seeds=[0, 1, 2])
    torch.set_num_threads(1)
    path = Path(options.rows)
    for seed, way in itertools.product(options.seeds, options.ways):
        record(path, {"way": way, "seed": seed}, partial(run, way, seed, path))
    common.finish({"Spoken digits": summary(path, ("way",), ("search min", "share", "test", "int8"))}, options.json)


if __name__ == "__main__":
    main()
