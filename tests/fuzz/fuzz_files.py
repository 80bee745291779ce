"""Good files changed at random: reading one runs nothing of it, raises no error but ours, and takes bounded memory and time.

    python tests/fuzz/fuzz_files.py --mutations 10000 [--seed 0] [--kind graph]

A failure names its seed, which alone makes the file again. `test_fuzz_files.py` runs a few hundred.
"""

from __future__ import annotations

import argparse
import collections
import copy
import faulthandler
import json
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))  # where pytest's configuration has it
from hostile import as_json, entries, exported, graph, payloads, set_off, write
from torch import nn

import graphopt
from graphopt.artifacts import manifest as manifests
from graphopt.artifacts import packing
from graphopt.frontend.exported_file import load_program
from graphopt.ir.graph import Graph
from graphopt.utils.errors import GraphoptError
from graphopt.utils.files import sha256

SECONDS = 20  # that one file may take
GROWTH = 2**31  # bytes that the process may grow by
KINDS = ("graph", "program", "weights", "manifest", "network")
ODD = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2**31,
    2**63,
    2**64,
    10**12,
    10**30,
    0.5,
    1e300,
    "",
    "x",
    "\0",
    "node",
    "..",
    [],
    {},
    [[[]]],
]


class Corpus:
    """Good files of every kind in a folder, and how each is changed and read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.texts = payloads("x")
        graph().save(folder / "graph.pt2")
        exported(folder / "program.pt2")
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
        done = graphopt.optimize(model, torch.randn(2, 4), target="nnie", calibration=torch.randn(8, 4))
        self.artifact = done.artifact.save(folder / "artifact")
        self.inputs = torch.randn(2, 4)
        self.graph, self.program = entries(folder / "graph.pt2"), entries(folder / "program.pt2")
        self.network = entries(self.artifact / "network.graph")

    def try_one(self, seed: int, kind: str) -> str:
        """Change one file as the seed says and read it; what came of it, by name of the error."""
        chance = random.Random(seed)
        bad = self.folder / "bad"
        shutil.rmtree(bad, ignore_errors=True)
        bad.mkdir()
        read = getattr(self, f"_{kind}")(chance, bad)
        try:
            call = read()
        except GraphoptError as error:
            return type(error).__name__
        try:
            if call is not None:
                call()
        except Exception as error:  # torch's own, of operators that do not fit their values
            return f"read, its call raised {type(error).__name__}"
        return "read"

    # ---- One kind of file each: writes a changed one, returns what reads it, which returns what calls it

    def _graph(self, chance: random.Random, bad: Path) -> Callable[[], Any]:
        path = self._archive(chance, bad / "graph.pt2", self.graph)

        def read() -> Any:
            loaded = Graph.load(path)
            return lambda: loaded(*loaded.example.args, **loaded.example.kwargs)

        return read

    def _program(self, chance: random.Random, bad: Path) -> Callable[[], Any]:
        path = self._archive(chance, bad / "program.pt2", self.program)
        if chance.random() < 0.2:  # the whole way takes ten times as long
            return lambda: Graph.capture(path) and None
        return lambda: load_program(path) and None

    def _weights(self, chance: random.Random, bad: Path) -> Callable[[], Any]:
        content = (self.artifact / "weights.packed").read_bytes()
        _, length, _ = packing.HEAD.unpack_from(content)
        described, body = content[packing.HEAD.size : packing.HEAD.size + length], content[packing.HEAD.size + length :]
        if chance.random() < 0.7:
            described = self._json(chance, described)
        else:
            body = self._bytes(chance, body)
        rest = described + body
        path = bad / "weights.packed"
        path.write_bytes(
            packing.HEAD.pack(packing.MAGIC, len(described), packing.checksum(len(described), rest)) + rest
            if chance.random() < 0.9
            else self._bytes(chance, content)
        )
        return lambda: packing.read(path) and None

    def _manifest(self, chance: random.Random, bad: Path) -> Callable[[], Any]:
        shutil.copytree(self.artifact, bad, dirs_exist_ok=True)
        content = (bad / "manifest.json").read_bytes()
        if chance.random() < 0.8:
            try:
                data = json.loads(self._json(chance, content))
                data.pop("checksum", None)
                data = {**data, "checksum": manifests._checksum(data)}
                content = as_json(data)
            except (ValueError, AttributeError, TypeError, RecursionError):
                pass
        else:
            content = self._bytes(chance, content)
        (bad / "manifest.json").write_bytes(content)
        return lambda: self._opened(bad)

    def _network(self, chance: random.Random, bad: Path) -> Callable[[], Any]:
        shutil.copytree(self.artifact, bad, dirs_exist_ok=True)
        path = self._archive(chance, bad / "network.graph", self.network)
        data = json.loads((bad / "manifest.json").read_bytes())
        data["files"]["network.graph"] = {"size": path.stat().st_size, "sha256": sha256(path)}
        del data["checksum"]
        (bad / "manifest.json").write_bytes(as_json({**data, "checksum": manifests._checksum(data)}))
        return lambda: self._opened(bad)

    def _opened(self, folder: Path) -> Any:
        artifact = graphopt.load(folder)
        return lambda: artifact(self.inputs)

    # ---- Changes

    def _archive(self, chance: random.Random, path: Path, content: dict[str, bytes]) -> Path:
        content = dict(content)
        how = chance.random()
        names = list(content)
        if how < 0.7:
            name = chance.choice([n for n in names if n.endswith(".json")])
            content[name] = self._json(chance, content[name])
        elif how < 0.85:
            name = chance.choice(names)
            content[name] = self._bytes(chance, content[name])
        elif how < 0.9:
            content[chance.choice(names) + chance.choice(["", "x", "/..", ".so"])] = content.pop(chance.choice(names))
        write(path, content)
        if how >= 0.9:
            path.write_bytes(self._bytes(chance, path.read_bytes()))
        return path

    def _bytes(self, chance: random.Random, content: bytes) -> bytes:
        data = bytearray(content)
        for _ in range(chance.choice([1, 1, 2, 8])):
            at, length = chance.randrange(len(data) + 1), chance.choice([1, 2, 4, 8, 64])
            match chance.randrange(6):
                case 0:
                    data[at : at + length] = chance.randbytes(length)
                case 1:
                    data[at : at + 1] = bytes([chance.choice([0, 1, 127, 128, 255])])
                case 2:
                    del data[at : at + length]
                case 3:
                    data[at:at] = chance.randbytes(length)
                case 4:
                    data[at:at] = data[at : at + chance.randrange(1, 500)]
                case 5:
                    del data[at:]
        return bytes(data)

    def _json(self, chance: random.Random, content: bytes) -> bytes:
        if chance.random() < 0.1:
            return self._bytes(chance, content)
        data = json.loads(content)
        for _ in range(chance.choice([1, 1, 1, 2, 4])):
            self._change(chance, data)
        return as_json(data)

    def _change(self, chance: random.Random, data: Any) -> None:
        """Change one place somewhere inside."""
        owner: Any = data
        while True:
            keys = list(owner) if isinstance(owner, dict) else list(range(len(owner)))
            if not keys:
                return
            key = chance.choice(keys)
            if not isinstance(owner[key], (dict, list)) or not owner[key] or chance.random() < 0.15:
                break
            owner = owner[key]
        match chance.randrange(7):
            case 0:
                owner[key] = chance.choice(ODD)
            case 1:
                owner[key] = chance.choice(self.texts)
            case 2:
                owner[key] = copy.deepcopy(owner[chance.choice(keys)])
            case 3:
                del owner[key]
            case 4 if isinstance(owner, dict):
                owner[chance.choice([*self.texts, "x", "__class__"])] = owner.pop(key)
            case 5 if isinstance(owner[key], int):
                owner[key] += chance.choice([-1, 1, 10**6, 2**40])
            case _:
                owner[key] = [copy.deepcopy(owner[key]) for _ in range(chance.choice([1, 2, 50]))]


def run(mutations: int, first: int, kinds: tuple[str, ...] = KINDS, *, report: bool = False) -> dict[str, Any]:
    """Try so many changed files and count what came of them.

    Raises:
        AssertionError: names the seed and kind of a file that ran something, raised a foreign error, or took too much.
    """
    outcomes: dict[str, collections.Counter[str]] = {kind: collections.Counter() for kind in kinds}
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        corpus = Corpus(Path(folder))
        before = _memory()
        previous = signal.signal(signal.SIGALRM, _too_long)
        try:
            for seed in range(first, first + mutations):
                kind = kinds[seed % len(kinds)]
                began = time.perf_counter()
                signal.alarm(SECONDS)
                try:
                    outcomes[kind][corpus.try_one(seed, kind)] += 1
                except BaseException as error:
                    raise AssertionError(
                        f"seed {seed} of {kind}: {type(error).__name__}: {str(error)[:300]}"
                    ) from error
                finally:
                    signal.alarm(0)
                slowest = max(slowest, time.perf_counter() - began)
                assert not set_off(), f"seed {seed} of {kind} ran its payload"
                assert _memory() - before < GROWTH, f"seed {seed} of {kind} took {_memory() - before} bytes"
                if report and (seed - first) % 1000 == 999:
                    grown = (_memory() - before) / 2**20
                    print(f"{seed - first + 1} files, slowest {slowest:.1f} s, grown {grown:.0f} MiB", flush=True)
        finally:
            signal.signal(signal.SIGALRM, previous)
        return {"outcomes": {k: dict(c) for k, c in outcomes.items()}, "slowest": slowest, "grown": _memory() - before}


class TooLongError(BaseException):
    """Of no kind that code under test could catch."""


def _too_long(*_: Any) -> None:
    raise TooLongError(f"more than {SECONDS} s")


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS)
    options = parser.parse_args()
    faulthandler.enable()
    kinds = (options.kind,) if options.kind else KINDS
    print(json.dumps(run(options.mutations, options.seed, kinds, report=True), indent=2))


if __name__ == "__main__":
    main()
