"""Replace layers by low-rank chains where it pays, with the method and rank that do the least damage.

    Factorize(target_macs=0.5, data=images)                         half of the multiply-accumulates
    Factorize(max_latency=0.7, timer=LatencyTimer("x86"), data=images) 70 % of the time, measured on the runtime
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
from pathlib import Path
from typing import ClassVar, NamedTuple

from torch import Tensor

from graphopt.ir.constants import constant_weights
from graphopt.ir.graph import Graph
from graphopt.ir.passes import Change, Shortfall, Timer, in_eval_mode
from graphopt.passes.factorization.candidates import FASTER, Candidate
from graphopt.passes.factorization.channelwise import ChannelWise
from graphopt.passes.factorization.method import Method
from graphopt.passes.factorization.plan import FactorizationPlan
from graphopt.passes.factorization.repair import Refinement, Replaced, repair
from graphopt.passes.factorization.separable import Separable
from graphopt.passes.factorization.svd import SVD
from graphopt.passes.factorization.tucker import Tucker
from graphopt.utils.checks import check_count, check_repeatable, check_share
from graphopt.utils.errors import InputError

ROUNDS = 4  # of planning for a time, at most
CLOSE = 0.03  # share of the time by which a target may be bettered before it is planned again with less damage
TARGETS = ("target_macs", "target_parameters", "max_latency")


class Trial(NamedTuple):
    """What was chosen, and the milliseconds of the network before and after."""

    chosen: list[Candidate | None]
    before: float
    after: float

    @property
    def share(self) -> float:
        return self.after / self.before


@dataclass(frozen=True)
class Factorize:
    """Factorize until one of the three targets is met.

    Attributes:
        target_macs, target_parameters, max_latency: the share to keep, over 0 and under 1, of the multiply-accumulates, the
            parameters, or the time; exactly one of them. Time needs a `timer`.
        methods: those to choose from, each with its own options (their ranks are not used here).
        data: batches of inputs (see `graphopt.data.Calibration`). None: the weights decide, and nothing is repaired.
        layers: name pattern -> None to leave a layer alone, or a method with the rank to use there. The first match counts.
        round_to: multiples of ranks that the target's kernels like (`Kernels.channel_multiple`); of full ranks below twice that,
            multiples of the largest power of two up to half of them.
        timer: measures graphs on the runtime (`graphopt.compiler.latency.LatencyTimer`).
        nonlinear: with data, fit through the activation behind a layer.
        refine_steps: with data, that many steps of gradient descent on the factors of each layer, through its activation.
        checkpoint: a folder that remembers which layers are fitted, so that the same call goes on where it was interrupted.

    Raises:
        InputError: an option does not fit, a pattern matches nothing, no layer can be factorized, or not as much can be saved.
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
    checkpoint: str | Path | None = None

    def __post_init__(self) -> None:
        given = {name: share for name in TARGETS if (share := getattr(self, name)) is not None}
        if len(given) != 1:
            raise InputError(f"give exactly one of {', '.join(TARGETS)}; got {', '.join(given) or 'none'}")
        for name, share in given.items():
            check_share(name, share)
        check_count("round_to", self.round_to)
        if not self.methods:
            raise InputError("methods is empty; name at least one, such as SVD()")
        if self.max_latency is not None and self.timer is None:
            raise InputError("max_latency needs a timer, such as graphopt.compiler.latency.LatencyTimer('host')")
        check_count("refine_steps", self.refine_steps, least=0)
        check_repeatable(self.data)

    def plan(self, graph: Graph) -> FactorizationPlan:
        """What the pass would do to a graph, as a table; the graph stays as it is."""
        copy = graph.clone(share_weights=True)
        constant_weights(copy)
        plan = FactorizationPlan.of(self, copy)
        if self.max_latency is None:
            plan.choose(self._share)
        else:
            self._until_fast(copy, plan)
        return plan

    @in_eval_mode
    def __call__(self, graph: Graph) -> list[Change]:
        changes = constant_weights(graph)
        plan = FactorizationPlan.of(self, graph)
        if self.max_latency is None:
            plan.choose(self._share)
        else:
            changes += self._until_fast(graph, plan)
        return changes + self._apply(graph, plan)

    @property
    def _share(self) -> float:
        return float(next(share for name in TARGETS if (share := getattr(self, name)) is not None))

    def _until_fast(self, graph: Graph, plan: FactorizationPlan) -> list[Change]:
        """Choose, measure the whole network, and choose again; the plan is left with the best, which may be nothing."""
        assert self.timer is not None
        wanted, saving = self._share, 1 - self._share
        trials = [Trial(plan.chosen, 1.0, 1.0)]
        for _ in range(ROUNDS):
            plan.choose(1 - saving, strict=False)
            trials.append(Trial(plan.chosen, *self.timer([graph, plan.mock(graph)])))
            if wanted - CLOSE <= trials[-1].share <= wanted:
                break
            came = max(1 - trials[-1].share, 0.02)
            saving = min(0.99, saving * min(4.0, max(0.25, (1 - wanted) / came)))
        enough = [trial for trial in trials if trial.share <= wanted]
        best = max(enough, key=lambda t: t.share) if enough else min(trials, key=lambda t: t.share)
        if best.share >= FASTER:
            best = trials[0]
        plan.take(best.chosen)
        if best is trials[0]:
            return []
        met = "" if enough else f"; {wanted:.2f} was asked for, nothing faster was found"
        what = f"{best.before:.3g} -> {best.after:.3g} ms, {best.share:.2f} of the time{met}"
        return [Change("(network)", what) if enough else Shortfall("(network)", what)]

    def _apply(self, graph: Graph, plan: FactorizationPlan) -> list[Change]:
        """Do what was chosen; what was left alone is said where anything was done."""
        original = graph.clone(share_weights=True) if self.data is not None else graph
        done, alone = [], []
        for choice in plan.choices:
            if (found := choice.chosen) is not None:
                chain = found.method.decompose(choice.site.layer, choice.site.weight(graph), found.ranks)
                done.append(Replaced.put(graph, choice.site, found.method, found.ranks, chain, (choice.ms, found.ms)))
            else:
                alone.append(Change(choice.site.name, f"left alone: {choice.why}"))
        if not done:
            return []
        graph.refresh()
        if self.data is not None:
            refinement = Refinement(self.nonlinear, self.refine_steps)
            repair(original, graph, done, self.data, refinement, self.checkpoint)
        return [each.change() for each in done] + alone
