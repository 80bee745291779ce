"""Remove channels: whole units of coupled channels, out of every tensor they run through.

    Prune(keep_ratio=0.6, data=images)                  60 % of the multiply-accumulates, least damage to the output
    Prune(keep_ratio=0.75, of="channels", scope="uniform", criterion=l1_norm)     every layer a quarter narrower
    Prune(keep_ratio=0.5, criterion=Taylor(batches), scope="global", layers={"head*": None, "stem*": 0.9})

1. Groups of channels that can only go together are found from the graph (`graphopt.analysis.channels`).
2. A criterion puts the units of each group in order; an allocation decides how many each group loses (`scope`).
3. They are removed: tensors become smaller, names stay, the graph still trains.
4. The layers behind are re-fitted on data to give what they gave before (`compensate`), so that the network is usable as it is.

Needs:  a float graph; batch norm may be there or folded. Masks of single weights are baked in first.
Papers: with each criterion and step; for coupled channels, Fang et al. 2023, "DepGraph: Towards Any Structural Pruning".
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, cast, get_args

from torch import Tensor

from graphopt.analysis.channels.removal import remove
from graphopt.analysis.channels.shuffles import gather_shuffles
from graphopt.analysis.channels.trace import Trace
from graphopt.ir.constants import constant_weights
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.passes import Change, in_eval_mode
from graphopt.passes.pruning.compensate import add_means, means, merge_twins
from graphopt.passes.pruning.criteria import Criterion, PreparedCriterion
from graphopt.passes.pruning.plan import PruningPlan
from graphopt.passes.pruning.readers import readers
from graphopt.passes.pruning.reconstruct import reconstruct
from graphopt.passes.pruning.removal import Removal, RemovalPlan
from graphopt.utils.checks import check_count, check_repeatable, check_share
from graphopt.utils.errors import InputError

Of = Literal["macs", "parameters", "channels"]
Scope = Literal["sensitivity", "global", "uniform"]
Normalize = Literal["mean", "max", "sum", "none"]
Kind = Literal["channels", "rows", "columns"]
Compensate = Literal["all", "readers", "means", "merge", "none"]


@dataclass(frozen=True)
class Prune:
    """Remove channels until `keep_ratio` of the network's cost is left.

    Attributes:
        keep_ratio: what is kept, over 0 and under 1, of `of`. None: `layers` alone say what goes.
        of: `macs` (multiply-accumulates), `parameters`, or `channels` (units of all groups).
        data: batches of inputs (see `graphopt.data.Calibration`) for scope, criterion and compensation. None: weights decide.
        scope: how the loss is shared. `sensitivity`: by the measured damage to the output (needs data); `global`: all units
            in one ranking; `uniform`: every group the same share. None: `sensitivity` with data and no criterion, else `uniform`.
        criterion: a function or a criterion with data from this package. None: least-squares reconstruction with data, else
            the L2 norm. `sensitivity` has an order of its own.
        normalize: what scores of a group are divided by before a global ranking.
        layers: name pattern -> the share of the group's units to keep, a list of the units that go (as `plan` has them), or None
            to leave the group alone. The first match counts; patterns are compared with the layers that make the channels.
        streams: whether channels that several layers write into (residual streams) are pruned, too.
        kinds: which groups are pruned: `channels`, `rows` (attention heads, groups of grouped convolutions) and `columns` (the
            same position in every row). None: all.
        round_to: keep multiples of this many channels, as the kernels of a target like (`Kernels.channel_multiple`): vector
            units process that many at once, and a rest costs as much as a full step. Groups narrower than twice that use the
            largest power of two up to half of their width.
        least: channels kept in each group at least.
        compensate: `all` layers are re-fitted on data, or only the `readers` of removed channels; without data, `means` moves
            what removed channels give on average (from batch norm) into the readers' biases, and `merge` adds their outgoing
            weights to those of their most similar twin. None: `all` with data, else `means`.
        steps: go to the target in this many steps, the whole procedure at each.
        fine_tune: called with the graph between steps and at the end: train it there, in place.
        checkpoint: a folder that remembers which layers are fitted, so that the same call goes on where it was interrupted.

    Raises:
        InputError: an option does not fit, a criterion returned scores of a wrong length or NaN, a pattern matches nothing, or
            nothing can be pruned.
    """

    exact: ClassVar[bool] = False

    keep_ratio: float | None = None
    of: Of = "macs"
    data: Iterable[list[Tensor]] | None = field(default=None, repr=False)
    scope: Scope | None = None
    criterion: Criterion | PreparedCriterion | None = None
    normalize: Normalize = "mean"
    layers: Mapping[str, float | Sequence[int] | None] = field(default_factory=dict)
    streams: bool = True
    kinds: Collection[Kind] | None = None
    round_to: int = 1
    least: int = 1
    compensate: Compensate | None = None
    steps: int = 1
    fine_tune: Callable[[Graph], object] | None = field(default=None, repr=False)
    checkpoint: str | Path | None = None

    def __post_init__(self) -> None:
        if self.keep_ratio is not None:
            check_share("keep_ratio", self.keep_ratio)
        elif not any(share is not None for share in self.layers.values()):
            raise InputError(
                "say what goes: keep_ratio, or layers={name: share to keep, or a list of the units that go}"
            )
        self._check_layers()
        for name, choices in (("of", Of), ("scope", Scope), ("normalize", Normalize), ("compensate", Compensate)):
            chosen = getattr(self, name)
            if chosen not in get_args(choices) and not (chosen is None and name in ("scope", "compensate")):
                raise InputError(f"{name} must be one of {', '.join(get_args(choices))}, got {chosen!r}")
        if self.criterion is not None and not callable(self.criterion) and not hasattr(self.criterion, "prepare"):
            raise InputError(
                f"criterion is a function, such as graphopt.passes.pruning.l2_norm, or one with data, got {self.criterion!r}"
            )
        if not set(self.kinds or ()) <= set(get_args(Kind)):
            raise InputError(f"kinds must be among {', '.join(get_args(Kind))}, got {self.kinds!r}")
        for name in ("round_to", "least", "steps"):
            check_count(name, getattr(self, name))
        for name, needing in (("scope", ("sensitivity",)), ("compensate", ("all", "readers"))):
            if getattr(self, name) in needing and self.data is None:
                raise InputError(f"{name}={getattr(self, name)!r} needs data; pass data=Calibration(images, graph)")
        check_repeatable(self.data)

    def _check_layers(self) -> None:
        for pattern, share in self.layers.items():
            if isinstance(share, (list, tuple)):
                if not all(type(unit) is int and unit >= 0 for unit in share) or len({*share}) < len(share):
                    raise InputError(f"layers[{pattern!r}] must be numbers of units, each once, got {share!r}")
                if self.steps > 1:
                    raise InputError(
                        "units are numbered in the graph as it is; with a list of them in layers, steps must be 1"
                    )
            elif share is not None:
                check_share(f"layers[{pattern!r}]", cast("float", share))

    def plan(self, graph: Graph) -> RemovalPlan:
        """What the pass would remove from a graph in one step, as a table; the graph stays as it is."""
        graph = graph.clone(share_weights=True).eval()
        constant_weights(graph)
        gather_shuffles(graph)
        found = PruningPlan.of(self, graph, Trace(graph))
        units = found.units((self.keep_ratio or 1.0) * found.full)
        return RemovalPlan(
            [Removal(group.name, group.kind, len(group), tuple(sorted(gone))) for group, gone in units], self.compensate
        )

    @in_eval_mode
    def __call__(self, graph: Graph) -> list[Change]:
        constant_weights(graph)
        gather_shuffles(graph)
        start = {str(n.target): tuple(graph.tensor(n).shape) for n in graph.nodes if graph.is_constant(n)}
        full = None
        for step in range(1, self.steps + 1):
            full = self._step(graph, (self.keep_ratio or 1.0) ** (step / self.steps), full)
            if self.fine_tune is not None:
                self.fine_tune(graph)
                graph.eval()
        return _changes(graph, start)

    def _step(self, graph: Graph, ratio: float, full: float | None) -> float:
        """Prune to `ratio` of the full cost; returns that cost."""
        trace = Trace(graph)
        plan = PruningPlan.of(self, graph, trace)
        full = plan.full if full is None else full
        units = plan.units(ratio * full)
        how = self.compensate or ("means" if self.data is None else "all")
        original = graph.clone(share_weights=True) if how in ("all", "readers") else graph
        lost = means(graph, units) if how == "means" else {}
        if how == "merge":
            merge_twins(graph, units)
        only = None
        if how == "readers":
            only = {r.layer.node.name for group, gone in units if gone for r in readers(graph, group)}
        kept = remove(graph, trace, units)
        add_means(graph, lost, kept)
        if how in ("all", "readers"):
            assert self.data is not None
            reconstruct(original, graph, kept, self.data, only, self.checkpoint)
        return full


def _changes(graph: Graph, start: Mapping[str, tuple[int, ...]]) -> list[Change]:
    """Every layer whose weight has another shape than at the start."""
    changes = []
    for layer in (layer for node in graph.calls() if (layer := Layer.of(node)) and graph.is_constant(layer.weight)):
        before, now = start.get(str(layer.weight.target)), tuple(graph.tensor(layer.weight).shape)
        if before is not None and before != now:
            changes.append(Change(graph.site(layer.node), f"{list(before)} -> {list(now)}"))
    return changes
