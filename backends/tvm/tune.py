"""Tune: measure other register tiles for every layer on this machine, and keep those that are faster than the rule's.

    tiles = tune(layers, code, Budget.of("60s"), "tiles.jsonl")        {layer: tile}, of the layers that gained

A tile is timed in turn with the rule's, so that other work on the machine hits both; one that seems faster is timed again, for
longer, and the lesser gain counts. Tiles are tried in the order of the rule's model, one for every layer, then the next, layers
with the most work first. What was measured is written down at once, and is neither measured nor counted again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from graphopt import measure
from graphopt.backends.tvm import schedules
from graphopt.backends.tvm.build import Code, refusal, use_threads
from graphopt.backends.tvm.machine import Machine, machine
from graphopt.backends.tvm.schedules import PASS_CONFIG, Conv, Tile
from graphopt.errors import InputError
from graphopt.files import check_writable
from graphopt.progress import progress
from graphopt.version import versions

CANDIDATES = 24  # tiles of a layer worth trying, the rule's own left out
GAIN = 1.03  # times faster that a tile must be to be taken
ROUNDS, MORE_ROUNDS = 10, 40


@dataclass(frozen=True)
class Budget:
    """Trials to measure, or seconds to measure for."""

    trials: int | None = None
    seconds: float | None = None

    @classmethod
    def of(cls, tune: int | str) -> Budget:
        """From 200 or "60s". Raises InputError where it is neither."""
        if isinstance(tune, str) and tune.isdecimal():
            tune = int(tune)
        if isinstance(tune, int) and not isinstance(tune, bool) and tune > 0:
            return cls(trials=tune)
        if isinstance(tune, str) and tune.endswith("s"):
            try:
                if 0 < (seconds := float(tune[:-1])) < float("inf"):
                    return cls(seconds=seconds)
            except ValueError:
                pass
        raise InputError(f"tune is a number of trials or of seconds such as '60s', got {tune!r}")


class Database:
    """How many times faster than the rule's each tile was, in a file of one line each; without a path, in memory."""

    def __init__(self, path: str | Path | None, code: Code) -> None:
        self.path = None if path is None else check_writable(path)
        self.code = f"{code}, tvm {versions().get('apache-tvm', tvm.__version__)}"
        self.known: dict[str, dict[Tile, float]] = {}
        lines = self.path.read_text().splitlines() if self.path is not None and self.path.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                if entry["code"] == self.code:
                    self.known.setdefault(entry["layer"], {})[Tile(*entry["tile"])] = float(entry["speedup"])
            except (ValueError, KeyError, TypeError) as error:
                if isinstance(error, json.JSONDecodeError) and line.startswith('{"code": '):
                    continue  # an interruption cut it short
                raise InputError(
                    f"line {number} of {self.path} is no measured tile; give a file tuning wrote"
                ) from error

    def of(self, layer: Conv) -> dict[Tile, float]:
        return self.known.setdefault(self._name(layer), {})

    def add(self, layer: Conv, tile: Tile, speedup: float) -> None:
        self.of(layer)[tile] = speedup
        if self.path is not None:
            tiles = [tile.rows, tile.columns, tile.vectors]
            entry = {"code": self.code, "layer": self._name(layer), "tile": tiles, "speedup": speedup}
            with self.path.open("a") as file:
                file.write(("" if self._ends() else "\n") + json.dumps(entry) + "\n")

    def _ends(self) -> bool:
        """Whether the file ends with a whole line."""
        assert self.path is not None
        text = self.path.read_bytes()
        return not text or text.endswith(b"\n")

    @staticmethod
    def _name(layer: Conv) -> str:
        return json.dumps(asdict(layer), sort_keys=True)


def tune(layers: Sequence[Conv], code: Code, budget: Budget, path: str | Path | None = None) -> dict[Conv, Tile]:
    """Measure until the budget is used up; the best tile of each layer that has one faster than the rule's.

    Raises:
        InputError: the code does not run here; the database cannot be read or written.
    """
    if refusal(code.to_dict()):
        raise InputError(
            f"tuning measures on this machine, but the code is for {code} and does not run here; leave out tune"
        )
    database, here = Database(path, code), machine(code.target())
    use_threads(1)
    bench = Bench(code, here)
    end = time.monotonic() + (budget.seconds or float("inf"))
    with progress("tuning", budget.trials) as advance:
        for done, (layer, tile) in enumerate(_waiting(layers, here, database)):
            if done == budget.trials or time.monotonic() > end:
                break
            database.add(layer, tile, bench.speedup(layer, tile))
            advance()
    best = {layer: max(database.of(layer).items(), key=lambda item: item[1], default=None) for layer in layers}
    return {layer: found[0] for layer, found in best.items() if found is not None and found[1] > GAIN}


def _waiting(layers: Sequence[Conv], here: Machine, database: Database) -> Iterator[tuple[Conv, Tile]]:
    by_work = sorted(dict.fromkeys(layers), key=lambda layer: -layer.macs)
    candidates = [[(layer, tile) for tile in schedules.tiles_of(layer, here)[1 : CANDIDATES + 1]] for layer in by_work]
    known: Mapping[Conv, Any] = {layer: set(database.of(layer)) for layer in by_work}
    for trials in zip_longest(*candidates):
        yield from (trial for trial in trials if trial is not None and trial[1] not in known[trial[0]])


class Bench:
    """Times kernels on random data."""

    def __init__(self, code: Code, here: Machine) -> None:
        self.code, self.here = code, here
        self._rules: dict[Conv, Any] = {}

    def speedup(self, layer: Conv, tile: Tile) -> float:
        """How many times faster a tile is than the rule's."""
        if layer not in self._rules:
            self._rules[layer] = self._call(layer, None)
        calls = {"rule": self._rules[layer], "tile": self._call(layer, tile)}
        found = measure.timings(calls, ROUNDS, 2, 1.0).speedup("rule", "tile")
        if found > GAIN:
            found = min(found, measure.timings(calls, MORE_ROUNDS, 2, 4.0).speedup("rule", "tile"))
        return round(found, 4)

    def _call(self, layer: Conv, tile: Tile | None) -> Any:
        kernel = schedules.conv(layer, self.here, tile)
        with tvm.transform.PassContext(config=PASS_CONFIG):
            run = tvm.compile(kernel.function, self.code.target())["main"]
        rng = np.random.default_rng(0)
        arrays = [_random(rng, layer.shape, layer.data)]
        if layer.epilogue.residual:
            arrays.append(_random(rng, layer.result_shape, layer.epilogue.residual))
        weight = _random(rng, layer.weight_shape, "int8" if layer.integer else "float32")
        bias = _random(rng, (layer.channels,), "int32" if layer.integer else "float32") if layer.epilogue.bias else None
        multiplier = np.full(layer.channels, 1e-3, np.float32) if layer.integer else None
        arrays += kernel.constants(weight, bias, multiplier)
        tensors = [tvm.runtime.tensor(a) for a in [*arrays, np.zeros(kernel.shape, kernel.dtype)]]
        return lambda: run(*tensors)


def _random(rng: Any, shape: Sequence[int], dtype: str) -> np.ndarray[Any, Any]:
    if dtype.startswith("float"):
        return rng.standard_normal(shape).astype(dtype)  # type: ignore[no-any-return]
    return rng.integers(0, 100, shape).astype(dtype)  # type: ignore[no-any-return]
