"""Fit a sub-network to the largest one, layer by layer, by least squares: what channels that are gone gave is made up for by
those that stay, as behind `Prune`. No gradients, and some seconds for each network.

    small = refitted(graph, options, data)

Sub-networks of a supernet that was trained briefly gain most: they answer with weights that were made for all channels.

Paper:  Zhang et al. 2015, "Accelerating Very Deep Convolutional Networks for Classification and Detection", section 3.3.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from graphopt.analysis.choices.extract import extract, extracted
from graphopt.fitting.fit import fit
from graphopt.fitting.least_squares import LayerWeights
from graphopt.ir.graph import Graph
from graphopt.searching import Assignment


def refitted(graph: Graph, options: Assignment, data: Iterable[list[Tensor]]) -> Graph:
    """The network of some options, each of its layers fitted to give what that of the first options gives there.

    Layers that only these options have, such as other operators and smaller kernels, stay as they are, and so do those that do
    not gain on samples held out.

    Args:
        graph: with choices; its running statistics are those of the first options, as training leaves them.
        data: batches of inputs, gone through more than once.
    """
    largest = extract(graph, (0,) * len(options))
    small, kept = extracted(graph, options)
    tasks = LayerWeights.all_of(small, {node.name: node for node in largest.nodes}, kept)
    fit(largest, small, data, tasks, "fitting")
    return small
