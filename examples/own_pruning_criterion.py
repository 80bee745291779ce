"""A pruning criterion of one's own, beside one that is there: how much of a channel's weights is noise around their mean.

    python examples/own_pruning_criterion.py

A criterion takes the graph and a group of channels that go together, and returns one score for each; the lowest go first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from graphopt import Graph
from graphopt.analysis.channels.groups import Group
from graphopt.data import Calibration
from graphopt.ir import cost
from graphopt.passes import Prune
from graphopt.passes.pruning import l2_norm
from graphopt.passmanager import run


def spread(graph: Graph, group: Group) -> Tensor:
    """The standard deviation of the weights that write each channel."""
    scores = torch.zeros(len(group))
    for member in group.members:
        if member.writes:
            weights = graph.tensor(member.node).movedim(member.dim, 0).flatten(1)
            scores.index_add_(0, torch.as_tensor(member.units), weights.std(1))
    return scores


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 4, 1)
    ).eval()
    model[0].weight.data += 0.2 * torch.randn(32, 1, 1, 1)  # channels whose weights have a mean, as after training
    images = torch.rand(16, 3, 16, 16)
    for criterion in (l2_norm, spread):
        graph = Graph.capture(model, images[:1])
        run([Prune(keep_ratio=0.6, criterion=criterion, data=Calibration(images, graph))], graph)
        with torch.no_grad():
            lost = (graph(images) - model(images)).square().mean() / model(images).square().mean()
        print(
            f"{criterion.__name__}: {cost.macs(graph):,} multiply-accumulates, answers moved by {float(lost) ** 0.5:.2%}"
        )


if __name__ == "__main__":
    main()
