"""Kernels of signs and of weights in one or two bits: against torch in float64, on every way of counting, in whole networks."""

from __future__ import annotations

import platform
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

tvm = pytest.importorskip("tvm", reason="needs graphopt[tvm]")

from c_program import EMULATED, cross
from rewriting import apply, capture, randomised
from test_tvm_bare import in_c, needs_gcc
from test_tvm_machine import assembly
from test_tvm_schedules import sums
from tvm_running import HOST, SAME, Array, run

import graphopt
from graphopt.backends.tvm import lower
from graphopt.backends.tvm.artifact import LIBRARY, audit
from graphopt.backends.tvm.few_bits import stored_bits
from graphopt.backends.tvm.machine import PROFILES, Machine
from graphopt.backends.tvm.schedules import Conv, conv, few
from graphopt.backends.tvm.schedules.bits import Kinds
from graphopt.formats import Binary, Ternary
from graphopt.ir.graph import Graph
from graphopt.passes.binary import Binarize
from graphopt.passes.cleanup.fold_batchnorm import FoldBatchNorm
from graphopt.passes.quantization import Quantize
from graphopt.targets import find

PACKS = platform.machine() == "x86_64"
MACHINES = {
    "host": HOST,
    "bytes": replace(HOST, counts="bytes"),
    "narrow": Machine(16, 16),
    "no vectors": Machine(4, 16, counts="words"),
    "few registers, packed by arithmetic": Machine(32, 16) if HOST.vector_bytes >= 32 else Machine(16, 8),
    "words in narrow vectors": Machine(16, 16, counts="words", packs=PACKS),
}
LAYERS = {
    "3x3": Conv((1, 9, 9, 64), 48, (3, 3), padding=SAME),
    "3x3, stride 2, batch 2, 20 channels": Conv((2, 8, 7, 20), 20, (3, 3), (2, 2), SAME),
    "5x3, uneven padding, dilation": Conv((1, 12, 11, 36), 10, (5, 3), (1, 2), ((2, 0), (1, 3)), (2, 3)),
    "linear, long rows": Conv((1, 1, 5, 2080), 10),
    "image in one window": Conv((2, 4, 4, 8), 9, (4, 4)),
    "more padding than image": Conv((1, 3, 3, 8), 5, (5, 5), padding=((2, 2), (2, 2))),
    "1x1, padded": Conv((1, 3, 3, 32), 16, padding=SAME),
}
SIGNED = pytest.mark.parametrize(("data", "zero"), [("int8", 0), ("uint8", 1)])


def signs(shape: Any, seed: int) -> Array:
    return np.random.default_rng(seed).integers(0, 2, shape).astype(np.int8) * 2 - 1


def of_signs(spec: Conv, data: str, zero: int) -> Conv:
    return replace(spec, data=data, zero_point=zero, bits=1, signs=True)


def check(spec: Conv, machine: Machine, x: Array, weight: Array) -> None:
    bias = np.random.default_rng(2).integers(-5000, 5000, spec.channels, dtype=np.int32)
    kernel = conv(spec, machine)
    found = run(kernel, x, *kernel.constants(weight, bias, np.ones(spec.channels, np.float32)))
    np.testing.assert_array_equal(found, sums(spec, x, weight, bias).numpy())


@SIGNED
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", LAYERS)
def test_sums_of_signs_are_exact_padding_included(name: str, machine: str, data: str, zero: int) -> None:
    spec = of_signs(LAYERS[name], data, zero)
    x = (signs(spec.shape, 0) + zero).astype(data)
    check(spec, MACHINES[machine], x, signs(spec.weight_shape, 1))


@pytest.mark.thorough
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_window_of_signs_is_exact(data: Any) -> None:
    def few_of(most: int, least: int = 1) -> int:
        return int(data.draw(st.integers(least, most)))

    kernel, padding = (few_of(4), few_of(4)), tuple((few_of(3, 0), few_of(3, 0)) for _ in range(2))
    dilation = (few_of(2), few_of(2))
    reach = [d * (k - 1) + 1 - p - q for d, k, (p, q) in zip(dilation, kernel, padding, strict=True)]
    size = [few_of(7, max(1, n)) for n in reach]
    spec = Conv(
        (few_of(2), *size, 4 * few_of(20)), few_of(40), kernel, (few_of(3), few_of(3)), padding, dilation  # type: ignore[arg-type]
    )  # fmt: skip
    spec = of_signs(spec, "int8", 0)
    check(spec, data.draw(st.sampled_from(list(MACHINES.values()))), signs(spec.shape, 3), signs(spec.weight_shape, 4))


def test_every_result_has_the_kind_whose_taps_in_padding_are_its_own() -> None:
    for spec in (*LAYERS.values(), Conv((1, 2, 9, 4), 1, (3, 7), (1, 3), ((2, 2), (3, 3)))):
        for dim in (0, 1):
            kinds = Kinds.of(spec, dim)

            def outside(result: int, dim: int = dim, spec: Conv = spec) -> list[bool]:
                start = result * spec.stride[dim] - spec.padding[dim][0]
                taps = [start + tap * spec.dilation[dim] for tap in range(spec.kernel[dim])]
                return [not 0 <= at < spec.shape[1 + dim] for at in taps]

            stand_ins = kinds.representatives()
            for result in range(kinds.results):
                first, last = (
                    min(result, kinds.before),
                    max(result - (kinds.results - kinds.after) + 1, 0) * (kinds.after > 0),
                )
                assert outside(stand_ins[first + last]) == outside(result)


@pytest.mark.many
@pytest.mark.parametrize("two", [False, True], ids=["one scale", "two scales"])
@pytest.mark.parametrize("bits", [1, 2])
@pytest.mark.parametrize("machine", [*MACHINES, "madd"])
def test_expanded_weights_give_the_sums_of_bytes(machine: str, bits: int, two: bool) -> None:
    on = MACHINES.get(machine) or (Machine(16, 16, dot="madd") if PACKS else HOST)
    rng = np.random.default_rng(5)
    grouped = Conv((2, 7, 7, 24), 36, (3, 3), padding=SAME, groups=3)
    for number, spec in enumerate([*LAYERS.values(), grouped]):
        data = ("int8", "uint8")[number % 2]
        spec = replace(spec, data=data, zero_point=7 * (data == "uint8"), bits=bits)
        weight = signs(spec.weight_shape, 6)
        if bits == 2:
            ends = (
                rng.integers(1, 128, (2, spec.channels, 1, 1, 1)) if two else np.ones((2, spec.channels, 1, 1, 1), int)
            )
            weight = weight * rng.integers(0, 2, spec.weight_shape)
            weight = np.where(weight > 0, ends[0], np.where(weight < 0, -ends[1], 0)).astype(np.int8)
        x = rng.integers(-100 if data == "int8" else 0, 100, spec.shape).astype(data)
        check(spec, on, x, weight)


def test_packed_weights_are_an_eighth_and_a_quarter_as_large() -> None:
    spec = replace(LAYERS["3x3"], data="uint8", channels=64)
    weight, bias, one = signs(spec.weight_shape, 0), np.zeros(64, np.int32), np.ones(64, np.float32)
    stored = {bits: conv(replace(spec, bits=bits), HOST).constants(weight, bias, one)[0] for bits in (8, 2, 1)}
    size = {bits: array.nbytes for bits, array in stored.items()}
    assert stored[8].size == weight.size  # of bytes, or of 16 bits where a processor multiplies those
    assert size[2] == weight.size // 4
    assert size[1] == weight.size // 8
    bits = conv(of_signs(spec, "uint8", 1), HOST).constants(weight, bias, one)[0]
    assert bits.nbytes == weight.size // 8


def test_weights_that_are_no_signs_are_refused() -> None:
    spec = of_signs(LAYERS["3x3"], "int8", 0)
    with pytest.raises(ValueError, match="a layer of signs takes weights of -1 and 1"):
        conv(spec, HOST).constants(np.zeros(spec.weight_shape, np.int8), None, np.ones(48, np.float32))
    with pytest.raises(ValueError, match="kernels exist for 1, 2 and 8"):
        replace(spec, bits=4)


@pytest.mark.parametrize(
    ("profile", "instruction"),
    [("x86-64-v4", r"vpshufb|vpopcnt"), ("x86-64-v3", "vpshufb"), ("cortex-a76", r"\bcnt\b"), ("armv7", r"vcnt\.8")],
)
def test_bits_are_counted_by_instructions_of_the_machine(profile: str, instruction: str) -> None:
    spec = of_signs(LAYERS["3x3"], "int8", 0)
    target = tvm.target.Target(PROFILES[profile].target())
    assert re.search(instruction, assembly(spec, target))


def test_codes_tell_how_many_bits_they_need() -> None:
    assert stored_bits(torch.tensor([[1, -1], [1, 1]])) == 1
    assert stored_bits(torch.tensor([[1, -1], [0, 1]])) == 2
    assert stored_bits(torch.tensor([[100, -3, 0], [7, -127, -127]])) == 2
    assert stored_bits(torch.tensor([[100, -3, 50]])) == 8
    assert stored_bits(torch.tensor([[0, 0], [0, 0]])) == 2


# ---- Networks -------------------------------------------------------------------------------------------------------


class Padded(nn.Module):
    """A padded convolution of signs in the middle, whose image is wide enough for weights of few bits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Hardtanh())
        self.inside = nn.Sequential(
            nn.ZeroPad2d(1), nn.Conv2d(16, 32, 3), nn.Hardtanh(), nn.Conv2d(32, 32, 3, 2, 1), nn.Hardtanh()
        )
        self.last = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.inside(self.stem(x)).mean((2, 3)))
        return y


X = torch.randn(8, 3, 13, 13, generator=torch.Generator().manual_seed(7))


def network(target: Any, **options: Any) -> Graph:
    torch.manual_seed(1)
    graph = capture(randomised(Padded()), X[:1])
    apply(FoldBatchNorm(), graph)
    apply(Quantize(target, [[X]], estimator="minmax"), graph)
    apply(Binarize(calibration=[[X]], **options), graph)
    return graph


KINDS: dict[str, dict[str, Any]] = {
    "signs": {"activations": Binary()},
    "one bit": {},
    "two bits": {"weights": Ternary(per_channel=True)},
    "two scales": {"weights": Ternary(per_channel=True, two_scales=True)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_networks_answer_what_their_simulation_answers(kind: str) -> None:
    target = find("tvm-x86") if PACKS else find("tvm-arm64")
    graph = network(target, **KINDS[kind])
    artifact, simulation = lower(graph, target), graphopt.simulate(graph, target.name)
    assert torch.equal(torch.as_tensor(artifact(X[:1])), simulation(X[:1]))
    assert [m for m in simulation.mismatches(artifact, X[:1]) if m.differing] == []


def test_the_report_says_how_weights_are_stored_and_why() -> None:
    target = find("tvm-x86")
    said = audit(lower(network(target, activations=Binary()), target)).few_bits
    assert said == {"inside.1": "1 bit, XNOR and popcount", "inside.3": "1 bit, XNOR and popcount"}
    said = audit(lower(network(target, weights=Ternary(per_channel=True)), target)).few_bits
    assert said["inside.1"] == "2 bits, expanded block by block"
    assert said["inside.3"] == f"8 bits: each weight is used 49 times, and expanding it from 2 pays from {few.WORTH} on"


def test_the_library_holds_packed_weights() -> None:
    """The words of a layer of signs are in it, byte for byte, and its bytes are not."""
    target = find("tvm-x86")
    graph = network(target, activations=Binary())
    artifact = lower(graph, target)
    library = (artifact.folder / LIBRARY).read_bytes()
    (conv2,) = [n for n in graph.calls() if graph.site(n) == "inside.3" and "conv2d" in str(n.target)]
    codes = (graph.tensor(conv2.args[1]) >= 0).to(torch.int8) * 2 - 1  # type: ignore[arg-type]
    spec = of_signs(Conv((1, 13, 13, 32), 32, (3, 3), (2, 2), SAME), "uint8", 1)
    packed, *_ = conv(spec, HOST).constants(codes.numpy(), np.zeros(32, np.int32), np.ones(32, np.float32))
    assert packed.tobytes() in library
    assert codes.numpy().tobytes() not in library


@pytest.mark.thorough
@needs_gcc
@pytest.mark.parametrize("kind", KINDS)
def test_programs_in_c_answer_the_same(kind: str, tmp_path: Path) -> None:
    target = find("tvm-x86")
    artifact = lower(network(target, **KINDS[kind]), target)
    assert torch.equal(in_c(artifact, tmp_path, X[:1]), torch.as_tensor(artifact(X[:1])))


@pytest.mark.slow
@pytest.mark.parametrize("name", EMULATED)
@pytest.mark.parametrize("kind", KINDS)
def test_programs_for_other_cpus_answer_the_same(kind: str, name: str, tmp_path: Path) -> None:
    """Of a Cortex-M7, which counts bits in plain registers, too."""
    compiler, emulator = cross(name)
    target = find(name)
    graph = network(target, **KINDS[kind])
    found = in_c(lower(graph, target), tmp_path, X[:1], compiler=compiler, emulator=emulator)
    assert torch.equal(found, graphopt.simulate(graph, name)(X[:1]))
