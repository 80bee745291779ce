"""Tuning: measured tiles are kept, remembered and used; answers stay."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from blocks import conv, images, simulated
from rewriting import Model
from torch import Tensor, nn

import graphopt
from graphopt.artifacts.backend import Tuning
from graphopt.targets import architecture, find
from graphopt.utils.errors import InputError

pytest.importorskip("tvm", reason="the TVM backend needs graphopt[tvm]")
pytestmark = pytest.mark.skipif(architecture() != "x86_64", reason="tunes for the x86-64 machine at hand")

from graphopt.backends.tvm import lower, schedules, tuning
from graphopt.backends.tvm.build import Code
from graphopt.backends.tvm.lowering import compiled
from graphopt.backends.tvm.machine import machine
from graphopt.backends.tvm.schedules import Codes, Conv, Epilogue, Tile, Variant
from graphopt.backends.tvm.tuning import Bench, Budget, Database, Here
from graphopt.lowering.static_batch import fix_batch

TARGET = find("tvm-x86")
COPY = f'{sys.executable} "{Path(__file__).parents[1] / "helpers" / "copy_object.py"}"'  # in place of a cross compiler
LAYER = Conv((1, 6, 6, 16), 32, (3, 3), padding=((1, 1), (1, 1)))
SMALLER = replace(LAYER, channels=16)
DEPTHWISE = replace(SMALLER, groups=16, data="uint8", epilogue=Epilogue(result=Codes()))


def code() -> Code:
    return Code.of(TARGET.runtime)


def candidates(layer: Conv) -> list[Tile]:
    return schedules.tiles_of(layer, machine(code().target()))


def timed_as(monkeypatch: pytest.MonkeyPatch, speedups: dict[Tile, float]) -> list[tuple[Conv, Tile]]:
    """Timing that says what it is told; returns what will be asked."""
    asked: list[tuple[Conv, Tile]] = []

    def speedup(self: Bench, layer: Conv, tile: Tile) -> float:
        asked.append((layer, tile))
        return speedups.get(tile, 0.9)

    monkeypatch.setattr(Bench, "speedup", speedup)
    return asked


def test_the_fastest_tile_is_taken_and_none_where_the_rule_is_best(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = candidates(LAYER)[1:4]
    timed_as(monkeypatch, {first: 1.01, second: 1.5, third: 1.2})
    assert tuning.tune([LAYER], Here(code()), Budget.of(3)).variants == {LAYER: second}
    timed_as(monkeypatch, {first: 1.02})
    assert tuning.tune([LAYER], Here(code()), Budget.of(3)).variants == {}


def test_layers_take_turns_the_larger_first_and_trials_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = timed_as(monkeypatch, {})
    tuning.tune([SMALLER, LAYER, LAYER], Here(code()), Budget.of(3))
    large, small = candidates(LAYER), candidates(SMALLER)
    assert asked == [(LAYER, large[1]), (SMALLER, small[1]), (LAYER, large[2])]


def test_the_database_goes_on_where_it_was_and_knows_its_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, tiles = tmp_path / "tiles.jsonl", candidates(LAYER)
    asked = timed_as(monkeypatch, {tiles[2]: 1.4})
    tuning.tune([LAYER], Here(code()), Budget.of(2), path)
    path.write_text(path.read_text() + '{"code": "cut sh')  # an interruption
    assert tuning.tune([LAYER], Here(code()), Budget.of(1), path).variants == {LAYER: tiles[2]}
    assert [tile for _, tile in asked] == tiles[1:4]
    assert Database(path, code()).of(LAYER) == {tiles[1]: 0.9, tiles[2]: 1.4, tiles[3]: 0.9}
    assert Database(path, replace(code(), cpu="x86-64-v3", features=())).of(LAYER) == {}


def test_a_file_that_is_no_database_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("hello\nworld\n")
    with pytest.raises(InputError, match=r"line 1 of .*notes.txt is no measured kernel"):
        Database(path, code())
    path.write_text(json.dumps({"code": "another"}) + "\n")
    assert Database(path, code()).known == {}


@pytest.mark.parametrize("layer", [LAYER, DEPTHWISE], ids=["dense", "depthwise"])
def test_a_tile_is_timed_against_the_rule_on_this_machine(layer: Conv) -> None:
    bench = Bench(Here(code()))
    assert 0.01 < bench.speedup(layer, candidates(layer)[1]) < 100


def network() -> nn.Module:
    def body(m: Any, x: Tensor) -> Tensor:
        y = m.stem(x)
        return m.depth(y) + m.second(y)  # type: ignore[no-any-return]

    return Model(body, stem=conv(3, 32), second=conv(32, 32), depth=conv(32, 32, groups=32))


@pytest.mark.thorough
def test_any_tile_answers_what_the_simulation_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bench, "speedup", lambda self, layer, tile: 2.0 + tile.rows - tile.vectors / 10)
    chosen: dict[Conv, Variant] = {}
    measured = tuning.tune

    def remember(*arguments: Any) -> tuning.Tuned:
        tuned = measured(*arguments)
        chosen.update(tuned.variants)
        return tuned

    monkeypatch.setattr("graphopt.backends.tvm.lowering.tune", remember)
    monkeypatch.setattr("graphopt.ir.cost.Timings.speedup", lambda self, before, after: 1.2)
    graph, x = simulated(network(), TARGET), images(4, seed=3)
    artifact = lower(graph, TARGET, tuning=Tuning(1000))
    assert len(chosen) == 3
    assert torch.equal(artifact(x), graphopt.simulate(graph, TARGET)(x))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("gain", "said"), [(1.25, "the whole is 1.25 times faster with them"), (0.99, "they stay out")]
)
def test_kernels_that_are_faster_alone_are_taken_if_the_whole_is_faster(
    gain: float, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed_as(monkeypatch, dict.fromkeys(candidates(LAYER), 1.5))
    monkeypatch.setattr("graphopt.ir.cost.Timings.speedup", lambda self, before, after: gain)
    graph = graphopt.Graph.capture(nn.Conv2d(16, 32, 3, padding=1).eval(), (torch.zeros(1, 16, 6, 6),))
    plain, tuned = lower(graph, TARGET), lower(graph, TARGET, tuning=Tuning(2))
    same = (tuned.folder / "model.so").read_bytes() == (plain.folder / "model.so").read_bytes()
    assert same == (gain < 1)
    start = "tuning: of 2 kernels measured for 1 layers, those of 1 are faster than the rule's, 1.50 to 1.50 times; "
    assert tuned.manifest.options["tuned"].startswith(start)
    assert said in tuned.manifest.options["tuned"]


def test_a_budget_is_trials_or_seconds() -> None:
    assert [Budget.of(v) for v in (8, "60", "1.5s")] == [Budget(trials=8), Budget(trials=60), Budget(seconds=1.5)]
    values: list[Any] = [0, -3, "soon", "0s", "-1s", "nans", True, 1.5]
    for value in values:
        with pytest.raises(InputError, match=r"a number of trials or of seconds such as '60s'"):
            Budget.of(value)


def test_tuning_for_another_machine_or_runtime_is_refused(tmp_path: Path) -> None:
    graph = simulated(network(), TARGET)
    with pytest.raises(InputError, match=r"tuning measures on this machine, but the code is for cortex-a76"):
        lower(graph, find("tvm-cortex-a76").replace(compiler="g++"), tuning=Tuning(5))
    with pytest.raises(InputError, match=r"there is no database .*tiles.jsonl; tune=\.\.\. writes one"):
        lower(graph, TARGET, tuning=Tuning(database=tmp_path / "tiles.jsonl"))
    with pytest.raises(InputError, match="tune is for targets of TVM"):
        graphopt.optimize(network().eval(), images(1), target="x86", tune=5)


@pytest.mark.thorough
def test_what_a_database_knows_is_used_without_measuring(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As where a device tuned itself, and other machines compile for it."""
    path, target = tmp_path / "device.jsonl", find("tvm-cortex-a76").replace(compiler=COPY)
    graph, there = simulated(network(), target), Code.of(target.runtime)
    plain = lower(graph, target)
    layer = next(s for s in emitted_layers(graph, there) if s.kernel == (3, 3) and s.groups == 1 and s.shape[3] == 32)
    tile = schedules.tiles_of(layer, machine(there.target()))[5]
    Database(path, there).add(layer, tile, 1.5)
    monkeypatch.setattr(Bench, "speedup", None)
    used = lower(graph, target, tuning=Tuning(database=path))
    assert (used.folder / "model.so").read_bytes() != (plain.folder / "model.so").read_bytes()
    monkeypatch.setattr("graphopt.backends.tvm.tuning.database.check_file", None)  # it is only read
    assert tuning.known([layer], there, path).variants == {layer: tile}
    monkeypatch.undo()
    Database(path, there).add(layer, tile, 1.01)  # measured again: no gain
    assert tuning.known([layer], there, path).variants == {}


def emitted_layers(graph: graphopt.Graph, there: Code) -> tuple[Conv, ...]:
    return compiled(fix_batch(graph, 2), there).layers


@pytest.mark.thorough
def test_optimize_tunes_and_remembers(tmp_path: Path) -> None:
    path, x = tmp_path / "tiles.jsonl", images(3, seed=3)
    result = graphopt.optimize(
        network().eval(), images(1), target="tvm-x86", calibration=images(4), tune=4, tune_database=path, measure=False
    )
    assert len(path.read_text().splitlines()) == 4
    assert any(note.startswith("tuning: of 4 kernels measured for") for note in result.report.notes)
    assert torch.equal(result.artifact(x), graphopt.simulate(result.graph, "tvm-x86")(x))
