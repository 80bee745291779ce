"""Binary codes for search: recall beside exact search among features, bytes, and time, one thread.

    python benchmarks/binary_codes.py [--json figures.json] [--features kept.npz]

Features are those in front of the classifier of ResNet-56 (CIFAR-10; 64 means over the image, or 256 over its quarters) and the
sentence embeddings of all-MiniLM-L6-v2 (384). Codes are chosen on 10,000 training images, or 5,000 sentences; searched are 9,500
test images, or 6,500 sentences, for 500 others, which nothing was chosen on. Sentences are first sentences of docstrings.

`recall@10` is the share of the 10 nearest by features (Euclidean; cosine for sentences) that are among the 10 nearest by codes;
`10 of 100` that among the 100 nearest. `class mAP` is the mean average precision of a ranking by codes, where an image of the
same class is right: what Gong and Lazebnik measure. `learned` trains the projection for 10 epochs to keep neighbours
(`LearnCodes`), `learned with the network` all of ResNet-56 for `--network-epochs`, from ITQ with whitening=0.5; neighbours are
those by the features before. Times: medians of rounds in turn, one query at a call and all 500 at once. For times alone, entries
are drawn around the real ones, as many as a row says. `--features` keeps features in a file, or takes them from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import common
import numpy as np
import torch
from encoder import encoder
from sentences import docstrings
from torch import Tensor, nn

import graphopt
from graphopt.ir.graph import Graph
from graphopt.passes import BinaryCodes, FoldBatchNorm, Quantize, Simplify
from graphopt.passmanager import run
from graphopt.retrieval import FaissIndex, HammingIndex, compare
from graphopt.targets import find
from graphopt.training import LearnCodes
from graphopt.utils.errors import InputError

BITS = (32, 64, 128)
WAYS: dict[str, dict[str, Any]] = {
    "mean": {"method": "mean"}, "median": {"method": "median"}, "random": {"method": "random"}, "PCA": {"method": "pca"},
    "ITQ": {"method": "itq"}, "ITQ, whitening=0.5": {"method": "itq", "whitening": 0.5},
}  # fmt: skip
QUERIES = 500
TIMED = {"ResNet-56": ((9_500, 64), (1_000_000, 64)), "MiniLM": ((6_500, 128), (250_000, 128))}  # entries, bits


class Case(NamedTuple):
    """Features of what codes are chosen on, of what is searched, and of queries; classes of the last two."""

    fitted: Tensor
    entries: Tensor
    queries: Tensor
    classes: tuple[Tensor, Tensor] | None = None

    @property
    def metric(self) -> Any:
        return "euclidean" if self.classes else "cosine"


class Quarters(nn.Module):
    """ResNet-56 in front of its classifier: means over parts of the image, `size` x `size` of them."""

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network, self.size = network, size
        self.maps: Tensor | None = None
        network.layer3.register_forward_hook(self.keep)  # type: ignore[union-attr]

    def keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.maps = output

    def forward(self, x: Tensor) -> Tensor:
        self.network(x)
        assert self.maps is not None
        return nn.functional.adaptive_avg_pool2d(self.maps, self.size).flatten(1)


# ---- Features -------------------------------------------------------------------------------------------------------


def images_of(zoo: Any, size: int) -> dict[str, Tensor]:
    network, found = Quarters(zoo.cifar_resnet(56).eval(), size).eval(), {}
    for split in ("train10k", "test"):
        images, labels = zoo.cifar10(split)
        found[split] = torch.cat([network(part) for part in images.split(100)])
        found[f"{split} classes"] = labels
    return found


def texts() -> Tensor:
    model, batch = encoder()
    sentences = docstrings(12_000)
    order = sorted(range(len(sentences)), key=lambda n: len(sentences[n]))
    found = torch.zeros(len(sentences), 384)
    for first in range(0, len(order), 64):
        some = order[first : first + 64]
        found[some] = model(**batch([sentences[n] for n in some]))
    return found


@torch.no_grad()
def cases(kept: str) -> dict[str, Case]:
    if kept and Path(kept).exists():
        held = {name: torch.from_numpy(array) for name, array in np.load(kept).items()}
    else:
        zoo = common.data()
        common.log("features of images")
        held = {f"{size} {name}": value for size in (1, 2) for name, value in images_of(zoo, size).items()}
        common.log("features of sentences")
        held["texts"] = texts()
        if kept:
            np.savez(kept, **{name: value.numpy() for name, value in held.items()})
    found = {}
    for name, size in (("ResNet-56", 1), ("ResNet-56, quarters", 2)):
        test, classes = held[f"{size} test"], held[f"{size} test classes"]
        parts = classes[:-QUERIES], classes[-QUERIES:]
        found[name] = Case(held[f"{size} train10k"], test[:-QUERIES], test[-QUERIES:], parts)
    text = held["texts"]
    found["MiniLM"] = Case(text[:5000], text[5000:-QUERIES], text[-QUERIES:])
    return found


# ---- Codes ----------------------------------------------------------------------------------------------------------


def coder(case: Case, bits: int, **options: Any) -> Graph:
    """A graph from features to codes."""
    graph = Graph.capture(nn.Identity().eval(), case.fitted[:2])
    run([BinaryCodes(bits, [[case.fitted]], **options)], graph)
    return graph


def learned(case: Case, bits: int, **options: Any) -> Graph:
    """The same with a projection that was trained to keep neighbours."""
    graph = coder(case, bits, **options)
    graphopt.train(graph, case.fitted, compress=[LearnCodes()], epochs=10, batch_size=256, rate=1e-3, seed=0)
    return graph


def average_precision(case: Case, codes: Tensor, queries: Tensor) -> float | None:
    """Mean over queries, of a ranking of all entries; of equal distances the first entry comes first."""
    if case.classes is None:
        return None
    _, order = HammingIndex(codes).search(queries, len(codes))
    right = (case.classes[0][torch.from_numpy(order)] == case.classes[1][:, None]).double()
    precision = right.cumsum(1) / torch.arange(1, right.shape[1] + 1)
    return float(((precision * right).sum(1) / right.sum(1)).mean())


def found_by(case: Case, codes: Tensor, queries: Tensor) -> dict[str, Any]:
    report = compare(case.entries, codes, case.queries, queries, metric=case.metric, timed=False)
    return {
        "recall@10": report.recall[10], "10 of 100": report.recall[100], "class mAP": average_precision(case, codes, queries),
        "x smaller": report.bytes_exact / report.bytes_codes,
    }  # fmt: skip


def rows(case: Case) -> Iterator[dict[str, Any]]:
    for bits in BITS:
        for way, options in WAYS.items():
            try:
                graph = coder(case, bits, **options)
            except InputError as error:
                yield {"bits": bits, "way": way, "note": str(error).partition(":")[0]}
                continue
            yield {"bits": bits, "way": way, **found_by(case, graph(case.entries), graph(case.queries))}
        options = WAYS["ITQ, whitening=0.5" if case.classes else "ITQ"]
        if bits <= case.fitted.shape[1]:
            graph = learned(case, bits, **options)
            with torch.no_grad():
                yield {"bits": bits, "way": "learned", **found_by(case, graph(case.entries), graph(case.queries))}


# ---- On runtimes ----------------------------------------------------------------------------------------------------


def on_runtimes(case: Case, count: int) -> common.Rows:
    """ResNet-56 with 64 bits as artifacts: bits that are those of the graph or its simulation, and recall."""
    zoo = common.data()
    train, (images, _) = zoo.cifar10("train10k")[0], zoo.cifar10("test")
    data = [[part] for part in train.split(250)]
    table: common.Rows = []
    for target in ("x86", "tvm-x86"):
        graph = Graph.capture(Quarters(zoo.cifar_resnet(56).eval(), 1).eval(), images[:1])
        run([Simplify(), FoldBatchNorm(), BinaryCodes(64, data)], graph)
        for integer in (False, True):
            if integer:
                run([Quantize(find(target), data[:2])], graph)
            common.log(f"{target}, {'int8' if integer else 'float'}")
            table.append(artifact_row(case, graph, target, images, count, integer))
    return table


def with_the_network(case: Case, epochs: int) -> dict[str, Any]:
    """Everything learns, on the training images as they are."""
    zoo = common.data()
    train, images = zoo.cifar10("train10k")[0], zoo.cifar10("test")[0]
    graph = Graph.capture(Quarters(zoo.cifar_resnet(56).eval(), 1).eval(), images[:1])
    run([BinaryCodes(64, [[part] for part in train.split(250)], whitening=0.5)], graph)
    graphopt.train(graph, train, compress=[LearnCodes()], epochs=epochs, batch_size=256, rate=3e-4, seed=0)
    with torch.no_grad():
        codes = torch.cat([graph(part) for part in images.split(100)])
    return {"bits": 64, "way": "learned with the network", **found_by(case, codes[:-QUERIES], codes[-QUERIES:])}


def artifact_row(case: Case, graph: Graph, target: str, images: Tensor, count: int, integer: bool) -> dict[str, Any]:
    made = graphopt.optimize(graph, target=target, calibration=images[:8], passes=[], measure=False).artifact
    some, batch = images[:count], 1 if target.startswith("tvm") else 100
    with torch.no_grad():
        codes = torch.cat([torch.as_tensor(made(part)) for part in some.split(batch)])
        wanted = graphopt.simulate(graph, target)(some) if integer else torch.cat([graph(p) for p in some.split(100)])
    same = np.unpackbits(codes.numpy(), axis=1) == np.unpackbits(wanted.numpy(), axis=1)
    row = {
        "runtime": target, "network": "int8" if integer else "float", "images": count,
        "equal to": "simulation" if integer else "graph", "bits that differ": int((~same).sum()), "of": same.size,
    }  # fmt: skip
    if target == "x86":
        all_codes = torch.cat([torch.as_tensor(made(part)) for part in images.split(100)])
        row |= found_by(case, all_codes[:-QUERIES], all_codes[-QUERIES:])
        row.pop("x smaller")
    return row


# ---- Time -----------------------------------------------------------------------------------------------------------


def around(features: Tensor, count: int) -> Tensor:
    """As many as wanted: the real ones, then others near them."""
    if count <= len(features):
        return features[:count]
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(len(features), (count - len(features),), generator=generator)
    noise = 0.3 * features.std(0) * torch.randn(len(places), features.shape[1], generator=generator)
    return torch.cat([features, features[places] + noise])


def times(found: dict[str, Case]) -> common.Rows:
    table: common.Rows = []
    engines = {"NumPy": HammingIndex, **({"faiss": FaissIndex} if one_thread_of_faiss() else {})}
    for name, sizes in TIMED.items():
        case = found[name]
        for count, bits in sizes:
            entries, graph = around(case.entries, count), coder(case, bits)
            with torch.no_grad():
                codes, queries = torch.cat([graph(part) for part in entries.split(10_000)]), graph(case.queries)
            for engine, index in engines.items():
                common.log(f"{name}, {count} entries, {engine}")
                report = compare(entries, codes, case.queries, queries, metric=case.metric, index=index)
                assert report.alone is not None
                assert report.together is not None
                table.append({
                    "features": name, "entries": count, "width": entries.shape[1], "bits": bits, "search": engine,
                    "MB of floats": report.bytes_exact / 1e6, "MB of codes": report.bytes_codes / 1e6,
                    "ms, float": report.alone.exact_ms, "ms": report.alone.codes_ms, "x faster": report.alone.faster,
                    "ms in a batch, float": report.together.exact_ms, "ms in a batch": report.together.codes_ms,
                    "x faster in a batch": report.together.faster,
                })  # fmt: skip
    return table


def one_thread_of_faiss() -> bool:
    try:
        import faiss
    except ImportError:
        return False
    faiss.omp_set_num_threads(1)
    return True


def main() -> None:
    options = common.arguments(__doc__, features="", runtime_images=1000, network_epochs=2)
    torch.set_num_threads(1)
    found = cases(options.features)
    tables: dict[str, common.Rows] = {}
    for name, case in found.items():
        common.log(name)
        tables[f"{name}: {case.fitted.shape[1]} features"] = list(rows(case))
    if options.network_epochs:
        common.log("learning with the network")
        tables["ResNet-56: 64 features"].append(with_the_network(found["ResNet-56"], options.network_epochs))
    tables["Time of a query"] = times(found)
    tables["ResNet-56 with 64 bits on runtimes"] = on_runtimes(found["ResNet-56"], options.runtime_images)
    common.finish(tables, options.json)


if __name__ == "__main__":
    main()
