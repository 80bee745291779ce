"""Experts: neurons in groups of one size, routers that know who is needed, and a graph that leaves out the others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from graphopt import Graph
from graphopt.backends.onnxruntime import lower
from graphopt.passes import FoldBatchNorm, MakeExperts, Quantize
from graphopt.passes.experts.clusters import balanced
from graphopt.passes.experts.routers import fitted
from graphopt.passes.experts.sites import mlps
from graphopt.targets import find
from graphopt.utils.errors import InputError


class Encoder(nn.Module):
    """Sequences [N, T, 8] through two MLPs of 24 neurons; the second has no biases."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Linear(8, 24), activation, nn.Linear(24, 8))
        self.norm = nn.LayerNorm(8)
        self.two = nn.Sequential(nn.Linear(8, 24, bias=False), activation, nn.Linear(24, 8, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x + self.one(x))
        found: Tensor = x + self.two(x)
        return found


X = torch.randn(64, 5, 8, generator=torch.Generator().manual_seed(0))


def captured(activation: nn.Module | None = None) -> tuple[nn.Module, Graph]:
    torch.manual_seed(0)
    model = Encoder(activation or nn.GELU()).eval()
    return model, Graph.capture(model, X[:2])


def test_groups_have_one_size_and_hold_what_is_alike() -> None:
    torch.manual_seed(1)
    centers = torch.randn(4, 6) * 10
    order = torch.randperm(20)
    points = (centers.repeat_interleave(5, 0) + 0.1 * torch.randn(20, 6))[order]
    found = balanced(points, 4)
    assert found.bincount().tolist() == [5, 5, 5, 5]
    assert all(len(found[order // 5 == true].unique()) == 1 for true in range(4)) or found.unique().numel() == 4


def test_a_router_finds_what_is_linear() -> None:
    torch.manual_seed(2)
    x, weight, bias = torch.randn(500, 8), torch.randn(3, 8), torch.randn(3)
    found = fitted(x, x @ weight.t() + bias)
    torch.testing.assert_close(found[0], weight, rtol=0.02, atol=0.01)
    torch.testing.assert_close(found[1], bias, rtol=0.02, atol=0.01)


@pytest.mark.parametrize("by", ["weights", "activity"])
@pytest.mark.parametrize("activation", [nn.GELU(), nn.ReLU(), nn.SiLU(), nn.Tanh()])
@pytest.mark.parametrize("rest", ["affine", "mean"])
def test_all_experts_together_are_what_was_there(by: str, activation: nn.Module, rest: str) -> None:
    model, graph = captured(activation)
    assert len(MakeExperts(data=[[X]], experts=6, take=6, by=by, rest=rest)(graph)) == 2
    torch.testing.assert_close(graph(X), model(X), rtol=1e-4, atol=1e-5)


def test_routers_choose_better_than_chance_and_means_help() -> None:
    model, graph = captured()
    changes = MakeExperts(data=[[X[:32]], [X[32:]]], experts=12, take=6, rest="mean")(graph)
    assert (
        changes[0].what
        == "6 of 12 experts of 2 neurons for each token, 75% of its multiply-accumulates with the router"
    )
    errors = []
    chance = graph.clone()
    for node in [n for n in chance.nodes if n.op == "get_attr" and "router" in str(n.target)]:
        parameter = chance.parameter(node)
        parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    for each in (graph, chance):
        errors.append(float(((each(X) - model(X)).norm() / model(X).norm()).detach()))
    assert errors[0] < 0.8 * errors[1]
    assert errors[0] < 0.2


def test_a_line_is_nearer_than_a_mean() -> None:
    model, errors = captured()[0], []
    for rest in ("affine", "mean"):
        graph = captured()[1]
        MakeExperts(data=[[X]], experts=12, take=3, rest=rest)(graph)
        errors.append(float((graph(X) - model(X)).detach().norm()))
    assert errors[0] < 0.5 * errors[1]


def test_a_token_takes_as_many_experts_as_were_asked_for() -> None:
    _, graph = captured()
    MakeExperts(data=[[X]], experts=8, take=3, layers=["one.0"])(graph)
    from graphopt.execution.executor import Executor
    from graphopt.ir.ops import aten

    (test,) = graph.calls(aten.ge.Tensor)
    opened = Executor(graph).run([test], [X])[test]
    assert opened.shape == (64, 5, 8)
    assert bool((opened.sum(-1) == 3).all())
    assert len(mlps(graph)) == 1  # the other one can still be split


def test_onnxruntime_answers_the_same() -> None:
    _, graph = captured()
    MakeExperts(data=[[X]], experts=8, take=4)(graph)
    artifact = lower(graph, find("x86"))
    torch.testing.assert_close(artifact(X), graph(X), rtol=1e-4, atol=1e-4)


def test_weights_that_others_read_stay_theirs() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(8, 24), nn.Linear(24, 8)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.down(self.up(x).relu()) + self.up(x).sum(-1, keepdim=True)
            return found

    torch.manual_seed(0)
    model = Shared().eval()
    graph = Graph.capture(model, X[:2])
    MakeExperts(data=[[X]], experts=6, take=6)(graph)
    torch.testing.assert_close(graph(X), model(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"take": 9, "experts": 8}, "cannot take 9 of 8"), ({"experts": 0}, "experts"),
        ({"by": "name"}, "'weights' or 'activity'"), ({"rest": "zero"}, "'affine' function or the 'mean'"),
        ({"layers": "one"}, "'auto' or a list"),
        ({"layers": ["three"]}, "no layer to split"), ({"data": None}, "fits routers on data"),
        ({"experts": 7, "take": 3}, "no multiple of 7 experts .'one.0': 24"), ({"data": []}, "no samples"),
    ],
)  # fmt: skip
def test_wrong_options_of_experts_are_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        MakeExperts(**{"data": [[X]], "experts": 8, "take": 4, **options})(captured()[1])  # type: ignore[arg-type]


def test_graphs_without_such_layers_and_quantized_ones_are_refused() -> None:
    with pytest.raises(InputError, match="there are none"):
        MakeExperts(data=[[X]])(Graph.capture(nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval(), X[:2]))
    _, graph = captured()
    FoldBatchNorm()(graph)
    Quantize(find("x86"), [[X]], estimator="minmax")(graph)
    with pytest.raises(InputError, match="is quantized"):
        MakeExperts(data=[[X]])(graph)


@pytest.mark.parametrize("slopes", [1, 24])
def test_neurons_with_slopes_of_their_own_are_left_alone(slopes: int) -> None:
    """Neurons change places, the slopes of PReLU would not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 24), nn.PReLU(slopes), nn.Linear(24, 8)).eval()
    model[1].weight.data.uniform_(0, 1)
    graph = Graph.capture(model, X[:2, 0])
    make = MakeExperts(data=[[X[:, 0]]], experts=4, take=4)
    if slopes == 1:
        make(graph)
        torch.testing.assert_close(graph(X[:, 1]), model(X[:, 1]), rtol=1e-4, atol=1e-5)
    else:
        with pytest.raises(InputError, match="there are none"):
            make(graph)


def test_one_token_without_a_batch() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 24), nn.GELU(), nn.Linear(24, 8)).eval()
    graph = Graph.capture(model, X[0, 0])
    MakeExperts(data=[[each] for each in X[:, 0]], experts=4, take=4, rest="affine")(graph)
    torch.testing.assert_close(graph(X[1, 1]), model(X[1, 1]), rtol=1e-4, atol=1e-5)
