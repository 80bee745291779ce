"""Staged artifacts as C: it returns as soon as a stage is sure, with the answer and the stage that the simulation gives."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import staging
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from typer.testing import CliRunner

tvm = pytest.importorskip("tvm", reason="the TVM backend needs graphopt[tvm]")

from c_program import answers, cross, program

import graphopt
from graphopt import Cascade
from graphopt.backends.tvm.bare.calls import Call, Calls, Slot
from graphopt.backends.tvm.bare.stages import Stages, merged, partitioned
from graphopt.backends.tvm.bare.workspace import arranged
from graphopt.cli.main import app
from graphopt.policies import Network, Policy
from graphopt.policies.stages import History
from graphopt.spaces.resolution import Resized
from graphopt.targets import architecture, find
from graphopt.utils.errors import ArtifactError, InputError

IMAGES = staging.images(60, seed=3)
WEIGHTS = ((1.0, 2.0, -0.5, 0.3, -1.0), (0.5, 1.5, 0.2, 2.0, -1.2))
COPY = f'{sys.executable} "{Path(__file__).parents[1] / "helpers" / "copy_object.py"}"'  # in place of a cross compiler
needs_gcc = pytest.mark.skipif(
    shutil.which("gcc") is None or architecture() != "x86_64", reason="runs C on this machine: needs x86-64 and gcc"
)


@cache
def optimized(kind: str = "small", target: str = "tvm-x86") -> Any:
    """One of the networks of `staging` in int8, one image at a time."""
    torch.manual_seed(0)
    models: dict[str, Callable[[], nn.Module]] = {
        "small": lambda: staging.trained(staging.Cheap(), 30),
        "large": lambda: staging.trained(staging.Large(), 60),
        "shrunk": lambda: nn.Sequential(Resized(0.5), staging.trained(staging.Cheap(), 30)).eval(),
        "exits": lambda: staging.trained(staging.Exiting(), 40),
    }
    return graphopt.optimize(
        models[kind](), staging.images(1), target=target, calibration=staging.images(), measure=False
    )


def cascade_of(kind: str, target: str = "tvm-x86") -> Cascade:
    if kind == "exits":
        return Cascade.of_exits(optimized("exits", target).graph, target=target)
    return Cascade([optimized(each, target) for each in kind.split()])


def stage_answers(cascade: Cascade, x: Tensor) -> list[np.ndarray[Any, Any]]:
    """The logits of every stage, from its simulation."""
    simulation = cascade.simulate()
    found = []
    for last in range(len(simulation.stages)):
        only = [2.0] * last + [0.0] * (len(simulation.stages) - 1 - last)
        simulation.policy = Policy(tuple(None if t == 2.0 else t for t in only))
        found.append(simulation(x).numpy())
    return found


def on_the_edge(cascade: Cascade, confidence: str, x: Tensor) -> Policy:
    """Thresholds that are the very confidence of some sample, so that the last bit decides about it."""
    count = len(cascade.artifact.stages)
    if confidence == "agreement":
        return Policy((1.0,) * (count - 1), confidence)
    temperatures = tuple(0.7 + 0.3 * n for n in range(count))
    weights = WEIGHTS[: count - 1] if confidence == "learned" else ()
    start = Policy((None,) * (count - 1), confidence, temperatures, weights)
    history, thresholds = History(start, len(x)), []
    for stage, logits in enumerate(stage_answers(cascade, x)[:-1]):
        sure = np.sort(history.confidence(stage, [logits]))
        thresholds.append(float(sure[len(sure) // 2]))
    return start.at(thresholds)


def check(cascade: Cascade, place: Path, x: Tensor, last_stage: int | None = None, **how: Any) -> Tensor:
    """Compare the program in C with the simulation, bit for bit; the stage that answered each sample."""
    emulator = how.pop("emulator", ())
    code = program(place, last_stage=last_stage, **how)
    logits, stages = answers(code, place, [x.numpy()], 1, emulator)
    simulation = cascade.simulate()
    simulation.policy = cascade.artifact.policy
    path = simulation.path(x)
    if last_stage is None:
        assert torch.equal(torch.from_numpy(logits), simulation(x))
        assert torch.equal(torch.from_numpy(stages).long(), path)
    return torch.from_numpy(stages).long()


# ---- Answers --------------------------------------------------------------------------------------------------------


@needs_gcc
@pytest.mark.parametrize("confidence", ["softmax", "entropy", "margin", "agreement", "learned"])
def test_a_network_with_exits_answers_at_the_stage_that_the_simulation_says(confidence: str, tmp_path: Path) -> None:
    cascade = cascade_of("exits")
    cascade.artifact.policy = on_the_edge(cascade, confidence, IMAGES)
    stages = check(cascade, cascade.artifact.compile(tmp_path / "bare"), IMAGES)
    assert torch.equal(stages, cascade.artifact.path(IMAGES))
    assert len(stages.unique()) > 1


@pytest.mark.thorough
@needs_gcc
@pytest.mark.parametrize("kind", ["small large", "shrunk small large"])
def test_networks_one_behind_the_other_answer_what_their_simulation_answers(kind: str, tmp_path: Path) -> None:
    """Small to large, and one at half the resolution in front."""
    cascade = cascade_of(kind)
    cascade.artifact.policy = on_the_edge(cascade, "softmax", IMAGES)
    stages = check(cascade, cascade.artifact.compile(tmp_path / "bare"), IMAGES)
    assert len(stages.unique()) == len(cascade.artifact.stages)


@pytest.mark.parametrize("kind", ["exits", pytest.param("small large", marks=pytest.mark.thorough)])
def test_on_an_emulated_microcontroller_the_same_stages_answer(kind: str, tmp_path: Path) -> None:
    compiler, emulator = cross("tvm-cortex-m7")
    cascade = cascade_of(kind, "tvm-cortex-m7")
    cascade.artifact.policy = on_the_edge(cascade, "softmax", IMAGES)
    loaded = graphopt.load(cascade.artifact.save(tmp_path / "deployed"))
    place = loaded.compile(tmp_path / "bare")
    stages = check(cascade, place, IMAGES, compiler=compiler, emulator=emulator)
    assert len(stages.unique()) > 1


@pytest.mark.thorough
@needs_gcc
@pytest.mark.parametrize("last", [0, 1, 2, 9])
def test_no_stage_behind_the_last_one_allowed_runs(last: int, tmp_path: Path) -> None:
    cascade = cascade_of("exits")
    cascade.artifact.policy = on_the_edge(cascade, "margin", IMAGES)
    place, path = cascade.artifact.compile(tmp_path / "bare"), cascade.simulate().path(IMAGES)
    assert torch.equal(check(cascade, place, IMAGES, last), path.clamp(max=last))


@pytest.mark.thorough
@needs_gcc
def test_a_stage_at_which_nothing_stops_runs_only_where_it_is_the_last_one_allowed(tmp_path: Path) -> None:
    cascade = cascade_of("small large")
    cascade.artifact.policy = Policy((None,))
    place = cascade.artifact.compile(tmp_path / "bare")
    assert check(cascade, place, IMAGES).unique().tolist() == [1]
    assert check(cascade, place, IMAGES, 0).unique().tolist() == [0]
    assert "sure(" not in (place / "model.c").read_text()


class Answering(nn.Module):
    """The first answer is an input of the second stage, which returns the sum of both."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.first(x)
        z = self.second(torch.relu(y)) + y
        return [y, z, z.flip(-1).reshape(-1, 2, 2).sum(1).repeat(1, 2) + y]


@needs_gcc
@pytest.mark.parametrize("thresholds", [(0.4, 0.5), (None, None), (None, 0.4)])
def test_an_answer_that_later_stages_read_is_not_overwritten(thresholds: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 6)
    graph = graphopt.Graph.capture(Answering().eval(), (x[:1],))
    cascade = Cascade.of_exits(graph, target="tvm-x86")
    cascade.artifact.policy = Policy(thresholds)
    place = cascade.artifact.compile(tmp_path / "bare")
    logits, stages = answers(program(place), place, [x.numpy()], 1)
    assert stages.tolist() == cascade.artifact.path(x).tolist()
    torch.testing.assert_close(torch.from_numpy(logits), cascade.artifact(x), rtol=1e-6, atol=1e-6)


# ---- Memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_what_stages_share_is_there_once(tmp_path: Path) -> None:
    small = optimized("small")
    alone = graphopt.load(small.artifact.compile(tmp_path / "alone")).manifest.options["objects"]
    twice = Cascade([small, small]).artifact.compile(tmp_path / "twice")
    found = graphopt.load(twice).manifest.options["objects"]
    assert (found["stages"], found["weight_bytes"]) == (2, alone["weight_bytes"])
    assert found["code_bytes"] == alone["code_bytes"]
    assert found["workspace_bytes"] == alone["workspace_bytes"]


@pytest.mark.thorough
def test_exits_take_little_more_memory_than_the_plain_network(tmp_path: Path) -> None:
    """What a stage hands on is in the workspace as the bytes that it is, not as floats."""
    cascade = cascade_of("exits")
    staged = graphopt.load(cascade.artifact.compile(tmp_path / "staged")).manifest.options["objects"]
    plain = graphopt.load(cascade.plain.compile(tmp_path / "plain")).manifest.options["objects"]
    assert staged["workspace_bytes"] == plain["workspace_bytes"]
    assert plain["weight_bytes"] < staged["weight_bytes"] < plain["weight_bytes"] + 2000
    assert "quantize" not in (tmp_path / "staged" / "model.c").read_text()


@st.composite
def networks(draw: st.DrawFn) -> tuple[Calls, int]:
    """A module of several answers, each of which may be read later, or be what another one is."""
    count, sizes, calls = draw(st.integers(2, 12)), [], []
    for number in range(count):
        reads = draw(st.lists(st.integers(0, number - 1), min_size=1, max_size=2)) if number else []
        calls.append(Call(f"k{number % 3}", tuple(Slot("buffer", r) for r in reads), (Slot("buffer", number),)))
        sizes.append(draw(st.sampled_from([1, 64, 64, 200])))
    ends = draw(st.lists(st.integers(0, count - 1), min_size=2, max_size=4))
    moved: dict[Slot, Slot] = {}
    copies = []
    for answer, end in enumerate(ends):
        if Slot("buffer", end) in moved:
            copies.append((answer, moved[Slot("buffer", end)]))
        else:
            moved[Slot("buffer", end)] = Slot("output", answer)
    placed = [
        Call(c.kernel, tuple(moved.get(p, p) for p in c.reads), tuple(moved.get(p, p) for p in c.writes)) for c in calls
    ]
    return Calls(None, tuple(placed), tuple(sizes), (), tuple(copies)), len(ends)


def value_of(calls: Calls) -> dict[Slot, int]:
    return {place: number for number, call in enumerate(calls.calls) for place in call.writes}


@settings(max_examples=300, deadline=None)
@given(networks(), st.booleans())
def test_every_stage_finds_what_it_reads_where_it_was_written(drawn: tuple[Calls, int], replacing: bool) -> None:
    """Memory holds what was computed last at each byte; the output of the program is one more place."""
    calls, count = drawn
    made, wanted = partitioned(calls, [64] * count, []), value_of(calls)
    over = {"k2": 0} if replacing else {}
    plan = arranged(made.calls, {"k1": (100, 30)}, over, made.kept)
    tokens: dict[Any, Any] = {}

    def spot(place: Slot) -> list[Any]:
        if place.kind == "output":
            assert place.number == 0
            return ["output"]
        start = plan.offsets[place.number]
        assert start is not None
        return list(range(start, start + made.calls.buffers[place.number]))

    def read(place: Slot) -> Any:
        (found,) = {tokens[at] for at in spot(place)}
        return found

    computed = iter(range(len(made.calls.calls)))
    copied = dict(calls.copies)
    begin = 0
    for stage, end in enumerate(made.ends):
        for call in made.calls.calls[begin:end]:
            operands = tuple(read(place) for place in call.reads)
            for start, size in zip(plan.scratch[next(computed)], (100, 30), strict=False):
                tokens |= dict.fromkeys(range(start, start + size), "scratch")
            tokens |= dict.fromkeys(spot(call.writes[0]), (call.kernel, *operands))
        for copy in made.copies[stage]:
            tokens["output"] = read(copy.place)
        assert tokens["output"] == _expected(calls, wanted[copied.get(stage, Slot("output", stage))], wanted)
        begin = end


def _expected(calls: Calls, number: int, writer: dict[Slot, int]) -> Any:
    call = calls.calls[number]
    return (call.kernel, *(_expected(calls, writer[place], writer) for place in call.reads))


def test_stages_that_nothing_of_is_read_hand_nothing_on() -> None:
    one = Calls(tvm.IRModule({}), (), (), ())
    assert merged([one, one], Network(((), ())), [[], []]).handing == set()
    chain = tuple(Call("k", (Slot("buffer", n - 1),) if n else (), (Slot("buffer", n),)) for n in range(3))
    assert Stages(Calls(None, chain, (1, 1, 1), ()), (1, 2, 3), ((), (), ()), ()).handing == {0, 1}


# ---- Artifacts ------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_the_command_compiles_the_folder_of_a_staged_artifact(tmp_path: Path) -> None:
    cascade_of("exits").artifact.save(tmp_path / "deployed")
    command = ["compile", str(tmp_path / "deployed"), "--out", str(tmp_path / "bare"), "--name", "net"]
    done = CliRunner().invoke(app, [*command, "--ram", "64K", "--flash", "64K"])
    assert done.exit_code == 0, done.output
    assert "manifest.json, net.c, net.h, net_kernels.o, net_weights.o" in done.output
    small = CliRunner().invoke(app, [*command, "--ram", "1000"])
    assert small.exit_code != 0
    assert "of RAM" in " ".join(small.output.split())
    with pytest.raises(ArtifactError, match="C and objects"):
        graphopt.load(tmp_path / "bare")(IMAGES[:1])


@pytest.mark.thorough
def test_devices_are_not_charged_for_what_c_is_made_of(tmp_path: Path) -> None:
    artifact = graphopt.load(cascade_of("exits").artifact.save(tmp_path / "deployed"))
    assert "stages/whole.json.xz" in artifact.manifest.files
    assert artifact.loaded == [f"stages/{n}/model.so" for n in range(3)]


# ---- Errors ---------------------------------------------------------------------------------------------------------


def half_sure(outputs: list[Any]) -> Any:
    return np.full(len(outputs[0]), 0.5)


def refused(artifact: Any, place: Path, match: str, **how: Any) -> None:
    with pytest.raises(InputError, match=match):
        artifact.compile(place / "bare", **how)
    assert list(place.iterdir()) == []


def test_what_c_cannot_decide_is_refused_by_name_before_anything_is_written(tmp_path: Path) -> None:
    small = optimized("small")
    by_function = Cascade([small, small], confidence=half_sure)
    refused(by_function.artifact, tmp_path, "confidence is the function half_sure of Python")
    refused(Cascade([small, small]).artifact, tmp_path, "names in C are to begin with 'My-Net'", name="My-Net")
    refused(Cascade([small, small]).artifact, tmp_path, "leave out the architectures", architectures=["v73"])


@pytest.mark.thorough
def test_stages_of_another_runtime_another_cpu_or_several_samples_are_refused_by_name(tmp_path: Path) -> None:
    small = optimized("small")
    two = Cascade([small, staging.optimized(large=True)])
    refused(two.artifact, tmp_path, "stage 1, .*, runs on onnxruntime, which is not compiled to C")
    refused(Cascade([small, optimized("large", "tvm-cortex-m7")]).artifact, tmp_path, "one program has one CPU")
    pairs = graphopt.optimize(
        staging.Cheap().eval(), staging.images(2), target="tvm-x86", calibration=staging.images(), measure=False
    )
    refused(Cascade([small, pairs]).artifact, tmp_path, "stage 1 computes 2 samples at once, and C decides about one")


@pytest.mark.thorough
def test_stages_that_keep_no_kernels_are_refused_by_name(tmp_path: Path) -> None:
    small = optimized("small", "tvm-cortex-m7")
    saved = graphopt.load(graphopt.backends.tvm.lower(small.graph, find("tvm-cortex-m7")).save(tmp_path / "c"))
    with pytest.raises(
        InputError, match=r"stage 1: .* is C already, without the kernels that stages are compiled from"
    ):
        Cascade([small, saved]).artifact.compile(tmp_path / "bare")
    gpu = find("tvm-opencl").replace(compiler=COPY)
    exits = Cascade.of_exits(graphopt.Graph.capture(staging.Exiting().eval(), (staging.images(1),)), target=gpu)
    with pytest.raises(InputError, match="compute with opencl, and C is for CPUs only"):
        exits.artifact.compile(tmp_path / "bare")
    assert not (tmp_path / "bare").exists()


class Sorting(nn.Module):
    """Its second answer needs TVM's runtime."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.first(x), torch.argsort(self.second(x), -1).float()]


@pytest.mark.thorough
def test_stages_that_need_tvms_runtime_work_in_it_and_are_refused_in_c(tmp_path: Path) -> None:
    x = torch.randn(3, 6)
    cascade = Cascade.of_exits(graphopt.Graph.capture(Sorting().eval(), (x[:1],)), target="tvm-x86")
    assert cascade.artifact(x).shape == (3, 4)
    refused(cascade.artifact, tmp_path, "argsort calls .* of TVM.s runtime")


@pytest.mark.thorough
@needs_gcc
def test_files_that_were_entropy_coded_compile_to_the_same_c(tmp_path: Path) -> None:
    artifact = cascade_of("exits").artifact
    plain = artifact.compile(tmp_path / "plain")
    artifact.store("entropy")
    coded = graphopt.load(artifact.save(tmp_path / "deployed")).compile(tmp_path / "coded")
    for name in ("model.c", "model.h", "model_weights.o"):
        assert (coded / name).read_bytes() == (plain / name).read_bytes()


class Mapping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.conv(x)
        return found


@pytest.mark.thorough
@needs_gcc
def test_answers_that_are_no_classes_are_taken_by_hand_or_not_at_all(tmp_path: Path) -> None:
    network = graphopt.optimize(
        Mapping().eval(), staging.images(1), target="tvm-x86", calibration=staging.images(), measure=False
    )
    cascade = Cascade([network, network])
    cascade.artifact.policy = Policy((0.5,))
    refused(cascade.artifact, tmp_path, "C decides by the logits of classes")
    cascade.artifact.policy = Policy((None,))
    place = cascade.artifact.compile(tmp_path / "bare")
    assert check(cascade, place, IMAGES[:3], 0).tolist() == [0, 0, 0]
