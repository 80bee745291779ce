"""Removing units: what is refused, any order, and any subset on random networks."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exactness import EXACT, Chosen, Reference, difference, quarter
from hypothesis import given, settings
from hypothesis import strategies as st
from prunable import conv, head
from rewriting import Model, capture, randomised
from torch import Tensor, nn

from graphopt.analysis.channels.groups import groups
from graphopt.analysis.channels.removal import remove
from graphopt.analysis.channels.shuffles import gather_shuffles
from graphopt.analysis.channels.trace import Trace
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer

IMAGE = (2, 3, 8, 8)


def chain() -> Graph:
    model = Model(lambda m, x: m.head(m.b(m.a(x).relu()).relu()), a=conv(3, 8), b=conv(8, 6), head=head(6))
    return capture(model, torch.randn(IMAGE))


@pytest.mark.parametrize(
    ("group", "units", "message"),
    [
        (0, [8], "a has 8 units, so there is no unit 8"),
        (0, [-1], "a has 8 units, so there is no unit -1"),
        (0, list(range(8)), "a: all of its 8 units would be removed; leave at least one"),
        (2, [1], "head.2: unit 1 is fixed by the model's output"),
    ],
)
def test_what_cannot_be_removed_is_refused_and_nothing_changes(group: int, units: list[int], message: str) -> None:
    graph = chain()
    before, trace = str(graph), Trace(graph)
    with pytest.raises(ValueError, match=message):
        remove(graph, trace, [(groups(graph, trace)[group], units)])
    assert str(graph) == before


def test_groups_that_meet_may_not_take_everything_between_them() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        y = torch.cat([m.a(x), m.b(x)], 1).relu()
        return m.head(m.c(y[:, 2:5]))  # type: ignore[no-any-return]

    graph = capture(Model(body, a=conv(3, 4), b=conv(3, 4), c=conv(3, 4), head=head(4)), torch.randn(IMAGE))
    trace = Trace(graph)
    one, other, *_ = groups(graph, trace)
    before = str(graph)
    with pytest.raises(ValueError, match=r"nothing would be left of c\.weight: the groups that meet there"):
        remove(graph, trace, [(one, [2, 3]), (other, [0])])
    assert str(graph) == before


def test_an_order_of_channels_computed_of_numbers_is_kept() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        order = torch.arange(8).reshape(2, 4).T.reshape(-1)
        return m.head(m.a(x).relu().index_select(1, order))  # type: ignore[no-any-return]

    graph, x = capture(Model(body, a=conv(3, 8), head=head(8)), torch.randn(IMAGE)), torch.randn(IMAGE)
    silent = copy.deepcopy(graph)
    layer = next(node for node in silent.calls() if Layer.of(node))
    for position in (1, 2):
        silent.set_constant(
            layer, position, silent.tensor(layer.args[position]).index_fill(0, torch.tensor([1, 6]), 0.0)
        )
    trace = Trace(graph)
    remove(graph, trace, [(groups(graph, trace)[0], [1, 6])])
    torch.testing.assert_close(graph(x), silent(x), rtol=1e-4, atol=1e-5)


BESIDE: dict[str, Callable[[Tensor], Tensor]] = {"a slice": lambda y: y[1::2], "one index": lambda y: y[-1]}


@pytest.mark.parametrize("case", BESIDE)
def test_what_is_cut_along_a_free_size_stays_as_it_is_where_channels_go(case: str) -> None:
    """The channels that go lie along another dimension, and the free one has no number."""
    model = Model(lambda m, x: m.b(BESIDE[case](m.a(x).relu()).mean(-1)), a=nn.Conv1d(3, 8, 3), b=nn.Linear(8, 2))
    x = torch.randn(5, 3, 12)
    graph = Graph.capture(randomised(model).eval(), (x,))
    trace = Trace(graph)
    chosen = [(groups(graph, trace)[0], [1, 5])]
    reference = Reference(graph, trace, chosen)
    remove(graph, trace, chosen)
    assert dict(graph.named_parameters())["a.weight"].shape[0] == 6
    for batch in (x, torch.randn(9, 3, 12)):
        assert difference(reference(batch), graph(batch)) <= EXACT


def test_channels_of_which_nothing_is_left_stay() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        return F.pixel_shuffle(m.a(x), 2)[:, 1::2, 1:]

    graph = capture(Model(body, a=nn.Conv2d(3, 4, 1)), torch.randn(IMAGE))
    assert not any(len(group.free) for group in groups(graph, Trace(graph)))


def test_nothing_to_remove_changes_nothing() -> None:
    graph = chain()
    trace = Trace(graph)
    assert remove(graph, trace, []) == remove(graph, trace, [(groups(graph, trace)[0], [])]) == {}


def test_the_channels_that_layers_keep_are_returned() -> None:
    graph = chain()
    trace = Trace(graph)
    found = groups(graph, trace)
    kept = remove(graph, trace, [(found[0], [1, 2]), (found[1], [5])])
    assert {k: v.tolist() for k, v in kept.items()} == {"conv2d": [0, 3, 4, 5, 6, 7], "conv2d_1": [0, 1, 2, 3, 4]}


def test_the_order_of_removals_does_not_matter() -> None:
    together, one_by_one = chain(), None
    one_by_one = together.clone()
    trace = Trace(together)
    remove(together, trace, [(groups(together, trace)[0], [1, 4]), (groups(together, trace)[1], [0])])
    for group, unit in [(0, 4), (1, 0), (0, 1)]:
        trace = Trace(one_by_one)
        remove(one_by_one, trace, [(groups(one_by_one, trace)[group], [unit])])
    x = torch.randn(IMAGE)
    assert str(together) == str(one_by_one)
    assert torch.equal(together(x), one_by_one(x))


def test_a_copy_keeps_its_weights() -> None:
    graph = chain()
    other, x = graph.clone(), torch.randn(IMAGE)
    expected = other(x)
    trace = Trace(graph)
    remove(graph, trace, [(groups(graph, trace)[0], [0])])
    assert torch.equal(other(x), expected)


# ---- Random networks: a stack of blocks, all with `n` channels in and out, n a multiple of four ------------------------


class Block(nn.Module):
    def __init__(self, body: Callable[[Any, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.body = body
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def attend(m: Any, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    qkv = m.qkv(x.flatten(2).transpose(1, 2)).reshape(n, h * w, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2]).transpose(1, 2).reshape(n, h * w, c)
    return x + m.out(y).transpose(1, 2).reshape(n, c, h, w)  # type: ignore[no-any-return]


def excite(m: Any, x: Tensor) -> Tensor:
    return x * m.b(m.a(x.mean((2, 3), keepdim=True)).relu()).sigmoid()  # type: ignore[no-any-return]


def shuffle(m: Any, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return m.a(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))  # type: ignore[no-any-return]


def norm_last(m: Any, x: Tensor) -> Tensor:
    return m.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


BLOCKS: dict[str, Callable[[int], nn.Module]] = {
    "plain": lambda n: nn.Sequential(conv(n, n), nn.BatchNorm2d(n), nn.ReLU()),
    "residual": lambda n: Block(lambda m, x: x + m.b(m.a(x).relu()), a=conv(n, n // 2), b=conv(n // 2, n)),
    "concat": lambda n: Block(lambda m, x: torch.cat([m.a(x), m.b(x).relu()], 1), a=conv(n, n // 4), b=conv(n, n - n // 4)),
    "swap": lambda n: Block(lambda m, x: torch.cat([m.a(x[:, n // 4 :]), x[:, : n // 4]], 1), a=conv(n - n // 4, n - n // 4)),
    "gate": lambda n: Block(lambda m, x: (lambda a, b: a * b.sigmoid())(*m.a(x).chunk(2, 1)), a=conv(n, 2 * n)),
    "excite": lambda n: Block(excite, a=conv(n, 3, 1), b=conv(3, n, 1)),
    "grouped": lambda n: nn.Sequential(conv(n, n, groups=2), nn.ReLU()),
    "depthwise": lambda n: nn.Sequential(conv(n, 2 * n, groups=n), nn.ReLU(), conv(2 * n, n, 1)),
    "transposed": lambda n: nn.Sequential(nn.ConvTranspose2d(n, n, 3, padding=1, groups=2), nn.ReLU()),
    "shuffle": lambda n: Block(shuffle, a=conv(n, n)),
    "pixels": lambda n: nn.Sequential(nn.PixelUnshuffle(2), conv(4 * n, 4 * n, 1), nn.PixelShuffle(2)),
    "pad": lambda n: Block(lambda m, x: F.pad(m.a(x), (0, 0, 0, 0, 1, n // 2 - 1)) + x, a=conv(n, n // 2)),
    "group norm": lambda n: nn.GroupNorm(2, n),
    "layer norm": lambda n: Block(norm_last, norm=nn.LayerNorm(n)),
    "instance norm": lambda n: nn.InstanceNorm2d(n, affine=True),
    "attention": lambda n: Block(attend, qkv=nn.Linear(n, 3 * n), out=nn.Linear(n, n)),
}  # fmt: skip


@pytest.mark.thorough
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    names=st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=5),
    width=st.sampled_from([8, 12]),
    ending=st.sampled_from(["pool", "flatten"]),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_any_subset_in_any_order_stays_exact(names: list[str], width: int, ending: str, seed: int, data: Any) -> None:
    torch.manual_seed(seed)
    last = head(width) if ending == "pool" else nn.Sequential(nn.Flatten(), nn.Linear(width * 16, 5))
    model = randomised(nn.Sequential(conv(3, width), *(BLOCKS[name](width) for name in names), last))
    x = torch.randn(2, 3, 4, 4)
    graph = capture(model, x)
    gather_shuffles(graph)
    for _ in range(3):
        trace = Trace(graph)
        chosen: Chosen = []
        for group in groups(graph, trace):
            if len(group.free):
                most = min(len(group.free), len(group) - 1)
                units = data.draw(st.lists(st.sampled_from(group.free.tolist()), max_size=min(most, 3), unique=True))
                chosen.append((group, units))
        reference = Reference(graph, trace, chosen)
        before = str(graph)
        try:
            remove(graph, trace, chosen)
        except ValueError as error:  # groups that meet lose all of a layer between them
            if "nothing would be left" not in str(error):
                raise
            assert str(graph) == before
        else:
            assert difference(reference(x), graph(x)) < EXACT


# ---- Published networks ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet18", "densenet121", "mobilenet_v3_small", "shufflenet_v2_x1_0", "swin_t", "vit_b_32"]
)
def test_a_published_network_is_pruned_exactly(name: str) -> None:
    import zoo

    torch.manual_seed(0)
    size = 224 if name == "vit_b_32" else 64
    graph = capture(zoo.make(f"torchvision/{name}")[0], torch.randn(2, 3, size, size))
    for parameter in graph.parameters():
        if parameter.dim() == 1:
            parameter.data.uniform_(0.5, 1.0)
    gather_shuffles(graph)
    trace = Trace(graph)
    chosen = quarter(groups(graph, trace))
    reference, x = Reference(graph, trace, chosen), torch.randn(2, 3, size, size)
    remove(graph, trace, chosen)
    assert difference(reference(x), graph(x)) < EXACT


@pytest.mark.slow
def test_time_grows_with_the_number_of_operators() -> None:
    def seconds(depth: int) -> float:
        blocks = (BLOCKS[name](16) for _ in range(depth) for name in ("plain", "residual", "concat", "layer norm"))
        graph = capture(nn.Sequential(conv(3, 16), *blocks, head(16)), torch.randn(IMAGE))
        start = time.process_time()
        trace = Trace(graph)
        remove(graph, trace, quarter(groups(graph, trace)))
        return time.process_time() - start

    seconds(2)
    assert seconds(32) < 1.5 * 4 * seconds(8)
