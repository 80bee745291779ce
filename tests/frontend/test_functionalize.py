"""In-place operators and aliased views become functional graphs that compute the same.

`Graph.capture` compares outputs with the original itself, so capturing is the check of the numbers; these tests add
that nothing in-place is left and that the graphs read well.
"""

from __future__ import annotations

from collections.abc import Callable
from textwrap import dedent

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from graphopt.frontend.functionalize import mutated_argument
from graphopt.ir.graph import Graph
from graphopt.utils.errors import CaptureError

Forward = Callable[[Tensor], object]


class Model(nn.Module):
    """Runs a function on twice the input, so that the caller's tensor is not what is written into."""

    def __init__(self, body: Forward) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> object:
        return self.body(x * 2)


def capture(body: Forward, *shape: int) -> Graph:
    torch.manual_seed(0)
    graph = Graph.capture(Model(body).eval(), torch.randn(*(shape or (2, 4, 6))))
    assert not [n for n in graph.calls() if mutated_argument(n) is not None]
    return graph


def a_simple_chain(x: Tensor) -> Tensor:
    return x.add_(1).relu_().mul_(2)


def a_slice(x: Tensor) -> Tensor:
    x[:, :2] = 0
    return x


def a_slice_of_a_slice(x: Tensor) -> Tensor:
    x[:, 1:][:, :2].add_(3)
    return x


def a_strided_slice(x: Tensor) -> Tensor:
    x[:, ::2, 1:5:3] *= 2
    return x


def a_row(x: Tensor) -> Tensor:
    x[:, 1].exp_()
    return x


def a_flat_view(x: Tensor) -> Tensor:
    x.view(-1).add_(1)
    return x


def a_transposed_view(x: Tensor) -> Tensor:
    x.transpose(1, 2)[:, 0].zero_()
    return x


def a_permuted_view(x: Tensor) -> Tensor:
    x.permute(2, 0, 1)[1].mul_(5)
    return x


def an_older_view_sees_the_write(x: Tensor) -> Tensor:
    view = x[:, 1]
    x.mul_(3)
    return view


def a_sibling_view_sees_the_write(x: Tensor) -> tuple[Tensor, Tensor]:
    first, second = x[:, :3], x[:, 2:]
    first.add_(1)
    return second, x


def a_value_computed_before_stays(x: Tensor) -> tuple[Tensor, Tensor]:
    before = x + 1
    x.mul_(0)
    return before, x


def a_chunk(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=1)
    first.add_(second)
    second.copy_(first)
    return x


def unbound_rows(x: Tensor) -> Tensor:
    for number, row in enumerate(x.unbind(1)):
        row.mul_(number)
    return x


def a_copy_that_broadcasts_and_casts(x: Tensor) -> Tensor:
    x[:, 1] = torch.arange(6)
    return x


def a_copy_between_overlapping_parts(x: Tensor) -> Tensor:
    x[:, :2] = x[:, 1:3].clone()
    x[:, 3] = x[:, 0]
    return x


def an_index(x: Tensor) -> Tensor:
    x[:, [0, 2]] = 7.0
    return x


def a_mask(x: Tensor) -> Tensor:
    x.masked_fill_(x > 0, -1.0)
    return x


def mixed_types(x: Tensor) -> Tensor:
    return x.add_(torch.ones(6, dtype=torch.float64))


def integers(x: Tensor) -> Tensor:
    mask = x > 0
    mask &= x < 1
    mask |= x < -1
    return mask


def a_diagonal(x: Tensor) -> Tensor:
    x.diagonal(dim1=1, dim2=2).fill_(9)
    return x


def inference_dropout_returns_its_input(x: Tensor) -> Tensor:
    nn.functional.dropout(x, 0.5, training=False).add_(1)
    return x


def a_reshape_that_views(x: Tensor) -> Tensor:
    x.reshape(-1, 24).add_(1)
    return x


def a_reshape_that_copies(x: Tensor) -> Tensor:
    x.transpose(1, 2).reshape(-1, 24).add_(1)
    return x


def contiguous_is_the_same_value(x: Tensor) -> Tensor:
    x.contiguous().add_(1)
    return x


def unsqueezed(x: Tensor) -> Tensor:
    x.unsqueeze(1).squeeze(1).flatten(1).unflatten(1, (4, 6)).add_(1)
    return x


def unsqueezed_in_place(x: Tensor) -> Tensor:
    return x.unsqueeze_(1).add_(1)


def a_new_tensor_filled_by_parts(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, :2] = x[:, 2:]
    out[:, 2:] -= x[:, :2]
    return out


def a_constant_written_into(x: Tensor) -> Tensor:
    table = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    table[2] = 0
    return x * table


def complex_numbers(x: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.view(-1, 4, 3, 2))
    pairs.mul_(2j)
    return x


BODIES = [
    v for k, v in list(globals().items()) if callable(v) and k.islower() and k not in ("capture", "given", "settings")
]
BODIES = [b for b in BODIES if getattr(b, "__module__", "") == __name__]


@pytest.mark.parametrize("body", BODIES, ids=lambda b: b.__name__)
def test_writing_in_place_gives_the_same_numbers(body: Forward) -> None:
    assert capture(body).dynamic_batch


def test_a_chain_keeps_its_operators() -> None:
    assert str(capture(a_simple_chain)) == dedent("""\
        graph(x: f32[N, 4, 6])
          %0 = mul(x, other=2) : f32[N, 4, 6]  # mul
          %1 = add(%0, other=1) : f32[N, 4, 6]  # add_tensor
          %2 = relu(%1) : f32[N, 4, 6]  # relu_default
          %3 = mul(%2, other=2) : f32[N, 4, 6]  # mul_tensor
          return %3""")


def test_a_write_through_a_view_is_scattered_into_its_base() -> None:
    assert str(capture(a_row)) == dedent("""\
        graph(x: f32[N, 4, 6])
          %0 = mul(x, other=2) : f32[N, 4, 6]  # mul
          %1 = select(%0, dim=1, index=1) : f32[N, 6]  # select
          %2 = exp(%1) : f32[N, 6]
          %3 = select_scatter(%0, %2, dim=1, index=1) : f32[N, 4, 6]
          return %3""")


def test_the_callers_input_is_not_written_into() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(2)

    x = torch.ones(2, 3)
    graph = Graph.capture(InPlace().eval(), x)
    assert torch.equal(x, torch.ones(2, 3))
    assert torch.equal(graph(x), torch.full((2, 3), 2.0))
    assert torch.equal(x, torch.ones(2, 3))
    assert "writes into its input 'x'" in graph.notes[0]


class Buffers(nn.Module):
    calls: Tensor
    scale: Tensor

    def __init__(self, use: bool) -> None:
        super().__init__()
        self.use = use
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("scale", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.scale.copy_(x.mean(0))
        return x * (self.calls if self.use else self.scale)


def test_state_that_reaches_no_output_is_dropped_with_a_note() -> None:
    model = Buffers(use=False).eval()
    graph = Graph.capture(model, torch.randn(2, 3))
    assert "'calls'" in " ".join(graph.notes)
    assert not list(graph.named_buffers())
    assert model.calls == 0
    assert torch.equal(model.scale, torch.ones(3))


def test_state_that_reaches_an_output_is_refused() -> None:
    with pytest.raises(
        CaptureError, match=r"test_functionalize.py:\d+: `self.calls \+= 1`: the model changes its buffer 'calls'"
    ):
        Graph.capture(Buffers(use=True).eval(), torch.randn(2, 3))


STEPS: dict[str, Callable[[list[Tensor]], object]] = {
    "slice": lambda v: v.append(v[-1][:, 1:] if v[-1].shape[1] > 1 else v[-1]),
    "step": lambda v: v.append(v[-1][..., ::2]),
    "swap": lambda v: v.append(v[-1].transpose(1, -1)),
    "select": lambda v: v.append(v[-1].select(-1, 0) if v[-1].dim() > 2 else v[-1]),
    "insert": lambda v: v.append(v[-1].unsqueeze(1)),
    "reshape": lambda v: v.append(v[-1].reshape(v[-1].shape[0], -1)),
    "split": lambda v: v.extend(v[-1].split(1, dim=1)),
    "base": lambda v: v.append(v[0]),
    "older": lambda v: v.append(v[len(v) // 2]),
    "add": lambda v: v[-1].add_(1.5),
    "multiply": lambda v: v[-1].mul_(-0.5),
    "from base": lambda v: v[-1].add_(v[0].sum()),
    "fill": lambda v: v[-1].fill_(3),
    "fresh": lambda v: v.append(v[-1] * 2),
}


@pytest.mark.thorough
@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=2, max_size=9))
def test_any_sequence_of_views_and_writes_is_right(steps: list[str]) -> None:
    def body(x: Tensor) -> tuple[Tensor, ...]:
        values = [x]
        for step in steps:
            STEPS[step](values)
        return tuple(v + 0 for v in values)

    graph, x = capture(body, 2, 4, 3), torch.randn(2, 4, 3)
    for found, wanted in zip(graph(x), body(2 * x), strict=True):
        torch.testing.assert_close(found, wanted)
