"""Code fits the machine it is made for, and mistakes in specs and constants are named."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

tvm = pytest.importorskip("tvm", reason="needs graphopt[tvm]")

from tvm_running import HOST, SAME, compiled

from graphopt.backends.tvm.machine import PROFILES, Machine, machine
from graphopt.backends.tvm.schedules import Codes, Conv, Epilogue, Pool, conv, direct, pool, tiles


@pytest.mark.parametrize(
    "profile,data,instruction",
    [
        ("cortex-a53", "float32", r"fmla\s+v"), ("cortex-a53", "int8", "smlal"), ("cortex-a72", "int8", "smlal"),
        ("cortex-a76", "int8", r"sdot\s+v"), ("cortex-a76", "uint8", r"sdot\s+v"), ("neoverse-n1", "int8", r"sdot\s+v"),
        ("apple-m1", "int8", "sdot"), ("armv7", "int8", r"vmlal\.s16"), ("armv7", "float32", r"v(fma|mul)\.f32\s+q"),
        ("riscv64", "float32", r"fmadd\.s"), ("x86-64-v2", "uint8", "pmaddwd"), ("x86-64-v3", "uint8", "vpmaddwd.*ymm"),
        ("x86-64-v3", "float32", "vfmadd.*ymm"), ("x86-64-v4", "float32", "vfmadd.*zmm"),
    ],
)  # fmt: skip
def test_the_machines_own_instructions_appear(profile: str, data: str, instruction: str) -> None:
    target = tvm.target.Target(PROFILES[profile].target())
    spec = Conv((1, 6, 6, 16), 16, (3, 3), padding=SAME, data=data)
    code = assembly(spec if not spec.integer else replace(spec, epilogue=Epilogue(result=Codes(data))), target)
    assert re.search(instruction, code)


VNNI = tvm.target.Target({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "cascadelake"})


def test_vnni_appears_in_dense_and_depthwise_layers() -> None:
    spec = Conv((1, 6, 6, 16), 16, (3, 3), padding=SAME, data="uint8", epilogue=Epilogue(result=Codes()))
    assert re.search("vpdpbusd.*zmm", assembly(spec, VNNI))
    assert re.search("vpdpbusd.*zmm", assembly(replace(spec, groups=16), VNNI))


def assembly(spec: Conv, target: Any) -> str:
    return str(compiled(conv(spec, machine(target)), target).mod.inspect_source("asm"))


@pytest.mark.parametrize("data", ["uint8", "float32"])
def test_sums_stay_off_the_heap(data: Any) -> None:
    """With instructions that take the data as they are: without VNNI a copy of wider codes lies there."""
    code = compiled(conv(Conv((2, 7, 7, 24), 40, data=data), machine(VNNI)), VNNI).mod.inspect_source("ll")
    assert "TVMBackendAllocWorkspace" not in code


def test_profiles_know_what_their_cpus_can() -> None:
    def of(name: str) -> Machine:
        return machine(tvm.target.Target(PROFILES[name].target()))

    dots = {name: of(name).dot for name in PROFILES}
    assert {name for name, dot in dots.items() if dot == "sdot"} == {"cortex-a76", "neoverse-n1", "apple-m1"}
    assert {name for name, dot in dots.items() if dot == "madd"} == {"x86-64-v2", "x86-64-v3", "x86-64-v4"}
    assert [of(f"x86-64-v{n}").vector_bytes for n in (2, 3, 4)] == [16, 32, 64]
    assert of("cortex-a76").l1_bytes == 64 << 10
    assert of("riscv64").lanes("float32") == 1


def test_features_of_a_target_count_and_an_unknown_cpu_gets_the_baseline() -> None:
    def of(cpu: str, *features: str) -> Machine:
        described = {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": cpu, "mattr": list(features)}
        return machine(tvm.target.Target(described))

    assert of("cortex-a55").dot == "sdot"
    assert of("generic").dot == "none"
    assert of("generic", "+dotprod").dot == "sdot"


def test_a_target_that_is_no_cpu_is_refused() -> None:
    with pytest.raises(ValueError, match="targets of kind 'llvm'; c is none"):
        machine(tvm.target.Target("c"))


def test_data_is_copied_only_where_something_must_change() -> None:
    def copied(spec: Conv, on: Machine) -> bool:
        return direct.DirectPlan(spec, on).staging.needed

    fours = Machine(16, 32, dot="sdot")
    plain = Conv((1, 4, 4, 12), 8, data="int8")
    assert not copied(plain, fours)
    assert copied(replace(plain, padding=SAME), fours)
    assert copied(replace(plain, data="uint8"), fours), "the other sign"
    assert copied(replace(plain, groups=2), fours), "the last step of a group of 6 reads behind the data's end"
    assert not copied(replace(plain, channels=9, groups=3), fours), "groups of 4 do not"


def test_one_core_needs_no_threads() -> None:
    spec = Conv((1, 28, 28, 32), 32, (3, 3), padding=SAME)
    assert "T.parallel" in conv(spec, replace(HOST, cores=2)).function.script()
    assert "T.parallel" not in conv(spec, replace(HOST, cores=1)).function.script()


@pytest.mark.parametrize(
    "rows,columns,vectors", [(56, 56, 4), (7, 7, 32), (1, 1, 63), (1, 49, 3), (4, 4, 1), (13, 5, 9)]
)
def test_a_tile_fits_the_registers_and_the_result(rows: int, columns: int, vectors: int) -> None:
    for profile in PROFILES.values():
        on = machine(tvm.target.Target(profile.target()))
        tile = tiles.for_sums(rows, columns, vectors, 9 * 64 * on.vector_bytes, on)[0]
        assert tile.rows * tile.columns * tile.vectors + tile.vectors + 1 <= on.vector_registers
        assert tile.rows <= rows
        assert tile.columns <= columns
        assert tile.vectors <= vectors


def test_products_that_wait_to_be_added_have_a_register() -> None:
    spec = Conv((1, 14, 14, 256), 256, (3, 3), padding=SAME, data="uint8")
    for name in ("x86-64-v2", "x86-64-v3"):
        plan = direct.DirectPlan(spec, machine(tvm.target.Target(PROFILES[name].target())))
        assert plan.dot.kind == "madd"
        assert len(plan.tile.pixels) * plan.tile.vectors + plan.tile.vectors + 2 <= 16


def test_weights_that_exceed_the_cache_get_smaller_blocks() -> None:
    spec = Conv((1, 7, 7, 512), 512, (3, 3), padding=SAME)
    small, large = (
        direct.DirectPlan(spec, replace(machine(VNNI), l2_bytes=size)).block for size in (1 << 20, 64 << 20)
    )
    assert small < large


# ---- Mistakes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: Conv((1, 4, 4, 6), 8, groups=4), "4 groups do not divide 6 -> 8 channels"),
        (lambda: Conv((1, 2, 2, 6), 8, (3, 3)), r"kernel \(3, 3\) does not fit \(1, 2, 2, 6\)"),
        (lambda: Conv((1, 4, 4, 6), 8, stride=(0, 1)), "must be positive"),
        (lambda: Conv((1, 4, 4, 6), 8, data="int32"), "data of int32; kernels exist for uint8, int8"),
        (lambda: Conv((1, 4, 4, 6), 8, epilogue=Epilogue(result=Codes())), "a float layer has no codes"),
        (lambda: Epilogue(residual="uint8"), "a float sum needs a float residual, not uint8"),
        (lambda: Epilogue(result=Codes(), clamp=(0.0, None)), "codes are clamped by the ends of their format"),
        (lambda: Codes("uint8", low=-1), "low -1 is no uint8"),
        (lambda: Codes("int16"), "codes are uint8 or int8, not int16"),
        (lambda: Pool("min", (1, 4, 4, 6), (2, 2)), "pooling 'min'"),  # type: ignore[arg-type]
        (lambda: Pool("average", (1, 4, 4, 6), (2, 2), data="uint8"), "averages of codes, and only they, need `result`"),
    ],
)  # fmt: skip
def test_a_spec_that_makes_no_sense_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_constants_that_do_not_belong_to_the_layer_are_refused() -> None:
    for groups in (1, 8):
        kernel = conv(
            Conv((1, 4, 4, 8), 8, (3, 3), groups=groups, data="int8", epilogue=Epilogue(False, Codes("int8"))), HOST
        )
        weight = np.zeros((8, 8 // groups, 3, 3), np.int8)
        with pytest.raises(ValueError, match=r"weights of shape \(8, 4, 3, 3\)"):
            kernel.constants(np.zeros((8, 4, 3, 3), np.int8), None, np.ones(1))
        with pytest.raises(ValueError, match="int8 weights, not float32"):
            kernel.constants(weight.astype(np.float32), None, np.ones(1))
        with pytest.raises(ValueError, match="needs its multiplier"):
            kernel.constants(weight)
        with pytest.raises(ValueError, match="says Epilogue"):
            kernel.constants(weight, np.zeros(8, np.int32), np.ones(1))
    with pytest.raises(ValueError, match="no weights"):
        pool(Pool("max", (1, 4, 4, 6), (2, 2)), HOST).constants(weight)
