"""Tuning by MetaSchedule: sampled schedules answer what the rule's kernels answer, and the search finds what is fast."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blocks import conv, images, simulated
from rewriting import Model
from torch import Tensor, nn

import graphopt
from graphopt.artifacts.backend import Tuning
from graphopt.targets import architecture, find
from graphopt.utils.errors import InputError

tvm = pytest.importorskip("tvm", reason="the TVM backend needs graphopt[tvm]")
pytestmark = pytest.mark.skipif(architecture() != "x86_64", reason="runs kernels for x86-64")

from test_tvm_bare import in_c, needs_gcc
from tvm import s_tir

from graphopt.backends.tvm import lower, tuning
from graphopt.backends.tvm.build import Code, refusal
from graphopt.backends.tvm.lowering import compiled
from graphopt.backends.tvm.machine import machine
from graphopt.backends.tvm.schedules import PASS_CONFIG, Codes, Conv, Epilogue, Sample, Sum, sampled
from graphopt.backends.tvm.schedules import conv as kernel_of
from graphopt.backends.tvm.tuning import Bench, Budget, Database, Here, metaschedule
from graphopt.backends.tvm.tuning.bench import Run
from graphopt.lowering.static_batch import fix_batch

needs_xgboost = pytest.mark.skipif(
    importlib.util.find_spec("xgboost") is None, reason="the search needs graphopt[metaschedule]"
)
TARGET = find("tvm-x86")
CODES = Epilogue(result=Codes(zero_point=5))
SUM = Sum.of((0.1, 3), (0.2, 4), 0.25, Codes(zero_point=9))
LAYER = Conv((1, 12, 12, 32), 64, (3, 3), padding=((1, 1), (1, 1)))
INTEGER = replace(LAYER, data="uint8", zero_point=7, epilogue=CODES)
DEPTHWISE = replace(LAYER, channels=32, groups=32)
LAYERS = {
    "float": LAYER,
    "float sum": replace(LAYER, epilogue=Epilogue(residual="float32", clamp=(0.0, 6.0))),
    "float16": replace(LAYER, data="float16"),
    "pixels in a row": Conv((2, 7, 7, 64), 48, epilogue=Epilogue(bias=False)),
    "uint8": INTEGER,
    "int8": replace(INTEGER, data="int8", zero_point=-7),
    "integer sum": replace(INTEGER, epilogue=replace(CODES, residual="uint8", sum=SUM)),
    "float result": replace(INTEGER, epilogue=Epilogue()),
    "strided": replace(INTEGER, stride=(2, 2)),
    "dilated": replace(INTEGER, dilation=(2, 2), padding=((2, 2), (2, 2))),
    "narrow": replace(INTEGER, channels=20),
    "linear": Conv((1, 1, 1, 512), 1000, data="uint8", epilogue=CODES),
    "depthwise": DEPTHWISE,
    "integer depthwise": replace(DEPTHWISE, data="uint8", zero_point=3, epilogue=CODES),
    "narrow depthwise": Conv((1, 9, 9, 24), 24, (5, 5), padding=((2, 2), (2, 2)), groups=24, stride=(2, 2)),
}
CPUS = {"the machine at hand": "", "pmaddwd": "x86-64-v3", "sse": "x86-64-v2"}


def code(cpu: str = "") -> Code:
    return Code.of((TARGET.replace(cpu=cpu, triple="x86_64-linux-gnu") if cpu else TARGET).runtime)


def samples(layer: Conv, cpu: Code, count: int) -> list[Sample]:
    """Of every space, those whose tile fits."""
    work = sampled.Workload(layer, machine(cpu.target()))
    found = []
    for space in sampled.spaces(work):
        for seed in range(1, count + 1):
            plan = s_tir.Schedule(work.function(), seed=1000 * seed)
            space(plan)
            found.append(Sample.of(plan))
    return [sample for sample in found if sample.fits(work)]


# ---- Kernels --------------------------------------------------------------------------------------------------------


@pytest.mark.many
@pytest.mark.thorough
@pytest.mark.parametrize("cpu", CPUS.values(), ids=CPUS)
@pytest.mark.parametrize("name", LAYERS)
def test_every_sample_answers_what_the_rules_kernel_answers(name: str, cpu: str) -> None:
    layer, chosen = LAYERS[name], code(cpu)
    if refusal(chosen.to_dict()):
        pytest.skip(f"this machine lacks instructions of {cpu}")
    here = machine(chosen.target())
    assert sampled.applies(layer, here)
    rule = Run(layer, Here(chosen))
    rule()
    found = samples(layer, chosen, 2)
    ways = {(s.channels_outside, s.staged_by_task) for s in found}
    assert len(ways) == len(sampled.spaces(sampled.Workload(layer, here))) in (2, 4)
    for sample in found:
        run = Run(layer, Here(chosen), sample)
        run()
        assert run.agrees(rule), sample


@pytest.mark.thorough
def test_answers_that_differ_do_not_agree() -> None:
    for layer in (LAYER, INTEGER):
        one, other = Run(layer, Here(code())), Run(layer, Here(code()))
        one()
        assert not one.agrees(other)  # which was not run


def test_a_kernel_holds_its_tile_in_registers_and_uses_the_dot_product() -> None:
    a76 = Code.of(find("tvm-cortex-a76").replace(compiler="g++").runtime)
    layer = replace(INTEGER, data="int8")
    sample = Sample(False, False, (3, 2, 2), (3, 1, 4), (4, 2, 2), (4, 2))
    kernel = kernel_of(layer, machine(a76.target()), sample)
    with tvm.transform.PassContext(config=PASS_CONFIG):
        assembly = tvm.compile(kernel.function, a76.target()).mod.inspect_source("s")
    assert "sdot" in assembly
    assert "TVMBackendAllocWorkspace" not in assembly.split("sdot", 1)[1].split("sdot")[0]
    work = sampled.Workload(layer, machine(a76.target()))
    assert sample.fits(work)
    assert not replace(sample, rows=(1, 2, 6)).fits(work)


def test_layers_without_such_schedules() -> None:
    here = machine(code().target())
    assert not sampled.applies(replace(LAYER, groups=2), here)
    assert not sampled.applies(replace(LAYER, channels=62), here)
    assert not sampled.applies(replace(INTEGER, shape=(1, 12, 12, 3)), replace(here, dot="vnni"))


# ---- Search ---------------------------------------------------------------------------------------------------------


def timed_as(monkeypatch: pytest.MonkeyPatch, speedup: Callable[[Sample], float]) -> list[tuple[Conv, Sample]]:
    """Timing that says what it is told; returns what will be asked."""
    asked: list[tuple[Conv, Sample]] = []

    def timed(self: Bench, layer: Conv, sample: Sample) -> float:
        asked.append((layer, sample))
        return speedup(sample)

    monkeypatch.setattr(Bench, "speedup", timed)
    return asked


def wide(sample: Sample) -> float:
    """Tiles of many columns and steps are fast."""
    return 0.5 + sample.columns[-1] / 10 + sample.steps[-1] / 20


@pytest.mark.thorough
@needs_xgboost
def test_the_search_learns_what_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    np.random.seed(0)  # what TVM's cost model, a boosted tree, draws its samples with
    asked = timed_as(monkeypatch, wide)
    chosen = tuning.tune([LAYER], Here(code()), Budget.of(64), tuner="metaschedule").variants
    found = [wide(sample) for _, sample in asked]
    assert len(set(asked)) == len(asked) == 64
    assert np.mean(found[32:]) > 1.15 * np.mean(found[:16])
    best = chosen[LAYER]
    assert isinstance(best, Sample)
    assert wide(best) == max(found)


@pytest.mark.thorough
@needs_xgboost
def test_the_database_goes_on_where_it_was_and_remembers_samples(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "tuned.jsonl"
    asked = timed_as(monkeypatch, wide)
    tuning.tune([LAYER], Here(code()), Budget.of(12), path, "metaschedule")
    again = tuning.tune([LAYER], Here(code()), Budget.of(12), path, "metaschedule").variants
    assert len(set(asked)) == len(asked) == 24
    assert Database(path, code()).of(LAYER) == {sample: wide(sample) for _, sample in asked}
    assert again == {LAYER: max((sample for _, sample in asked), key=wide)}


@pytest.mark.thorough
@needs_xgboost
def test_layers_take_turns_and_those_that_gain_nothing_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metaschedule, "BATCH", 8)
    monkeypatch.setattr(metaschedule, "PATIENCE", 16)
    asked = timed_as(monkeypatch, lambda sample: 0.9)
    skipped = replace(LAYER, channels=62)
    assert tuning.tune([DEPTHWISE, skipped, LAYER], Here(code()), Budget.of(500), tuner="metaschedule").variants == {}
    order = [layer for layer, _ in asked]
    assert order == [LAYER] * 8 + [DEPTHWISE] * 8 + [LAYER] * 8 + [DEPTHWISE] * 8


@pytest.mark.thorough
@needs_xgboost
def test_what_fails_is_learned_as_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = timed_as(monkeypatch, lambda sample: 0.0 if sample.channels_outside else 1.2)
    chosen = tuning.tune([LAYER], Here(code()), Budget.of(24), tuner="metaschedule").variants
    best = chosen[LAYER]
    assert isinstance(best, Sample)
    assert not best.channels_outside
    assert len(asked) == 24


@pytest.mark.thorough
def test_a_kernel_with_another_answer_is_left_out_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = samples(LAYER, code(), 1)[0]
    monkeypatch.setattr("graphopt.ir.cost.Timings.speedup", lambda self, a, b: 2.0)
    bench = Bench(Here(code()))
    assert bench.speedup(LAYER, sample) == 2.0
    monkeypatch.setattr(sampled.Workload, "pack", lambda self, w, b, m: shifted(self, w, b))
    with pytest.warns(UserWarning, match="is left out, it answers otherwise than the rule's"):
        assert bench.speedup(LAYER, sample) == 0.0


def shifted(work: Any, weight: Any, bias: Any) -> tuple[Any, ...]:
    split = weight.reshape(work.vectors, work.dot.lanes, -1, 1, *work.spec.kernel).transpose(0, 4, 5, 2, 1, 3)
    return np.ascontiguousarray(split.reshape(work.weight_shape)), bias + 1


def test_a_kernel_that_does_not_compile_is_left_out_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: Any) -> None:
        raise s_tir.ScheduleError("the loops\ncannot be reordered")

    sample, bench = samples(LAYER, code(), 1)[0], Bench(Here(code()))
    monkeypatch.setattr(sampled, "scheduled", refused)
    with pytest.warns(UserWarning, match="is left out, it does not compile: cannot be reordered"):
        assert bench.speedup(LAYER, sample) == 0.0


def test_factors_that_are_no_schedules_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tuned.jsonl"
    Database(path, code()).add(LAYER, samples(LAYER, code(), 1)[0], 1.1)
    assert len(Database(path, code()).of(LAYER)) == 1
    path.write_text(path.read_text().replace('"sample": [', '"sample": [[1, 2], '))
    with pytest.raises(InputError, match=r"line 1 of .* is no measured kernel"):
        Database(path, code())


# ---- From outside ---------------------------------------------------------------------------------------------------


def network() -> nn.Module:
    def body(m: Any, x: Tensor) -> Tensor:
        y = m.stem(x)
        return m.depth(y) + m.second(y)  # type: ignore[no-any-return]

    return Model(body, stem=conv(3, 32), second=conv(32, 32), depth=conv(32, 32, groups=32))


def remember_samples(graph: graphopt.Graph, target: Any, path: Path) -> int:
    """Write a database in which every layer that has samples gains by one; how many do."""
    there = Code.of(target.runtime)
    database = Database(path, there)
    layers = compiled(fix_batch(graph, 2), there).layers
    found = {layer: samples(layer, there, 3) for layer in layers if sampled.applies(layer, machine(there.target()))}
    for layer, choice in found.items():
        database.add(layer, choice[-1], 1.5)
    return len(found)


@pytest.mark.thorough
@needs_gcc
def test_samples_compiled_to_c_answer_the_same(tmp_path: Path) -> None:
    graph, x = simulated(network(), TARGET), images(2, seed=3)
    assert remember_samples(graph, TARGET, tmp_path / "tuned.jsonl") == 2
    artifact = lower(graph, TARGET, tuning=Tuning(database=tmp_path / "tuned.jsonl"))
    assert torch.equal(in_c(artifact, tmp_path, x), graphopt.simulate(graph, TARGET)(x))


@pytest.mark.thorough
@needs_xgboost
@pytest.mark.parametrize("kind", ["int8", "float"])
def test_an_artifact_of_samples_answers_what_it_should(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    timed_as(monkeypatch, lambda sample: 1.5 + sample.rows[-1] / 100)
    monkeypatch.setattr("graphopt.ir.cost.Timings.speedup", lambda self, before, after: 1.2)
    x = images(4, seed=3)
    graph = simulated(network(), TARGET) if kind == "int8" else graphopt.Graph.capture(network().eval(), (images(2),))
    artifact, plain = lower(graph, TARGET, tuning=Tuning(24, tuner="metaschedule")), lower(graph, TARGET)
    if kind == "int8":
        assert torch.equal(artifact(x), graphopt.simulate(graph, TARGET)(x))
    else:
        assert torch.allclose(artifact(x), plain(x), rtol=1e-4, atol=1e-5)
    assert (artifact.folder / "model.so").read_bytes() != (plain.folder / "model.so").read_bytes()


@pytest.mark.thorough
@needs_xgboost
def test_optimize_searches_and_remembers(tmp_path: Path) -> None:
    path, x = tmp_path / "tuned.jsonl", images(3, seed=3)
    how: dict[str, Any] = {"tune": 10, "tune_database": path, "tuner": "metaschedule", "measure": False}
    result = graphopt.optimize(network().eval(), images(1), target="tvm-x86", calibration=images(4), **how)
    lines = path.read_text().splitlines()
    assert len(lines) == 10
    assert all('"sample": [' in line for line in lines)
    assert torch.equal(result.artifact(x), graphopt.simulate(result.graph, "tvm-x86")(x))


def test_what_is_missing_is_said_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def captured(*arguments: Any) -> None:
        raise AssertionError("work was begun")

    monkeypatch.setattr("graphopt.compiler.request.Request.graph", captured)
    monkeypatch.setitem(sys.modules, "xgboost", None)
    with pytest.raises(InputError, match=r"needs xgboost: pip install 'graphopt\[metaschedule\]'"):
        graphopt.optimize(network(), images(1), target="tvm-x86", tune=5, tuner="metaschedule")
    with pytest.raises(InputError, match="tuner is one of tiles, metaschedule, got 'random'"):
        graphopt.optimize(network(), images(1), target="tvm-x86", tune=5, tuner="random")
    with pytest.raises(InputError, match="such as '60s', got 'soon'"):
        graphopt.optimize(network(), images(1), target="tvm-x86", tune="soon")
