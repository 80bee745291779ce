"""Channels, ranks and bits chosen together, against one after the other, at equal measured time and equal bytes; no training.

    python benchmarks/joint.py --rows rows.jsonl [--networks ResNet-20 ResNet-32 MobileNetV1]

`joint`: a budget of time and bytes, spent over channels, ranks, blocks and bits at once. The others get what that took,
measured: channels are pruned by sensitivity (`Prune`) to the largest of some shares of the multiply-accumulates at which
the int8 artifact takes no longer (where none does: to that of the fastest), layers behind that are factorized for a tenth
of the time where chains save as much (`Factorize`), or not; then bits are chosen for the same bytes (`MixedPrecision`).
`ms` and `bytes` are shares of the float original's, each artifact timed in turn with it in ONNX Runtime.

ResNets: 10,000 test images of CIFAR-10, calibrated on 512; MobileNetV1: 500 test images of ten ImageNet classes, calibrated
on 256.

Each run is a line of `--rows`; those that are there are not run again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import common
import torch
from cifar_training import Cifar, accuracy
from training_rows import read, record

import graphopt
from graphopt.artifacts import registry
from graphopt.compiler import recipes
from graphopt.compiler.budget.clock import Clock
from graphopt.compiler.latency import LatencyTimer
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.ir.passes import Change, Pass
from graphopt.passes.factorization import Factorize
from graphopt.passes.pruning import Prune
from graphopt.passmanager import run
from graphopt.targets import host

BUDGETS = {
    "ResNet-20": {"latency": 0.35, "bytes": 0.15},
    "ResNet-32": {"latency": 0.35, "bytes": 0.15},
    "MobileNetV1": {"latency": 0.3, "bytes": 0.15},
}
SHARES = (0.95, 0.85, 0.75, 0.65, 0.55, 0.45, 0.35, 0.25, 0.15)  # of the multiply-accumulates, tried in turn
TIE = 1.02  # times the time of `joint`: what counts as no longer
MOST_BITS = 8.0
TARGET = host("onnxruntime")


@dataclass
class Case:
    """A network, its data, and a clock beside its float original."""

    model: torch.nn.Module
    x: torch.Tensor
    y: torch.Tensor
    calibration: list[torch.Tensor]

    def __post_init__(self) -> None:
        graph = Graph.capture(self.model, self.x[:1])
        self.bytes, self.macs = 4 * cost.parameters(graph), cost.macs(graph)
        run(recipes.clean(TARGET), graph, verify=False)
        self.clock = Clock(registry.backend(TARGET.runtime.name).lower(graph, TARGET), graph.example)

    def optimize(self, **how: Any) -> graphopt.Optimized:
        given = {"target": TARGET, "calibration": self.calibration, "measure": False}
        return graphopt.optimize(self.model, self.x[:1], **given, **how)

    def figures(self, result: graphopt.Optimized) -> dict[str, Any]:
        return {
            "ms": self.clock(result.artifact) / self.clock.reference_ms,
            "bytes": cost.weight_bytes(result.graph) / self.bytes,
            "MACs": cost.macs(result.graph) / self.macs,
            "float": accuracy(self.model, self.x, self.y),
            "int8": accuracy(result.artifact, self.x, self.y),
        }


def case(name: str) -> Case:
    data = common.data()
    if name == "MobileNetV1":
        (x, y), (images, _) = data.imagenette("val500"), data.imagenette("train256")
        return Case(data.mobilenet_v1().eval(), x, y, list(images.split(16)))
    cifar = Cifar()
    model, (x, y) = data.cifar_resnet(int(name.rpartition("-")[2])).eval(), cifar.test
    return Case(model, x, y, list(cifar.calibration.split(64)))


def pruned(keep: float, data: Any) -> list[Pass]:
    return [Prune(keep, data=data, round_to=TARGET.kernels.channel_multiple)]


@dataclass(frozen=True)
class WhereItPays:
    """Factorize for a tenth of the time, where chains save as much; multiply-accumulates that they save are no measure of it."""

    data: Any
    exact: ClassVar[bool] = False

    def __call__(self, graph: Graph) -> list[Change]:
        timer, multiple = LatencyTimer(TARGET), TARGET.kernels.channel_multiple
        try:
            return Factorize(max_latency=0.9, timer=timer, data=self.data, round_to=multiple)(graph)
        except graphopt.InputError as error:
            common.log(str(error))
            return []


def pruned_and_factorized(keep: float, data: Any) -> list[Pass]:
    return [*pruned(keep, data), WhereItPays(data)]


def in_turn(case: Case, smaller: Callable[[float, Any], Sequence[Pass]], ms: float, size: float) -> graphopt.Optimized:
    """The network with the most multiply-accumulates that takes no longer, or the fastest, in bits for so many bytes."""

    def quantized(keep: float, bits: float) -> graphopt.Optimized:
        bits_of = {"average_bits": bits} if bits < MOST_BITS else {}
        return case.optimize(
            passes=lambda target, data: [
                *smaller(keep, data), *recipes.prepare(target), *recipes.integer(target, data, **bits_of),
            ]
        )  # fmt: skip

    times: dict[float, float] = {}
    for keep in SHARES:
        try:
            times[keep] = case.clock(quantized(keep, MOST_BITS).artifact) / case.clock.reference_ms
        except graphopt.InputError as error:  # out of its reach
            common.log(f"{keep}: {error}")
            continue
        common.log(f"{keep} of the multiply-accumulates: {times[keep]:.3f} of the time, {ms:.3f} is wanted")
        if times[keep] <= TIE * ms:
            break
    chosen = min(times, key=lambda keep: max(times[keep], TIE * ms))  # the first that takes no longer, or the fastest
    whole = quantized(chosen, MOST_BITS)
    bits = MOST_BITS * size / (cost.weight_bytes(whole.graph) / case.bytes)
    return whole if bits >= MOST_BITS else quantized(chosen, max(2.0, bits))


def joint(name: str) -> dict[str, Any]:
    found, start = case(name), time.process_time()
    result = found.optimize(budget=BUDGETS[name])
    return {**found.figures(result), "CPU min": (time.process_time() - start) / 60}


def others(name: str, rows: Path, smaller: Callable[[float, Any], Sequence[Pass]]) -> dict[str, Any]:
    (best,) = [row for row in read(rows) if row["network"] == name and row["way"] == "joint"]
    found, start = case(name), time.process_time()
    result = in_turn(found, smaller, best["ms"], best["bytes"])
    return {**found.figures(result), "CPU min": (time.process_time() - start) / 60}


def main() -> None:
    options = common.arguments(__doc__, rows=Path("rows.jsonl"), networks=list(BUDGETS))
    torch.set_num_threads(1)
    for name in options.networks:
        record(options.rows, {"network": name, "way": "joint"}, partial(joint, name))
        for way, smaller in (("prune, bits", pruned), ("prune, factorize, bits", pruned_and_factorized)):
            record(options.rows, {"network": name, "way": way}, partial(others, name, options.rows, smaller))
    common.finish({"Together against one after the other, not trained": read(options.rows)}, options.json)


if __name__ == "__main__":
    main()
