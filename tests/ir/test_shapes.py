"""Shapes that are derived without asking torch are those that torch derives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.ao.quantization.fx._decomposed
from torch import Tensor, fx

from graphopt.formats.operators import FAKE_QUANTIZE, FAKE_QUANTIZE_FLOAT
from graphopt.ir import shape_rules, shapes
from graphopt.ir.calls import same_sizes
from graphopt.ir.derivation import described
from graphopt.ir.shapes import UNUSUAL_LENGTH, fake_inputs, is_free, numbers_for, propagate
from graphopt.ir.sizes import FreeSize, Place

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(1, 3),
    "a view with gaps": lambda x: x[:, :, 1:, ::2],
    "expanded": lambda x: x[:, :1].expand(-1, 6, -1, -1),
}


def of(target: Any, layout: Callable[[Tensor], Tensor], dtype: torch.dtype, rest: tuple[Any, ...]) -> fx.GraphModule:
    """layout(x), then the function in place of a copy of it or not."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    (value,) = fake_inputs([torch.randn(2, 4, 6, 5).to(dtype)], [FreeSize("batch", (Place(0, 0),))])
    x.meta["val"] = value
    moved = graph.call_function(layout, (x,))
    graph.output(graph.call_function(target, (moved, *rest)))
    return fx.GraphModule(torch.nn.Module(), graph)


def both_ways(module: fx.GraphModule, target: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The shape of the call, or the refusal: by the rule, then by torch."""
    results: list[Any] = []
    for rule in (shapes.like_its_input, lambda *_: None):
        with monkeypatch.context() as patch:
            patch.setattr(shapes, "like_its_input", rule)
            try:
                propagate(module)
                called = next(n for n in reversed(module.graph.nodes) if n.target is target)
                results.append(described(called.meta["val"]))
            except Exception as error:  # torch's own refusal, of whole numbers say
                results.append(type(error))
        for node in module.graph.nodes:
            node.meta.pop("derivation", None)
    return results


@pytest.mark.many
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int32])
def test_functions_of_one_tensor_give_what_torch_says(
    dtype: torch.dtype, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    for target in sorted(shape_rules._CURVES, key=str):
        if any("Tensor" in str(a.type) for a in target._schema.arguments[1:]):
            continue  # which reads two
        if target._schema.is_mutable and layout == "expanded":
            continue  # which torch refuses, there being one element at several places
        arguments = [a for a in target._schema.arguments if a.name not in ("self", "input")]
        needed = tuple(0.5 for a in arguments if not a.has_default_value() or a.name == "min")
        ours, torchs = both_ways(of(target, LAYOUTS[layout], dtype, needed), target, monkeypatch)
        assert ours == torchs, str(target)
        asked += 1
    assert asked >= (12 if layout == "expanded" else 24)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("channels", ["as they are", 3])
def test_batch_norms_give_what_torch_says(
    channels: Any, dtype: torch.dtype, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = {"transposed": 5, "expanded": 6}.get(layout, 4) if channels == "as they are" else channels
    numbers = [torch.ones(count) for _ in range(4)]
    target = torch.ops.aten.batch_norm.default
    for affine, training in ((True, False), (False, False), (True, True)):
        module = of(target, LAYOUTS[layout], dtype, ())
        call = next(n for n in module.graph.nodes if n.target is target)
        names = ["weight", "bias", "mean", "variance"]
        with module.graph.inserting_before(call):
            for name, value in zip(names, numbers, strict=True):
                module.register_buffer(name, value)
            read = [module.graph.get_attr(n) if affine or n[0] in "mv" else None for n in names]
        call.args = (call.args[0], *read, training, 0.1, 1e-5, False)
        ours, torchs = both_ways(module, target, monkeypatch)
        assert ours == torchs


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rounding_and_codes_give_what_their_own_rules_say(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scale, zero, one = torch.ones(()), torch.zeros((), dtype=torch.int32), torch.ones(4)
    quantized = torch.ops.quantized_decomposed
    cases: list[tuple[Any, torch.dtype, tuple[Any, ...]]] = [
        (FAKE_QUANTIZE, torch.float32, (scale, zero, 0, 255, -1)),
        (FAKE_QUANTIZE_FLOAT, torch.float32, (4, 3, True)),
        (quantized.quantize_per_tensor.default, torch.float32, (0.1, 3, 0, 255, torch.uint8)),
        (quantized.dequantize_per_tensor.default, torch.uint8, (0.1, 3, 0, 255, torch.uint8)),
        (quantized.dequantize_per_channel.default, torch.int8, (one, zero.expand(4), 1, -127, 127, torch.int8)),
    ]
    for target, dtype, rest in cases:
        module = of(target, LAYOUTS[layout], dtype, ())
        call = next(n for n in reversed(module.graph.nodes) if n.target is target)
        args = [call.args[0]]
        for at, value in enumerate(rest):
            if isinstance(value, Tensor):
                module.register_buffer(f"constant{at}", value)
                with module.graph.inserting_before(call):
                    value = module.graph.get_attr(f"constant{at}")
            args.append(value)
        call.args = tuple(args)
        if "expanded" in layout and "channel" in str(target):
            continue  # six channels, of four scales
        ours, torchs = both_ways(module, target, monkeypatch)
        assert isinstance(ours, tuple)
        assert ours == torchs, str(target)


def test_comparing_shapes_ties_no_free_size_to_what_it_equals() -> None:
    size = FreeSize("length", (Place(0, 1),))
    twin, other, fixed = fake_inputs([torch.zeros(3, 7, 5), torch.zeros(3, 9, 5), torch.zeros(3, 7, 5)], [size], [9])
    assert same_sizes(twin.shape, twin.shape)
    assert not same_sizes(twin.shape, other.shape)  # 9 stands for the free size
    assert not same_sizes(twin.shape, fixed.shape)
    assert same_sizes(other.shape, [3, 9, 5])
    assert is_free(twin.shape[1])
    assert twin.shape == other.shape  # the question that ties it
    assert not is_free(twin.shape[1])


def test_numbers_that_stand_for_free_lengths_are_no_usual_ones_where_the_range_allows() -> None:
    heads = torch.zeros(2, 4, 8)
    free = FreeSize("length", (Place(0, 1),))
    assert numbers_for([free], [heads], least=UNUSUAL_LENGTH) == [UNUSUAL_LENGTH]
    short = FreeSize("length", (Place(0, 1),), max=6)
    assert numbers_for([short], [heads], least=UNUSUAL_LENGTH) == [4]
