"""Losses of classes: the network's own answers, wherever they lie."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from rewriting import capture
from torch import Tensor, nn

from graphopt.fitting.importance import fisher
from graphopt.fitting.losses import against_labels, divergence, own_labels
from graphopt.ir.cost import agreement
from graphopt.utils.errors import InputError

LAID_OUT = {"[N, C]": (4, 5), "[N, T, C]": (4, 7, 5), "[N, C, H, W]": (4, 5, 3, 2), "[N, C, D, H, W]": (2, 5, 2, 3, 2)}


@pytest.mark.parametrize("layout", LAID_OUT)
def test_classes_lie_where_predictions_are_compared(layout: str) -> None:
    """Torch's own cross-entropy of the classes as rows, and its divergence."""
    z = torch.randn(LAID_OUT[layout], generator=torch.Generator().manual_seed(0))
    other = z + torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    dim = layout.removeprefix("[").removesuffix("]").split(", ").index("C")
    rows, others = (t.movedim(dim, -1).reshape(-1, 5) for t in (z, other))
    assert float(own_labels(z, [])) == pytest.approx(float(-rows.log_softmax(1).amax(1).sum()), rel=1e-5)
    chosen = others.argmax(1, keepdim=True)
    assert float(against_labels(z, other)) == pytest.approx(
        float(-rows.log_softmax(1).gather(1, chosen).sum()), rel=1e-5
    )
    p, q = others.log_softmax(1), rows.log_softmax(1)
    assert float(divergence(z, other)) == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-4)
    assert agreement(z, other) == float((rows.argmax(1) == chosen[:, 0]).double().mean())


@pytest.mark.parametrize("output", [torch.tensor(1.0), torch.randn(4), torch.arange(4)])
def test_outputs_without_classes_are_refused(output: Tensor) -> None:
    with pytest.raises(InputError, match="a loss of classes needs two dimensions or more"):
        own_labels(output, [])


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(x).relu())  # type: ignore[no-any-return]


def test_gradients_of_a_token_are_those_of_its_own_classes() -> None:
    """A loss over tokens in place of classes would tie the gradient of one token to the others."""
    torch.manual_seed(0)
    model, x = Tokens().eval(), torch.randn(4, 8, 6)
    graph = capture(model, x)
    (node,) = [n for n in graph.calls() if str(n.target) == "aten.relu.default"]
    found = fisher(graph, [node], [[x]], lambda t: t)[node][0]
    y = model.mix(x).relu().detach().requires_grad_()
    rows = model.head(y).reshape(-1, 3)
    F.cross_entropy(rows, rows.argmax(1), reduction="sum").backward()
    assert y.grad is not None
    expected = y.grad.square()
    assert torch.allclose(found, expected / expected.mean(), rtol=1e-4, atol=1e-6)
