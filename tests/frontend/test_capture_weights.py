"""Capturing: names, sharing and checkpoints of weights, and the caller's model left as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from capturing import aten, close, same, small
from torch import Tensor, nn

from graphopt.ir.graph import Graph
from graphopt.utils.errors import CaptureError

# ---- Weights --------------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.layer = nn.Linear(4, 4)
        self.again = self.layer
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("offset", torch.randn(4), persistent=False)
        self.layer.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.again(self.layer(self.embed(x)) + self.offset))


def test_names_kinds_and_sharing_of_weights_survive() -> None:
    model, x = Tied().eval(), torch.randint(7, (2, 3))
    graph = Graph.capture(model, x)
    assert {n: p.requires_grad for n, p in graph.named_parameters()} == {
        "embed.weight": True, "layer.weight": True, "layer.bias": False
    }  # fmt: skip
    assert [n for n, _ in graph.named_buffers()] == ["offset"]
    readers = {str(n.target): len(n.users) for n in graph.nodes if n.op == "get_attr"}
    assert readers == {"embed.weight": 2, "layer.weight": 2, "layer.bias": 2, "offset": 1}
    same(graph, model, torch.randint(7, (5, 3)))


def test_an_exported_program_keeps_weights_shared() -> None:
    x = torch.randint(7, (2, 3))
    graph = Graph.capture(torch.export.export(Tied().eval(), (x,)))
    assert sorted(len(n.users) for n in graph.nodes if n.op == "get_attr") == [1, 2, 2, 2]


def frozen_state(model: nn.Module) -> dict[str, Any]:
    return {
        "tensors": {k: (v, v.detach().clone(), v._version) for k, v in model.state_dict(keep_vars=True).items()},
        "modes": [m.training for m in model.modules()],
        "hooks": [len(m._forward_hooks) for m in model.modules()],
        "attributes": [sorted(m.__dict__) for m in model.modules()],
    }


class Stubborn(nn.Module):
    """Changes itself in forward, and may not be copied."""

    def __init__(self, fails: bool, copies: bool) -> None:
        super().__init__()
        self.fails, self.copies = fails, copies
        self.layer = nn.Linear(3, 3)
        self.register_buffer("seen", torch.zeros(()))
        self.calls = 0
        self.register_forward_hook(lambda *_: None)

    def __deepcopy__(self, memo: dict[int, Any]) -> Stubborn:
        if not self.copies:
            raise RuntimeError("holds a lock")
        new = Stubborn(self.fails, self.copies).eval()
        new.load_state_dict(self.state_dict())
        return new

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x
        self.seen += 1
        y = self.layer(x)
        return y if not self.fails or y.sum() > 0 else -y


@pytest.mark.parametrize("copies", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_the_callers_model_stays_as_it_was(fails: bool, copies: bool) -> None:
    model = Stubborn(fails, copies).eval()
    before = frozen_state(model)
    if fails:
        with pytest.raises(CaptureError):
            Graph.capture(model, torch.randn(2, 3))
    else:
        graph = Graph.capture(model, torch.randn(2, 3))
        for parameter in graph.parameters():
            parameter.data.zero_()
    after = frozen_state(model)
    for name, (tensor, values, _) in before["tensors"].items():
        assert after["tensors"][name][0] is tensor
        assert torch.equal(tensor.detach(), values)
    assert {k: v for k, v in before.items() if k != "tensors"} == {k: v for k, v in after.items() if k != "tensors"}
    assert model.calls == 0


def test_a_clone_is_independent() -> None:
    graph = Graph.capture(small(), torch.randn(2, 3, 6, 6))
    other, text = graph.clone(), str(graph)
    before = {name: value.clone() for name, value in graph.state_dict().items()}
    for parameter in other.parameters():
        parameter.data.zero_()
    other.replace(other.calls(aten.relu.default)[0], other.calls(aten.batch_norm.default)[0])
    other.refresh()
    assert str(graph) == text != str(other)
    assert all(torch.equal(value, before[name]) for name, value in graph.state_dict().items())


# ---- Checkpoints and frozen weights ---------------------------------------------------------------------------------


class Kept(nn.Module):
    """A tied weight, a buffer that nothing reads, a matrix read both ways round, batch norm's counter, a constant of the code."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        self.head.weight = self.table.weight
        self.norm, self.w = nn.BatchNorm1d(4), nn.Parameter(torch.randn(4, 4))
        self.register_buffer("unread", torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.table(x).mean(1)) @ self.w * torch.tensor([1.0, 2.0, 3.0, 4.0])
        return self.head(y + self.w[0])


def test_the_models_own_checkpoint_loads_whole(tmp_path: Path) -> None:
    x = torch.randint(6, (3, 5))
    graph = Graph.capture(Kept().eval(), x)
    graph.save(tmp_path / "graph.pt2")
    other = Kept()
    nn.init.normal_(other.norm.running_mean)  # type: ignore[arg-type]
    other.eval()
    for known in (graph, graph.clone(), Graph.load(tmp_path / "graph.pt2")):
        found = known.load_state_dict(other.state_dict())
        assert not found.missing_keys
        assert not found.unexpected_keys
        close(known, other, x)
        known.load_state_dict(known.state_dict())
        close(known, other, x)
    with pytest.raises(RuntimeError, match=r"Missing key\(s\).*norm.weight"):
        graph.load_state_dict({k: v for k, v in other.state_dict().items() if k != "norm.weight"})
