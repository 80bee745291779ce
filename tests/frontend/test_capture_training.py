"""A captured graph trains like the model it was captured from."""

from __future__ import annotations

import torch
from capturing import same
from torch import Tensor, nn
from torch.nn import functional as F

from graphopt.ir.graph import Graph


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(True), nn.Dropout(0.5), nn.InstanceNorm2d(8), nn.Flatten(),
        nn.Linear(128, 4),
    ).eval()  # fmt: skip


def test_training_mode_trains_like_the_original() -> None:
    model, x = network(), torch.randn(6, 3, 6, 6)
    graph, target = Graph.capture(model, x).train(), torch.randint(4, (6,))
    assert graph.training
    model.train()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (model, graph)]
    losses = []
    for step in range(5):
        for m, optimizer in zip((model, graph), optimizers, strict=True):
            torch.manual_seed(step)
            optimizer.zero_grad()
            loss = F.cross_entropy(m(x), target)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[0::2] == losses[1::2]
    assert losses[-1] < losses[0]
    state = graph.state_dict()
    for name, value in model.state_dict().items():
        if "num_batches" not in name:
            assert torch.equal(state[name], value), name
    same(graph.eval(), model.eval(), x)
    assert "training=True" not in str(graph.eval())


def test_gradients_equal_the_originals() -> None:
    model, x = network(), torch.randn(2, 3, 6, 6)
    graph = Graph.capture(model, x)
    model(x).square().sum().backward()
    graph(x).square().sum().backward()
    expected = dict(model.named_parameters())
    for name, parameter in graph.named_parameters():
        assert torch.equal(parameter.grad, expected[name].grad)  # type: ignore[arg-type]


def test_layers_that_always_train_keep_doing_so() -> None:
    class Always(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(3, track_running_stats=False)

        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(self.bn(x), 0.5, training=True)

    model, x = Always().eval(), torch.randn(4, 3)
    graph = Graph.capture(model, x)
    text = str(graph)
    assert text.count("True") >= 2
    assert str(graph.train().eval()) == text


def test_cumulative_running_statistics_are_noted() -> None:
    assert "momentum=None" in Graph.capture(nn.BatchNorm1d(3, momentum=None).eval(), torch.randn(2, 3)).notes[0]


def test_a_stopped_gradient_is_noted() -> None:
    class Stop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).detach() * x.detach()

    assert "gradients are not stopped" in Graph.capture(Stop().eval(), torch.randn(2, 3)).notes[0]
