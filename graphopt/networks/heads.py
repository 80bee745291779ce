"""What decides, from a value of a network.

Decision   about gates: means over positions and two linear layers
Halting    about halting: one linear layer of the means, and where positions halt by themselves, one of what is around them, too
Router     about experts: one linear layer of the means, or of each token
"""

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


def decision(value: Tensor, gates: int, hidden: int, start: float, name: str, *, last: bool) -> nn.Module:
    """The head for a value. `last`: channels are its last dimension.

    Raises:
        InputError: it has no dimension of channels.
    """
    if value.dim() < 2 or value.dim() > 5:
        raise InputError(f"no gate can be decided from {name!r}, whose value is {list(value.shape)}")
    return Decision(value.shape[-1 if last else 1], gates, hidden, start, last=last)


class Halting(nn.Module):
    """Values [N, C, ...] (or, of sequences, [N, T, C]) to h, from 0 to 1: [N, 1]; of positions [N, 1, ...] or [N, T, 1]."""

    def __init__(self, channels: int, dims: int, start: float, *, last: bool, positions: bool) -> None:
        """`dims`: of maps. `last`: channels are the last dimension. `start`: the logit of h before training."""
        super().__init__()
        self.last, self.dims = last, dims
        self.whole = nn.Linear(channels, 1)
        nn.init.zeros_(self.whole.weight)
        nn.init.constant_(self.whole.bias, start)
        self.around: nn.Module | None = None
        if positions:
            convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](channels, 1, 3, padding=1, bias=False)
            nn.init.zeros_(convolution.weight)
            self.around = convolution

    def forward(self, x: Tensor) -> Tensor:
        maps = x.transpose(1, 2) if self.last else x
        found: Tensor = self.whole(maps.flatten(2).mean(2) if maps.dim() > 2 else maps)
        if self.around is not None:
            found = found.reshape(-1, 1, *[1] * self.dims) + self.around(maps)
            found = found.transpose(1, 2) if self.last else found
        return found.sigmoid()


def halting_head(value: Tensor, positions: bool, start: float, name: str, *, last: bool) -> nn.Module:
    """The head for a value. `last`: channels are its last dimension.

    Raises:
        InputError: it has no dimension of channels, or no positions.
    """
    if not (3 if positions else 2) <= value.dim() <= 5:
        raise InputError(
            f"{'no positions' if positions else 'nothing'} can halt at {name!r}, whose value is {list(value.shape)}"
        )
    return Halting(value.shape[-1 if last else 1], max(1, value.dim() - 2), start, last=last, positions=positions)


class Router(nn.Module):
    """Values [N, C, ...] (or, channels last, [N, ..., C]) to scores [N, experts]; of tokens [N, ..., experts].

    It begins with no opinion, weights of zero, as of Shazeer et al. 2017, appendix A.
    """

    def __init__(
        self, channels: int, experts: int, *, last: bool, tokens: bool = False, bias: float | None = None
    ) -> None:
        """`last`: channels are the last dimension. `tokens`: each is scored by itself. `bias`: of every score; None: none."""
        super().__init__()
        self.last, self.tokens = last, tokens
        self.scores = nn.Linear(channels, experts, bias=bias is not None)
        nn.init.zeros_(self.scores.weight)
        if bias is not None:
            nn.init.constant_(self.scores.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        if not self.tokens and x.dim() > 2:
            x = x.mean(tuple(range(1, x.dim() - 1)) if self.last else tuple(range(2, x.dim())))
        found: Tensor = self.scores(x)
        return found
