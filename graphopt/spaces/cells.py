"""Networks of cells, each a small graph whose edges are chosen, the same way in all cells of a kind.

    node_j = sum over earlier nodes i of  operator_ij(node_i)            the output: all nodes, concatenated

Paper: Liu et al. 2019, "DARTS: Differentiable Architecture Search", section 2.1. Here a cell reads the one before it, and every
edge keeps its operator (there, the two strongest of each node). With `partial`, the network to search with is that of PC-DARTS
(Xu et al. 2020), and the one to train afterwards is of all channels:

    search with     darts_cell(partial=4), whose nodes weigh their edges, too
    then            graphopt.ir.choices.transfer(searched, Graph.capture(darts_cell(), x)), and `search` on that
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from graphopt.spaces.choice import Choice, EdgeChoice, PartialChoice, Zero
from graphopt.utils.checks import check_count
from graphopt.utils.errors import InputError


def _separable(channels: int, kernel: int, dilation: int = 1) -> nn.Module:
    """Depthwise, then 1x1."""
    pad = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(channels, channels, kernel, padding=pad, dilation=dilation, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
    )  # fmt: skip


def _pooled(pool: nn.Module, channels: int) -> nn.Module:
    return nn.Sequential(pool, nn.BatchNorm2d(channels))


OPERATORS: Mapping[str, Callable[[int], nn.Module]] = {
    "separable_3": lambda c: _separable(c, 3),
    "separable_5": lambda c: _separable(c, 5),
    "dilated_3": lambda c: _separable(c, 3, 2),
    "average_3": lambda c: _pooled(nn.AvgPool2d(3, 1, 1), c),
    "max_3": lambda c: _pooled(nn.MaxPool2d(3, 1, 1), c),
    "identity": lambda c: nn.Identity(),
}


def _none(channels: int) -> nn.Module:
    return Zero()


class _Cell(nn.Module):
    def __init__(
        self,
        inputs: int,
        channels: int,
        nodes: int,
        makers: Sequence[Callable[[int], nn.Module]],
        partial: int,
        like: _Cell | None,
    ) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(inputs, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
        self.edges, self.sums = nn.ModuleDict(), nn.ModuleDict()
        for j in range(1, nodes + 1):
            for i in range(j):
                same = None if like is None else like.edges[f"{i}_{j}"]
                assert same is None or isinstance(same, Choice)
                options = [make(channels // partial) for make in makers]
                edge = Choice(options, like=same) if partial == 1 else PartialChoice(options, partial, like=same)
                self.edges[f"{i}_{j}"] = edge
            if partial > 1 and j > 1:
                alike = None if like is None else like.sums[str(j)]
                assert alike is None or isinstance(alike, EdgeChoice)
                self.sums[str(j)] = EdgeChoice(j, like=alike)
        self.nodes = nodes

    def forward(self, x: Tensor) -> Tensor:
        found = [self.enter(x)]
        for j in range(1, self.nodes + 1):
            parts = [self.edges[f"{i}_{j}"](found[i]) for i in range(j)]
            if str(j) in self.sums:
                found.append(self.sums[str(j)](*parts))
            else:
                found.append(torch.stack(parts).sum(0) if len(parts) > 1 else parts[0])
        return torch.cat(found[1:], 1)


def darts_cell(
    inputs: int = 3,
    classes: int = 10,
    *,
    channels: int = 16,
    cells: int = 3,
    nodes: int = 3,
    stride: int = 2,
    none: bool = False,
    partial: int = 1,
) -> nn.Module:
    """A classifier of images [N, inputs, H, W], with logits [N, classes]: a stem, cells that choose alike, pools between them.

    Args:
        channels: of the first cell's nodes; they double behind each pool. nodes: of a cell. stride: of the stem.
        none: whether an edge may be left out. Weights that are learned for all options at once tend to it (the paper leaves it
            out when it derives a network).
        partial: the operators of an edge see one of so many parts of the channels, and nodes weigh their edges: PC-DARTS.

    Raises:
        InputError: counts that are not positive, or channels that do not fall into `partial` equal parts.
    """
    for name, count in (
        ("inputs", inputs),
        ("classes", classes),
        ("channels", channels),
        ("cells", cells),
        ("nodes", nodes),
        ("partial", partial),
    ):
        check_count(name, count)
    if channels % partial:
        raise InputError(f"{channels} channels do not fall into {partial} equal parts")
    parts: list[nn.Module] = [
        nn.Conv2d(inputs, channels, 3, stride, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    ]
    makers = [*OPERATORS.values(), *([_none] if none else [])]
    width, first = channels, None
    for number in range(cells):
        cell = _Cell(width, channels * 2**number, nodes, makers, partial, first)
        first = first or cell
        parts += [cell] if number == 0 else [nn.MaxPool2d(2, ceil_mode=True), cell]
        width = nodes * channels * 2**number
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
