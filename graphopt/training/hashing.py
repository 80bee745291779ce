"""Binary codes learned with the network: bits that keep the neighbours which the features had.

    p_ij = softmax_j(cos(x_i, x_j) / t_x)       x: features of the network as it was, less their mean over the batch
    q_ij = softmax_j(<b_i, b_j> / (bits t_b))   b = sign(scores), -1 or 1
    loss = - mean_i sum_j p_ij log q_ij         j: the others of the batch

Signs have the gradient of their scores within a window of one mean absolute score of the bit, straight through, and none beyond.
What learns is the projection of `BinaryCodes`, and every weight in front of it that is not frozen.

    run([BinaryCodes(64, images)], graph)
    graphopt.train(graph, images, compress=[LearnCodes()], epochs=5, batch_size=256)

Papers: Hinton and Roweis 2002, "Stochastic Neighbor Embedding", for the loss; Courbariaux et al. 2016, "Binarized Neural
        Networks", section 1.3, for the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.node import Node

from graphopt.execution.executor import Executor
from graphopt.ir.calls import operand
from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten
from graphopt.ir.packed_bits import packed_outputs
from graphopt.ir.passes import Change
from graphopt.training.compression import Compression, Run
from graphopt.utils.errors import InputError


class LearnCodes(Compression):
    """See the head of this file. The larger a batch, the better it shows which samples are neighbours: hundreds.

    Args:
        features_temperature: t_x, how near a neighbour has to be to count. codes_temperature: t_b.
        weight: of the loss beside others.

    Raises:
        InputError: temperatures or weight are not over zero; with `attach`, the graph gives no codes.
    """

    def __init__(
        self, features_temperature: float = 0.03, codes_temperature: float = 0.05, weight: float = 1.0
    ) -> None:
        for name, number in (("features_", features_temperature), ("codes_", codes_temperature)):
            if not (number > 0 and math.isfinite(number)):
                raise InputError(f"{name}temperature must be over 0, got {number}")
        if not weight > 0:
            raise InputError(f"weight must be over 0, got {weight}")
        self.temperatures, self.weight = (features_temperature, codes_temperature), weight

    def attach(self, graph: Graph) -> list[Change]:
        found = packed_outputs(graph)
        if len(found) != 1:
            raise InputError(
                f"the graph has {len(found)} outputs of binary codes; LearnCodes needs one: run BinaryCodes first"
            )
        self.scores = found[0].scores
        for node in _projection(self.scores):
            graph.make_parameter(node)
        self.before = graph.clone()
        self.before.eval()
        self.executor = Executor(self.before)
        self.features = _features(packed_outputs(self.before)[0].scores)
        return []

    def networks(self) -> Sequence[nn.Module]:
        return [self.before.module]

    def watched(self, graph: Graph) -> Sequence[Node]:
        return [self.scores]

    def loss(self, run: Run) -> Tensor:
        scores: Tensor = run.values[self.scores]
        if len(scores) < 3:
            return scores.sum() * 0  # among two samples each has one neighbour, whatever the codes
        with torch.no_grad():
            features = self.executor.run([self.features], run.batch.inputs)[self.features]
        centred = F.normalize(features - features.mean(0), dim=1).to(scores)
        codes = signs(scores)
        return self.weight * neighbour_loss(centred @ centred.T, codes @ codes.T / codes.shape[1], *self.temperatures)


def neighbour_loss(features: Tensor, codes: Tensor, features_temperature: float, codes_temperature: float) -> Tensor:
    """See the head of this file; similarities [N, N] of each sample to each, of which those to itself do not count."""
    itself = torch.eye(len(codes), dtype=torch.bool, device=codes.device)
    wanted = (features / features_temperature).masked_fill(itself, -math.inf).softmax(1)
    found = (codes / codes_temperature).masked_fill(itself, -1e9).log_softmax(1)
    return -(wanted * found).sum(1).mean()


def signs(scores: Tensor) -> Tensor:
    """-1 or 1 for each score [N, bits], zero being -1; see the head of this file for the gradient."""
    found: Tensor = _Signs.apply(scores)  # type: ignore[no-untyped-call]
    return found


class _Signs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        ctx.save_for_backward(scores)
        return torch.where(scores > 0, 1.0, -1.0).to(scores)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (scores,) = ctx.saved_tensors
        window = scores.abs().mean(0).clamp(min=torch.finfo(scores.dtype).tiny)
        return torch.where(scores.abs() <= window, gradient / window, 0.0)


def _projection(scores: Node) -> list[Node]:
    """The constants that scores are computed of from features, whole numbers aside."""
    constants = [node for node in scores.all_input_nodes if node.op == "get_attr"]
    return [node for node in constants if node.meta["val"].dtype.is_floating_point]


def _features(scores: Node) -> Node:
    """What the codes of `BinaryCodes` are the codes of: all features, also where each bit is a threshold of one of them."""
    source = operand(scores)
    return operand(source) if source.target is aten.index_select.default else source
