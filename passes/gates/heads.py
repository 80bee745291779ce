"""What decides about gates, from a value of the network: means over positions, and two linear layers."""

from __future__ import annotations

from torch import Tensor, nn

from graphopt.utils.errors import InputError


class Decision(nn.Module):
    """Values [N, C, ...] (or, of sequences, [N, T, C]) to logits [N, gates]."""

    def __init__(self, channels: int, gates: int, hidden: int, start: float, *, last: bool) -> None:
        """`last`: channels are the last dimension. `start`: the logit of every gate before training."""
        super().__init__()
        self.last = last
        self.first, self.second = nn.Linear(channels, hidden), nn.Linear(hidden, gates)
        nn.init.zeros_(self.second.weight)  # every sample begins with the same decision
        nn.init.constant_(self.second.bias, start)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() > 2:
            x = x.mean(1) if self.last else x.mean(tuple(range(2, x.dim())))
        found: Tensor = self.second(self.first(x).relu())
        return found


def decision(value: Tensor, gates: int, hidden: int, start: float, name: str) -> nn.Module:
    """The head for a value.

    Raises:
        InputError: it has no dimension of channels.
    """
    if value.dim() < 2 or value.dim() > 5:
        raise InputError(f"no gate can be decided from {name!r}, whose value is {list(value.shape)}")
    last = value.dim() == 3
    return Decision(value.shape[2 if last else 1], gates, hidden, start, last=last)
