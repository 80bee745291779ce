"""Where networks are compared: found from shapes, named as reports name layers, or under one name in both."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from distilling import TOKENS, Transformer, X, convolutional
from torch import Tensor, nn

from graphopt.data import Calibration
from graphopt.execution.executor import Executor
from graphopt.ir.graph import Graph
from graphopt.passes.cleanup import FoldBatchNorm
from graphopt.passes.pruning import Prune
from graphopt.passes.quantization import Quantize
from graphopt.passmanager import run
from graphopt.targets import find
from graphopt.training.distillation.places import pairs
from graphopt.utils.errors import InputError


def graph(width: int = 4, **options: Any) -> Graph:
    return Graph.capture(convolutional(width, **options), X[:2])


def shapes(found: Any) -> list[tuple[tuple[int, ...], ...]]:
    return [place.shapes for place, _ in found]


@pytest.mark.parametrize(
    ("rule", "names", "sizes"),
    [
        ("stages", ["5", "11"], [((4, 8, 8),), ((8, 4, 4),)]),
        ("last", ["11"], [((8, 4, 4),)]),
        ("flow", ["5", "11"], [((4, 8, 8), (4, 8, 8)), ((8, 4, 4), (8, 4, 4))]),
        ("preactivations", ["5", "11"], [((4, 8, 8),), ((8, 4, 4),)]),
        ("features", ["features"], [((8,),)]),
        ("gradients", ["gradients"], [((3,), (3, 8, 8))]),
    ],
)
def test_rules_find_places_from_shapes(rule: str, names: list[str], sizes: Any) -> None:
    found = pairs(graph(), graph(), rule)
    assert [place.name for place, _ in found] == names
    assert shapes(found) == sizes


def test_places_in_front_of_activations_are_what_activations_read() -> None:
    student = graph()
    for (before, _), (behind, _) in zip(
        pairs(student, student, "preactivations"), pairs(student, student, "stages"), strict=True
    ):
        values = Executor(student).run([*before.nodes, *behind.nodes], [X])
        torch.testing.assert_close(values[before.nodes[0]].relu(), values[behind.nodes[0]])  # type: ignore[index]


class Strided(nn.Module):
    """A residual shortcut that takes every other row, then every other column: sizes on the way are no stages."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 2, 1)
        self.excite, self.head = nn.Conv2d(4, 4, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = (x[:, :, ::2, ::2] + self.second(x)).relu()
        x = x * self.excite(x.mean((2, 3), keepdim=True)).sigmoid()
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def test_stages_are_resolutions_that_convolutions_compute() -> None:
    found = pairs(*[Graph.capture(Strided().eval(), X[:2])] * 2, "stages")
    assert shapes(found) == [((4, 8, 8),), ((4, 4, 4),)]


def test_a_teacher_with_more_stages_is_matched_from_the_last_one() -> None:
    deep = nn.Sequential(
        convolutional(4)[:12], nn.Conv2d(8, 16, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)
    )
    found = pairs(graph(), Graph.capture(deep.eval(), X[:2]), "stages")
    assert [(own.shapes[0], other.shapes[0]) for own, other in found] == [
        ((4, 8, 8), (8, 4, 4)),
        ((8, 4, 4), (16, 2, 2)),
    ]


class Up(nn.Module):
    """Down to half the size and up again."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 5, 3, 2, 1), nn.Conv2d(5, 6, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        value: Tensor = self.c(nn.functional.interpolate(self.b(self.a(x)), scale_factor=2.0))
        return value


def test_a_resolution_that_comes_again_ends_where_it_was_last() -> None:
    student = Graph.capture(Up().eval(), X[:2])
    assert shapes(pairs(student, student, "stages")) == [((5, 4, 4),), ((6, 8, 8),)]


def test_names_are_those_of_reports_or_of_blocks() -> None:
    model = nn.Sequential(convolutional(4)[:6], convolutional(4)[6:]).eval()
    student = Graph.capture(model, X[:2])
    found = pairs(student, graph(8), "stages", ["0", ("0.3", "3")])
    assert shapes(found) == [((4, 8, 8),), ((4, 8, 8),)]
    assert student.site(found[0][0].nodes[0]) == "0.5", "the last value that the block computes"  # type: ignore[arg-type]
    assert [other.name for _, other in found] == ["0", "3"]


def test_a_network_and_its_quantized_and_pruned_self_meet_in_their_common_names() -> None:
    teacher = graph()
    small = graph()
    Prune(keep_ratio=0.6, data=Calibration(X[:16], small))(small)
    small.refresh()
    quantized = teacher.clone()
    run([FoldBatchNorm(), Quantize(find("x86"), Calibration(X[:16], quantized))], quantized)
    for student in (small, quantized):
        found = pairs(student, teacher, "common")
        assert {place.name for place, _ in found} >= {"0", "3", "6", "9", "14"}
        for place, other in found:
            assert place.shapes[0][1:] == other.shapes[0][1:]


def test_attention_is_read_as_probabilities_and_values() -> None:
    model = Transformer(8).eval()
    student = Graph.capture(model, TOKENS[:2])
    first, last = (place for place, _ in pairs(student, student, "attention"))
    values = Executor(student).run([*first.nodes, *last.nodes], [TOKENS])  # type: ignore[list-item]
    attention, value = first.values(values)
    torch.testing.assert_close(attention.exp().sum(-1), torch.ones(32, 2, 5))
    torch.testing.assert_close(attention.exp() @ value, _attended(student, TOKENS))
    assert [place.nodes for place, _ in pairs(student, student, "last_attention")] == [last.nodes]


def _attended(graph: Graph, x: Tensor) -> Tensor:
    call = graph.calls(torch.ops.aten.scaled_dot_product_attention.default)[0]
    found: Tensor = Executor(graph).run([call], [x])[call]
    return found


class Masked(nn.Module):
    """Causal attention, and attention with a mask and a scale of its own, and queries that share keys."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        attend = nn.functional.scaled_dot_product_attention
        one = attend(q, k, v, is_causal=True)
        return one + attend(q, k, v, attn_mask=mask, scale=0.3) + attend(q, k, v, attn_mask=3.0 * mask)


def test_masks_scales_and_causality_are_those_of_the_call() -> None:
    q, k, v = (torch.randn(2, 2, 4, 6) for _ in range(3))
    mask = torch.rand(4, 4) > 0.4
    mask |= torch.eye(4, dtype=torch.bool)
    student = Graph.capture(Masked().eval(), (q, k, v, mask), dynamic_batch=False)
    calls = student.calls(torch.ops.aten.scaled_dot_product_attention.default)
    places = [place for place, _ in pairs(student, student, "attention")]
    values = Executor(student).run([*calls, *(n for place in places for n in place.nodes)], [q, k, v, mask])  # type: ignore[list-item]
    assert len(calls) == len(places) == 3
    for call, place in zip(calls, places, strict=True):
        attention, value = place.values(values)
        torch.testing.assert_close(attention.exp() @ value, values[call])


def test_hidden_states_are_what_the_next_attention_reads_and_the_last_block_gives() -> None:
    model = Transformer(8).eval()
    student = Graph.capture(model, TOKENS[:2])
    places = [place.nodes[0] for place, _ in pairs(student, student, "hidden")]
    values = Executor(student).run(places, [TOKENS])  # type: ignore[arg-type]
    x = model.embed(TOKENS)
    for place, attention, mixer in zip(places, model.attentions, model.mixers, strict=True):
        x = x + attention(x)
        x = x + mixer(x)
        torch.testing.assert_close(values[place], x)  # type: ignore[index]
    (place, _), *_ = pairs(student, student, "hidden")
    assert place.shapes == ((8, 5),)
    assert place.values(values)[0].shape == (32, 8, 5), "features stand where channels do"


def test_values_of_one_dimensional_convolutions_have_no_tokens() -> None:
    model = nn.Sequential(
        nn.Conv1d(8, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, 4, 1), nn.Flatten(), nn.Linear(12, 3)
    )
    student = Graph.capture(model.eval(), TOKENS.transpose(1, 2)[:2])
    assert shapes(pairs(student, student, "stages", ["0", "2", "3"])) == [((6, 3),), ((6, 3),), ((4, 3),)]


@pytest.mark.parametrize(
    ("rule", "names", "says"),
    [
        ("stages", ["layer1"], r"the student has no place 'layer1'; it has 0, 1, 2"),
        ("stages", [("0", "14x")], r"the teacher has no place '14x'; did you mean '14'\?"),
        ("stages", [], "places is empty"),
        ("stage", None, r"unknown places 'stage'; did you mean 'stages'\?"),
        ("attention", None, "the student has no attention: no call of scaled_dot_product_attention; name places"),
        ("hidden", None, "the student has no hidden"),
    ],
)
def test_what_is_not_there_is_said_with_what_is_near(rule: str, names: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        pairs(graph(), graph(), rule, names)


def test_networks_without_a_common_name_or_stages_are_refused() -> None:
    other = Graph.capture(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).eval(), X[:2])
    with pytest.raises(InputError, match=r"the teacher has no stages: no convolution has more than one position"):
        pairs(graph(), other, "stages")
    named = Graph.capture(Strided().eval(), X[:2])
    with pytest.raises(InputError, match=r"student and teacher have no layer of the same name .*name pairs"):
        pairs(graph(), named, "common")


def test_free_sizes_stay_free() -> None:
    model = nn.Sequential(convolutional(4)[:12], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()
    size = torch.export.Dim("size", min=4, max=64)
    student = Graph.capture(model, X[:2], dynamic_shapes=({2: size, 3: size},))
    before = str(student)
    assert shapes(pairs(student, student, "stages")) == [((4, 8, 8),), ((8, 4, 4),)]
    student.refresh()
    assert str(student) == before
    assert student(torch.randn(3, 3, 16, 16)).shape == (3, 3)
