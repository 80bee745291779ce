"""DARTS' second order: the gradient behind a step of the weights, against one with second derivatives, and in training."""

from pathlib import Path

import pytest
import torch
from choosing import X, Y, elastic
from torch import Tensor, nn
from training import Stops

from graphopt import Graph, InputError, train
from graphopt.ir.choices import choices
from graphopt.spaces import Choice
from graphopt.training.batches import Batch
from graphopt.training.choices import Softmax
from graphopt.training.choices.unrolled import unrolled_gradient

RATE = 0.3


def test_the_gradient_is_that_behind_a_step_of_the_weights() -> None:
    torch.manual_seed(0)
    w, other, a = (torch.randn(n, dtype=torch.float64) for n in (5, 3, 4))
    one, two = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)

    def training(weights: list[Tensor], alphas: list[Tensor]) -> Tensor:
        shares = alphas[0].softmax(0)
        return ((shares @ one).tanh() * weights[0] ** 3).sum() + (shares @ two * weights[1].exp()).sum()

    def validation(weights: list[Tensor], alphas: list[Tensor]) -> Tensor:
        return (weights[0].sin().sum() + weights[1].square().sum()) * alphas[0].square().sum()

    leaves = [t.clone().requires_grad_() for t in (w, other, a)]
    slopes = torch.autograd.grad(training(leaves[:2], leaves[2:]), leaves[:2], create_graph=True)
    ahead = [t - RATE * g for t, g in zip(leaves[:2], slopes, strict=True)]
    (wanted,) = torch.autograd.grad(validation(ahead, leaves[2:]), leaves[2:])
    (found,) = unrolled_gradient(training, validation, [w, other], [a], RATE)  # type: ignore[arg-type]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    (first,) = torch.autograd.grad(validation([w, other], leaves[2:]), leaves[2:])
    assert float((first - wanted).abs().max()) > 0.1  # which first order gets wrong


def smooth() -> Graph:
    """Without kinks, so that differences are as good as gradients."""
    torch.manual_seed(0)
    options = [nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1), nn.Tanh()]
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Tanh(), Choice(options), nn.BatchNorm2d(6), nn.Tanh(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 2),
    )  # fmt: skip
    return Graph.capture(model.eval(), (X[:2],))


def attached(unrolled: float) -> tuple[Softmax, Graph, Batch, Batch]:
    graph = smooth()
    method = Softmax(validation=(X, Y), unrolled=unrolled)
    method.attach(graph)
    with torch.no_grad():
        for value in method.alphas:
            value.copy_(torch.linspace(0, 1, len(value)))
    return method, graph, Batch([X[:32]], Y[:32]), Batch([X[32:64]], Y[32:64])


def test_in_a_graph_it_agrees_with_differences_of_the_loss_behind_a_step() -> None:
    method, graph, training, validation = attached(2 * RATE)
    found = torch.cat(method._unrolled(training, validation))
    parameters = [n for n in graph.nodes if n.op == "get_attr" and graph.parameter(n).requires_grad]
    values = [graph.parameter(n).detach() for n in parameters]

    def behind(alphas: list[Tensor]) -> float:
        leaves = [v.clone().requires_grad_() for v in values]
        loss = method._objective(training, dict(zip(parameters, leaves, strict=True)), alphas, limited=False)
        slopes = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        ahead = [v - 2 * RATE * g for v, g in zip(values, slopes, strict=True)]
        return float(method._objective(validation, dict(zip(parameters, ahead, strict=True)), alphas, limited=False))

    torch.manual_seed(1)
    sizes = [len(a) for a in method.alphas]
    for _ in range(4):
        direction = torch.randn(sum(sizes))
        direction /= direction.norm()
        moved = [
            behind([a + sign * 0.05 * d for a, d in zip(method.alphas, direction.split(sizes), strict=True)])
            for sign in (1, -1)
        ]
        assert (moved[0] - moved[1]) / 0.1 == pytest.approx(float(found @ direction), rel=0.02, abs=2e-5)


def test_a_step_of_no_length_is_first_order() -> None:
    method, _, training, validation = attached(1e-9)
    for first, second in zip(method._slopes(validation), method._unrolled(training, validation), strict=True):
        assert first is not None
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-5)


def test_it_learns_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def trained(folder: Path | None, stop: int | None) -> dict[str, Tensor]:
        graph = elastic()
        method = Softmax(validation=(X, Y), rate=0.1, unrolled=0.01)
        train(graph, (X, Y), compress=[Stops(stop), method], epochs=2, batch_size=32, checkpoint=folder)
        return graph.state_dict()

    whole = trained(None, None)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, 4)
    again = trained(tmp_path, None)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    graph = elastic()
    train(graph, (X, Y), compress=[Softmax(validation=(X, Y), rate=0.1, unrolled=0.01)], epochs=2, batch_size=32)
    shares = [graph.tensor(choice.node) for choice in choices(graph)]
    assert any(float((share - share.mean()).abs().max()) > 0.01 for share in shares)


def test_a_rate_below_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="unrolled is the rate"):
        Softmax(validation=(X, Y), unrolled=-0.1)
