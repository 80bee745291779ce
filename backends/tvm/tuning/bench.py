"""Time variants of a layer in turn with the rule's kernel, on random data."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from graphopt.backends.tvm import schedules
from graphopt.backends.tvm.schedules import Conv, Variant
from graphopt.backends.tvm.tuning.places import TuningDevice
from graphopt.ir import cost
from graphopt.utils.errors import GraphoptError, last_line

GAIN = 1.03  # times faster that a variant must be to be taken
ROUNDS, MORE_ROUNDS = 10, 40
TOLERANCES = {"float32": 1e-4, "float16": 4e-3}  # of a kernel that adds in another order, of the largest number


class Bench:
    """Times kernels at one place."""

    def __init__(self, place: TuningDevice) -> None:
        self.place = place
        self._rules: dict[Conv, Run] = {}

    def speedup(self, layer: Conv, variant: Variant) -> float:
        """How many times faster a variant is than the rule's; 0 where it does not compile, or answers otherwise.

        What seems to gain is timed again, for longer; the lesser gain counts, if the answers agree.
        """
        if layer not in self._rules:
            self._rules[layer] = Run(layer, self.place)
        rule = self._rules[layer]
        try:
            run = Run(layer, self.place, variant)
        except GraphoptError:
            raise
        except (RuntimeError, ValueError) as error:  # whatever TVM's compiler raises
            return _useless(layer, variant, f"does not compile: {last_line(error)}")
        calls = {"rule": rule, "variant": run}
        found = self._timed(calls, ROUNDS, 1.0)
        if found > GAIN:
            if not run.agrees(rule):
                return _useless(layer, variant, "answers otherwise than the rule's")
            found = min(found, self._timed(calls, MORE_ROUNDS, 4.0))
        return round(found, 4)

    def _timed(self, calls: Mapping[str, Callable[[], Any]], rounds: int, seconds: float) -> float:
        taken = cost.timings(calls, rounds, 2, seconds, clocked=True)
        return taken.speedup("rule", "variant")


class Run:
    """A kernel on random data, which are the same for all variants of a layer."""

    def __init__(self, layer: Conv, place: TuningDevice, variant: Variant | None = None) -> None:
        kernel = schedules.conv(layer, place.machine, variant)
        rng = np.random.default_rng(0)
        arrays = [_random(rng, layer.shape, layer.data)]
        if layer.epilogue.residual:
            arrays.append(_random(rng, layer.result_shape, layer.epilogue.residual))
        weight = _random(rng, layer.weight_shape, "int8" if layer.integer else "float32")
        bias = _random(rng, (layer.channels,), "int32" if layer.integer else "float32") if layer.epilogue.bias else None
        rows = (3, layer.channels) if layer.epilogue.slopes else (layer.channels,)
        multiplier = np.full(rows, 1e-3, np.float32) if layer.integer else None
        table = _random(rng, (256,), layer.epilogue.table) if layer.epilogue.table else None
        arrays += kernel.constants(weight, bias, multiplier, table)
        self._call, self._result = place.load(kernel.function, [*arrays, np.zeros(kernel.shape, kernel.dtype)])
        self._exact = layer.integer

    def __call__(self) -> Any:
        return self._call()

    @property
    def result(self) -> Any:
        """Of the last call."""
        return self._result.numpy()

    def agrees(self, other: Run) -> bool:
        """Whether both computed the same; floats may differ by how they round."""
        ours, theirs = self.result, other.result
        if self._exact:
            return bool(np.array_equal(ours, theirs))
        scale = float(np.abs(theirs).max())
        return bool(np.abs(ours.astype(np.float64) - theirs).max() <= TOLERANCES[str(theirs.dtype)] * scale)


def _useless(layer: Conv, variant: Variant, why: str) -> float:
    warnings.warn(f"a kernel that was tried for {layer} is left out, it {why} ({variant})", stacklevel=3)
    return 0.0


def _random(rng: Any, shape: Sequence[int], dtype: str) -> np.ndarray[Any, Any]:
    if dtype.startswith("float"):
        return rng.standard_normal(shape).astype(dtype)  # type: ignore[no-any-return]
    return rng.integers(0, 100, shape).astype(dtype)  # type: ignore[no-any-return]
