"""Which units of which groups go: `Prune`'s options and a graph's groups, turned into curves for the allocation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from graphopt.analysis.channels import cost
from graphopt.analysis.channels.cost import Budget, Cost
from graphopt.analysis.channels.groups import Group, groups
from graphopt.analysis.channels.trace import Trace
from graphopt.ir.graph import Graph
from graphopt.passes.pruning.allocate import Curve, allocate
from graphopt.passes.pruning.criteria import Criterion, l2_norm
from graphopt.passes.pruning.greedy import Reconstruction
from graphopt.passes.pruning.sensitivity import measured_orders
from graphopt.utils.checks import names_weight
from graphopt.utils.errors import InputError
from graphopt.utils.quantities import few, multiple_within

if TYPE_CHECKING:
    from graphopt.passes.pruning.prune import Prune

NORMALIZERS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": torch.mean,
    "max": torch.amax,
    "sum": torch.sum,
    "none": lambda scores: torch.ones(()),
}


@dataclass(frozen=True)
class PruningPlan:
    """What may be removed, in which order, at which damage, and what it saves.

    Attributes:
        groups: those that may lose units.
        curves: for each the order of its units, and the damage.
        cost: what the groups' units cost.
        full: the cost of the graph as it is.
        per_cost: whether damage is weighed by the cost saved.
    """

    groups: list[Group]
    curves: list[Curve]
    cost: Cost
    full: float
    per_cost: bool

    @classmethod
    def of(cls, options: Prune, graph: Graph, trace: Trace) -> PruningPlan:
        chosen = _prunable(options, groups(graph, trace))
        price = _price(options, graph, trace, chosen)
        scope = options.scope or ("uniform" if options.data is None or options.criterion is not None else "sensitivity")
        listed = {group.key: units for group in chosen if (units := _listed(options, group)) is not None}
        if len(listed) == len(chosen):  # nothing is left to be ranked
            ranked: dict[int, tuple[list[int], list[float]]] = {}
        elif scope == "sensitivity":
            assert options.data is not None
            worth = {group.key: price.saved_by(number) for number, group in enumerate(chosen)}
            ranked = measured_orders(graph, chosen, options.data, worth)
        else:
            ranked = _ranked(options, graph, chosen, uniform=scope == "uniform")
        curves = []
        for group in chosen:
            order, damage = ranked.get(group.key, ([], []))
            if group.key in listed:
                curves.append(Curve(listed[group.key], [], len(group), start=len(listed[group.key])))
                continue
            share = _share(options, group)
            start = min(round(len(group) * (1 - share)), len(order)) if share else 0
            plain = group.width == 1  # of plain channels; multiples of heads mean nothing
            multiple, least = (multiple_within(options.round_to, len(group)), options.least) if plain else (1, 1)
            curves.append(Curve(order, [] if start else damage, len(group), multiple, least, start))
        full = Budget(price, [curve.order for curve in curves], [0] * len(curves)).now
        return cls(chosen, curves, price, full, scope == "sensitivity")

    def units(self, target: float) -> list[tuple[Group, list[int]]]:
        """The units to remove so that the cost is `target`.

        Raises:
            InputError: the groups that may lose units cannot save as much.
        """
        counts, left = allocate(self.curves, self.cost, target, per_cost=self.per_cost)
        if left > target * 1.01:
            raise InputError(
                f"only {1 - left / self.full:.0%} of the cost can be removed, {1 - target / self.full:.0%} were asked for; "
                "keep more, or let more layers be pruned (layers=, streams=, round_to=, least=)"
            )
        return [(g, curve.order[:n]) for g, curve, n in zip(self.groups, self.curves, counts, strict=True)]


def _matches(pattern: str, group: Group) -> bool:
    return any(names_weight(pattern, member.name) for member in group.writers)


def _share(options: Prune, group: Group) -> float | None:
    """The share of a group to keep by name; 0 where the allocation decides, None where it is left alone."""
    return 0.0 if isinstance(share := _said(options, group), (list, tuple)) else cast("float | None", share)


def _said(options: Prune, group: Group) -> float | Sequence[int] | None:
    otherwise = 0.0 if options.keep_ratio is not None else None
    return next((share for pattern, share in options.layers.items() if _matches(pattern, group)), otherwise)


def _listed(options: Prune, group: Group) -> list[int] | None:
    """The units that go by their numbers; None where none are listed."""
    units = _said(options, group)
    if not isinstance(units, (list, tuple)):
        return None
    if beyond := [unit for unit in units if unit >= len(group)]:
        shown = few([*map(str, beyond)], 3)
        raise InputError(
            f"layers: {group.name} has {len(group)} {group.kind}, numbered 0 to {len(group) - 1}, and no {shown}"
        )
    can_go = group.removable(units) if {*units} <= {*group.free.tolist()} else []
    if [*can_go] != [*units] or len(units) >= len(group):
        raise InputError(
            f"layers: of {group.name} ({len(group)} {group.kind}) the units {list(units)} cannot go together: some are fixed, or "
            "would leave others alone"
        )
    return list(units)


def _prunable(options: Prune, found: list[Group]) -> list[Group]:
    for pattern in options.layers:
        if not any(_matches(pattern, group) for group in found):
            raise InputError(f"layers: no group of channels is made by a layer that matches {pattern!r}")
    free = [g for g in found if len(g.free) and _share(options, g) is not None]
    chosen = [g for g in free if (options.streams or not g.stream) and (not options.kinds or g.kind in options.kinds)]
    if not chosen:
        reasons = sorted({f"{g.name} is fixed by {g.why}" for g in found if not len(g.free) and g.why})
        raise InputError("no channels can be pruned: " + ("; ".join(reasons[:3]) or "all are left out by the options"))
    return chosen


def _price(options: Prune, graph: Graph, trace: Trace, chosen: Sequence[Group]) -> Cost:
    if options.of == "macs":
        return cost.macs(graph, trace, chosen)
    if options.of == "parameters":
        return cost.parameters(graph, trace, chosen)
    return cost.channels(chosen)


def _ranked(
    options: Prune, graph: Graph, chosen: list[Group], *, uniform: bool
) -> dict[int, tuple[list[int], list[float]]]:
    """Each group's free units from the least to the most important, and the damage so far."""
    criterion = options.criterion or (l2_norm if options.data is None else Reconstruction(options.data))
    greedy = bool(getattr(criterion, "greedy", False))
    score: Criterion = criterion.prepare(graph, chosen) if hasattr(criterion, "prepare") else criterion
    ranked = {}
    for group in chosen:
        scores = _checked(criterion, score(graph, group), group)
        free = torch.from_numpy(group.free)
        order = free[torch.argsort(scores[free], stable=True)].tolist()
        order = group.removable(unit for unit in order if torch.isfinite(scores[unit]))
        if uniform:  # equal shares: rising in proportion to the share gone
            damage = [(k + 1) ** 2 / len(group) for k in range(len(order))]
        else:
            ordered = scores[order] / NORMALIZERS[options.normalize](scores[order]).clamp(min=1e-30)
            damage = (ordered if greedy else ordered.cumsum(0)).tolist()
        ranked[group.key] = order, damage
    return ranked


def _checked(criterion: object, scores: Tensor, group: Group) -> Tensor:
    name = getattr(criterion, "__name__", type(criterion).__name__)
    if not isinstance(scores, Tensor) or tuple(scores.shape) != (len(group),):
        came = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise InputError(f"criterion {name} must return one score per unit of {group.name}, [{len(group)}], got {came}")
    if bool(torch.isnan(scores).any()):
        raise InputError(f"criterion {name} returned NaN for {group.name}; check the weights and the data")
    return scores.double()
