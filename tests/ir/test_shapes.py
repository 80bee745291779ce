"""Shapes that are derived without asking torch are those that torch derives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx

from graphopt.ir import shapes
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


def of(target: object, layout: Callable[[Tensor], Tensor], dtype: torch.dtype) -> fx.GraphModule:
    """layout(x), then the function in place of a copy of it or not."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    (value,) = fake_inputs([torch.randn(2, 4, 6, 5).to(dtype)], [FreeSize("batch", (Place(0, 0),))])
    x.meta["val"] = value
    moved = graph.call_function(layout, (x,))
    arguments = [a for a in target._schema.arguments if a.name not in ("self", "input")]  # type: ignore[attr-defined]
    needed = tuple(0.5 for a in arguments if not a.has_default_value() or a.name == "min")
    graph.output(graph.call_function(target, (moved, *needed)))  # type: ignore[arg-type]
    return fx.GraphModule(torch.nn.Module(), graph)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int32])
def test_functions_of_one_tensor_give_what_torch_says(
    dtype: torch.dtype, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    for target in sorted(shapes._CURVES, key=str):
        if any("Tensor" in str(a.type) for a in target._schema.arguments[1:]):
            continue  # which reads two
        if target._schema.is_mutable and layout == "expanded":
            continue  # which torch refuses, there being one element at several places
        module = of(target, LAYOUTS[layout], dtype)
        results = []
        for rule in (shapes._like_its_input, lambda *_: None):
            with monkeypatch.context() as patch:
                patch.setattr(shapes, "_like_its_input", rule)
                try:
                    propagate(module)
                    called = next(n for n in reversed(module.graph.nodes) if n.target is target)
                    results.append(described(called.meta["val"]))
                except Exception as error:  # torch's own refusal, of whole numbers say
                    results.append(type(error))
            for node in module.graph.nodes:
                node.meta.pop("derivation", None)
        assert results[0] == results[1], str(target)
        asked += 1
    assert asked >= (12 if layout == "expanded" else 24)


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
