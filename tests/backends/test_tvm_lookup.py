"""Functions of codes that TVM's kernels look up in registers: kernel by kernel, and behind every layer of a graph."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from blocks import conv, images
from rewriting import Model
from torch import Tensor, nn

import graphopt
from graphopt.targets import architecture, find

tvm = pytest.importorskip("tvm", reason="needs graphopt[tvm]")

from test_tvm_schedules import LAYERS, parameters, requantized, sums
from tvm_lowering import quantized
from tvm_running import HOST, compiled, random, run_each

from graphopt.backends.tvm import audit, lower
from graphopt.backends.tvm.build import Code
from graphopt.backends.tvm.lowering import compiled as emitted
from graphopt.backends.tvm.machine import Machine, machine
from graphopt.backends.tvm.schedules import Add, Codes, Conv, Epilogue, Lookup, Sum, elementwise
from graphopt.backends.tvm.schedules import conv as layer
from graphopt.lowering.integers.slopes import Slopes
from graphopt.lowering.qdq import QuantizationParameters
from graphopt.lowering.static_batch import fix_batch

UNSIGNED = find("tvm-x86")
X86 = architecture() == "x86_64"
# Every way of looking up that this machine can execute.
MACHINES = {
    "host": HOST,
    "one by one": replace(HOST, lookup="none"),
    "by element": Machine(16, 32, by_element=True),
    **({"128 bits": Machine(16, 16, dot="madd", packs=True, lookup="shuffle")} if X86 else {}),
    **({"512 bits, no permutation": replace(HOST, lookup="shuffle")} if HOST.vector_bytes == 64 else {}),
    **({"256 of 512 bits": replace(HOST, vector_bytes=32)} if HOST.vector_bytes == 64 else {}),
}


def target_of(cpu: str, triple: str = "x86_64-linux-gnu") -> Any:
    return tvm.target.Target({"kind": "llvm", "mtriple": triple, "mcpu": cpu})


@pytest.mark.thorough
@pytest.mark.parametrize("name", MACHINES)
def test_every_code_has_its_entry_in_every_layer(name: str) -> None:
    """Signed and unsigned, of layers with odd channels and few, with a sum in front, and by themselves."""
    on, kernels, expected = MACHINES[name], [], []
    how = Sum.of((0.5, 9), (0.25, 3), 0.4, Codes("uint8", 77))
    for kind, data, added in (
        ("odd channels", "uint8", None),
        ("depthwise", "int8", None),
        ("linear, 10 classes, batch 5", "uint8", how),
        ("depthwise, 7x7, few channels", "uint8", how),
    ):
        own = Codes(data, 9)
        epilogue = Epilogue(True, own, "uint8" if added else None, added, table="int8" if data == "uint8" else "uint8")
        spec = replace(LAYERS[kind], data=data, zero_point=5, epilogue=epilogue)
        (weight, bias, multiplier), entries = parameters(spec), random((256,), str(epilogue.table), 7)
        kernel, x = layer(spec, on), random(spec.shape, data)
        residual = [random(spec.result_shape, "uint8", 4)] if added else []
        kernels.append((kernel, [x, *residual, *kernel.constants(weight, bias, multiplier, entries)]))
        codes = requantized(sums(spec, x, weight, bias), multiplier, own)
        if added:
            plain = elementwise(Add(codes.shape, "uint8", "uint8", added), HOST)
            codes = run_each([(plain, [codes, *residual])])[0]
        expected.append(entries[codes.astype(int) - np.iinfo(codes.dtype).min])
    for result, answer in zip(run_each(kernels), expected, strict=True):
        np.testing.assert_array_equal(result, answer)


@pytest.mark.thorough
@pytest.mark.parametrize("name", MACHINES)
def test_codes_have_one_slope_below_zero_and_another_above(name: str) -> None:
    """Of layers with odd channels and few, in groups, with a sum in front, and with a table behind."""
    on, kernels, expected = MACHINES[name], [], []
    how, y = Sum.of((0.5, 9), (0.25, 3), 0.4, Codes("uint8", 77)), Codes("uint8", 60)
    x_grid, y_grid = (QuantizationParameters(1.0, z, 0, 255, torch.uint8) for z in (9, y.zero_point))
    for kind, added, table in (
        ("odd channels", None, None),
        ("groups", how, None),
        ("depthwise, stride 2, 5x5", None, "uint8"),
        ("depthwise, 7x7, few channels", how, "uint8"),
    ):
        own = Codes("uint8", 9)
        epilogue = Epilogue(True, own, "uint8" if added else None, added, slopes=y, table=table)
        spec = replace(LAYERS[kind], data="uint8", zero_point=5, epilogue=epilogue)
        weight, bias, multiplier = parameters(spec)
        positive, negative = torch.rand(spec.channels) + 0.2, torch.randn(spec.channels)
        kernel, x = layer(spec, on), random(spec.shape, "uint8")
        residual = [random(spec.result_shape, "uint8", 4)] if added else []
        entries = random((256,), "uint8", 7) if table else None
        rows = np.stack([multiplier, positive.numpy(), negative.numpy()])
        kernels.append((kernel, [x, *residual, *kernel.constants(weight, bias, rows, entries)]))
        codes = requantized(sums(spec, x, weight, bias), multiplier, own)
        if added:
            plain = elementwise(Add(codes.shape, "uint8", "uint8", added), HOST)
            codes = run_each([(plain, [codes, *residual])])[0]
        of = x_grid._replace(zero_point=77) if added else x_grid
        bent = (
            Slopes(positive, negative, of, y_grid)(torch.from_numpy(codes).permute(0, 3, 1, 2))
            .permute(0, 2, 3, 1)
            .numpy()
        )
        expected.append(bent if entries is None else entries[bent])
    for result, answer in zip(run_each(kernels), expected, strict=True):
        np.testing.assert_array_equal(result, answer)


@pytest.mark.parametrize("name", MACHINES)
def test_every_code_has_its_entry_by_itself(name: str) -> None:
    kernels, expected = [], []
    for data, result in (("uint8", "uint8"), ("int8", "uint8"), ("uint8", "float32"), ("int8", "int8")):
        every = np.concatenate([random((4000,), data), np.arange(256).astype(data), random((61,), data)])
        entries = random((256,), result, 3)
        kernel = elementwise(Lookup(every.shape, data, result), MACHINES[name])
        kernels.append((kernel, [every, *kernel.table(entries)]))
        expected.append(entries[every.astype(int) - np.iinfo(data).min])
    for found, answer in zip(run_each(kernels), expected, strict=True):
        np.testing.assert_array_equal(found, answer)


@pytest.mark.parametrize(
    "cpu,triple,way,instructions",
    [
        ("znver4", "x86_64-linux-gnu", "permute", "vperm[it]2b.*zmm"),
        ("cascadelake", "x86_64-linux-gnu", "shuffle", "vpshufb.*zmm"),
        ("x86-64-v3", "x86_64-linux-gnu", "shuffle", "vpshufb.*ymm"),
        ("x86-64-v2", "x86_64-linux-gnu", "shuffle", "pshufb.*xmm"),
        ("cortex-a53", "aarch64-linux-gnu", "select", r"tbx\s+v"),
        ("generic-rv64", "riscv64-linux-gnu", "none", ""),
    ],
)
def test_a_cpu_looks_up_with_its_own_instructions(cpu: str, triple: str, way: str, instructions: str) -> None:
    target = target_of(cpu, triple)
    on = machine(target)
    spec = Conv((1, 8, 8, 16), 64, data="int8", epilogue=Epilogue(result=Codes("int8"), table="int8"))
    assert on.lookup == way
    assert re.search(instructions, compiled(layer(spec, on), target).mod.inspect_source("asm"))


def test_a_table_that_a_kernel_does_not_take_is_refused() -> None:
    plain = Conv((1, 4, 4, 8), 8, data="uint8", epilogue=Epilogue(False, Codes()))
    weight, entries = np.zeros((8, 8, 1, 1), np.int8), np.zeros(256, np.uint8)
    with pytest.raises(ValueError, match="a table must be given to the kernels that look results up"):
        layer(plain, HOST).constants(weight, None, np.ones(1), entries)
    looked_up = replace(plain, epilogue=replace(plain.epilogue, table="uint8"))
    with pytest.raises(ValueError, match="only to them"):
        layer(looked_up, HOST).constants(weight, None, np.ones(1))
    with pytest.raises(ValueError, match="a table or slopes are functions of codes"):
        Epilogue(table="uint8")


FEW = (nn.Hardswish, nn.SiLU)
MANY = (*FEW, nn.Hardsigmoid, nn.Sigmoid, nn.GELU, nn.Mish, nn.LeakyReLU, nn.ELU)


def body(m: Any, x: Tensor) -> Tensor:
    """Every activation behind a convolution, a depthwise one, a linear layer and a sum, one after the other."""
    y = m.stem(x)
    for number in range(m.count):
        f = getattr(m, f"act{number}")
        y = f(getattr(m, f"deep{number}")(f(getattr(m, f"wide{number}")(y))))
        y = f(getattr(m, f"flat{number}")(y))
        y = f(y + getattr(m, f"same{number}")(y))
    return m.head(y)  # type: ignore[no-any-return]


def network(activations: Sequence[type[nn.Module]]) -> Model:
    layers: dict[str, nn.Module] = {"stem": conv(3, 7), "head": nn.Conv2d(7, 2, 1)}
    for number, act in enumerate(activations):
        layers |= {
            f"act{number}": act(), f"wide{number}": nn.Conv2d(7, 7, 1), f"flat{number}": nn.Linear(5, 5),
            f"deep{number}": nn.Conv2d(7, 7, 3, padding=1, groups=7), f"same{number}": nn.Conv2d(7, 7, 3, padding=1),
        }  # fmt: skip
    model = Model(body, **layers)
    model.count = len(activations)  # type: ignore[assignment]
    return model


@pytest.mark.thorough
@pytest.mark.skipif(not X86, reason="compiles for the x86-64 machine at hand")
@pytest.mark.parametrize("activations", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_every_activation_behind_every_layer_is_the_simulated_one(
    monkeypatch: pytest.MonkeyPatch, activations: Sequence[type[nn.Module]]
) -> None:
    monkeypatch.setattr(Machine, "looks_up", True)
    graph = quantized(network(activations), UNSIGNED, images(4)[..., :5, :5])
    assert "lookup" not in kernels_of(graph)
    artifact, simulation = lower(graph, UNSIGNED), graphopt.simulate(graph, UNSIGNED)
    x = images(4, seed=3)[..., :5, :5] * 1.5
    assert torch.equal(artifact(x), simulation(x))


def bent(m: Any, x: Tensor) -> Tensor:
    """One slope, or one for each channel, behind every kind of layer, of something else, and along what is no channel of it."""
    y = m.one(m.stem(x))
    y = m.seven(m.deep(y))
    y = m.leaky(m.wide(y))
    y = m.other(m.same(y) + y)
    y = m.seven(F.max_pool2d(y, 2, 1))
    z = m.rows(m.flat(y.flatten(2)))  # [N, 7, 16] -> [N, 7, 6]: slopes of its rows
    return m.head(m.six(m.last(z.flatten(1))))  # type: ignore[no-any-return]


@pytest.mark.thorough
@pytest.mark.skipif(not X86, reason="compiles for the x86-64 machine at hand")
@pytest.mark.parametrize("looks_up", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_prelu_stays_in_integers_with_one_slope_or_one_for_each_channel(
    monkeypatch: pytest.MonkeyPatch, looks_up: bool
) -> None:
    monkeypatch.setattr(Machine, "looks_up", looks_up)
    model = Model(
        bent, stem=conv(3, 7), one=nn.PReLU(), seven=nn.PReLU(7), deep=nn.Conv2d(7, 7, 3, padding=1, groups=7),
        leaky=nn.LeakyReLU(0.2), wide=nn.Conv2d(7, 7, 1), other=nn.PReLU(7), same=conv(7, 7), rows=nn.PReLU(7),
        flat=nn.Linear(16, 6), last=nn.Linear(42, 6), six=nn.PReLU(6), head=nn.Linear(6, 3),
    )  # fmt: skip
    for module in (model.seven, model.other, model.rows, model.six):
        assert isinstance(module, nn.PReLU)
        nn.init.uniform_(module.weight, -0.5, 0.9)
    graph = quantized(model, UNSIGNED, images(4)[..., :5, :5])
    assert "lookup" not in kernels_of(graph)
    artifact, x = lower(graph, UNSIGNED), images(4, seed=3)[..., :5, :5] * 1.5
    assert audit(artifact).floating == []
    assert torch.equal(artifact(x), graphopt.simulate(graph, UNSIGNED)(x))


@pytest.mark.thorough
@pytest.mark.skipif(not X86, reason="compiles for the x86-64 machine at hand")
def test_codes_that_something_else_reads_are_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(m: Any, x: Tensor) -> Tensor:
        y = m.stem(x)
        return m.head(y + m.act(y))  # type: ignore[no-any-return]

    monkeypatch.setattr(Machine, "looks_up", True)
    graph = quantized(Model(twice, stem=conv(3, 8), act=nn.Hardswish(), head=conv(8, 4)), UNSIGNED, images(4))
    x = images(4, seed=3) * 1.5
    assert torch.equal(lower(graph, UNSIGNED)(x), graphopt.simulate(graph, UNSIGNED)(x))
    assert "lookup" in kernels_of(graph)


def kernels_of(graph: Any) -> set[str]:
    module = emitted(fix_batch(graph, 4), Code.of(UNSIGNED.runtime)).module
    return {name.name_hint.rstrip("0123456789") for name in module.get_global_vars()}
