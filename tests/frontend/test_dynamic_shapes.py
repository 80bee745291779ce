"""Sizes that `dynamic_shapes` names or a program declares: captured free, with their ranges, or refused by name."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rewriting import Model as Unnamed
from torch import Tensor, nn
from torch.export import Dim

import graphopt
from graphopt.ir import structure
from graphopt.ir.graph import Graph
from graphopt.ir.shapes import size_of
from graphopt.ir.sizes import FreeSize
from graphopt.utils.errors import InputError


class Model(Unnamed):
    """Of one input, in eval mode."""

    def __init__(self, body: Callable[..., object], **parts: nn.Module) -> None:
        super().__init__(body, **parts)
        self.eval()

    def forward(self, x: Tensor) -> object:  # type: ignore[override]
        return self.body(self, x)


class Pair(Unnamed):
    """Of two inputs."""

    def forward(self, a: Tensor, b: Tensor) -> object:  # type: ignore[override]
        return self.body(self, a, b)


def summary(graph: Graph) -> dict[str, tuple[int, int | None, int]]:
    return {size.name: (size.min, size.max, size.step) for size in graph.free_sizes}


def places(size: FreeSize) -> list[tuple[int, int]]:
    return [(place.input, place.dimension) for place in size.places]


def halved_and_doubled(m: nn.Module, x: Tensor) -> Tensor:
    """Two branches that meet where the size is even."""
    y = m.first(x)  # type: ignore[operator]
    return torch.cat([y, F.interpolate(F.max_pool2d(y, 2), scale_factor=2.0)], 1)


def images() -> Model:
    return Model(halved_and_doubled, first=nn.Conv2d(3, 4, 3, padding=1))


def same(graph: Graph, model: nn.Module, *inputs: Tensor) -> None:
    torch.testing.assert_close(graph(*inputs), model(*inputs))


def test_an_image_network_takes_other_heights_and_widths() -> None:
    model, x = images(), torch.randn(2, 3, 8, 8)
    graph = Graph.capture(model, x, dynamic_shapes=({2: "height", 3: Dim("width", min=4, max=40)},))
    assert summary(graph) == {"batch": (1, None, 1), "height": (2, None, 2), "width": (4, 40, 2)}
    for height, width in ((2, 4), (6, 40), (30, 8)):
        same(graph, model, torch.randn(1, 3, height, width))
    assert any("'height' goes from 2 upwards in steps of 2" in note for note in graph.notes)
    for shape, wrong in (((1, 3, 7, 8), "is 7"), ((1, 3, 8, 42), "is 42")):
        with pytest.raises(InputError, match=wrong):
            graph(torch.randn(shape))


@pytest.mark.parametrize("form", ["dict", "tuple", "list", "by name", "negative"])
def test_every_form_of_torch_export_is_understood(form: str) -> None:
    said: Any = {
        "dict": ({2: "height"},),
        "tuple": ((None, None, "height", None),),
        "list": [[None, None, "height", None]],
        "by name": {"x": {2: "height"}},
        "negative": {"x": {-2: "height"}},
    }[form]
    graph = Graph.capture(images(), torch.randn(2, 3, 8, 8), dynamic_shapes=said)
    assert [size.name for size in graph.free_sizes] == ["batch", "height"]


def test_multiples_are_declared_by_arithmetic() -> None:
    model = images()
    graph = Graph.capture(model, torch.randn(2, 3, 8, 8), dynamic_shapes=({2: 2 * Dim("h", max=10)},))
    assert summary(graph)["h"] == (1, 10, 1)
    same(graph, model, torch.randn(2, 3, 20, 8))
    with pytest.raises(InputError, match=r"is 7; it is 2\*h"):
        graph(torch.randn(2, 3, 7, 8))


@pytest.mark.thorough
def test_hints_free_what_can_be_free() -> None:
    said = ({2: Dim.DYNAMIC, 3: Dim.AUTO},)
    graph = Graph.capture(images(), torch.randn(2, 3, 8, 8), dynamic_shapes=said)
    assert list(summary(graph)) == ["batch", "x_2", "x_3"]
    flat = Model(lambda m, x: m.layer(x.flatten(1)), layer=nn.Linear(24, 2))
    graph = Graph.capture(flat, torch.randn(2, 3, 8), dynamic_shapes=({2: Dim.AUTO},))
    assert list(summary(graph)) == ["batch"]
    assert any(note.startswith("dimension 2 of input 'x' is fixed at 8") for note in graph.notes)


def test_inputs_share_a_size_by_its_name() -> None:
    model = Pair(lambda m, a, b: (a @ b.transpose(1, 2)).softmax(-1) + (a * b).sum(-1, keepdim=True)).eval()
    a, b = torch.randn(2, 5, 6), torch.randn(2, 5, 6)
    graph = Graph.capture(model, (a, b), dynamic_shapes={"a": {1: "time"}, "b": {1: "time"}})
    assert places(graph.free_sizes[1]) == [(0, 1), (1, 1)]
    same(graph, model, torch.randn(3, 9, 6), torch.randn(3, 9, 6))
    with pytest.raises(InputError, match="'time' is 9 by dimension 1 of input 'a' and 8 by dimension 1 of input 'b'"):
        graph(torch.randn(3, 9, 6), torch.randn(3, 8, 6))
    with pytest.raises(
        InputError, match=r"input 'b' \('other'\) cannot be free: .* equal to 'time'; give both one name"
    ):
        Graph.capture(model, (a, b), dynamic_shapes={"a": {1: "time"}, "b": {1: "other"}})
    with pytest.raises(
        InputError, match=r"input 'a' \('time'\) cannot be free: aten.mul.Tensor at .* needs it to be 5; leave"
    ):
        Graph.capture(model, (a, b), dynamic_shapes={"a": {1: "time"}})


def test_a_table_of_positions_limits_the_length() -> None:
    model = Model(lambda m, x: x + m.table.weight[: x.shape[1]], table=nn.Embedding(12, 4))  # type: ignore[union-attr, index]
    x = torch.randn(2, 5, 4)
    graph = Graph.capture(model, x, dynamic_shapes=({1: "length"},))
    assert summary(graph)["length"] == (1, 12, 1)
    same(graph, model, torch.randn(1, 12, 4))
    with pytest.raises(InputError, match="dimension 1 of input 'x' is 13, but 'length' goes from 1 to 12"):
        graph(torch.randn(1, 13, 4))
    with pytest.raises(InputError, match=r"takes no more than 12; declare Dim\('length', max=12\)"):
        Graph.capture(model, x, dynamic_shapes=({1: Dim("length", max=100)},))


@pytest.mark.thorough
def test_the_least_size_is_found_by_running_the_model() -> None:
    model = Model(lambda m, x: F.instance_norm(m.layer(x)).mean(-1), layer=nn.Conv1d(3, 4, 3))
    graph = Graph.capture(model, torch.randn(2, 3, 9), dynamic_shapes=({2: "length"},))
    assert summary(graph)["length"] == (4, None, 1)  # one position has no variance
    same(graph, model, torch.randn(2, 3, 4))


def lstm() -> tuple[nn.Module, Tensor]:
    return Model(lambda m, x: m.layer(x)[0], layer=nn.LSTM(3, 4, batch_first=True)), torch.randn(2, 5, 3)


def reshaped() -> tuple[nn.Module, Tensor]:
    return Model(lambda m, x: m.layer(x.flatten(1)), layer=nn.Linear(15, 2)), torch.randn(2, 5, 3)


@pytest.mark.parametrize(("made", "operator"), [(reshaped, "linear"), (lstm, "lstm")])
def test_what_cannot_be_free_is_refused_by_dimension_operator_and_remedy(
    made: Callable[[], tuple[nn.Module, Tensor]], operator: str
) -> None:
    model, x = made()
    with pytest.raises(InputError) as caught:
        Graph.capture(model.eval(), x, dynamic_shapes=({1: "length"},))
    message = str(caught.value)
    assert message.startswith("dimension 1 of input 'x' ('length') cannot be free: ")
    assert operator in message or __file__ in message
    assert message.endswith("leave it out of dynamic_shapes, which fixes it at the example's 5")
    assert "\n" not in message


RECURRENT: list[tuple[Any, str, bool, dict[str, Any]]] = [
    (nn.LSTM, "lstm", True, {}), (nn.GRU, "gru", True, {}), (nn.GRU, "gru", False, {"bidirectional": True}),
    (nn.RNN, "rnn_tanh", False, {}), (partial(nn.RNN, nonlinearity="relu"), "rnn_relu", True, {"num_layers": 2}),
]  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize(("make", "operator", "batch_first", "options"), RECURRENT)
def test_recurrent_layers_are_refused_a_free_number_of_steps_and_take_a_free_batch(
    make: Any, operator: str, batch_first: bool, options: dict[str, Any]
) -> None:
    model = Model(lambda m, x: m.layer(x)[0], layer=make(3, 4, batch_first=batch_first, **options)).eval()
    time, x = int(batch_first), torch.randn(5, 5, 3)
    with pytest.raises(InputError) as caught:
        Graph.capture(model, x, dynamic_shapes=({time: Dim("steps", min=2, max=64)},))
    message = str(caught.value)
    assert message.startswith(
        f"dimension {time} of input 'x' ('steps') cannot be free: aten.{operator}.input at {__file__}"
    )
    assert "runs step by step, and takes one number of steps" in message
    assert message.endswith("leave it out of dynamic_shapes, which fixes it at the example's 5")
    assert "\n" not in message
    graph = Graph.capture(model, x, dynamic_shapes=({1 - time: "batch"},))
    same(graph, model, torch.randn(3, 5, 3) if batch_first else torch.randn(5, 3, 3))


@pytest.mark.thorough
@pytest.mark.parametrize(("make", "target"), [(nn.LSTM, "x86"), (nn.GRU, "tvm-x86")])
def test_recurrent_layers_of_fixed_length_run_where_free_ones_are_refused(make: Any, target: str) -> None:
    if target.startswith("tvm"):
        pytest.importorskip("tvm", reason="needs graphopt[tvm]")
    model, x = Model(lambda m, x: m.layer(x)[0], layer=make(3, 4, batch_first=True)).eval(), torch.randn(2, 5, 3)
    options: dict[str, Any] = {"target": target, "passes": [], "measure": False}
    with pytest.raises(InputError, match="runs step by step"):
        graphopt.optimize(model, x, dynamic_shapes=({1: "steps"},), **options)
    artifact = graphopt.optimize(model, x, **options).artifact
    other = torch.randn(2, 5, 3)
    assert torch.allclose(torch.as_tensor(artifact(other)), model(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"y": {2: "h"}}, "dynamic_shapes names 'y', and the inputs are x"),
        (({2: "h"}, {2: "h"}), "nest it like the inputs"),
        (({7: "h"},), "input 'x' has 4 dimensions, and no 7"),
        (({2: 1.5},), "1.5 for dimension 2 of input 'x' is neither a name"),
        (({2: "a b"},), "'a b' for dimension 2 of input 'x' is neither a name"),
        ((("h",),), "says 1 sizes of input 'x', which has 4 dimensions"),
        (({2: Dim("h", min=16)},), "dimension 2 of the example input 'x' is 8; it is h, and 'h' goes from 16 upwards"),
        (({2: 3 * Dim("h")},), r"is 8; it is 3\*h"),
        (({2: Dim("h", max=9), 3: Dim("h", max=8)},), "give it one range"),
    ],
)
def test_what_is_no_declaration_is_explained(said: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Graph.capture(images(), torch.randn(2, 3, 8, 8), dynamic_shapes=said)


@pytest.mark.thorough
def test_time_before_batch_counts_no_samples() -> None:
    model, x = Model(lambda m, x: m.layer(x).cumsum(0), layer=nn.Linear(3, 4)), torch.randn(5, 2, 3)
    graph = Graph.capture(model, x, dynamic_shapes=({0: "time", 1: "batch"},))
    assert graph.batch is None
    assert not graph.dynamic_batch
    same(graph, model, torch.randn(9, 4, 3))


@pytest.mark.thorough
def test_other_sizes_stay_fixed() -> None:
    graph = Graph.capture(images(), torch.randn(2, 3, 8, 8), dynamic_batch=False, dynamic_shapes=({3: "width"},))
    assert list(summary(graph)) == ["width"]
    with pytest.raises(InputError, match=r"must be f32\[2, 3, 8, width\], got f32\[1, 3, 8, 8\]"):
        graph(torch.randn(1, 3, 8, 8))


@pytest.mark.thorough
def test_free_sizes_live_through_files_and_clones(tmp_path: Any) -> None:
    model = images()
    graph = Graph.capture(model, torch.randn(2, 3, 8, 8), dynamic_shapes=({2: "height", 3: 2 * Dim("w", max=9)},))
    graph.save(tmp_path / "graph.pt2")
    loaded = Graph.load(tmp_path / "graph.pt2")
    for copy in (loaded, graph.clone(), loaded.clone(share_weights=True)):
        assert copy.free_sizes == graph.free_sizes
        assert str(copy) == str(graph)
        copy.refresh()
        same(copy, model, torch.randn(1, 3, 12, 18))


def test_inputs_without_names_are_numbered() -> None:
    model = Unnamed(lambda m, a, b: a + b).eval()
    a, b = torch.randn(2, 5), torch.randn(2, 5)
    for said in (({1: "n"}, {1: "n"}), {"inputs_0": {1: "n"}, "inputs_1": {1: "n"}}):
        graph = Graph.capture(model, (a, b), dynamic_shapes=said)
        assert graph.input_names == ["inputs_0", "inputs_1"]
        assert summary(graph) == {"batch": (1, None, 1), "n": (1, None, 1)}
        same(graph, model, torch.randn(3, 7), torch.randn(3, 7))


def test_graphs_are_printed_with_the_names_of_their_sizes() -> None:
    model = Model(lambda m, x: F.max_pool2d(m.layer(x), 2), layer=nn.Conv2d(3, 4, 3, padding=1))
    graph = Graph.capture(model, torch.randn(2, 3, 8, 8), dynamic_shapes=({2: "height", 3: 2 * Dim("w")},))
    assert "max_pool2d(%0, kernel_size=[2, 2]" in str(graph)
    assert ": f32[N, 4, (height//2), w]" in str(graph)


def test_returned_sizes_follow_every_free_size() -> None:
    model = Model(lambda m, x: (x + 1, x.shape[0] * x.shape[1] + 2))
    graph = Graph.capture(model, torch.randn(2, 5), dynamic_shapes=({1: "time"},))
    assert graph(torch.randn(3, 4))[1] == 14
    size = size_of(graph.returned[1].meta["val"], [graph.inputs[0].meta["val"]], graph.free_sizes)
    text = structure.encode((torch.zeros(1), size))
    assert structure.check(text) == 1
    assert structure.decode(text, iter([None]), [3, 4]) == (None, 14)
