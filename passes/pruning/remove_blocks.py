"""Remove residual blocks: where a sum adds a branch to the value the branch started from, the branch can go.

    x + f(x)  ->  x

    RemoveBlocks(keep_ratio=0.8, data=images)       until 80 % of the multiply-accumulates are left
    RemoveBlocks(blocks=["layer3.1"], data=images)  those that are added in these modules

The branch that matters least goes first: for each, the output without it is compared with the output with it.

    damage = mean over outputs of  sum |z' - z|^2 / sum |z|^2        z: one output on the data, z': without the branch

A branch that holds nearly everything, as that of a denoiser whose output is its input and a small correction, is no block but the
network itself: what would leave less than half of what was asked for stays.

Needs:  a float graph.
Paper:  Veit et al. 2016, "Residual Networks Behave Like Ensembles of Relatively Shallow Networks", section 4.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import ClassVar

from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.branches import Branch, branches
from graphopt.analysis.output_error import Probe
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.ir.passes import Change, in_eval_mode
from graphopt.passes.pruning.reconstruct import reconstruct
from graphopt.utils.checks import check_repeatable, check_share
from graphopt.utils.errors import InputError

LEAST = 0.5  # of the target, which is left in any case


@dataclass(frozen=True)
class RemoveBlocks:
    """Remove residual branches until `keep_ratio` of the multiply-accumulates is left, or less, but at least half of that.

    Attributes:
        keep_ratio: over 0 and under 1. None: `blocks` say which go.
        data: batches of inputs.
        blocks: patterns of the modules that add the branches which go, as the changes of this pass name them; or names of the
            sums' calls, where a module adds several.
        fit: re-fit all layers on the data afterwards, to give what they gave (see `graphopt.passes.pruning.reconstruct`).
        checkpoint: a folder that remembers which layers are fitted, so that the same call goes on where it was interrupted.

    Raises:
        InputError: there is no residual branch, removing all that may go does not save as much, or a pattern matches none.
    """

    exact: ClassVar[bool] = False

    keep_ratio: float | None = None
    data: Iterable[list[Tensor]] | None = field(default=None, repr=False)
    blocks: Sequence[str] = ()
    fit: bool = True
    checkpoint: str | Path | None = None

    def __post_init__(self) -> None:
        if (self.keep_ratio is None) == (not self.blocks):
            raise InputError("say which residual blocks go: keep_ratio, or blocks=[names], and not both")
        if self.keep_ratio is not None:
            check_share("keep_ratio", self.keep_ratio)
        if self.data is None and (self.fit or self.keep_ratio is not None):
            raise InputError("RemoveBlocks chooses and fits on data; pass data=Calibration(images, graph)")
        check_repeatable(self.data)

    @in_eval_mode
    def __call__(self, graph: Graph) -> list[Change]:
        original = graph.clone(share_weights=True)
        changes = self._by_damage(graph, original) if self.keep_ratio is not None else self._by_name(graph)
        if self.fit and changes:
            assert self.data is not None
            reconstruct(original, graph, {}, self.data, checkpoint=self.checkpoint)
        return changes

    def _by_name(self, graph: Graph) -> list[Change]:
        changes = []
        for pattern in self.blocks:
            found = self._named(graph, pattern)
            if not found:
                known = ", ".join(graph.site(branch.total) for branch in branches(graph)) or "none"
                raise InputError(f"blocks: no residual branch is added at {pattern!r}; there are {known}")
            while found:  # one that holds another takes it along
                changes.append(Change(graph.site(found[0].total), "branch removed"))
                _skip(graph, found[0])
                found = self._named(graph, pattern)
        return changes

    @staticmethod
    def _named(graph: Graph, pattern: str) -> list[Branch]:
        def fits(total: Node) -> bool:
            return fnmatchcase(graph.site(total), pattern) or total.name == pattern

        return [branch for branch in branches(graph) if fits(branch.total)]

    def _by_damage(self, graph: Graph, original: Graph) -> list[Change]:
        assert self.keep_ratio is not None
        assert self.data is not None
        target, changes = self.keep_ratio * cost.macs(graph), []
        probe = Probe(original, self.data)
        while cost.macs(graph) > target:
            found = branches(graph)
            shorter = {number: without(graph, number) for number in range(len(found))}
            damages = {
                number: probe.damage(copy) for number, copy in shorter.items() if cost.macs(copy) >= LEAST * target
            }
            if not damages:
                raise InputError(self._refusal(cost.macs(graph) / cost.macs(original), graph, found))
            least = min(damages, key=damages.__getitem__)
            total = found[least].total
            changes.append(Change(graph.site(total), f"branch removed, output moved by {damages[least] ** 0.5:.1%}"))
            _skip(graph, found[least])
        return changes

    def _refusal(self, left: float, graph: Graph, found: list[Branch]) -> str:
        """Why no further branch goes."""
        which = "any residual branch"
        if found:
            names = ", ".join(graph.site(branch.total) for branch in found[:3])
            which = f"any branch but those that hold nearly all of what is left (added at {names})"
        return (
            f"without {which} the network still has {left:.0%} of its multiply-accumulates, {self.keep_ratio:.0%} were "
            "asked for; keep more, or remove channels (Prune)"
        )


def without(graph: Graph, number: int) -> Graph:
    """A copy that lacks one of its branches."""
    copy = graph.clone(share_weights=True)
    _skip(copy, branches(copy)[number])
    return copy


def _skip(graph: Graph, found: Branch) -> None:
    graph.replace(found.total, found.stream)
    graph.refresh()
