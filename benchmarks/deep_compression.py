"""Deep Compression: how small the file of a network becomes, at what accuracy, and how fast it is read.

    python benchmarks/deep_compression.py [--json figures.json] [--networks lenet-300-100 lenet-5 resnet-20 mobilenet]

Parts that are in the file already are not made again: an interrupted command goes on.

Each network in steps. `pruned`, `+ shared`, `+ Huffman` are those of Han et al. 2016: weights of 32 bits with relative positions
of 8 bits; codes and positions of fixed lengths; the file on disk. The first two are counted from the weights, all else is a
file on disk: ours, with all that is no weight, and what zstd makes of the int8 one. `x` is the ratio to the float ONNX file.
`fewest bits` is even steps, chosen on data for a size, entropy-coded. No test data is used to choose anything.

LeNet-300-100 and LeNet-5 (Caffe's) read sklearn's digits, enlarged to 28 x 28, half of them for training.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from cifar_training import Augmented
from torch import Tensor, nn

import graphopt
from graphopt.artifacts.artifact import Artifact
from graphopt.backends.onnxruntime import lower
from graphopt.coding import container, streams
from graphopt.coding.reader import Reader
from graphopt.compiler.recipes import clean
from graphopt.data import Calibration
from graphopt.fitting.priced import entropy
from graphopt.formats import FAKE_QUANTIZE_TABLE
from graphopt.ir.graph import Graph
from graphopt.ir.masks import zero_share
from graphopt.ir.quantizers import quantizer_of
from graphopt.passes.quantization import Quantize
from graphopt.passes.rounding import MinimizeBits
from graphopt.passes.sharing import ShareWeights
from graphopt.passes.sparsity import Sparsify
from graphopt.passmanager import run
from graphopt.targets import find
from graphopt.training import Response, SharedValues

TARGET = find("x86")
POSITION = 8  # bits of a relative position, as in the paper's convolutions
Case = dict[str, Any]


class Lenet5(nn.Sequential):
    """Caffe's: 431,080 parameters."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
        )  # fmt: skip


class Lenet300(nn.Sequential):
    """LeNet-300-100: 266,610 parameters."""

    def __init__(self) -> None:
        super().__init__(
            nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
        )


# ---- Networks and data ----------------------------------------------------------------------------------------------


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from sklearn.datasets import load_digits

    found = load_digits()
    x = torch.from_numpy(found.images).float()[:, None] / 16
    x, y = nn.functional.interpolate(x, size=28, mode="bilinear"), torch.from_numpy(found.target).long()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[: len(x) // 2], order[len(x) // 2 :]
    return x[train], y[train], x[test], y[test]


def lenet(kind: type[nn.Module], sparsity: float, bits: int, epochs: int) -> Case:
    x, y, test, labels = digits()
    torch.manual_seed(0)
    graph = Graph.capture(kind().eval(), x[:2])
    graphopt.train(graph, (x, y), epochs=30, batch_size=32, rate=1e-3, loss="cross_entropy")
    return {
        "graph": graph.eval(), "train": (x, y), "test": (test, labels), "calibration": x[:256], "sparsity": sparsity,
        "bits": bits, "errors": (1.0, 4.0, 16.0), "epochs": epochs, "rate": 1e-3, "steps": 6, "wanted": 35.0, "trained": True,
        "from": "pruned",
    }  # fmt: skip


def resnet() -> Case:
    zoo = common.data()
    x, y = zoo.cifar10("train10k")
    return {
        "graph": Graph.capture(zoo.cifar_resnet(20), x[:2]), "train": Augmented(x, y), "test": zoo.cifar10("test"),
        "calibration": x[:512], "sparsity": 0.6, "bits": 4, "epochs": 1, "rate": 5e-4, "steps": 2,
        "wanted": 15.0, "untrained": 10.0, "trained": True, "errors": (1.0, 16.0),
    }  # fmt: skip


def mobilenet() -> Case:
    zoo = common.data()
    x, _ = zoo.imagenette("train256")
    return {
        "graph": Graph.capture(zoo.mobilenet_v1(), x[:2]), "test": zoo.imagenette("val500"), "calibration": x[:128],
        "sparsity": 0.15, "bits": 5, "untrained": 8.0, "trained": False, "errors": (1.0,),
    }  # fmt: skip


CASES: dict[str, tuple[str, Callable[[], Case]]] = {
    "lenet-300-100": (
        "LeNet-300-100, digits", lambda: lenet(Lenet300, 0.93, 4, 20)
    ),
    "lenet-5": ("LeNet-5, digits", lambda: lenet(Lenet5, 0.93, 5, 10)),
    "mobilenet": ("MobileNetV1, 10 ImageNet classes", mobilenet),
    "resnet-20": ("ResNet-20, CIFAR-10", resnet),
}  # fmt: skip


# ---- Sizes ----------------------------------------------------------------------------------------------------------


def codes_of(graph: Graph) -> dict[str, Tensor]:
    """Codes of every weight that shares values."""
    nodes = graph.calls(FAKE_QUANTIZE_TABLE)
    return {str(n.args[0].target): quantizer_of(graph, n).quantize(graph.tensor(n.args[0])) for n in nodes}


def counted(graph: Graph, weights: dict[str, Tensor], bits: int) -> float:
    """Bytes of non-zero weights of so many bits with relative positions, as the paper counts, and of all other constants."""
    steps = 0
    for weight in weights.values():
        filled = (weight != 0).flatten().numpy().astype(np.uint8)
        steps += len(streams.relative(filled, 0)[0])
    values = sum(4 * len(torch.unique(weight)) for weight in weights.values()) if bits < 32 else 0
    names = {str(n.target) for n in graph.nodes if n.op == "get_attr"}
    named = {name: graph.tensor(n) for n in graph.nodes if n.op == "get_attr" and (name := str(n.target)) in names}
    rest = sum(
        t.numel() * t.element_size()
        for n, t in named.items()
        if n not in weights and not n.endswith(("_mask", "_table"))
    )
    return steps * (bits + POSITION) / 8 + values + rest


def zstd(path: Path) -> int | None:
    """Bytes of a file behind `zstd -19`."""
    if (tool := shutil.which("zstd")) is None:
        return None
    return len(subprocess.run([tool, "-19", "-c", str(path)], capture_output=True, check=True).stdout)


# ---- Rows -----------------------------------------------------------------------------------------------------------


class Bench:
    """One network. `rows`: those that are known already, to which more are added; `keep` is called after each part of them."""

    def __init__(self, case: Case, rows: common.Rows | None = None, keep: Callable[[], object] = lambda: None) -> None:
        self.case, self.rows, self.keep = case, [] if rows is None else rows, keep
        self.graph: Graph = case["graph"].clone()
        run(clean(TARGET), self.graph)
        self.data = Calibration(case["calibration"], self.graph)
        self.original = self.graph.clone()
        self.float_bytes = lower(self.graph, TARGET).size_bytes

    def accuracy(self, model: Callable[[Tensor], Tensor]) -> float:
        x, y = self.case["test"]
        with torch.no_grad():
            right = sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(100), y.split(100), strict=True))
        return 100 * right / len(y)

    def row(self, way: str, size: float | None, accuracy: float, **more: Any) -> None:
        ratio = None if size is None else self.float_bytes / size
        self.rows[:] = [row for row in self.rows if row["way"] != way]
        self.rows.append(
            {"way": way, "kB": None if size is None else size / 1e3, "x": ratio, "top-1": accuracy, **more}
        )
        common.log(f"{way}: {self.rows[-1]}")

    def stored(self, graph: Graph, coding: streams.Coding) -> Artifact:
        artifact = lower(graph, TARGET)
        artifact.store(coding)
        return artifact

    def train(self, graph: Graph, compress: list[Any], epochs: int) -> None:
        teacher = Response(self.original, temperature=4.0)
        graphopt.train(
            graph,
            self.case["train"],
            compress=[*compress, teacher],
            epochs=epochs,
            batch_size=64,
            rate=self.case["rate"],
        )

    def run(self) -> common.Rows:
        """Parts that have their last row already are left out."""
        parts: dict[str, Callable[[], object]] = {"float": self.floating}
        if (ratio := self.case.get("untrained")) is not None:
            parts[f"fewest bits, {ratio:g} x"] = partial(self.fewest_bits, ratio, trained=False)
        parts[f"int8, codes of few bits at {self.case['errors'][-1]:g} times the error"] = self.integer
        parts["+ Huffman or rANS"] = self.paper
        if (ratio := self.case.get("wanted")) is not None:
            parts[f"fewest bits, {ratio:g} x, trained"] = partial(self.fewest_bits, ratio, trained=True)
        for last, part in parts.items():
            if all(row["way"] != last for row in self.rows):
                part()
                self.keep()
        return self.rows

    def floating(self) -> None:
        self.row("float", self.float_bytes, self.accuracy(lower(self.graph, TARGET)))

    def integer(self) -> None:
        plain = graphopt.optimize(
            self.graph, target=TARGET, calibration=self.case["calibration"], measure=False
        ).artifact
        accuracy = self.accuracy(plain)
        self.row("int8", plain.size_bytes, accuracy)
        self.row("int8, zstd -19", zstd(plain.folder / "model.onnx"), accuracy)
        plain.store("entropy")
        self.row("int8, nearest codes, entropy-coded", plain.size_bytes, accuracy)
        for error in self.case["errors"]:
            graph = self.graph.clone()
            run([Quantize(TARGET, self.data), MinimizeBits(self.data, error)], graph)
            artifact = self.stored(graph, "entropy")
            self.row(
                f"int8, codes of few bits at {error:g} times the error", artifact.size_bytes, self.accuracy(artifact)
            )

    @cached_property
    def pruned(self) -> Graph:
        case, graph = self.case, self.graph.clone()
        tune = (lambda g: self.train(g, [], case["epochs"])) if case["trained"] else None
        steps = case.get("steps", 1)
        mask = Sparsify(case["sparsity"], scope="global", steps=steps, schedule="cubic", fine_tune=tune)
        run([mask], graph, verify=False)
        return graph

    def paper(self) -> None:
        """Pruned, shared, Huffman."""
        case, graph = self.case, self.pruned
        trained, zeros = case["trained"], zero_share(graph)
        share = ShareWeights(case["bits"], data=None if trained else self.data)
        shared = graph.clone()
        run([share], shared, verify=False)
        weights = {
            name: shared.tensor(n) for n in shared.calls(FAKE_QUANTIZE_TABLE) for name in [str(n.args[0].target)]
        }
        accuracy = self.accuracy(graph)
        self.row("pruned", counted(graph, weights, 32), accuracy, **{"zeros %": 100 * zeros})
        if trained:
            self.train(shared, [SharedValues()], case["epochs"])
        bits = case["bits"]
        self.row(
            "+ shared", counted(shared, weights, bits), self.accuracy(shared), **{"zeros %": 100 * zero_share(shared)}
        )
        artifact, smaller = self.stored(shared, "huffman"), self.stored(shared, "entropy")
        accuracy, zeros = self.accuracy(artifact), 100 * zero_share(shared)
        for name, each in (("+ Huffman", artifact), ("+ Huffman or rANS", smaller)):
            self.row(name, each.size_bytes, accuracy, **{"zeros %": zeros})

    def fewest_bits(self, ratio: float, *, trained: bool) -> None:
        graph = (self.pruned if self.case.get("from") == "pruned" else self.graph).clone()
        size = self.float_bytes / ratio - self.rest()
        run([ShareWeights(values="uniform", data=self.data, size=size)], graph, verify=False)
        name = f"fewest bits, {ratio:g} x"
        artifact = self.stored(graph, "entropy")
        codes = codes_of(graph)
        each = {"bits per weight": sum(map(entropy, codes.values())) / sum(c.numel() for c in codes.values())}
        self.row(name, artifact.size_bytes, self.accuracy(artifact), **each)
        if trained:
            self.train(graph, [SharedValues()], self.case["epochs"])
            artifact = self.stored(graph, "entropy")
            self.row(f"{name}, trained", artifact.size_bytes, self.accuracy(artifact), **each)

    def rest(self) -> float:
        """Bytes of a file beside its weights."""
        graph = self.graph.clone()
        run([ShareWeights(2)], graph, verify=False)
        codes = codes_of(graph)
        return self.stored(graph, "entropy").size_bytes - sum(entropy(c) / 8 + 16 for c in codes.values())


# ---- Reading --------------------------------------------------------------------------------------------------------


def decoding(make: Callable[[], Case], name: str) -> common.Rows:
    """Megabytes a second that are restored, of the file as the runtime takes it; medians of runs in turn."""
    case = make()
    bench = Bench(case)
    shared = bench.graph.clone()
    run([ShareWeights(4)], shared, verify=False)
    artifacts = {"float, 16 shared values": lower(shared, TARGET)}
    artifacts["int8"] = graphopt.optimize(
        bench.graph, target=TARGET, calibration=case["calibration"], measure=False
    ).artifact
    rows = common.Rows()
    with common.workplace() as folder:
        taken: dict[tuple[str, str], list[float]] = {}
        for turn in range(5):
            for what, artifact in artifacts.items():
                for coding in streams.CODINGS:
                    path = folder / f"{what} {coding}"
                    if not turn:
                        places = {"model.onnx": artifact.tensors("model.onnx")}
                        container.write(path, {"model.onnx": artifact.folder / "model.onnx"}, places, coding)
                    begin = time.perf_counter()
                    container.restore(path, folder / "out")
                    taken.setdefault((what, coding), []).append(time.perf_counter() - begin)
        for (what, coding), seconds in taken.items():
            size = artifacts[what].size_bytes
            coded = (folder / f"{what} {coding}").stat().st_size
            speed = size / 1e6 / float(np.median(seconds))
            rows.append({"file": f"{name}, {what}", "coding": coding, "kB": coded / 1e3, "restored MB/s": speed})
    return rows + symbols()


def symbols(count: int = 2_000_000) -> common.Rows:
    """Codes alone: normal ones of several spreads; and what constriction does with them, where it is installed."""
    rows = common.Rows()
    for deviation in (1.0, 6.0, 30.0):
        drawn = np.random.default_rng(0).normal(0, deviation, count)
        codes = np.clip(np.round(drawn), -127, 127).astype(np.int8).view(np.uint8)
        bits = entropy(torch.from_numpy(codes.astype(np.int64))) / count
        for coding in ("huffman", "ans"):
            coded = streams._plain(codes, coding)
            decode = partial(_decoded, coded, count)
            rows.append(_symbols_row(f"{bits:.2f} bits of entropy", coding, len(coded), count, decode))
        rows += _constriction(codes, f"{bits:.2f} bits of entropy")
    return rows


def _decoded(coded: bytes, count: int) -> Any:
    return streams.decode(Reader(coded), count)


def _symbols_row(what: str, coding: str, coded: int, count: int, decode: Callable[[], Any]) -> dict[str, Any]:
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        decode()
        seconds.append(time.perf_counter() - begin)
    speed = count / 1e6 / float(np.median(seconds))
    return {"file": f"codes of {what}", "coding": coding, "kB": coded / 1e3, "restored MB/s": speed}


def _constriction(codes: Any, what: str) -> common.Rows:
    try:
        import constriction
    except ImportError:
        return []
    shares = np.bincount(codes, minlength=256) / len(codes)
    model = constriction.stream.model.Categorical(shares.astype(np.float32) + 1e-9, perfect=False)
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(codes.astype(np.int32), model)
    coded = coder.get_compressed()

    def decode() -> Any:
        return constriction.stream.stack.AnsCoder(coded).decode(model, len(codes))

    return [_symbols_row(what, "ans of constriction", 4 * len(coded), len(codes), decode)]


def main() -> None:
    options = common.arguments(__doc__, networks=list(CASES))
    torch.set_num_threads(1)
    tables: dict[str, common.Rows] = {}
    if options.json is not None and options.json.exists():
        tables = json.loads(options.json.read_text())["tables"]
    keep = partial(common.finish, tables, options.json)
    if "Reading" not in tables:
        tables["Reading"] = decoding(mobilenet, "MobileNetV1")
        keep()
    for title, make in (CASES[name] for name in options.networks):
        common.log(title)
        Bench(make(), tables.setdefault(title, []), keep).run()


if __name__ == "__main__":
    main()
