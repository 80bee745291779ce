"""Sparsely gated mixtures: exact at the start, so many experts for each sample, skipped where they are not taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gated
import pytest
import torch
from halting_networks import Tokens
from rewriting import apply, randomised
from torch import Tensor, nn

import graphopt
from graphopt import Graph
from graphopt.analysis.experts import experts_taken, mixtures
from graphopt.analysis.gates import gates
from graphopt.execution.executor import Executor
from graphopt.ir.layer import Layer
from graphopt.ir.ops import aten
from graphopt.passes import AddExperts, AddGates, FoldBatchNorm, Quantize, RemoveGates
from graphopt.targets import find
from graphopt.utils.errors import InputError

X = gated.images(8)


def spread_out(graph: Graph, seed: int = 0) -> Graph:
    """Let routers have opinions, and experts weights of their own, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in graph.named_parameters():
            if name.endswith("scores.weight"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
            elif ".expert_" in name:
                parameter.mul_(1 + 0.5 * torch.randn(parameter.shape, generator=generator))
    return graph


def mixed(*, batch: int = 2, **options: Any) -> Graph:
    graph = gated.residual(batch=batch > 1)
    AddExperts(**options)(graph)
    return spread_out(graph)


@pytest.mark.parametrize("take", [1, 2, 3])
@pytest.mark.parametrize("what", ["blocks", "layers"])
@pytest.mark.parametrize("batch", [True, False])
def test_copies_answer_as_the_network_did(take: int, what: str, batch: bool) -> None:
    graph, x = gated.residual(batch=batch), X[:5] if batch else X[:1]
    expected = graph(x)
    changes = AddExperts(what=what, take=take)(graph)
    assert len(changes) == (3 if what == "blocks" else 9)
    assert changes[0].what == f"4 experts, of which each sample takes {take}"
    torch.testing.assert_close(graph(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("take", [1, 2])
def test_each_sample_gets_what_the_papers_sum_gives(take: int) -> None:
    """y = x + sum of G(x)_e E_e(x), by loops over samples and experts."""
    torch.manual_seed(0)
    graph = Graph.capture(model := randomised(gated.Residual()).eval(), X[:2])
    AddExperts(take=take, parts=["blocks.0"], experts=3)(graph)
    weights = dict(spread_out(graph).named_parameters())
    block = model.blocks[0]
    assert isinstance(block, gated.Block)

    def expert(number: int, x: Tensor) -> Tensor:
        def of(layer: str, leaf: str) -> Tensor:
            return weights[f"blocks.0.{layer}{f'.expert_{number}' if number else ''}.{leaf}"]

        y = nn.functional.conv2d(x, of("one", "weight"), of("one", "bias"), padding=1)
        norm = block.norm
        y = nn.functional.batch_norm(y, norm.running_mean, norm.running_var, of("norm", "weight"), of("norm", "bias"))
        return nn.functional.conv2d(y.relu(), of("two", "weight"), of("two", "bias"), padding=1)

    answers, chosen = [], set()
    with torch.no_grad():
        for sample in X.split(1):
            x = model.stem(sample).relu()
            scores = weights["router_0.scores.weight"] @ x.mean((2, 3))[0]
            best = sorted(range(3), key=lambda e: -float(scores[e]))[:take]
            shares = torch.softmax(scores[best], 0)
            x = (x + sum(g * expert(e, x) for g, e in zip(shares, best, strict=True))).relu()
            answers.append(model.head(model.blocks[2](model.blocks[1](x)).mean((2, 3))))
            chosen.add(tuple(best))
        torch.testing.assert_close(graph(X), torch.cat(answers), rtol=1e-4, atol=1e-5)
    assert len(chosen) > 1


@pytest.mark.parametrize("take", [1, 2, 3])
def test_so_many_are_taken_whatever_is_equal(take: int) -> None:
    graph = mixed(take=take, parts=["blocks.1"])
    (mixture,) = mixtures(graph)
    assert (mixture.name, mixture.take, mixture.experts) == ("blocks.1", take, 4)
    scores = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 2.0, 1.0], [3.0, 1.0, 3.0, 3.0], [0.5, -1.0, 0.5, 0.7]])
    taken = Executor(graph, overrides={mixture.scores: lambda *_: scores}).run([mixture.taken], [X[:4]])[mixture.taken]
    order = [sorted(range(4), key=lambda e: (-float(row[e]), e))[:take] for row in scores]
    assert [row.nonzero().flatten().tolist() for row in taken] == [sorted(places) for places in order]
    assert sum(experts_taken(graph, [[X[:3]], [X[3:]]])["blocks.1"]) == pytest.approx(take)


def test_layers_take_their_batch_norms_and_activations_with_them() -> None:
    torch.manual_seed(0)
    model = randomised(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(600, 4)))
    graph = Graph.capture(model.eval(), X[:2])
    changes = AddExperts(what="layers", experts=2)(graph)
    assert [change.site for change in changes] == ["0", "4"]
    assert [
        len(graph.calls(target)) for target in (aten.conv2d.default, aten.batch_norm.default, aten.relu.default)
    ] == [2] * 3
    spread_out(graph)
    expected = graph(X)
    apply(FoldBatchNorm(), graph)
    assert not graph.calls(aten.batch_norm.default)
    torch.testing.assert_close(graph(X), expected, rtol=1e-4, atol=1e-5)


class Transformer(nn.Module):
    """Tokens [N, T, 8] through an MLP, and images [N, H, W, 8], channels last, through the same."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.down(nn.functional.gelu(self.up(self.norm(x))))
        return found


@pytest.mark.parametrize("shape", [(3, 5, 8), (3, 4, 5, 8), (3, 8)])
@pytest.mark.parametrize("what", ["mlps", "blocks", "layers"])
@pytest.mark.parametrize("take", [1, 2])
def test_mlps_read_the_last_dimension(shape: tuple[int, ...], what: str, take: int) -> None:
    torch.manual_seed(0)
    x, model = torch.randn(shape), Transformer().eval()
    graph = Graph.capture(model, x)
    AddExperts(what=what, take=take, experts=3)(graph)
    torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-5)
    assert {tuple(graph.parameter(m.router.args[1]).shape) for m in mixtures(graph)} <= {(3, 8), (3, 16)}  # type: ignore[arg-type]
    spread_out(graph)
    one = torch.cat([graph(sample) for sample in x.split(1)])
    torch.testing.assert_close(graph(x), one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("take", [1, 2])
def test_tokens_have_experts_of_their_own(take: int) -> None:
    torch.manual_seed(0)
    x, model = torch.randn(3, 5, 8), Transformer().eval()
    graph = Graph.capture(model, x)
    AddExperts(what="mlps", each="token", take=take)(graph)
    torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-5)
    spread_out(graph)
    (mixture,) = mixtures(graph)
    taken = Executor(graph).run([mixture.taken], [x])[mixture.taken]
    assert taken.shape == (3, 5, 4)
    assert len({tuple(row) for row in taken[0].tolist()}) > 1
    assert bool((taken.sum(-1) == take).all())
    assert all(gate.channels != 1 for gate in gates(graph))  # nothing that a runtime could leave out
    result = graphopt.optimize(graph, x[:2], target="x86", calibration=[*x.split(1)], measure=False)
    assert not [
        line for line in graphopt.simulate(result.graph, target="x86").mismatches(result.artifact, x) if line.differing
    ]


class Awkward(nn.Module):
    """Signals in one dimension, two inputs, two outputs, a layer that is called twice, functional code."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.shared = nn.Conv1d(2, 6, 3, padding=1), nn.Conv1d(6, 6, 3, padding=1)

    def forward(self, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.conv(x))
        y = x + self.shared(x) * 0.5
        return y + self.shared(y), (y * scale).mean(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("what", ["blocks", "layers"])
@pytest.mark.parametrize("take", [1, 2])
def test_awkward_networks(dtype: torch.dtype, what: str, take: int) -> None:
    torch.manual_seed(0)
    model = Awkward().eval().to(dtype)
    inputs = torch.randn(5, 2, 11, dtype=dtype), torch.randn(5, 6, 1, dtype=dtype)
    graph = Graph.capture(model, inputs)
    changes = AddExperts(what=what, take=take)(graph)
    if what == "layers":
        assert [change.site for change in changes] == ["conv", "shared@0", "shared@1"]
    for size in (5, 1):
        part = [x[:size] for x in inputs]
        for found, expected in zip(graph(*part), model(*part), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    AddExperts(what=what, take=take)(other := Graph.capture(model, inputs))
    assert {len(m.router.args) for m in mixtures(other)} == {2}  # no bias


def test_free_sizes_stay_free() -> None:
    class Any1d(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.conv(x).relu().mean((2, 3))
            return found

    torch.manual_seed(0)
    model, dim = Any1d().eval(), torch.export.Dim.DYNAMIC
    graph = Graph.capture(model, X[:2], dynamic_shapes={"x": {2: dim, 3: dim}})
    AddExperts(what="layers", take=2)(graph)
    torch.testing.assert_close(graph(X[:3, :, :7, :9]), model(X[:3, :, :7, :9]), rtol=1e-4, atol=1e-5)


def test_a_saved_graph_takes_the_same(tmp_path: Path) -> None:
    graph = mixed(take=2)
    graph.save(tmp_path / "graph.pt2")
    again = Graph.load(tmp_path / "graph.pt2")
    assert experts_taken(again, [[X]]) == experts_taken(graph, [[X]])
    assert torch.equal(again(X), graph(X))


# ---- Lowered --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["x86", "tvm-x86"])
@pytest.mark.parametrize(("what", "take"), [("blocks", 1), ("blocks", 2), ("layers", 1)])
@pytest.mark.parametrize("batch", [1, 2])
def test_it_quantizes_and_is_simulated(target: str, what: str, take: int, batch: int) -> None:
    options = {"parts": ["blocks.1*"], "experts": 3} if target == "tvm-x86" else {}  # each layer is compiled there
    graph = mixed(batch=batch, what=what, take=take, **options)
    result = graphopt.optimize(
        graph, X[:batch], target=target, calibration=[*X.split(batch)], measure=False, dynamic_batch=batch > 1
    )
    assert result.report.integer_macs == 1.0
    simulation, other = graphopt.simulate(result.graph, target=target), gated.images(6, 3)
    for part in other.split(3 if batch > 1 else 1):
        assert not [line for line in simulation.mismatches(result.artifact, part) if line.differing]
    # On the images that ranges were measured on: eight are few for values of so many experts.
    found, expected = (torch.cat([f(part) for part in X.split(batch)]).detach() for f in (result.artifact, graph))
    alike = (taken(graph, X, batch) == taken(result.graph, X, batch)).all(1)  # rounding may choose others
    assert int(alike.sum()) >= 4
    assert float((found - expected)[alike].norm() / expected[alike].norm()) < 0.05


def taken(graph: Graph, x: Tensor, batch: int) -> Tensor:
    """Which experts of all mixtures each sample takes, bool [N, experts of all]."""
    nodes, executor = [mixture.taken for mixture in mixtures(graph)], Executor(graph)
    return torch.cat([torch.cat([*executor.run(nodes, [part]).values()], 1) for part in x.split(batch)])


def operators(graph: Any) -> list[str]:
    """Of a graph and of what is inside of its operators."""
    found = []
    for node in graph.node:
        found.append(node.op_type)
        found += [name for a in node.attribute if a.HasField("g") for name in operators(a.g)]
    return found


@pytest.mark.parametrize("take", [1, 2])
@pytest.mark.parametrize("integers", [True, False])
def test_one_sample_runs_the_experts_that_it_takes_in_onnx_runtime(take: int, integers: bool) -> None:
    """Layers outside of every `If` are those that are no experts."""
    import onnx

    from graphopt.backends.onnxruntime import lower

    graph = mixed(batch=1, take=take)
    if integers:
        result = graphopt.optimize(
            graph, X[:1], target="x86", calibration=[*X.split(1)], measure=False, dynamic_batch=False
        )
        artifact: Any = result.artifact
    else:
        artifact = lower(graph, find("x86"))
    nodes = onnx.load(str(artifact.folder / "model.onnx")).graph
    outside, every = [node.op_type for node in nodes.node], operators(nodes)
    assert outside.count("If") == (3 if take == 1 else 12)
    assert outside.count("Conv") == 2  # stem and shortcut
    assert every.count("Conv") == 2 + 3 * 4 * 2
    for x in gated.images(6, 5).split(1):
        torch.testing.assert_close(
            artifact(x), graph(x), rtol=0.3 if integers else 1e-4, atol=0.3 if integers else 1e-4
        )


def test_experts_that_are_never_taken_are_removed() -> None:
    graph = gated.residual()
    AddExperts(parts=["blocks.0"])(graph)
    expected = graph(X)
    changes = RemoveGates(data=[[X]])(graph)
    assert [change.what for change in changes] == ["never taken (0.0%)"] * 3
    assert not mixtures(graph)
    assert (
        len([n for n in graph.calls() if Layer.of(n)]) == 9
    )  # as before, and the router, which is dead where nothing reads it
    torch.testing.assert_close(graph(X), expected, rtol=1e-4, atol=1e-5)


# ---- Refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"take": 5}, "take must be under the number of experts, got 5 of 4"), ({"take": 4}, "got 4 of 4"),
        ({"take": 0}, "take must be a whole number"), ({"experts": 1}, "experts must be a whole number of at least 2"),
        ({"what": "heads"}, "experts are of 'blocks', 'layers', 'mlps', got 'heads'"),
        ({"each": "pixel"}, "'sample' or 'token', got 'pixel'"), ({"parts": "blocks.0"}, "'auto' or a list of patterns"),
        ({"parts": ["blocks.7"]}, "none of the blocks is called 'blocks.7'; did you mean 'blocks"),
        ({"what": "layers", "parts": ["steem"]}, "no layer is called 'steem'; did you mean 'stem'"),
        ({"what": "mlps"}, "no two linear layers"), ({"each": "token"}, "has no tokens"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        AddExperts(**options)(gated.residual())


class Computed(nn.Module):
    """A kernel made of the input, one of constants in between, and a layer over all samples at once."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.over = nn.Linear(3, 4 * 3), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.make(x.mean((0, 2, 3))).reshape(4, 3, 1, 1)
        y = nn.functional.conv2d(x, kernel).mean((2, 3))
        found: Tensor = self.over(y.reshape(1, -1, 4))
        return found


def test_what_cannot_have_experts_is_refused_with_the_reason() -> None:
    graph = Graph.capture(Computed().eval(), X[:2])
    with pytest.raises(InputError, match=r"no layer of the graph can have experts.*does not count samples"):
        AddExperts(what="layers")(graph)
    computed = [graph.site(node) for node in graph.calls(aten.conv2d.default)]
    with pytest.raises(InputError, match="cannot have experts: its weights are computed by the graph"):
        AddExperts(what="layers", parts=computed)(graph)
    with pytest.raises(
        InputError, match="'over' cannot have experts: the first dimension of its values does not count samples"
    ):
        AddExperts(what="layers", parts=["over"])(graph)
    with pytest.raises(InputError, match="it has no layers"):
        AddExperts(what="layers")(Graph.capture(nn.ReLU().eval(), X[:2]))
    with pytest.raises(InputError, match="no residual block"):
        AddExperts()(Graph.capture(nn.Conv2d(3, 3, 1).eval(), X[:2]))
    sequence = Graph.capture(Tokens().eval(), torch.randn(3, 5, 8))
    AddExperts()(sequence)
    with pytest.raises(InputError, match="has gates or experts already"):
        AddExperts()(sequence)
    gates_too = gated.residual()
    AddGates()(gates_too)
    with pytest.raises(InputError, match="has gates or experts already"):
        AddExperts()(gates_too)
    quantized = gated.residual()
    Quantize(find("x86"), [[X]])(quantized)
    with pytest.raises(InputError, match="is quantized"):
        AddExperts()(quantized)
    with pytest.raises(InputError, match=r"apply graphopt\.passes\.AddExperts first"):
        experts_taken(gated.residual(), [[X]])
    with pytest.raises(InputError, match="no samples"):
        experts_taken(mixed(), [])
