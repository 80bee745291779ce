"""Targets: three parts that check themselves, change together, and describe themselves."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest

from graphopt.formats import FLOAT16, Format, LogFormat
from graphopt.ir import ops
from graphopt.targets import CodeGeneration, Formats, Kernels, Runtime, Target, explain, find, names
from graphopt.targets.families import FAMILIES, check_families
from graphopt.utils.errors import InputError

S8 = Format(8)
U8 = Format(8, signed=False, symmetric=False)
ARM = Runtime("onnxruntime", "aarch64")
PARTS = (Target, Formats, Kernels, Runtime, CodeGeneration)


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: Runtime("tvm", "aarch64"), "the runtime 'tvm' compiles: say for what"),
        (
            lambda: Runtime("onnxruntime", "aarch64", code=CodeGeneration()),
            "'onnxruntime' generates no code; leave out",
        ),
        (
            lambda: Runtime("packed", "npu", vendor_compiler=True),
            "'packed' writes no ONNX file for a vendor's compiler",
        ),
        (
            lambda: CodeGeneration("x86_64-linux-gnu", device="rocm"),
            "device must be one of cpu, cuda, opencl, got 'rocm'",
        ),  # type: ignore[arg-type]
        (lambda: CodeGeneration(cpu="sm_75", device="cuda"), "needs the triple of the machine the GPU is part of"),
        (lambda: CodeGeneration("x86_64-linux-gnu", "orin", device="cuda"), "'orin' is no GPU of CUDA; .*cpu='sm_87'"),
        (lambda: CodeGeneration("x86_64-linux-gnu", "sm_75", device="opencl"), "leave out cpu='sm_75'"),
        (lambda: CodeGeneration(features=("dotprod",)), r"features start with \+ or -, .*got 'dotprod'"),
        (lambda: Formats("s8", U8), "weights must be in a number format, such as .*, got 's8'"),  # type: ignore[arg-type]
        (lambda: Formats(S8, U8, more_activations=(8,)), "activations must be in a number format, .*got 8"),  # type: ignore[arg-type]
        (lambda: Formats(S8, Format(8, per_channel=True)), "activations have one scale for the whole tensor"),
        (lambda: Formats(Format, U8), "weights must be in a number format, .*got <class"),  # type: ignore[arg-type]
        (lambda: Formats(S8, U8, more_weights=S8), "more_weights must be a tuple, got Format"),  # type: ignore[arg-type]
        (lambda: Formats(S8, U8, weight_bits=4), "weight_bits must be a tuple, got 4"),  # type: ignore[arg-type]
        (lambda: Formats(S8, U8, rest=S8), "rest is a float format, such as FLOAT16"),  # type: ignore[arg-type]
        (lambda: Formats(S8, U8, weight_bits=(4, 17)), r"weight_bits=\(4, 17\): .*from 2 to 16, got 17"),
        (lambda: Formats(S8, U8, activation_bits=(1,)), r"activation_bits=\(1,\): .*from 2 to 16, got 1"),
        (lambda: Formats(S8, U8, activation_bits=()), "activation_bits is empty"),
        (lambda: Kernels(integer=frozenset({"conv2"})), "integer: unknown family 'conv2'; did you mean 'conv'"),
        (lambda: Kernels(moves=frozenset({"zzz"})), "moves: unknown family 'zzz'; known: .*conv.*ops.register"),
        (lambda: Kernels(shares="add"), "shares must be a set of families, .*got 'add'"),  # type: ignore[arg-type]
        (lambda: Kernels(integer=frozenset({"conv", "pad"})), "pad: families compute in integer or move codes"),
        (lambda: Kernels(channel_multiple=0), "channel_multiple must be a whole number of at least 1, got 0"),
        (lambda: Kernels(block_products="int4"), "block_products must be 'int8' or 'float32', got 'int4'"),  # type: ignore[arg-type]
        (lambda: Target("t", "", S8, ARM), "target 't': formats must be a Formats, got Format"),  # type: ignore[arg-type]
        (lambda: Target("t", "", Formats(S8, U8), "tvm"), "target 't': runtime must be a Runtime, got 'tvm'"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_is_refused_when_it_is_made(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        make()


def test_the_families_of_targets_are_those_of_the_operators() -> None:
    """Those that calls have by their arguments included."""
    by_arguments = {"sub", "global_average_pool", "choose"}
    ours = {
        info.family
        for target, info in ops.registered(lambda info: info.family).items()
        if str(target).startswith("aten.") or target is operator.getitem  # not what other tests register
    }
    assert ours | by_arguments == FAMILIES
    check_families("all of ours", FAMILIES)  # raises where one is not known


def test_no_two_parts_have_a_field_of_the_same_name() -> None:
    """`Target.replace` finds a field's part by its name alone; the target's own name is meant before its runtime's."""
    found = [f.name for part in PARTS for f in fields(part)]
    assert {name for name in found if found.count(name) > 1} == {"name"}


def test_replace_changes_fields_of_every_part_and_nothing_else() -> None:
    before = find("tvm-arm64")
    after = before.replace(
        name="mine", weights=Format(4), channel_multiple=4, static_shapes=True, cpu="cortex-a78", compiler="zig c++"
    )
    assert (after.name, after.formats.weights, after.kernels.channel_multiple) == ("mine", Format(4), 4)
    assert after.runtime.static_shapes
    assert after.runtime.code == CodeGeneration("aarch64-linux-gnu", "cortex-a78", compiler="zig c++")
    back = after.replace(
        name=before.name,
        weights=before.formats.weights,
        channel_multiple=16,
        static_shapes=False,
        cpu="generic",
        compiler="",
    )
    assert back == before


def test_replace_takes_whole_parts_and_changes_them_further() -> None:
    formats = Formats(S8, U8)
    after = find("arm").replace(formats=formats, float_bias=True, runtime=Runtime("torch", "x86_64"), machine="avx2")
    assert after.formats == Formats(S8, U8, float_bias=True)
    assert after.runtime == Runtime("torch", "x86_64", machine="avx2")


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"weight": S8}, "a target has no 'weight'; did you mean 'weights'"),
        ({"quux": 1}, "a target has no 'quux'; it has activation_bits, "),
        ({"cpu": "cortex-a78"}, "the runtime 'onnxruntime' generates no code"),
        ({"activations": Format(8, per_channel=True)}, "activations have one scale"),
    ],
)
def test_replace_refuses_what_no_target_has(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        find("arm").replace(**changes)


def test_accelerators_take_the_formats_they_list_and_cpus_every_uniform_one() -> None:
    hexagon, arm = find("hexagon"), find("arm")
    wide, few, log = Format(16, signed=False, symmetric=False), Format(4, signed=False, symmetric=False), LogFormat(8)
    assert hexagon.formats.accepted("activations") == (U8, wide)
    assert [hexagon.takes(f, "activations") for f in (U8, wide, few, S8, log)] == [True, True, True, False, False]
    assert all(arm.takes(f, "activations") for f in (U8, wide, few, S8, log))
    assert [find("nnie").takes(f, "weights") for f in (log, LogFormat(16), S8)] == [True, True, False]


def test_codes_are_for_uniform_activations_alone() -> None:
    assert Formats(S8, U8).codes == U8
    with pytest.raises(InputError, match="activations are float16, which ONNX has no codes for"):
        _ = Formats(FLOAT16, FLOAT16).codes


@pytest.mark.parametrize("name", names())
def test_a_description_is_plain_data_with_every_field_of_every_part(name: str) -> None:
    described = find(name).to_dict()
    assert json.loads(json.dumps(described)) == described
    for part, kind in (("formats", Formats), ("kernels", Kernels), ("runtime", Runtime)):
        assert set(described[part]) == {f.name for f in fields(kind)}
    code = described["runtime"]["code"]
    assert (code is None) == (described["runtime"]["name"] != "tvm")
    assert code is None or set(code) == {f.name for f in fields(CodeGeneration)}


@pytest.mark.parametrize(
    "target, fact, says",
    [
        (find("nvidia"), "biases", "float"),
        (find("nvidia"), "else", "float16, between DequantizeLinear and QuantizeLinear"),
        (find("nvidia"), "fuses", "ReLU and other clips into the operator before them, a sum into the last layer that it adds"),
        (find("hexagon"), "activations", "u8 affine per tensor; also u16 affine per tensor"),
        (find("hexagon"), "batch", "fixed"),
        (find("arm"), "biases", "int32, with the scale of the input times that of the weight"),
        (find("arm").replace(float_layers=False), "else", "nothing: every layer is integer"),
        (find("tvm-cortex-m7"), "artifact", "C and objects (thumbv7em-none-eabihf, cortex-m7), for a program of yours"),
        (find("tvm-jetson-orin"), "artifact", "CUDA source (sm_87) in a library for aarch64-linux-gnu, run by TVM"),
        (find("tvm-x86"), "artifact", "machine code (of this machine, its CPU), run by TVM"),
        (find("arm").replace(runtime=Runtime("tflite", "aarch64")), "artifact", "what the backend of 'tflite' makes"),
        (find("arm").replace(activations=LogFormat(8), integer=frozenset({"conv", "linear"})), "rounds", "conv, linear"),
    ],
    ids=lambda value: value.name if isinstance(value, Target) else None,
)  # fmt: skip
def test_explanations_follow_the_parts(target: Target, fact: str, says: str) -> None:
    assert dict(explain(target))[fact] == says
