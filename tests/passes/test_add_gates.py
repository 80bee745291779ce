"""Gates: where they are put, that they leave an open network what it is, and that they are removed where they decide nothing."""

from __future__ import annotations

import gated
import pytest
import torch
from rewriting import randomised
from torch import Tensor, nn

from graphopt import Graph
from graphopt.analysis.blocks import blocks
from graphopt.analysis.gates import gates, needs, saved_macs
from graphopt.ir import cost
from graphopt.passes import AddGates, FoldBatchNorm, Quantize, RemoveGates
from graphopt.targets import find
from graphopt.utils.errors import InputError

X = gated.images(8)


def test_blocks_with_and_without_a_shortcut_are_found() -> None:
    found = blocks(gated.residual())
    assert [block.name for block in found] == ["blocks.0", "blocks.1", "blocks.2"]
    assert found[1].shortcut is not found[1].entry


@pytest.mark.parametrize("options", [{}, {"heads": "one"}, {"what": "channels"}, {"hidden": 3, "start": 0.5}])
def test_a_network_whose_gates_are_open_answers_what_it_did(options: dict[str, object]) -> None:
    graph = gated.residual()
    before = graph(X)
    changes = AddGates(**options)(graph)  # type: ignore[arg-type]
    assert len(changes) == 3
    torch.testing.assert_close(graph(X), before, rtol=1e-5, atol=1e-6)
    assert len(gates(graph)) == 3


def test_closed_gates_leave_the_shortcut() -> None:
    graph = gated.residual()
    plain = graph.clone()
    AddGates(blocks=["blocks.2"])(graph)
    (gate,) = gates(graph)
    graph.parameter(gate.logits.args[2]).data.fill_(-100.0)  # type: ignore[arg-type]
    total = blocks(plain)[2].total
    (relu,) = total.users
    plain.replace(relu, blocks(plain)[2].shortcut)
    plain.refresh()
    torch.testing.assert_close(graph(X), plain(X), rtol=1e-5, atol=1e-6)


def test_each_sample_goes_its_own_way() -> None:
    graph = gated.gated()
    opened = gated.openings(graph, X)
    assert 0 < int(opened.sum()) < opened.numel()
    alone = torch.cat([graph(one) for one in X.split(1)])
    torch.testing.assert_close(graph(X), alone, rtol=1e-4, atol=1e-5)


def test_what_a_gate_saves_is_what_only_its_block_needs() -> None:
    graph = gated.gated()
    work = cost.layer_macs(graph)
    first, second, third = gates(graph)
    assert saved_macs(graph) == [2 * 8 * 8 * 9 * 144, (8 * 16 + 16 * 16) * 9 * 36, 2 * 16 * 16 * 9 * 36]
    assert {graph.site(node) for node in needs(graph, second) if node in work} == {"blocks.1.one", "blocks.1.two"}
    assert needs(graph, first).isdisjoint(needs(graph, third))


def test_gates_of_channels_count_the_layers_on_both_sides() -> None:
    graph = gated.gated(what="channels")
    assert [gate.channels for gate in gates(graph)] == [8, 16, 16]
    assert saved_macs(graph)[0] == 2 * 8 * 8 * 9 * 144


class Encoder(nn.Module):
    """Sequences [N, T, C], branches in front of which they are normed; the mask is an input of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = x + self.down(torch.nn.functional.gelu(self.up(self.norm(x)))) * mask[:, :, None]
        return y + self.down(torch.tanh(self.up(y)))


def test_sequences_and_layers_that_are_shared_are_gated() -> None:
    torch.manual_seed(0)
    model = randomised(Encoder()).eval()
    x, mask = torch.randn(3, 5, 6), torch.ones(3, 5)
    graph = Graph.capture(model, (x, mask))
    assert len(AddGates()(graph)) == 2
    torch.testing.assert_close(graph(x, mask), model(x, mask), rtol=1e-5, atol=1e-6)
    assert all(gate.channels == 1 for gate in gates(graph))


def test_a_choice_by_position_is_no_gate() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x > 0, x * 2, x)

    assert gates(Graph.capture(Masked().eval(), torch.randn(2, 4))) == []


def test_gates_that_always_or_never_open_become_plain() -> None:
    graph = gated.gated()
    first, _, third = gates(graph)
    graph.parameter(first.logits.args[2]).data.fill_(100.0)  # type: ignore[arg-type]
    graph.parameter(third.logits.args[2]).data.fill_(-100.0)  # type: ignore[arg-type]
    before, macs = graph(X), cost.macs(graph)
    changes = RemoveGates(data=[[X]])(graph)
    assert [(change.site, change.what) for change in changes] == [
        ("blocks.0", "always taken (100.0%)"), ("blocks.2", "never taken (0.0%)"),
    ]  # fmt: skip
    torch.testing.assert_close(graph(X), before, rtol=1e-5, atol=1e-6)
    assert len(gates(graph)) == 1
    assert cost.macs(graph) < macs - 2 * 16 * 16 * 9 * 36  # the block, and two heads
    assert RemoveGates(data=[[X]])(graph) == []


def test_rates_in_between_stay_unless_limits_say_otherwise() -> None:
    graph = gated.gated()
    assert RemoveGates(data=[[gated.images(64)]])(graph) == []
    assert len(RemoveGates(data=[[gated.images(64)]], least=0.9)(graph)) == 3
    assert gates(graph) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"blocks": "layer1"}, "'auto' or a list"), ({"what": "rows"}, "'blocks' or of 'channels'"),
        ({"heads": "two"}, "'each', or 'one'"), ({"heads": "one", "what": "channels"}, "'each', or 'one'"),
        ({"hidden": 0}, "hidden"), ({"start": 0.0}, "start must be over 0"),
        ({"blocks": ["nothing.*"]}, "no residual block is added"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        AddGates(**options)(gated.residual())  # type: ignore[arg-type]


def test_graphs_that_cannot_be_gated_are_refused() -> None:
    with pytest.raises(InputError, match="no residual block"):
        AddGates()(Graph.capture(nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), torch.randn(2, 4)))
    graph = gated.gated()
    with pytest.raises(InputError, match="has gates already"):
        AddGates()(graph)
    plain = gated.residual()
    FoldBatchNorm()(plain)
    Quantize(find("x86"), [[X]], estimator="minmax")(plain)
    with pytest.raises(InputError, match="is quantized"):
        AddGates()(plain)


@pytest.mark.parametrize(
    ("options", "says"),
    [({}, "counts on data"), ({"data": [[X]], "least": 0.5, "most": 0.4}, "are rates"), ({"data": []}, "no samples")],
)
def test_gates_are_not_removed_without_data(options: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        RemoveGates(**options)(gated.gated())  # type: ignore[arg-type]


class Sequences(nn.Module):
    """[N, T, 6], with a residual block that computes [T, N, 6] (`turned`), or [2 N, T / 2, 6] in the second of two."""

    def __init__(self, turned: bool = False, windows: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.turned, self.windows = nn.Linear(6, 6), turned, windows
        self.branches = nn.ModuleList(nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.transpose(0, 1) if self.turned else x)
        x = x + self.branches[0](x)
        x = x.reshape(2 * x.shape[0], -1, 6) if self.windows else x
        x = x + self.branches[1](x)
        return x.transpose(0, 1) if self.turned else x


@pytest.mark.parametrize("batch", [True, False])
def test_no_gate_decides_for_one_sample_by_the_others(batch: bool) -> None:
    """The mean over dimension 1 of [T, N, C] would be one over samples."""
    graph = Graph.capture(Sequences(turned=True).eval(), torch.randn(3, 4, 6), dynamic_batch=batch)
    with pytest.raises(InputError, match="first dimension counts samples"):
        AddGates()(graph)


def test_windows_are_decided_each_by_itself() -> None:
    x = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
    graph = Graph.capture(Sequences(windows=True).eval(), x)
    with pytest.raises(InputError, match="one head cannot decide"):
        AddGates(heads="one")(graph.clone())
    AddGates()(graph)
    for gate in gates(graph):
        graph.parameter(gate.logits.args[1]).data.normal_(generator=torch.Generator().manual_seed(1))  # type: ignore[arg-type]
        graph.parameter(gate.logits.args[2]).data.zero_()  # type: ignore[arg-type]
    alone = torch.cat([graph(one) for one in x.split(1)])
    torch.testing.assert_close(graph(x), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("what", ["blocks", "channels"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_heads_are_of_the_type_of_the_network(dtype: torch.dtype, what: str) -> None:
    x = gated.images(2).to(dtype)
    graph = Graph.capture(randomised(gated.Residual()).eval().to(dtype), x)
    before = graph(x)
    AddGates(what=what)(graph)
    assert torch.equal(graph(x), before)
    assert gates(graph)
