"""Replace layers by low-rank chains where it pays, with the method and rank that do the least damage.

    Factorize(target_macs=0.5, data=images)                         half of the multiply-accumulates
    Factorize(max_latency=0.7, timer=Stopwatch("x86"), data=images) 70 % of the time, measured on the runtime
    Factorize(target_parameters=0.3, methods=[SVD(), TensorTrain()], layers={"head*": None, "stem": Tucker((2, 8))})

1. Every method that applies proposes chains of several ranks for every layer.
2. Each is weighed: its work, its time on the runtime where there is a timer, and what it does to the network's output on data.
   With a timer, a chain that is not measurably faster than its layer is out.
3. The target is met with the least damage (`allocate`).
4. With data, factors and all layers behind are fitted to what the original gives (`repair`).
5. With a target for time the whole network is measured against the original, in turn; where it misses the target, it is planned
   again with what was learned, and where it is no faster than the original, the original stays.

Needs:  a float graph; batch norm may be there or folded. Masks of single weights are baked in first.
Papers: with each method.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from graphopt.contract import Change, Timer
from graphopt.graph import Graph
from graphopt.masks import bake
from graphopt.options import check_count, check_share
from graphopt.passes.factorize.candidates import FASTER
from graphopt.passes.factorize.channelwise import ChannelWise
from graphopt.passes.factorize.method import Method
from graphopt.passes.factorize.plan import Plan
from graphopt.passes.factorize.repair import Refinement, Replaced, repair
from graphopt.passes.factorize.separable import Separable
from graphopt.passes.factorize.svd import SVD
from graphopt.passes.factorize.tucker import Tucker

ROUNDS = 3  # of planning for a time, at most
TARGETS = ("target_macs", "target_parameters", "max_latency")


@dataclass(frozen=True)
class Factorize:
    """Factorize until one of the three targets is met.

    Attributes:
        target_macs, target_parameters, max_latency: the share to keep, over 0 and under 1, of the multiply-accumulates, the
            parameters, or the time; exactly one of them. Time needs a `timer`.
        methods: those to choose from, each with its own options (their ranks are not used here).
        data: batches of inputs (see `graphopt.data.Calibration`). None: the weights decide, and nothing is repaired.
        layers: name pattern -> None to leave a layer alone, or a method with the rank to use there. The first match counts.
        round_to: multiples of ranks that the target's kernels like (`Target.channel_multiple`).
        timer: measures graphs on the runtime (`graphopt.stopwatch.Stopwatch`).
        nonlinear: with data, fit through the activation behind a layer.
        refine_steps: with data, that many steps of gradient descent on the factors of each layer, through its activation.

    Raises:
        ValueError: an option does not fit, a pattern matches nothing, no layer can be factorized, or not as much can be saved.
    """

    exact: ClassVar[bool] = False

    target_macs: float | None = None
    target_parameters: float | None = None
    max_latency: float | None = None
    methods: Sequence[Method] = (SVD(), ChannelWise(), Separable(), Tucker())
    data: Iterable[list[Tensor]] | None = field(default=None, repr=False)
    layers: Mapping[str, Method | None] = field(default_factory=dict)
    round_to: int = 1
    timer: Timer | None = field(default=None, repr=False)
    nonlinear: bool = False
    refine_steps: int = 0

    def __post_init__(self) -> None:
        given = {name: share for name in TARGETS if (share := getattr(self, name)) is not None}
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(TARGETS)}; got {', '.join(given) or 'none'}")
        for name, share in given.items():
            check_share(name, share)
        check_count("round_to", self.round_to)
        if not self.methods:
            raise ValueError("methods is empty; name at least one, such as SVD()")
        if self.max_latency is not None and self.timer is None:
            raise ValueError("max_latency needs a timer, such as graphopt.stopwatch.Stopwatch('host')")
        if getattr(self.data, "one_shot", False):
            raise ValueError("the data is gone through several times; give a list or a DataLoader, not an iterator")

    def plan(self, graph: Graph) -> Plan:
        """What the pass would do to a graph, as a table; the graph stays as it is."""
        copy = graph.clone()
        bake(copy)
        plan = Plan.of(self, copy)
        if self.max_latency is None:
            plan.choose(self._share)
        else:
            self._until_fast(copy, plan)
        return plan

    def __call__(self, graph: Graph) -> list[Change]:
        changes = bake(graph)
        plan = Plan.of(self, graph)
        if self.max_latency is None:
            plan.choose(self._share)
        else:
            changes += self._until_fast(graph, plan)
        return changes + self._apply(graph, plan)

    @property
    def _share(self) -> float:
        return float(next(share for name in TARGETS if (share := getattr(self, name)) is not None))

    def _until_fast(self, graph: Graph, plan: Plan) -> list[Change]:
        """Choose, measure the whole network, and choose again; the plan is left with the best, which may be nothing."""
        assert self.timer is not None
        keep, wanted = self._share, self._share
        best, before, after = plan.chosen, 1.0, 1.0
        for _ in range(ROUNDS):
            plan.choose(max(keep, 0.01), strict=False)
            old, new = self.timer([graph, plan.mock(graph)])
            if new / old < min(FASTER, after / before):
                best, before, after = plan.chosen, old, new
            if new / old <= wanted or keep <= 0.01:
                break
            keep -= new / old - wanted
        plan.take(best)
        if after == before:
            return []
        met = "" if after <= wanted * before else f"; {wanted:.2f} was asked for, nothing faster was found"
        return [Change("(network)", f"{before:.3g} -> {after:.3g} ms, {after / before:.2f} of the time{met}")]

    def _apply(self, graph: Graph, plan: Plan) -> list[Change]:
        """Do what was chosen."""
        original = graph.clone() if self.data is not None else graph
        done = []
        for choice in plan.choices:
            if (found := choice.chosen) is not None:
                chain = found.method.decompose(choice.site.layer, choice.site.weight(graph), found.ranks)
                done.append(Replaced.put(graph, choice.site, found.method, found.ranks, chain))
        if done:
            graph.refresh()
            if self.data is not None:
                repair(original, graph, done, self.data, Refinement(self.nonlinear, self.refine_steps))
        return [each.change() for each in done]
