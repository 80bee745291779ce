"""Sparse structure selection: residual branches and channels are scaled, and scales that do not help become zero while training.

    y = x + s f(x)                      s: one scale for each residual branch
    y = W (s * x)                       s: one for each unit of a group (a channel, a head, a group of a grouped convolution)

    minimize  L(W, s) + gamma |s|_1     W by the optimizer of the training, s by accelerated proximal gradient:

    z_t = s_t-1 - eta dL/ds             eta: the rate; S(z) = sign(z) max(|z| - eta gamma, 0)
    v_t = S(z_t) - s_t-1 + mu v_t-1
    s_t = S(z_t) + mu v_t

What has a scale of zero in the end is removed, and the others are multiplied into the weights.

Paper:  Huang and Wang 2018, "Data-Driven Sparse Structure Selection for Deep Neural Networks", equations 6 to 9.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx.node import Node

from graphopt.analysis.branches import branches
from graphopt.analysis.channels.groups import Group, Member, groups
from graphopt.analysis.choices.extract import Gone, remove_unread
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.ops import aten
from graphopt.ir.passes import Change
from graphopt.training.compression import Compression
from graphopt.utils.errors import InputError


class Scaled(NamedTuple):
    """A scale in the graph: its constant, and the products that it enters.

    Attributes:
        products: of a branch, the call in front of the sum; of a group, for each constant that reads it the product, and where
            the units lie in the constant.
    """

    name: str
    scale: Node
    products: list[tuple[Node, Member | None]]


class SelectStructures(Compression):
    """See the head of this file.

    Args:
        strength: gamma, the weight of the scales' absolute values beside the loss.
        rate: eta at its highest; it follows the schedule of the training. momentum: mu.
        blocks: whether residual branches are scaled. channels: whether units of groups are.
        layers: name patterns of the sums and of the layers that make channels.

    Raises:
        InputError: options that do not fit, or a graph with nothing to scale.
    """

    def __init__(
        self,
        strength: float,
        *,
        rate: float = 0.1,
        momentum: float = 0.9,
        blocks: bool = True,
        channels: bool = False,
        layers: Sequence[str] = ("*",),
    ) -> None:
        if not strength >= 0 or not rate > 0 or not 0 <= momentum < 1:
            raise InputError(
                "strength is at least 0, rate over 0 and momentum from 0 to under 1, got "
                f"{strength}, {rate} and {momentum}"
            )
        self.strength, self.rate, self.momentum = strength, rate, momentum
        self.blocks, self.channels, self.layers = blocks, channels, tuple(layers)
        self.scaled: list[Scaled] = []
        self.velocities = nn.Module()

    def attach(self, graph: Graph) -> list[Change]:
        self.graph = graph
        found = [group for group in groups(graph) if self._may_scale(group)] if self.channels else []
        self.scaled = self._scale_branches() if self.blocks else []
        self.scaled += [made for group in found if (made := self._scale_units(group)) is not None]
        if not self.scaled:
            raise InputError(
                "the graph has no residual branches or channels to scale; blocks=, channels= and layers= say which"
            )
        graph.refresh()
        self.velocities = nn.Module()
        for number, each in enumerate(self.scaled):
            self.velocities.register_buffer(f"of_{number}", torch.zeros_like(graph.tensor(each.scale)))
        return [Change(each.name, f"scaled by {len(graph.tensor(each.scale))} factors") for each in self.scaled]

    def helpers(self) -> Sequence[nn.Module]:
        return [self.velocities]

    @torch.no_grad()
    def update(self, factor: float) -> None:
        rate = self.rate * factor
        for number, each in enumerate(self.scaled):
            scale, velocity = self.graph.parameter(each.scale), self.velocities.get_buffer(f"of_{number}")
            if scale.grad is not None:
                accelerated(scale, scale.grad, velocity, rate, self.strength, self.momentum)
                scale.grad = None

    @torch.no_grad()
    def finish(self, graph: Graph) -> list[Change]:
        changes, gone = [], Gone()
        for each in reversed(self.scaled):  # weights are constants again before branches are multiplied into them
            scale = graph.tensor(each.scale)
            for product, member in each.products:
                if member is None:
                    self._settle_branch(product, scale)
                else:
                    factor = _along(scale, member)
                    lost = (factor == 0).numpy()
                    graph.put_constant(member.node, graph.tensor(member.node) * _shaped(factor, member))
                    graph.replace(product, member.node)
                    if lost.any():
                        at = member.node, member.dim
                        gone[at] = gone[at] | lost if at in gone else lost
            changes.append(Change(each.name, f"{int((scale == 0).sum())} of {len(scale)} gone"))
        self.scaled = []
        graph.refresh()
        present = set(graph.nodes)
        remove_unread(graph, {at: which for at, which in gone.items() if at[0] in present})
        graph.refresh()
        return changes

    # ---- Where scales are put, and what becomes of them -------------------------------------------------------------

    def _chosen(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.layers)

    def _may_scale(self, group: Group) -> bool:
        """Positions in the groups of a grouped convolution are read elsewhere as channels of their own: those are left out."""
        return self._chosen(group.name) and len(group.free) > 0 and not group.statistics and group.kind != "columns"

    def _scale_branches(self) -> list[Scaled]:
        graph, found = self.graph, []
        trained = _trained(graph)
        for total, _, branch in branches(graph):
            name = graph.site(total)
            if self._chosen(name):
                scale = graph.add_constant(
                    f"{name or total.name}.branch_scale", torch.ones(1), before=total, like=trained
                )
                product = graph.call(aten.mul.Tensor, branch, scale, before=total, like=branch)
                total.replace_input_with(branch, product)
                found.append(Scaled(name, scale, [(product, None)]))
        return found

    def _scale_units(self, group: Group) -> Scaled | None:
        graph = self.graph
        reading = [m for m in group.members if not m.writes and any(_reads(user, m.node) for user in m.node.users)]
        if not reading:
            return None
        first = min(user for m in reading for user in m.node.users)
        scale = graph.add_constant(
            f"{group.name}.unit_scales", torch.ones(len(group)), before=first, like=_trained(graph)
        )
        products: list[tuple[Node, Member | None]] = []
        for member in reading:
            readers = list(member.node.users)
            before = min(readers)
            units = torch.from_numpy(np.where(member.units >= 0, member.units, len(group)))
            index = graph.add_constant(f"{group.name}.unit_of_index", units, before=before)
            one = graph.add_constant(f"{group.name}.one", torch.ones(1), before=before)
            every = graph.call(aten.cat.default, [scale, one], before=before)
            along = graph.call(aten.index_select.default, every, 0, index, before=before)
            shape = [-1 if d == member.dim else 1 for d in range(graph.tensor(member.node).dim())]
            shaped = graph.call(aten.reshape.default, along, shape, before=before)
            product = graph.call(aten.mul.Tensor, member.node, shaped, before=before)
            for reader in readers:
                reader.replace_input_with(member.node, product)
            products.append((product, member))
        return Scaled(group.name, scale, products)

    def _settle_branch(self, product: Node, scale: Tensor) -> None:
        """A branch of scale zero goes; another is multiplied into the layer or norm that gives it, if nothing else reads that."""
        graph, (total,) = self.graph, product.users
        branch: Node = product.args[0]  # type: ignore[assignment]
        if not float(scale):
            (stream,) = (source for source in total.all_input_nodes if source is not product)
            graph.replace(total, stream)
            return
        constants = [source for source in branch.all_input_nodes[1:3] if graph.is_constant(source)]
        makes = Layer.of(branch) is not None or branch.target is aten.batch_norm.default
        alone = len(branch.users) == 1 and all(len(constant.users) == 1 for constant in constants)
        if makes and alone and len(branch.all_input_nodes[1:3]) == len(constants):
            for constant in constants:
                graph.put_constant(constant, graph.tensor(constant) * scale)
            graph.replace(product, branch)


def accelerated(
    scale: Tensor, gradient: Tensor, velocity: Tensor, rate: float, strength: float, momentum: float
) -> None:
    """One step of accelerated proximal gradient, in place; two steps at S(z) = 0 leave an exact zero."""
    z = scale - rate * gradient
    shrunk = z.sign() * (z.abs() - rate * strength).clamp(min=0)
    velocity.copy_(shrunk - scale + momentum * velocity)
    scale.copy_(shrunk + momentum * velocity)


def _trained(graph: Graph) -> list[Node]:
    """Constants that are trained, which others are made like."""
    found = [n for n in graph.nodes if n.op == "get_attr" and isinstance(graph.parameter(n), nn.Parameter)]
    return [n for n in found if graph.parameter(n).requires_grad]


def _reads(user: Node, weight: Node) -> bool:
    layer = Layer.of(user)
    return layer is not None and layer.weight is weight


def _along(scale: Tensor, member: Member) -> Tensor:
    """The factor of each index along a member's dimension."""
    units = torch.from_numpy(member.units)
    return torch.where(units >= 0, scale[units.clamp(min=0)], torch.ones(()))


def _shaped(factor: Tensor, member: Member) -> Tensor:
    return factor.view([-1 if d == member.dim else 1 for d in range(member.node.meta["val"].dim())])
