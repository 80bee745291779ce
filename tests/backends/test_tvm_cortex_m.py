"""Integer kernels for Cortex-M: `smlad` on bands of widened rows, weights in bytes, sums over an operand; on an emulated CPU."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import cycles
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from blocks import conv, model_of, simulated
from rewriting import Model
from torch import Tensor, nn

tvm = pytest.importorskip("tvm", reason="the TVM backend needs graphopt[tvm]")

from c_program import answers, cross, program
from tvm_running import SAME, compiled

import graphopt
from graphopt.backends.tvm import lower
from graphopt.backends.tvm.build import Code
from graphopt.backends.tvm.machine import Machine, machine
from graphopt.backends.tvm.schedules import Codes, Conv, Epilogue, pairs
from graphopt.backends.tvm.schedules.bands import LARGEST, Band
from graphopt.targets import find

M7 = find("tvm-cortex-m7")
MICROCONTROLLERS = ("tvm-cortex-m4", "tvm-cortex-m7", "tvm-cortex-m33")


def residual(channels: int, stride: int = 1) -> nn.Module:
    """ResNet's block: the sum is the second layer's, its other operand the block's data or a 1x1 convolution of it."""

    def body(m: Any, x: Tensor) -> Tensor:
        y = F.relu(m.stem(x))
        short = m.short(y) if stride > 1 else y
        return m.last(F.relu(short + m.second(F.relu(m.first(y)))))  # type: ignore[no-any-return]

    return Model(
        body, stem=conv(3, channels), first=nn.Conv2d(channels, channels, 3, stride, 1), second=conv(channels, channels),
        short=nn.Conv2d(channels, channels, 1, stride), last=conv(channels, 4, 1),
    )  # fmt: skip


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "odd channels and sizes": (
        lambda: nn.Sequential(conv(3, 5), nn.ReLU(), nn.Conv2d(5, 7, 3, stride=2), nn.ReLU(), conv(7, 3, 1)), (2, 3, 9, 7),
    ),
    "a 5x5 kernel, stride (2, 1), uneven pads": (
        lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 2, 0)), nn.Conv2d(4, 6, 5, (2, 1), (1, 2)), nn.ReLU(), conv(6, 2)),
        (1, 4, 11, 6),
    ),
    "dilation": (
        lambda: nn.Sequential(nn.Conv2d(4, 8, 3, padding=(2, 3), dilation=(2, 3)), nn.ReLU(), conv(8, 3)), (1, 4, 9, 10),
    ),
    "groups": (
        lambda: nn.Sequential(nn.Conv2d(6, 9, 3, groups=3, padding=1), nn.ReLU(), nn.Conv2d(9, 6, 1, groups=3)), (1, 6, 6, 6),
    ),
    "one row of pixels": (lambda: nn.Sequential(nn.Conv1d(4, 8, 3), nn.ReLU(), nn.Conv1d(8, 4, 1)), (1, 4, 16)),
    "linear on tokens": (lambda: nn.Sequential(nn.Linear(18, 7), nn.ReLU(), nn.Linear(7, 4)), (2, 5, 18)),
    "slopes": (lambda: nn.Sequential(conv(4, 5), nn.PReLU(5), conv(5, 3)), (1, 4, 6, 6)),
    "a table": (lambda: nn.Sequential(conv(4, 5), nn.SiLU(), conv(5, 3)), (1, 4, 6, 6)),
    "a residual sum": (lambda: residual(8), (1, 3, 9, 8)),
    "a residual sum of odd sizes": (lambda: residual(5, 2), (2, 3, 11, 9)),
    "rows that no band holds twice": (lambda: nn.Sequential(conv(32, 8), nn.ReLU(), conv(8, 2)), (1, 32, 7, 90)),
}  # fmt: skip


def in_c(graph: Any, target: Any, x: Tensor, place: Path) -> Tensor:
    """What a program with the model answers on the emulated CPU."""
    compiler, emulator = cross(target.name)
    artifact = lower(graph, target)
    folder = Path(artifact.save(place / "bare"))
    (found,) = answers(program(folder, compiler), folder, [x.numpy()], artifact.manifest.options["batch"], emulator)
    return torch.from_numpy(found)


def made(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    make, shape = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(len(name))
        return make().eval(), shape


@pytest.mark.thorough
@pytest.mark.parametrize("name", NETWORKS)
def test_c_answers_what_the_simulation_answers(name: str, tmp_path: Path) -> None:
    model, shape = made(name)
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(5)) * 1.5
    graph = simulated(model, M7, torch.randn(*shape, generator=torch.Generator().manual_seed(4)))
    assert torch.equal(in_c(graph, M7, x, tmp_path), graphopt.simulate(graph, M7)(x))


@pytest.mark.thorough
@pytest.mark.parametrize("name", MICROCONTROLLERS)
def test_every_microcontroller_answers_the_same(name: str, tmp_path: Path) -> None:
    target, (model, shape) = find(name), made("a residual sum")
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(5))
    graph = simulated(model, target, x)
    assert torch.equal(in_c(graph, target, x, tmp_path), graphopt.simulate(graph, target)(x))


# ---- Code -----------------------------------------------------------------------------------------------------------


def of(name: str) -> Machine:
    return machine(Code.of(find(name).runtime).target())


@cache
def assembly(name: str) -> str:
    spec = Conv((1, 8, 8, 16), 16, (3, 3), padding=SAME, data="int8", epilogue=Epilogue(result=Codes("int8")))
    kernel, target = pairs.conv(spec, of(name)), Code.of(find(name).runtime).target()
    return str(compiled(kernel, target).mod.inspect_source("asm"))


@pytest.mark.parametrize("name", MICROCONTROLLERS)
def test_two_products_are_one_instruction_and_widening_turns_for_free(name: str) -> None:
    assert of(name).dot == "smlad"
    code = assembly(name)
    assert len(re.findall(r"\tsmlad\t", code)) >= 8
    assert re.search(r"sxtb16\t\w+, \w+, ror #8", code)


def test_a_cpu_with_vectors_or_without_dsp_instructions_multiplies_as_before() -> None:
    assert of("tvm-armv7").dot == "none"
    bare = tvm.target.Target({"kind": "llvm", "mtriple": "thumbv7m-none-eabi", "mcpu": "cortex-m3"})
    assert machine(bare).dot == "none"


def test_weights_are_bytes() -> None:
    spec = Conv((1, 8, 8, 16), 10, (3, 3), padding=SAME, data="int8", epilogue=Epilogue(result=Codes("int8")))
    weight = np.zeros(spec.weight_shape, np.int8)
    packed, *_ = pairs.conv(spec, of("tvm-cortex-m7")).constants(weight, None, np.ones(1))
    assert packed.nbytes == weight.nbytes + 4 * pairs.TILE, "and what is loaded ahead of the end"


@pytest.mark.parametrize("shape", [(1, 32, 32, 16), (1, 31, 20, 8), (1, 64, 1, 64), (1, 7, 400, 64)])
def test_a_band_is_small_or_a_single_row_and_serves_every_row_once(shape: tuple[int, int, int, int]) -> None:
    spec = Conv(shape, 8, (3, 3), padding=SAME, data="int8", epilogue=Epilogue(result=Codes("int8")))
    band = Band(spec)
    assert spec.result_shape[1] % band.results == 0
    assert band.results == 1 or 2 * (band.results + 2) * band.width <= LARGEST


def test_a_sum_is_written_over_its_operand() -> None:
    model, shape = made("a residual sum")
    artifact = lower(simulated(model, M7, torch.randn(*shape)), M7)
    calls = re.findall(r"  model_conv\w*\((.*)\);", (artifact.folder / "model.c").read_text())
    places = [re.findall(r"memory \+ (\d+)", call) for call in calls]
    assert [len(found) - len(set(found)) for found in places if len(found) >= 3].count(1) == 1


# ---- Cycles ---------------------------------------------------------------------------------------------------------

needs_models = pytest.mark.skipif(bool(cycles.missing()), reason=cycles.missing() or "all is here")


@needs_models
def test_the_model_of_a_core_gives_the_cycles_of_a_block() -> None:
    smlads = bytes.fromhex("20fb0044" * 4)  # four smlad r4, r0, r0, r4, each of which waits for none but its sum
    chain, single = cycles.cycles_of([cycles.Block(smlads, 4), cycles.Block(smlads[:4], 1)], cycles.CORTEX_M7)
    assert 4 * single == pytest.approx(chain, abs=0.5)
    assert chain == pytest.approx(4, abs=0.5), "one a cycle"
    fmla = bytes.fromhex("00cc214e")  # fmla v0.4s, v0.4s, v1.4s
    (arm64,) = cycles.cycles_of([cycles.Block(fmla, 1)], cycles.NEOVERSE_N2)
    assert arm64 > 0


@needs_models
def test_conditional_instructions_are_modelled_without_their_condition() -> None:
    it = bytes.fromhex("b8bf0120")  # it lt; movlt r0, #1
    (found,) = cycles.cycles_of([cycles.Block(it, 2)], cycles.CORTEX_M7)
    assert 0 < found <= 2


@pytest.mark.thorough
@needs_models
def test_twice_the_calls_are_twice_the_instructions(tmp_path: Path) -> None:
    if shutil.which("arm-linux-gnueabihf-gcc") is None:
        pytest.skip("needs a compiler: apt-get install gcc-arm-linux-gnueabihf")
    graph = simulated(model_of("plain"), M7)
    folder = Path(lower(graph, M7, batch=1).save(tmp_path / "bare"))
    code, image = program(folder, ("arm-linux-gnueabihf-gcc", "-static")), tmp_path / "image"
    torch.randn(5, 3, 8, 8).numpy().tofile(image)
    one, two, five = (
        cycles.executed(("qemu-arm", "-cpu", "max"), code, tmp_path / "out", str(n), image) for n in (1, 2, 5)
    )
    once = two - one
    assert once.instructions > 10_000
    assert (five - two).instructions == pytest.approx(3 * once.instructions, rel=0.02)
    assert 0.4 < once.cycles(cycles.CORTEX_M7) / once.instructions < 3
