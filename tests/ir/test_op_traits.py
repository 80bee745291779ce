"""Every trait of the operator table, held against the operators themselves: what is said holds, and what holds is said."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.fx.node import Node

from graphopt.ir.layer import Layer
from graphopt.ir.ops import OpInfo, aten, clip_of, info, is_elementwise, registered

SHAPE = (2, 4, 4, 4)
# Operators of one value with arguments under which they do the least they promise.
ARGUMENTS: dict[Any, tuple[Any, ...]] = {
    aten.relu.default: (), aten.relu6.default: (), aten.hardtanh.default: (-2.0, 3.0), aten.clamp.default: (-1.0, 5.0),
    aten.clamp_min.default: (-2.0,), aten.clamp.Tensor: (None, torch.rand(4, 1, 1).double() + 1),
    aten.leaky_relu.default: (0.2,), aten.prelu.default: (torch.tensor([0.5, -0.5, 2.0, 0.1]).double(),),
    aten.sigmoid.default: (), aten.hardsigmoid.default: (), aten.tanh.default: (), aten.hardswish.default: (),
    aten.silu.default: (), aten.gelu.default: (), aten.softmax.int: (1,),
    aten.constant_pad_nd.default: ([1, 1, 0, 0, 0, 2],), aten.pad.default: ([1, 1, 0, 0, 0, 2],),
    aten.max_pool2d.default: ([2, 2],), aten.avg_pool2d.default: ([2, 2],), aten.adaptive_avg_pool2d.default: ([2, 2],),
    aten.max_pool1d.default: ([2],), aten.avg_pool1d.default: ([2],), aten.adaptive_avg_pool1d.default: ([2],),
    aten.max_pool3d.default: ([2, 2, 2],), aten.mean.dim: ([1],),
    aten.upsample_bilinear2d.vec: ([8, 8], False, None), aten.upsample_nearest2d.vec: ([8, 8], None),
    aten.upsample_nearest2d.default: ([8, 8],),
    aten.view.default: ([4, 2, 16],), aten.reshape.default: ([4, 2, 16],), aten._unsafe_view.default: ([4, 2, 16],),
    aten.flatten.using_ints: (0, 1), aten.unflatten.int: (1, [2, 2]), aten.squeeze.default: (), aten.squeeze.dim: (0,),
    aten.squeeze.dims: ([0, 1],), aten.unsqueeze.default: (1,), aten.transpose.int: (1, 2),
    aten.permute.default: ([3, 2, 1, 0],), aten.t.default: (), aten.numpy_T.default: (), aten.slice.Tensor: (1, 1, 3),
    aten.select.int: (1, 2), aten.narrow.default: (1, 1, 2), aten.index_select.default: (1, torch.tensor([2, 0])),
    aten.split.Tensor: (2, 1), aten.split.sizes: ([1, 3], 1), aten.split_with_sizes.default: ([1, 3], 1),
    aten.chunk.default: (2, 1), aten.pixel_shuffle.default: (2,), aten.pixel_unshuffle.default: (2,),
    aten.channel_shuffle.default: (2,), aten.expand.default: ([2, 2, 4, 4, 4],), aten.flip.default: ([1],),
    aten.roll.default: ([1], [1]), operator.getitem: (1,), aten.clone.default: (), aten.contiguous.default: (),
    aten.detach.default: (), aten.alias.default: (), aten.lift_fresh_copy.default: (), aten.dropout.default: (0.5, False),
    aten.feature_dropout.default: (0.5, False), aten.alpha_dropout.default: (0.5, False),
}  # fmt: skip
SHAPES: dict[Any, tuple[int, ...]] = {
    aten.t.default: (4, 6), aten.numpy_T.default: (4, 6), aten.squeeze.default: (1, 4, 5), aten.squeeze.dim: (1, 4, 5),
    aten.squeeze.dims: (1, 4, 5), aten.max_pool1d.default: (2, 4, 6), aten.avg_pool1d.default: (2, 4, 6),
    aten.adaptive_avg_pool1d.default: (2, 4, 6), aten.max_pool3d.default: (2, 4, 4, 4, 4),
}  # fmt: skip
every_operator = pytest.mark.parametrize("target", ARGUMENTS, ids=str)


def called(target: Any, *arguments: Any) -> Node:
    """A call of the operator in a graph: tensors among the arguments are constants."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    found = [graph.get_attr(f"c{i}") if isinstance(a, Tensor) else a for i, a in enumerate(arguments)]
    return graph.call_function(target, (x, *found))


class Probe:
    """An operator as a function, and what holds of it."""

    def __init__(self, target: Any) -> None:
        self.target, self.generator = target, torch.Generator().manual_seed(0)
        self.shape = SHAPES.get(target, SHAPE)
        self.x = self.random() * 8

    def random(self) -> Tensor:
        return torch.randn(self.shape, generator=self.generator, dtype=torch.float64)

    def __call__(self, x: Tensor) -> Tensor:
        found = self.target(x.chunk(2, 1) if self.target is operator.getitem else x, *ARGUMENTS[self.target])
        return found if isinstance(found, Tensor) else torch.cat(list(found)[::-1], 1)

    def same(self, one: Tensor, other: Tensor) -> bool:
        return one.shape == other.shape and torch.allclose(one, other, rtol=1e-9, atol=1e-9)

    def homogeneous(self) -> bool:
        return self.same(self(3 * self.x), 3 * self(self.x)) and self.same(self(self.x / 64), self(self.x) / 64)

    def monotone(self) -> bool:
        steps = (self.random().abs() * size * (self.random() > 0) for size in (0.05, 0.5, 5.0, 0.5, 0.05))
        return all(bool((self(self.x + step) >= self(self.x) - 1e-12).all()) for step in steps)

    def selects(self) -> bool:
        return bool(torch.isin(self(self.x), self.x).all())

    def moves(self) -> bool:
        return self.selects() and self.same(self(torch.cos(self.x)), torch.cos(self(self.x)))

    def averages(self) -> bool:
        y = self.random()
        linear = self.same(self(2 * self.x - 3 * y), 2 * self(self.x) - 3 * self(y))
        return linear and self.same(self(torch.ones(self.shape).double()), torch.ones_like(self(self.x)))

    def within_channels(self) -> bool:
        before = self(self.x)
        if before.dim() != self.x.dim() or before.shape[1] != self.x.shape[1]:
            return False
        for channel in range(self.x.shape[1]):
            other = self.x.clone()
            other[:, channel] += 1
            moved = (self(other) != before).movedim(1, 0).flatten(1).any(1)
            if moved.nonzero().flatten().tolist() not in ([channel], []):
                return False
        return True

    def pointwise(self) -> bool:
        return self.within_channels() and self.same(self(self.x.flip(-1)), self(self.x).flip(-1)) and self.keeps_shape()

    def keeps_shape(self) -> bool:
        return self(self.x).shape == self.x.shape

    def clips(self) -> bool:
        return (
            self.pointwise() and self.monotone() and self.same(self(self(self.x)), self(self.x)) and not self.selects()
        )


@every_operator
def test_the_traits_of_an_operator_are_those_it_has(target: Any) -> None:
    said, probe = info(called(target, *ARGUMENTS[target])), Probe(target)
    assert said.homogeneous == probe.homogeneous()
    assert said.monotone == probe.monotone()
    assert said.selects == probe.selects()
    assert said.moves == probe.moves()
    assert said.averages == (probe.averages() and not probe.selects())
    assert said.within_channels == probe.within_channels()
    assert said.pointwise == (probe.pointwise() and not probe.moves())
    assert said.pools == (said.within_channels and not probe.keeps_shape() and len(probe(probe.x)) <= len(probe.x)
                          and probe(probe.x).numel() < probe.x.numel())  # fmt: skip
    assert said.fusable == probe.clips()
    assert not said.layer


@every_operator
def test_the_range_of_an_operator_holds_its_values_and_is_reached(target: Any) -> None:
    said, probe = info(called(target, *ARGUMENTS[target])), Probe(target)
    found = probe(probe.x * 1e4)
    if said.range is None:
        assert said.fusable or found.abs().max() > 1
    else:
        assert torch.allclose(torch.stack([found.min(), found.max()]), torch.tensor(said.range).double(), atol=1e-9)


@every_operator
def test_the_ends_of_a_clip_are_those_of_the_operator(target: Any) -> None:
    node, probe = called(target, *ARGUMENTS[target]), Probe(target)
    ends = clip_of(node)
    assert (ends is not None) == (info(node).fusable and target is not aten.clamp.Tensor)
    if ends is not None:
        assert torch.equal(probe(probe.x), probe.x.clamp(*ends))


def test_every_operator_of_one_value_is_tried() -> None:
    several = {"matmul", "add", "mul", "sub", "div", "concat", "stack", "batch_norm", None}
    left = registered(lambda said: not said.layer and said.family not in several).keys() - ARGUMENTS.keys()
    own = {target for target in left if getattr(target, "namespace", "aten") != "aten"}  # of other tests
    assert left == own


def test_operators_of_several_values_have_rules_and_no_traits() -> None:
    for name in ("matmul", "add", "mul", "sub", "div", "concat", "stack"):
        for said in registered(lambda found, name=name: found.family == name).values():
            assert said == OpInfo(name, refine=said.refine)


@pytest.mark.parametrize("target", registered(lambda said: said.layer), ids=str)
def test_a_layer_knows_over_how_many_dimensions_its_kernel_runs(target: Any) -> None:
    dims = info(called(target, torch.zeros(1))).dims
    weight = torch.zeros(3, 3, *[2] * dims)
    target(torch.zeros(1, 3, *[5] * dims), weight, torch.zeros(3))
    layer = Layer.of(called(target, weight, torch.zeros(3)))
    assert layer is not None
    assert (layer.dims, layer.groups, layer.padding) == (dims, 1, (0,) * dims)


@pytest.mark.parametrize("name", ["max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d"])
def test_a_pool_knows_over_how_many_dimensions_its_window_runs(name: str) -> None:
    target = getattr(aten, name).default
    assert info(called(target, [2])).dims == int(name[-2])


@pytest.mark.parametrize("target", registered(lambda said: True), ids=str)
def test_operators_that_train_name_the_argument(target: Any) -> None:
    arguments = getattr(getattr(target, "_schema", None), "arguments", ())
    flags = [a.name for a in arguments if a.name in ("train", "training", "use_input_stats")]
    assert [info(called(target, *ARGUMENTS.get(target, (1, 1)))).training_flag or None] == (flags or [None])


def test_hard_swish_is_elementwise_though_torch_does_not_say_so() -> None:
    assert is_elementwise(called(aten.hardswish.default))
    assert is_elementwise(called(aten.exp.default))
    assert not is_elementwise(called(aten.softmax.int, 1))


REFINED: list[tuple[Any, tuple[Any, ...], Callable[[OpInfo], Any], Any]] = [
    (aten.leaky_relu.default, (-0.5,), lambda said: said.monotone, False),
    (aten.leaky_relu.default, (0.0,), lambda said: said.monotone, True),
    (aten.adaptive_avg_pool2d.default, ([1, 1],), lambda said: said.family, "global_average_pool"),
    (aten.adaptive_avg_pool2d.default, ([1, 2],), lambda said: said.family, "adaptive_average_pool"),
    (aten.constant_pad_nd.default, ([1, 1], 2.0), lambda said: said.family, None),
    (aten.pad.default, ([1, 1], "reflect"), lambda said: said.family, None),
    (aten.pad.default, ([1, 1], "constant", 0.0), lambda said: said.family, "pad"),
]


@pytest.mark.parametrize(("target", "arguments", "trait", "expected"), REFINED)
def test_arguments_may_change_what_an_operator_is(target: Any, arguments: Any, trait: Any, expected: Any) -> None:
    assert trait(info(called(target, *arguments))) == expected


def test_a_sum_with_a_factor_is_no_plain_sum() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    assert info(graph.call_function(aten.add.Tensor, (x, x))).family == "add"
    assert info(graph.call_function(aten.add.Tensor, (x, x), {"alpha": 2})).family is None
