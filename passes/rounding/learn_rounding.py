"""Choose the codes of quantized weights on data, so that layers or blocks give what they gave in float; no training, no labels.

    [*clean(target), Quantize(target, data, weights=Format(bits=4, per_channel=True)), LearnRounding(data)]

1. Layer by layer, in execution order, with the inputs of the network quantized so far: the least-squares weight for what the
   layer gave in float (a residual stream's error included) is rounded under the quadratic of its inputs (`quadratic.py`).
   `method="gptq"` ends here: seconds, no gradients.
   `method="bit_split"` minimizes the same error digit by digit (`bit_split.py`).
2. `method="adaround"`: from there, unit by unit, rounding, biases and steps are learned by gradients through the activations
   (`soft.py`, `reconstruct.py`). A unit is a layer (`unit="layer"`, AdaRound) or a block (`unit="block"`, BRECQ; `units.py`).
   `method="adaquant"` lets weights travel further than to the next code (`free.py`).

The float network is the simulated graph without its quantizers. Codes are stored as points of the grid (`weights.py`), so that
simulation, integers and artifact agree.

The second step starts from what the first found, and what it learns of a unit is taken only where samples held out of the
learning gain by it. With a few hundred images and steps that is little: begin with `gptq`.

With `checkpoint`, every layer and unit that is done is written down (`journal.py`), and the same task goes on behind the last.

Needs:  a graph straight from `Quantize` or `QuantizeWeights`; `CorrectBias` is not needed, biases are learned with the codes.
Papers: Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization"; Li et al. 2021, "BRECQ"; Frantar et al.
        2022, "GPTQ"; Hubara et al. 2020, "Improving Post Training Neural Quantization" (AdaQuant; asymmetric calibration).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.grouped_moments import GroupedMoments
from graphopt.execution.executor import Executor, constant_calls
from graphopt.execution.reference import float_reference, unquantized
from graphopt.execution.spill import Overflow
from graphopt.execution.streaming import Frontier
from graphopt.fitting import rounding
from graphopt.fitting.least_squares import Pairs
from graphopt.ir.batches import count
from graphopt.ir.facts import BIAS_CORRECTED, ROUNDING_LEARNED
from graphopt.ir.graph import Graph
from graphopt.ir.passes import Change, in_eval_mode
from graphopt.ir.quantizers import quantizers
from graphopt.passes.rounding import bit_split
from graphopt.passes.rounding.free import FreeWeight
from graphopt.passes.rounding.importance import fisher
from graphopt.passes.rounding.journal import Journal, fingerprint
from graphopt.passes.rounding.reconstruct import Reconstruction, Samples, Search
from graphopt.passes.rounding.soft import SoftWeight
from graphopt.passes.rounding.units import Unit, block_units, layer_units, make_unit
from graphopt.passes.rounding.weights import Learned, Rounded, other_layers, rounded_layers
from graphopt.utils.checks import check_count, check_repeatable
from graphopt.utils.errors import InputError
from graphopt.utils.progress import track

RIDGE = 1e-2  # of the mean second moment: what the data say nothing about stays as it was

Method = Literal["gptq", "bit_split", "adaround", "adaquant"]
UnitKind = Literal["layer", "block"]
CLOSED = {"bit_split": bit_split.fit}  # others begin with `quadratic.fit`
WAYS: dict[str, type[SoftWeight] | type[FreeWeight]] = {"adaround": SoftWeight, "adaquant": FreeWeight}


@dataclass(frozen=True)
class LearnRounding:
    """Learn how the weights of a simulated graph are rounded.

    Attributes:
        data: batches of inputs, as for calibration; gone through a few times.
        method: `gptq` or `bit_split`, closed forms only; `adaround` or `adaquant`, which go on from `gptq` by gradients.
        unit: what is learned together, a `layer` or a `block`.
        iterations: gradient steps per unit.
        batch: samples per gradient step.
        learn_steps: whether the scales of weights (where each channel has its own) and values are learned, too.
        warmup: the share of the iterations before soft roundings are driven to their ends.
        rate: learning rate of the roundings.
        regularizer: how strongly they are driven there.
        importance: whether errors count by the squared gradient of the network's loss (Fisher information).
        memory: bytes of inputs and outputs of units to hold in memory; more goes to temporary files.
        folder: where those are; None: the system's folder for temporary files.
        checkpoint: a folder that remembers what is done, so that the same call goes on where it was interrupted; it may serve
            any number of tasks, and may be removed when they are done.
        seed: of the order in which samples are taken.

    Raises:
        InputError: the graph has no quantized weights, its biases were corrected, there are fewer samples than a batch,
            `bit_split` meets weights with a zero point, or a file in `checkpoint` is damaged.
    """

    exact: ClassVar[bool] = False

    data: Iterable[list[Tensor]] = field(repr=False)
    method: Method = "gptq"
    unit: UnitKind = "block"
    iterations: int = 100
    batch: int = 32
    learn_steps: bool = True
    warmup: float = 0.2
    rate: float = 0.02
    regularizer: float = 0.01
    importance: bool = False
    memory: int = 2**30
    folder: Path | None = None
    checkpoint: str | Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_repeatable(self.data)
        check_count("iterations", self.iterations)
        check_count("batch", self.batch)
        check_count("memory", self.memory, 0)
        for name, given, known in (("method", self.method, get_args(Method)), ("unit", self.unit, get_args(UnitKind))):
            if given not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {given!r}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must be at least 0 and under 1, got {self.warmup}")
        if self.rate <= 0 or self.regularizer < 0:
            raise ValueError(f"rate must be over 0 and regularizer not under 0, got {self.rate} and {self.regularizer}")

    @in_eval_mode
    def __call__(self, graph: Graph) -> list[Change]:
        if all(graph.fact(rounded.layer.node, ROUNDING_LEARNED) for rounded in self.check(graph)):
            return []
        reference, journal = float_reference(graph), self.journal(graph)
        fitted = self.fit_layers(graph, reference, journal)
        notes = {node: note for node, (note, _) in fitted.items()}
        if self.method in WAYS:
            aims = {node: aim for node, (_, aim) in fitted.items()}
            for unit, first, last in self.learn_units(graph, reference, aims, journal):
                for node in unit.layers:
                    together = f" with {len(unit.layers) - 1} more" if len(unit.layers) > 1 else ""
                    notes[node] += f", error {first:.2g} -> {last:.2g} by gradients{together}"
        for rounded in rounded_layers(graph):
            graph.set_fact(rounded.layer.node, ROUNDING_LEARNED, True)
        left = [
            Change(graph.site(node), f"left as it is: weights in {name}") for node, name in other_layers(graph).items()
        ]
        return [Change(graph.site(node), note) for node, note in notes.items()] + left

    def check(self, graph: Graph) -> list[Rounded]:
        found = rounded_layers(graph)
        if not found and (others := other_layers(graph)):
            raise InputError(
                f"the weights are in {', '.join(sorted(set(others.values())))}, whose codes LearnRounding does not choose; "
                "it is for uniform formats, CorrectBias is for all"
            )
        if not found:
            raise InputError(
                "the graph has no quantized weights; run Quantize before LearnRounding, or QuantizeWeights"
            )
        for rounded in found:
            if graph.fact(rounded.layer.node, BIAS_CORRECTED):
                raise InputError(
                    f"the bias of {graph.site(rounded.layer.node)!r} was corrected for the present codes; "
                    "leave CorrectBias out, LearnRounding does its work"
                )
            if self.method == "bit_split" and bool((rounded.lattice(graph).zero != 0).any()):
                raise InputError(
                    f"bit_split needs symmetric weights, those of {graph.site(rounded.layer.node)!r} have a zero point; "
                    "choose another method or format"
                )
        samples = sum(count(graph, batch) for batch in self.data)
        if samples < self.batch and self.method in WAYS:
            raise InputError(f"the data has {samples} samples, fewer than a batch of {self.batch}; give more data")
        return found

    def journal(self, graph: Graph) -> Journal:
        if self.checkpoint is None:
            return Journal(None, "")
        options = replace(self, data=(), memory=0, folder=None, checkpoint=None)
        return Journal(Path(self.checkpoint), fingerprint(graph, self.data, f"{options}"))

    # ---- Closed forms -----------------------------------------------------------------------------------------------

    def fit_layers(self, graph: Graph, reference: Graph, journal: Journal) -> dict[Node, tuple[str, Tensor]]:
        """Round every layer under the quadratic of its inputs; of each a remark, and the weight that was rounded."""
        values = set(quantizers(graph)) - constant_calls(graph)
        names = {node.name: original(reference, node).name for node in values}
        pairs = Pairs(reference, graph, self.data, names)
        layers = track(rounded_layers(graph), "rounding layers")
        found = {}
        for number, rounded in enumerate(layers):
            if (piece := journal.get(f"layer {number}")) is None:
                learned, note, aim = self.fit(graph, pairs, rounded)
                piece = {"layers": learned.layers, "note": note, "aim": aim}
                journal.put(f"layer {number}", piece)
            Learned(piece["layers"]).store(graph)
            found[rounded.layer.node] = (piece["note"], piece["aim"])
        return found

    def fit(self, graph: Graph, pairs: Pairs, rounded: Rounded) -> tuple[Learned, str, Tensor]:
        moments = GroupedMoments(rounded.layer, centred=rounded.bias is not None)
        for x, wanted in pairs(rounded.layer.node, rounded.layer.node):
            moments.update(x, wanted)
        weight = rounded.grouped(rounded.weight(graph)).double()
        xx = moments.xx
        size = xx.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-12)
        metric = xx + RIDGE * size[:, None, None] * torch.eye(xx.shape[-1], dtype=xx.dtype)
        nudge = torch.linalg.solve(metric, moments.xt - xx @ weight.transpose(1, 2))
        aim = weight + nudge.transpose(1, 2)
        lattice = rounded.lattice(graph)
        nearest = lattice.weight(lattice.codes(weight))
        closed = CLOSED.get(self.method, rounding.fit)
        codes, lattice = closed(aim, metric, lattice, scales=self.learn_steps and not rounded.scales_fixed(graph))
        found = lattice.weight(codes)
        bias = moments.mean_t - (found @ moments.mean_x[..., None])[..., 0]
        before, after = (float(rounding.cost(aim, metric, w).sum()) for w in (nearest, found))
        learned = Learned({rounded.layer.node.name: (codes, lattice.scale, bias.flatten())})
        return learned, f"{100 * after / max(before, 1e-30):.3g} % of the error of nearest rounding", aim.float()

    # ---- Gradients --------------------------------------------------------------------------------------------------

    def learn_units(
        self, graph: Graph, reference: Graph, aims: dict[Node, Tensor], journal: Journal
    ) -> list[tuple[Unit, float, float]]:
        """Learn unit by unit; of each the relative errors at the beginning and at the end."""
        overflow = Overflow(self.memory, self.folder)
        batches = list(self.data)
        walks = Frontier(reference, batches, overflow.keep), Frontier(graph, batches, overflow.keep)
        executor = Executor(reference)
        units = block_units(graph) if self.unit == "block" else layer_units(graph)
        ends = [original(reference, unit.output) for unit in units]
        gradients = fisher(reference, ends, batches, overflow.keep) if self.importance else {}
        layers = {rounded.layer.node: rounded for rounded in rounded_layers(graph)}
        found = []
        for number, (unit, end) in enumerate(track(list(zip(units, ends, strict=True)), "learning units")):
            if (piece := journal.get(f"unit {number}")) is not None:
                Learned(piece["layers"], piece["steps"]).store(graph)
                found.append((unit, piece["first"], piece["last"]))
                continue
            inputs = [
                Samples(parts, fixed=not unit.by_sample)
                for parts in zip(*walks[1].before(unit.first, unit.inputs), strict=True)
            ]
            source = make_unit([original(reference, node) for node in unit.inputs], end)
            sources = walks[0].before(source.first, source.inputs)
            wanted = Samples(
                [
                    overflow.keep(executor.run([end], dict(zip(source.inputs, values, strict=True)))[end])
                    for values in sources
                ],
                fixed=not unit.by_sample,
            )
            weights = {}
            for node in unit.layers:
                rounded = layers[node]
                weights[rounded.quantizer] = (rounded, self.soften(graph, rounded, aims[node].double()))
            search = Search(
                self.iterations, self.batch, self.warmup, self.rate, self.regularizer, self.learn_steps, self.seed
            )
            task = Reconstruction(graph, unit, weights, search)
            importance = Samples(gradients[end], fixed=not unit.by_sample) if gradients else None
            first, last = task.learn(inputs, wanted, importance)
            learned, last = (task.learned(), last) if last < first else (Learned({}), first)
            learned.store(graph)
            journal.put(
                f"unit {number}", {"layers": learned.layers, "steps": learned.steps, "first": first, "last": last}
            )
            found.append((unit, first, last))
            gradients.pop(end, None)
        return found

    def soften(self, graph: Graph, rounded: Rounded, aim: Tensor) -> SoftWeight | FreeWeight:
        """Weights that can be learned, which begin between the weight that was rounded and the codes found for it."""
        lattice = rounded.lattice(graph)
        codes = lattice.codes(rounded.grouped(rounded.weight(graph)).double())
        return WAYS[self.method].around(
            aim, lattice, codes, scales=self.learn_steps and not rounded.scales_fixed(graph)
        )


def original(reference: Graph, node: Node) -> Node:
    """The call of the float network that computes a value of the simulated one."""
    name = unquantized(node).name
    return next(n for n in reference.nodes if n.name == name)
