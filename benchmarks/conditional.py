"""Networks that compute as much as an image needs, beside networks that compute the same for all.

    python benchmarks/conditional.py --rows rows.jsonl [--parts cascade exits resolutions joint gates]

cascade       ResNet-20, then ResNet-56 where that is not sure; CIFAR-10
exits         ResNet-56 with three exits, whose heads alone are trained, on 10,000 images; CIFAR-10
joint         the same, all of it trained further on them
gates         ResNet-20 with a gate at every residual block (ConvNet-AIG), trained on 10,000 images; CIFAR-10
resolutions   MobileNetV1 at 128, 160 and 224 pixels, batch norms measured anew at each; ten ImageNet classes

All are int8 on ONNX Runtime, one image at a time, one thread. The networks know their training images too well to say how sure
they may be, so thresholds and temperatures are fitted on one half of the test images and judged on the other, and the other way
round: no figure is of images that it was fitted on. Times are the least of several, in turn with the plain network's.

Each run is a line of `--rows`; those that are there are not run again. Artifacts and trained heads are kept beside it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import common
import torch
from cifar_training import Augmented, accuracy
from torch import Tensor, nn
from training_rows import read, record

import graphopt
from graphopt import Cascade, Graph
from graphopt.analysis.gates import gates as gates_of
from graphopt.analysis.gates import saved_macs
from graphopt.artifacts.artifact import Artifact
from graphopt.cascades.report import CascadeReport
from graphopt.data import Calibration
from graphopt.execution.executor import Executor
from graphopt.ir import cost
from graphopt.passes import AddExits, AddGates, ReestimateBatchNorm, RemoveGates
from graphopt.spaces.resolution import Resized
from graphopt.targets import host
from graphopt.training import Response
from graphopt.training.exits import ExitLoss, train_heads
from graphopt.training.gates import GumbelGates

DROPS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0)  # percentage points that are allowed on the images that are fitted on
SITES = ["layer1.7", "layer2.3", "layer3.0"]
JOINT = 3  # epochs
PIXELS = (128, 160, 224)
GATED, WORK, HEADS = (
    10,
    0.62,
    ("each", "one"),
)  # epochs; the share of the multiply-accumulates that training aims at; heads
TIMED_IMAGES = 100
Data = tuple[Tensor, Tensor]


class Kept:
    """Artifacts and graphs in a folder, made once."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.zoo = folder, common.data()
        folder.mkdir(exist_ok=True)

    @cache  # noqa: B019 - one object for the whole run
    def cifar(self, split: str) -> Data:
        found: Data = self.zoo.cifar10(split)
        return found

    @cache  # noqa: B019
    def resnet(self, depth: int) -> Artifact:
        x = self.cifar("train10k")[0]
        return self.artifact(f"resnet{depth}", lambda: _int8(self.zoo.cifar_resnet(depth), x[:512]))

    @cache  # noqa: B019
    def mobilenet(self, pixels: int) -> Artifact:
        x = self.zoo.imagenette("train256")[0]
        return self.artifact(f"mobilenet{pixels}", lambda: _int8(_at(self.zoo.mobilenet_v1(), pixels, x), x))

    def artifact(self, name: str, make: Callable[[], Any]) -> Artifact:
        place = self.folder / name
        if not place.exists():
            common.log(f"optimizing {name}")
            make().artifact.save(place)
        return graphopt.load(place)

    def heads(self) -> Graph:
        """ResNet-56 with three exits, whose heads were trained and nothing else."""
        place, (x, y) = self.folder / "heads.pt2", self.cifar("train10k")
        if not place.exists():
            graph = Graph.capture(self.zoo.cifar_resnet(56), x[:2])
            AddExits(sites=SITES)(graph)
            data = torch.cat([x, x.flip(3)]), torch.cat([y, y])
            train_heads(graph, data, loss=ExitLoss(share=0.0), epochs=10, batch_size=128, rate=1e-2)
            graph.save(place)
        return Graph.load(place)

    def jointly(self) -> Graph:
        """The same, all of it trained further."""
        place = self.folder / "jointly.pt2"
        if not place.exists():
            x, y = self.cifar("train10k")
            graph, loss = self.heads(), ExitLoss(share=0.3, weights=[0.5, 0.5, 0.5, 1.0])
            graphopt.train(graph, Augmented(x, y), loss=loss, epochs=JOINT, rate=3e-4)
            graph.save(place)
        return Graph.load(place)

    def gated(self, heads: str) -> Graph:
        """ResNet-20 with gates, trained with itself as the teacher; one image at a time. An interrupted training goes on."""
        place, (x, y) = self.folder / f"gates-{heads}.pt2", self.cifar("train10k")
        if not place.exists():
            network = self.zoo.cifar_resnet(20)
            graph = Graph.capture(network, x[:2])
            AddGates(heads=heads)(graph)
            graphopt.train(
                graph, Augmented(x, y), compress=[GumbelGates(work=WORK), Response(network)], epochs=GATED, rate=1e-3,
                checkpoint=self.folder / f"gates-{heads}",
            )  # fmt: skip
            RemoveGates(data=Calibration(x[:2000], graph), least=0.01, most=0.99)(graph)
            graph.save(place)
        return Graph.load(place)

    @cache  # noqa: B019
    def exits(self, name: str) -> Graph:
        """Either of them, quantized."""
        place = self.folder / f"{name}.int8.pt2"
        if not place.exists():
            graph = self.heads() if name == "heads" else self.jointly()
            _int8(graph, self.cifar("train10k")[0][:512]).graph.save(place)
        return Graph.load(place)


def _int8(model: Any, x: Tensor) -> Any:
    return graphopt.optimize(model, x[:1], target="x86", calibration=x, rounding="gptq", measure=False)


def _at(model: nn.Module, pixels: int, x: Tensor) -> Any:
    """A network that makes its images smaller first, with batch norms that know them so."""
    if pixels == x.shape[-1]:
        return model
    graph = Graph.capture(nn.Sequential(Resized(pixels / x.shape[-1]), model).eval(), x[:2])
    ReestimateBatchNorm(Calibration(x, graph))(graph)
    return graph


# ---- Rows -----------------------------------------------------------------------------------------------------------


def plain(artifact: Artifact, reference: Artifact, data: Data) -> dict[str, Any]:
    """A network that computes the same for all."""
    x, y = data
    answers = torch.cat([artifact(part) for part in x.split(100)])
    one = x[:1]
    taken = cost.timings({"it": lambda: artifact(one), "reference": lambda: reference(one)}, repeats=100)
    ms, reference_ms = (min(taken.ms[name]) for name in ("it", "reference"))
    ratio = ms / reference_ms
    return {
        "test": 100 * float((answers.argmax(1) == y).double().mean()), "ms": ms, "time": ratio, "worst": ratio,
    }  # fmt: skip


def crossed(make: Callable[[], Cascade], data: Data, max_drop: float) -> dict[str, Any]:
    """A cascade fitted on each half and judged on the other."""
    x, y = data
    order = torch.randperm(
        len(x), generator=torch.Generator().manual_seed(0)
    )  # images lie in the order of their classes
    halves = order.chunk(2)
    reports: list[CascadeReport] = []
    cascade = make()
    for fitted, judged in (halves, halves[::-1]):
        cascade.fit(x[fitted], y[fitted], max_drop=max_drop)
        reports.append(cascade.evaluate(x[judged], y[judged], points=0))
    rates = _mean([report.chosen.rates for report in reports])
    return {
        "test": statistics.fmean(report.chosen.score for report in reports),
        "ms": statistics.fmean(report.chosen.ms for report in reports),
        "time": statistics.fmean(report.chosen.ratio for report in reports),
        "worst": statistics.fmean(report.worst_ratio for report in reports),
        "MACs": statistics.fmean(report.chosen.macs or 0.0 for report in reports),
        "rates": rates,
        "alone": _mean([[stage.alone for stage in report.stages] for report in reports]),
        "ECE before": _mean([[stage.ece_before or 0.0 for stage in report.stages] for report in reports]),
        "ECE after": _mean([[stage.ece_after or 0.0 for stage in report.stages] for report in reports]),
        "classes": _classes(reports),
    }


def _mean(rows: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.fmean(column) for column in zip(*rows, strict=True)]


def _classes(reports: Sequence[CascadeReport]) -> dict[str, float]:
    """The share of each class that the first stage answers."""
    return {name: statistics.fmean(r.per_class[name][0] for r in reports) for name in reports[0].per_class}


def cascade(kept: Kept, path: Path) -> None:
    data, large = kept.cifar("test"), kept.resnet(56)
    for depth in (20, 32, 56):
        record(
            path, {"part": "CIFAR-10", "network": f"ResNet-{depth}"}, lambda d=depth: plain(kept.resnet(d), large, data)
        )  # type: ignore[misc]
    for depths in ((20, 56), (20, 32, 56)):
        name = " → ".join(f"ResNet-{depth}" for depth in depths)
        make = lambda depths=depths: Cascade(list(map(kept.resnet, depths)), plain=large)  # noqa: E731
        for drop in DROPS if len(depths) == 2 else (0.0,):
            key = {"part": "CIFAR-10", "network": name, "max_drop": drop}
            record(path, key, partial(crossed, make, data, drop))


def exits(kept: Kept, path: Path, name: str = "heads") -> None:
    data, large = kept.cifar("test"), kept.resnet(56)
    how = "heads trained" if name == "heads" else f"trained jointly, {JOINT} epochs"
    make = lambda: Cascade.of_exits(kept.exits(name), target="x86", plain=large)  # noqa: E731
    for drop in DROPS if name == "heads" else (0.0, 0.5):
        key = {"part": "CIFAR-10", "network": f"ResNet-56, three exits, {how}", "max_drop": drop}
        record(path, key, partial(crossed, make, data, drop))


def gates(kept: Kept, path: Path) -> None:
    x, y = kept.cifar("test")
    for heads in HEADS:
        how = "a head for each gate" if heads == "each" else "one head for all gates"
        key = {"part": "gates", "network": f"ResNet-20, {how}"}
        record(path, key, lambda h=heads: gated(kept, h, x, y))  # type: ignore[misc]


def gated(kept: Kept, heads: str, x: Tensor, y: Tensor) -> dict[str, Any]:
    """A gated network beside the plain one: work by the ways that all images take, time on some, in turn."""
    example, calibration = kept.cifar("train10k")[0][:1], kept.cifar("train10k")[0][:512]
    trained = kept.gated(heads)
    found, plain = (
        graphopt.optimize(
            model, example, target=host(), calibration=calibration, rounding="gptq", measure=False, dynamic_batch=False,
        )
        for model in (_for_one(trained, example), kept.zoo.cifar_resnet(20))
    )  # fmt: skip
    macs, opened = torch.tensor(saved_macs(found.graph)), _openings(found.graph, x)
    work = cost.macs(found.graph) - ((~opened).double() * macs).sum(1)
    times = []
    for image in x[:: len(x) // TIMED_IMAGES].split(1):
        taken = cost.timings({"it": lambda: found.artifact(image), "plain": lambda: plain.artifact(image)}, repeats=20)  # noqa: B023
        times.append([min(taken.ms[name]) for name in ("it", "plain")])
    ours, theirs = (statistics.fmean(column) for column in zip(*times, strict=True))
    return {
        "test": _right(found.artifact, x, y), "plain test": _right(plain.artifact, x, y), "float test": accuracy(trained, x, y),
        "ms": ours, "plain ms": theirs, "time": ours / theirs, "work": float(work.mean()) / cost.macs(plain.graph),
        "rates": opened.double().mean(0).tolist(), "ways": len(opened.unique(dim=0)),
    }  # fmt: skip


def _right(artifact: Artifact, x: Tensor, y: Tensor) -> float:
    answers = torch.cat([artifact(image) for image in x.split(1)])
    return 100 * float((answers.argmax(1) == y).double().mean())


def _for_one(graph: Graph, example: Tensor) -> Graph:
    """The same for one image at a time, so that a gate decides whether a block runs at all."""
    return Graph.capture(graph.module.eval(), example, dynamic_batch=False)


def _openings(graph: Graph, x: Tensor) -> Tensor:
    """Which gates are open, bool [N, gates]."""
    conditions, executor = [gate.condition for gate in gates_of(graph)], Executor(graph)
    with torch.no_grad():
        rows = [[bool(value) for value in executor.run(conditions, [image]).values()] for image in x.split(1)]
    return torch.tensor(rows)


def resolutions(kept: Kept, path: Path) -> None:
    data, large = kept.zoo.imagenette("val500"), kept.mobilenet(224)
    for pixels in PIXELS:
        key = {"part": "ten ImageNet classes", "network": f"MobileNetV1, {pixels} pixels"}
        record(path, key, lambda p=pixels: plain(kept.mobilenet(p), large, data))  # type: ignore[misc]
    for chosen in ((128, 224), (160, 224), PIXELS):
        make = lambda chosen=chosen: Cascade(list(map(kept.mobilenet, chosen)), plain=large)  # noqa: E731
        name = f"MobileNetV1, {' → '.join(map(str, chosen))} pixels"
        for drop in (0.0, 0.5):
            key = {"part": "ten ImageNet classes", "network": name, "max_drop": drop}
            record(path, key, partial(crossed, make, data, drop))


# ---- Tables ---------------------------------------------------------------------------------------------------------


def tables(path: Path) -> dict[str, list[dict[str, Any]]]:
    rows = read(path)
    found = {part: [_row(row) for row in rows if row["part"] == part] for part in ("CIFAR-10", "ten ImageNet classes")}
    found["Calibration"] = [
        {"network": row["network"], "stage": n, "alone": row["alone"][n], "ECE before, %": before,
         "ECE after, %": row["ECE after"][n]}
        for row in rows if row.get("max_drop") == 0.0
        for n, before in enumerate(row["ECE before"])
    ]  # fmt: skip
    found["Answered by the first stage, by class"] = [
        {"network": row["network"], **{name: f"{share:.0%}" for name, share in row["classes"].items()}}
        for row in rows if row.get("max_drop") == 0.0
    ]  # fmt: skip
    found["Gates"] = [
        {"network": row["network"], "test": row["test"], "plain network": row["plain test"], "share of MACs": row["work"],
         "share of time": row["time"], "ms": row["ms"], "plain ms": row["plain ms"], "ways": row["ways"],
         "open": " / ".join(f"{rate:.0%}" for rate in row["rates"])}
        for row in rows if row["part"] == "gates"
    ]  # fmt: skip
    return {name: table for name, table in found.items() if table}


def _row(row: dict[str, Any]) -> dict[str, Any]:
    rates = " / ".join(f"{rate:.0%}" for rate in row.get("rates", []))
    return {
        "network": row["network"], "allowed drop": row.get("max_drop"), "test": row["test"], "expected time": row["time"],
        "worst case": row["worst"], "expected ms": row["ms"], "million MACs": row["MACs"] / 1e6 if "MACs" in row else None,
        "answered by stage": rates or None,
    }  # fmt: skip


PARTS = {
    "cascade": cascade, "exits": exits, "resolutions": resolutions, "joint": partial(exits, name="jointly"), "gates": gates,
}  # fmt: skip


def main() -> None:
    options = common.arguments(__doc__, rows="conditional.jsonl", parts=list(PARTS))
    torch.set_num_threads(1)
    path = Path(options.rows)
    kept = Kept(path.with_suffix(".kept"))
    for part in options.parts:
        PARTS[part](kept, path)
    common.finish(tables(path), options.json)


if __name__ == "__main__":
    main()
