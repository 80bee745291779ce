"""Every target: what its number formats cost in accuracy, and whether the file obeys its rules.

Networks of CIFAR-10, calibrated on 512 training images by each target's own recipe, nothing trained. Answers are the artifact's
where it runs on this machine, else those of its simulation; agreement is the share of images with the same class as in float;
violations are what `graphopt.check` finds in the artifact. The whole test set (`--images` for less).

Targets: within 0.5 points of float at 8 bits, logarithms within 1; no violation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import common
import torch
from pruning import Case
from torch import Tensor

import graphopt
from graphopt.artifacts.registry import available, backend
from graphopt.evaluation.devices import stand_in
from graphopt.formats import LogFormat
from graphopt.targets import Target, find, machine_here, names

ALIKE = {"host", "tvm-cortex-a53", "tvm-cortex-a72", "tvm-neoverse-n1", "tvm-apple-m1", "tvm-armv7", "tvm-riscv64"}


def variants(chosen: list[str]) -> Iterator[tuple[str, Target]]:
    """Targets in their own format of values and the others that they take; by default those with formats of their own."""
    for name in chosen or [name for name in names() if name not in ALIKE and available(find(name).runtime.name)]:
        target = find(name)
        for values in target.formats.accepted("activations"):
            sixteen = next(
                (w for w in target.formats.more_weights if w.bits == values.bits and w.bits > 8), target.formats.weights
            )
            yield (
                name,
                target.replace(activations=values, weights=sixteen if values.bits > 8 else target.formats.weights),
            )


def answers(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(part).argmax(1) for part in x.split(250)])


def row(case: Case, name: str, target: Target, x: Tensor, y: Tensor, exact: Tensor) -> dict[str, Any]:
    done = graphopt.optimize(case.model, x[:250], target=target, calibration=case.batches, measure=False)
    simulate = partial(backend(target.runtime.name).simulate, target=target)
    found = answers(stand_in(done.artifact, done.graph, simulate), x)
    top1, float_top1 = (100 * float((classes == y).double().mean()) for classes in (found, exact))
    return {
        "network": case.name,
        "target": name,
        "weights": str(target.formats.weights),
        "values": str(target.formats.activations),
        "top-1": top1,
        "lost": float_top1 - top1,
        "may lose": 1.0 if isinstance(target.formats.weights, LogFormat) else 0.5,
        "agreement": 100 * float((found == exact).double().mean()),
        "integer": 100 * done.report.integer_macs,
        "kB": done.artifact.size_bytes / 1000,
        "violations": len(graphopt.check(done.artifact, target)) if done.artifact.manifest.runtime != "tvm" else None,
    }


def main() -> None:
    chosen = common.arguments(__doc__, networks=["ResNet-20"], targets=[], images=10_000)
    torch.set_num_threads(1)
    rows = []
    for network in chosen.networks:
        case = Case(network)
        x, y = case.x[: chosen.images], case.y[: chosen.images]
        exact = answers(case.graph, x)
        for name, target in variants(chosen.targets):
            rows.append(row(case, name, target, x, y, exact))
            common.log(str(rows[-1]))
    common.finish({f"targets, computed on {machine_here()}": rows}, chosen.json)


if __name__ == "__main__":
    main()
