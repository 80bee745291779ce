"""Hold weights at zero: masks over single weights or N:M patterns, in the graph.

    Sparsify(0.8)                                                        the smallest 80 % of every layer's weights
    Sparsify(0.8, scope="global", layers={"head*": None, "stem*": 0.5})  of all layers in one ranking; named layers apart
    Sparsify(0.9, criterion="obd", data=images)                          by saliency, h w^2 / 2
    Sparsify(0.9, steps=5, schedule="cubic", fine_tune=train)            little by little, trained in between
    Sparsify(pattern=(2, 4))                                             2 of every 4 weights along the input channels

Each layer's weight W becomes W * M (see `graphopt.ir.masks`): training leaves what is masked at zero, a further Sparsify only
adds to the masks, `release` takes them away, and lowering multiplies them in. Zeros save storage (the files compress), not time:
no kernel of the runtimes lowered to skips them.

Needs:  a float graph. A weight that something else than layers reads (an embedding, say) stays dense.
Papers: Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks"; Zhu & Gupta 2017, "To prune, or
        not to prune" (schedule); Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks" (N:M); with each criterion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from torch import Tensor

from graphopt.fitting.losses import Loss, own_labels
from graphopt.ir.graph import Graph
from graphopt.ir.passes import Change, in_eval_mode
from graphopt.passes.sparsity.choose import ramp
from graphopt.passes.sparsity.plan import SparsityPlan
from graphopt.passes.sparsity.saliency import Criterion, OptimalBrainDamage, Prepared, magnitude
from graphopt.utils.checks import check_count, check_repeatable, check_share
from graphopt.utils.errors import InputError

Scope = Literal["layer", "global"]
Schedule = Literal["linear", "cubic"]


@dataclass(frozen=True)
class Sparsify:
    """Mask weights until `sparsity` of them are zero.

    Attributes:
        sparsity: the share of weights to mask, over 0 and under 1. Not with a pattern, which says it itself.
        criterion: `magnitude`, `obd` (optimal brain damage, needs data), or a function or object like those of
            `graphopt.passes.sparsity.saliency`.
        scope: `layer`: each layer loses the same share; `global`: all weights stand in one ranking.
        pattern: (N, M): the N best of every M consecutive weights along the input channels stay. Layers whose input channels (per
            group) are no multiple of M stay dense, and a change says so.
        layers: name pattern -> a share to mask in place of `sparsity`, or None to leave the layer dense. The first match counts;
            patterns are compared with the names of weights.
        data: batches for `obd`; see `OptimalBrainDamage`.
        loss: of the output and the batch, for `obd`: `own_labels`, `own_outputs` or your own. None: `own_labels`, cross-entropy
            against the classes the network itself gives.
        steps: go to the target in this many steps, scores taken anew at each.
        schedule: how the share grows over the steps: `linear`, or `cubic` (Zhu & Gupta 2017).
        fine_tune: called with the graph after every step: train it there, in place.

    Raises:
        InputError: an option does not fit, a criterion returned scores of a wrong shape or NaN, a name pattern matches nothing,
            or no layer can be sparsified.
    """

    exact: ClassVar[bool] = False

    sparsity: float | None = None
    criterion: Literal["magnitude", "obd"] | Criterion | Prepared = "magnitude"
    scope: Scope = "layer"
    pattern: tuple[int, int] | None = None
    layers: Mapping[str, float | None] = field(default_factory=dict)
    data: Iterable[list[Tensor]] | None = field(default=None, repr=False)
    loss: Loss | None = field(default=None, repr=False)
    steps: int = 1
    schedule: Schedule = "linear"
    fine_tune: Callable[[Graph], object] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._check_amount()
        for name, choices in (("scope", Scope), ("schedule", Schedule)):
            if getattr(self, name) not in get_args(choices):
                raise InputError(f"{name} must be one of {', '.join(get_args(choices))}, got {getattr(self, name)!r}")
        if isinstance(self.criterion, str) and self.criterion not in ("magnitude", "obd"):
            raise InputError(f"criterion must be 'magnitude', 'obd' or a function, got {self.criterion!r}")
        if self.criterion == "obd" and self.data is None:
            raise InputError("criterion='obd' needs data; pass data=Calibration(images, graph)")
        check_count("steps", self.steps)
        if self.steps > 1:
            check_repeatable(self.data)

    def _check_amount(self) -> None:
        if self.pattern is None:
            if self.sparsity is None:
                raise InputError("say how much to mask: sparsity=0.8, or pattern=(2, 4)")
            check_share("sparsity", self.sparsity)
        else:
            whole = len(self.pattern) == 2 and all(isinstance(n, int) for n in self.pattern)
            if not whole or not 0 < self.pattern[0] < self.pattern[1]:
                raise InputError(f"pattern must be (N, M), N of every M kept, with 0 < N < M, got {self.pattern!r}")
            if self.sparsity is not None or self.scope == "global":
                raise InputError(
                    "a pattern says by itself how much of each layer is masked; leave out sparsity and scope"
                )
        for name, share in self.layers.items():
            if share is not None and self.pattern is not None:
                raise InputError(
                    f"layers[{name!r}]: with a pattern, a layer can only be left dense (None), got {share}"
                )
            if share is not None:
                check_share(f"layers[{name!r}]", share)

    @in_eval_mode
    def __call__(self, graph: Graph) -> list[Change]:
        plan = SparsityPlan.of(self, graph)
        before = plan.masked(graph)
        for step in range(1, self.steps + 1):
            if plan.grow(graph, self._scores(), ramp(self.schedule, step, self.steps)):
                graph.refresh()
                if self.fine_tune is not None:
                    training = graph.training
                    self.fine_tune(graph)
                    graph.train(training)
        return plan.changes(graph, before)

    def _scores(self) -> Criterion | Prepared:
        if self.criterion == "obd":
            assert self.data is not None
            return OptimalBrainDamage(self.data, self.loss or own_labels)
        return magnitude if self.criterion == "magnitude" else self.criterion
