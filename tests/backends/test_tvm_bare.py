"""Models as C: programs around them answer what artifacts answer, here and on emulated CPUs, without a runtime."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from blocks import BLOCKS, images, model_of, simulated
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from typer.testing import CliRunner

tvm = pytest.importorskip("tvm", reason="the TVM backend needs graphopt[tvm]")

from c_program import answers, cross, program

import graphopt
from graphopt.backends.tvm import lower
from graphopt.backends.tvm.artifact import LIBRARY
from graphopt.backends.tvm.bare import HELD, Calls, held, hold
from graphopt.backends.tvm.bare.calls import Call, Slot
from graphopt.backends.tvm.bare.elf import Object
from graphopt.backends.tvm.bare.workspace import ALIGNMENT, arranged
from graphopt.backends.tvm.build import Code, build, kernels_of
from graphopt.backends.tvm.lowering import compiled
from graphopt.cli.main import app
from graphopt.compiler.recipes import clean
from graphopt.ir.graph import Graph
from graphopt.lowering.static_batch import fix_batch
from graphopt.passmanager.runner import run
from graphopt.targets import architecture, find
from graphopt.utils.errors import ArtifactError, InputError

X86 = find("tvm-x86")
COPY = f'{sys.executable} "{Path(__file__).parents[1] / "helpers" / "copy_object.py"}"'  # in place of a cross compiler
TARGETS = {
    "tvm-cortex-a53": (183, 0),
    "tvm-armv7": (40, 0x5000000),
    "tvm-riscv64": (243, 5),
    "tvm-cortex-m7": (40, 0x5000000),
    "tvm-cortex-m33": (40, 0x5000000),
}
FAST = ("inverted residual", "plain")
needs_gcc = pytest.mark.skipif(
    shutil.which("gcc") is None or architecture() != "x86_64", reason="runs C on this machine: needs x86-64 and gcc"
)


@cache
def lowered(block: str, kind: str, target: Any = X86) -> Any:
    model = model_of(block)
    return lower(simulated(model, target) if kind == "int8" else Graph.capture(model, (images(2),)), target)


def written(artifact: Any, place: Path) -> Path:
    """C and objects, which an artifact for a microcontroller is already."""
    bare = artifact.code["triple"].startswith("thumb")
    return Path(artifact.save(place) if bare else artifact.compile(place))


def in_c(artifact: Any, folder: Path, x: Tensor, **how: Any) -> Tensor:
    """What a program with the model answers."""
    place = written(artifact, folder / "bare")
    emulator = how.pop("emulator", ())
    (found,) = answers(program(place, **how), place, [x.numpy()], artifact.manifest.options["batch"], emulator)
    return torch.from_numpy(found)


# ---- Answers --------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
@needs_gcc
@pytest.mark.parametrize("block", [b if b in FAST else pytest.param(b, marks=pytest.mark.slow) for b in BLOCKS])
def test_a_program_in_c_answers_what_the_integer_artifact_answers(block: str, tmp_path: Path) -> None:
    artifact, x = lowered(block, "int8"), images(4, seed=3)
    assert torch.equal(in_c(artifact, tmp_path, x), artifact(x))


@pytest.mark.thorough
@needs_gcc
@pytest.mark.parametrize("block", ["concat", pytest.param("squeeze-excite linear", marks=pytest.mark.slow)])
def test_a_program_in_c_answers_what_the_float_artifact_answers(block: str, tmp_path: Path) -> None:
    artifact, x = lowered(block, "float"), images(4, seed=3)
    torch.testing.assert_close(in_c(artifact, tmp_path, x), artifact(x), rtol=1e-6, atol=1e-6)


@pytest.mark.thorough
@needs_gcc
@pytest.mark.parametrize("kind", [pytest.param("int8", marks=pytest.mark.slow), "float"])
def test_resnet20_in_c_answers_what_its_artifact_answers_in_less_than_half_the_memory(
    kind: str, zoo: ModuleType, tmp_path: Path
) -> None:
    network, x = zoo.cifar_resnet(20), zoo.cifar10("test")[0][:4]
    graph = Graph.capture(network, (x[:1],))
    run(clean(X86), graph)
    graph = graph if kind == "float" else simulated(network, X86, zoo.cifar10("train10k")[0][:4])
    artifact = lower(graph, X86, batch=1)
    found = artifact(x)
    if kind == "int8":
        assert torch.equal(in_c(artifact, tmp_path, x), found)
    else:
        torch.testing.assert_close(in_c(artifact, tmp_path, x), found, rtol=1e-6, atol=1e-6)
    all_tensors = held((artifact.folder / HELD).read_bytes(), (artifact.folder / LIBRARY).read_bytes()).buffers
    needed = graphopt.load(tmp_path / "bare").manifest.options["objects"]["workspace_bytes"]
    assert needed < 0.4 * sum(all_tensors)


@pytest.mark.parametrize(
    ("block", "name"),
    [
        ("plain", "tvm-cortex-a53"),
        ("residual", "tvm-cortex-a76"),
        ("squeeze-excite linear", "tvm-armv7"),
        ("squeeze-excite linear", "tvm-riscv64"),
        ("inverted residual", "tvm-cortex-m7"),  # its instructions are among those of larger CPUs
    ],
)
def test_on_emulated_cpus_c_answers_what_the_simulation_answers(block: str, name: str, tmp_path: Path) -> None:
    compiler, emulator = cross(name)
    target, x = find(name).replace(compiler=COPY), images(4, seed=3)
    graph = simulated(model_of(block), target)
    found = in_c(lower(graph, target), tmp_path, x, compiler=compiler, emulator=emulator)
    assert torch.equal(found, graphopt.simulate(graph, target)(x))


class TwoOutputs(nn.Module):
    """The input itself, one result twice, a sum, and codes of another type."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        z = self.layer(x + y)
        return x.reshape(4, 4), z, z, torch.cumsum(z, -1), z > 0


@needs_gcc
def test_inputs_and_outputs_keep_their_order_types_and_aliases(tmp_path: Path) -> None:
    x, y = torch.randn(2, 8), torch.randn(2, 8)
    artifact = lower(Graph.capture(TwoOutputs().eval(), (x, y), dynamic_batch=False), X86)
    place = artifact.compile(tmp_path / "bare", name="two")
    assert "int two_run(const float *input0, const float *input1, float *output0" in (place / "two.h").read_text()
    found = answers(program(place), place, [x.numpy(), y.numpy()])
    for ours, theirs in zip(found, artifact(x, y), strict=True):
        assert torch.equal(torch.from_numpy(ours), theirs)


@pytest.mark.thorough
@needs_gcc
def test_two_models_share_one_program(tmp_path: Path) -> None:
    first, x = lowered("plain", "int8"), images(2, seed=3)
    a, b = first.compile(tmp_path / "a", name="first"), lowered("concat", "int8").compile(tmp_path / "b", name="second")
    both = [*(str(b / name) for name in ("second.c", "second_kernels.o", "second_weights.o"))]
    (found,) = answers(program(a, ("gcc", *both)), a, [x.numpy()], 2)
    assert torch.equal(torch.from_numpy(found), first(x))


# ---- What it needs --------------------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("name", TARGETS)
def test_objects_need_the_c_library_at_most(name: str, tmp_path: Path) -> None:
    artifact = lower(Graph.capture(model_of("silu residual"), (images(1),)), find(name).replace(compiler=COPY))
    place = written(artifact, tmp_path / "bare")
    kernels, weights = (Object((place / f"model_{part}.o").read_bytes()) for part in ("kernels", "weights"))
    assert set(kernels.undefined()) <= {"memcpy", "memset", "expf", "floorf"}
    assert weights.undefined() == []
    assert (kernels.machine, kernels.flags) == (weights.machine, weights.flags) == TARGETS[name]
    facts = graphopt.load(place).manifest.options["objects"]
    assert facts["weight_bytes"] == weights.loaded_bytes
    assert facts["code_bytes"] == kernels.loaded_bytes


@pytest.mark.thorough
@needs_gcc
def test_symbols_and_sections_are_what_binutils_read(tmp_path: Path) -> None:
    place = lowered("concat", "float").compile(tmp_path / "bare")
    objects = [place / "model_kernels.o", place / "model_weights.o", tmp_path / "model.o"]
    subprocess.run(["gcc", "-c", f"-I{place}", place / "model.c", "-o", objects[-1]], check=True)
    defined: set[str] = set()
    undefined: set[str] = set()
    for file in objects:
        symbols = subprocess.run(["nm", file], capture_output=True, text=True, check=True).stdout.splitlines()
        assert Object(file.read_bytes()).undefined() == sorted(s.split()[-1] for s in symbols if " U " in s)
        undefined |= set(Object(file.read_bytes()).undefined())
        defined |= {s.split()[-1] for s in symbols if re.search(r" [TR] ", s)}
    assert undefined - defined <= {"memcpy", "memset", "_GLOBAL_OFFSET_TABLE_"}
    assert {"model_run", "model_weights"} <= defined


@pytest.mark.thorough
def test_on_32_bit_arm_mathematics_gets_its_numbers_in_registers_for_floats() -> None:
    target = find("tvm-armv7")
    graph = fix_batch(Graph.capture(model_of("squeeze-excite linear"), (images(1),)), 1)
    built = build(
        kernels_of(compiled(graph, Code.of(target.runtime)).module, Code.of(target.runtime)), Code.of(target.runtime)
    )
    (machine_code,) = [m.inspect_source("asm") for m in built.mod.imports if m.kind == "llvm"]
    calls = re.findall(r"(.*)\n\tbl\tfloorf", machine_code)
    assert calls
    assert not any(re.search(r"vmov\S*\tr0, s", before) for before in calls)


@st.composite
def programs(draw: st.DrawFn) -> Calls:
    """Kernels that each read some earlier buffers and write one; sizes often equal, so that one may take another's memory."""
    count = draw(st.integers(1, 12))
    sizes = draw(st.lists(st.sampled_from([1, 64, 64, 64, 200, 500]), min_size=count, max_size=count))
    calls = []
    for number in range(count):
        reads = draw(st.lists(st.integers(0, number - 1), min_size=1, max_size=2)) if number else []
        calls.append(Call(f"k{number % 3}", tuple(Slot("buffer", r) for r in reads), (Slot("buffer", number),)))
    copies = ((0, Slot("buffer", draw(st.integers(0, count - 1)))),)
    return Calls(None, tuple(calls), tuple(sizes), (), copies)


@settings(max_examples=300, deadline=None)
@given(programs(), st.sets(st.sampled_from(["k0", "k1", "k2"])))
def test_no_call_overwrites_what_is_still_read(calls: Calls, replacing: set[str]) -> None:
    """Each byte of a memory holds the number of the buffer that was written there last."""
    scratch, over = {"k1": (100, 30)}, dict.fromkeys(replacing - {calls.calls[0].kernel}, 0)
    plan = arranged(calls, scratch, over)
    memory: dict[int, Any] = {}

    def bytes_of(place: Slot) -> range:
        start = plan.offsets[place.number]
        assert start is not None
        return range(start, start + calls.buffers[place.number])

    for time, call in enumerate(calls.calls):
        for read in call.reads:
            assert all(memory[b] == read.number for b in bytes_of(read))
        (written,) = call.writes
        replaced = {call.reads[0]} if call.kernel in over and bytes_of(call.reads[0]) == bytes_of(written) else set()
        taken = [range(s, s + size) for s, size in zip(plan.scratch[time], scratch.get(call.kernel, ()), strict=True)]
        spans = sorted((r.start, r.stop) for r in taken + [bytes_of(p) for p in {*call.reads, written} - replaced])
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
        assert all(start % ALIGNMENT == 0 for start, _ in spans)
        assert spans[-1][1] <= plan.bytes
        for used in taken:
            memory |= dict.fromkeys(used)
        memory |= dict.fromkeys(bytes_of(written), written.number)
    ((_, last),) = calls.copies
    assert all(memory[b] == last.number for b in bytes_of(last))


def chain(*calls: tuple[str, list[int], int], sizes: tuple[int, ...]) -> Calls:
    made = (Call(k, tuple(Slot("buffer", r) for r in reads), (Slot("buffer", w),)) for k, reads, w in calls)
    return Calls(None, tuple(made), sizes, (), ((0, Slot("buffer", calls[-1][2])),))


def test_a_sum_takes_the_memory_of_an_operand_that_nothing_reads_later() -> None:
    calls = chain(("conv", [], 0), ("conv", [0], 1), ("sum", [1, 0], 2), ("conv", [2], 3), sizes=(64, 64, 64, 64))
    plan = arranged(calls, {}, {"sum": 1})
    assert plan.offsets[2] == plan.offsets[0]
    assert plan.bytes == 128
    assert arranged(calls, {}).bytes == 192


@pytest.mark.parametrize(
    ("later", "sizes", "reads"),
    [
        ([2, 0], (64, 64, 64, 64), [1, 0]),  # read again
        ([2], (64, 64, 32, 64), [1, 0]),  # of another size
        ([2], (64, 64, 64, 64), [0, 0]),  # the other operand, too
    ],
)
def test_a_sum_keeps_off_an_operand_that_is_needed(later: list[int], sizes: Any, reads: list[int]) -> None:
    calls = chain(("conv", [], 0), ("conv", [0], 1), ("sum", reads, 2), ("conv", later, 3), sizes=sizes)
    plan = arranged(calls, {}, {"sum": 1})
    assert plan.offsets[2] != plan.offsets[0]


# ---- Artifacts ------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_the_command_compiles_what_was_deployed(tmp_path: Path) -> None:
    artifact = lowered("plain", "int8")
    artifact.save(tmp_path / "deployed")
    command = ["compile", str(tmp_path / "deployed"), "--out", str(tmp_path / "bare"), "--name", "net"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "manifest.json, net.c, net.h, net_kernels.o, net_weights.o" in done.output
    bare = graphopt.load(tmp_path / "bare")
    for use in (lambda: bare(images(2)), lambda: bare.on("rpc://host:1"), lambda: bare.compile(tmp_path / "again")):
        with pytest.raises((ArtifactError, InputError), match="C and objects"):
            use()


@pytest.mark.thorough
def test_devices_are_not_charged_for_the_kernels_beside_the_library(tmp_path: Path) -> None:
    artifact = graphopt.load(lowered("plain", "int8").save(tmp_path / "deployed"))
    assert HELD in artifact.manifest.files
    assert artifact.loaded == ["model.so"]
    assert artifact.size_bytes == artifact.manifest.files["model.so"].size


@pytest.mark.thorough
def test_constants_are_found_in_the_library_and_kept_where_it_has_none(tmp_path: Path) -> None:
    artifact = graphopt.load(lowered("plain", "int8").save(tmp_path / "deployed"))
    library = (artifact.folder / "model.so").read_bytes()
    there = held((artifact.folder / HELD).read_bytes(), library)
    assert len(hold(there, b"")) > len(hold(there, library))
    for ours, theirs in zip(held(hold(there, b""), b"").constants, there.constants, strict=True):
        assert (ours.dtype, ours.tolist()) == (theirs.dtype, theirs.tolist())


@pytest.mark.thorough
def test_a_microcontrollers_artifact_is_c_and_says_so_where_it_cannot_run() -> None:
    target = find("tvm-cortex-m7")
    result = graphopt.optimize(
        model_of("residual"), images(2), target=target, calibration=images(8), estimator="minmax"
    )
    assert sorted(result.artifact.manifest.files) == ["model.c", "model.h", "model_kernels.o", "model_weights.o"]
    with pytest.raises(ArtifactError, match=r"link model\.c and its objects into a program"):
        result.artifact(images(2))


# ---- Errors ---------------------------------------------------------------------------------------------------------


class Sorted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.argsort(x, -1)


def test_what_only_tvms_runtime_can_do_is_refused_by_its_name(tmp_path: Path) -> None:
    artifact = lower(Graph.capture(Sorted().eval(), (torch.randn(2, 8),), dynamic_batch=False), X86)
    with pytest.raises(InputError, match=r"argsort calls tvm\.contrib\.sort\.argsort of TVM's runtime"):
        artifact.compile(tmp_path / "bare")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.thorough
def test_what_cannot_be_compiled_to_c_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = lowered("plain", "int8")
    with pytest.raises(InputError, match="names in C are to begin with 'My-Model'"):
        artifact.compile(tmp_path / "bare", name="My-Model")
    with pytest.raises(InputError, match="is compiled for tvm-x86; lower it again for another CPU"):
        artifact.compile(tmp_path / "bare", ["v73"])
    gpu = lower(Graph.capture(model_of("plain"), (images(1),)), find("tvm-opencl").replace(compiler=COPY))
    with pytest.raises(InputError, match="for tvm-opencl holds no kernels to compile to C, which is for CPUs only"):
        gpu.compile(tmp_path / "bare")
    monkeypatch.setattr(tvm, "__version__", "0.99")
    with pytest.raises(ArtifactError, match=r"written by TVM 0\.2.*, and this is 0\.99"):
        artifact.compile(tmp_path / "bare")
    assert list(tmp_path.iterdir()) == []
