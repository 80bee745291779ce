"""What x86 CPUs without VNNI make of 8-bit weights, and what weights of 7 bits give there instead.

Such a CPU adds products in pairs of 16 bits, which saturate. The answers are those of `graphopt.simulate`, with VNNI ("x86_64")
and without ("avx2"); the latter are compared with ONNX Runtime on an emulated CPU, code by code, where qemu's user mode is there.
Agreement: images given the class that the float network gives them.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import common
import torch
from emulation import HASWELL
from pruning import Case
from torch import Tensor

import graphopt
from graphopt.backends.onnxruntime import OnnxRuntimeArtifact, Simulation
from graphopt.backends.onnxruntime.artifact import expose
from graphopt.formats import Format
from graphopt.targets import find
from graphopt.utils.progress import track

BATCH = 100


def answers(network: object, x: Tensor, what: str) -> Tensor:
    batches = x.split(BATCH)
    return torch.cat([network(batch) for batch in track(list(batches), what)])  # type: ignore[operator]


def saturated(simulation: Simulation, x: Tensor) -> tuple[str, str]:
    """The share of all sums of layers that are wrong, and the layer with the largest share of its own."""
    wrong, total = Counter[str](), Counter[str]()
    for batch in x.split(BATCH):
        for line in simulation.saturation(batch):
            wrong[line.site] += line.wrong
            total[line.site] += line.total
    if not total:
        return "none can", ""
    worst = max(total, key=lambda site: wrong[site] / total[site])
    share = f"{100 * wrong[worst] / total[worst]:.3g} % of {worst}"
    return f"{100 * wrong.total() / total.total():.3g} % in {sum(n > 0 for n in wrong.values())} layers", share


def compared(simulation: Simulation, artifact: OnnxRuntimeArtifact, x: Tensor) -> str:
    """Codes that differ from those of the emulated CPU."""
    if HASWELL.missing:
        return "not compared"
    ours = simulation.codes(x)
    with tempfile.TemporaryDirectory() as folder:
        names = expose(artifact, list(ours), Path(folder))
        theirs = HASWELL.onnxruntime({Path(folder): [x.numpy()]}, qdqisint8allowed="1")[Path(folder)]
    differing = sum(int((ours[name] != torch.from_numpy(theirs[name])).sum()) for name in names)
    return f"{differing} of {sum(ours[name].numel() for name in names)}"


def main() -> None:
    options = common.arguments(__doc__, networks=["ResNet-20", "MobileNetV1"], images=10_000, counted=100, emulated=4)
    torch.set_num_threads(1)
    tables: dict[str, common.Rows] = {}
    for name in options.networks:
        case = Case(name)
        x, y = case.x[: options.images], case.y[: options.images]
        with torch.no_grad():
            wanted = answers(case.model, x, f"{name} float").argmax(1)
        title = f"{name}, {len(x)} test images; float {100 * float((wanted == y).double().mean()):.2f}"
        rows = tables.setdefault(title, [])
        for bits in (8, 7):
            target = find("x86").replace(weights=Format(bits, per_channel=True))
            calibration = torch.cat([batch[0] for batch in case.batches])
            result = graphopt.optimize(case.model, x[:1], target=target, calibration=calibration, measure=False)
            exact = graphopt.simulate(result.graph, target, machine="x86_64")
            paired = graphopt.simulate(result.graph, target, machine="avx2")
            share, worst = saturated(paired, x[: options.counted])
            row: dict[str, object] = {"weights": f"{bits} bits"}
            for kind, simulation in (("VNNI", exact), ("AVX2", paired)):
                found = answers(simulation, x, f"{name} {bits} bits {kind}").argmax(1)
                row[f"top-1, {kind}"] = 100 * float((found == y).double().mean())
                row[f"agreement, {kind}"] = 100 * float((found == wanted).double().mean())
            row |= {"sums saturated": share, "most": worst}
            row["codes unlike the emulated CPU's"] = compared(paired, result.artifact, x[: options.emulated])
            rows.append(row)
            common.log(str(row))
    common.finish(tables, options.json)


if __name__ == "__main__":
    main()
