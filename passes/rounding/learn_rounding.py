"""Choose the codes of quantized weights on data, so that layers or blocks give what they gave in float; no training, no labels.

    [*clean(target), Quantize(target, data, weights=Format(bits=4, per_channel=True)), LearnRounding(data)]

1. Layer by layer, in execution order, with the inputs of the network quantized so far: the least-squares weight for what the
   layer gave in float (a residual stream's error included) is rounded under the quadratic of its inputs (`codes.py`).
   `method="gptq"` ends here: seconds, no gradients.
   `method="bit_split"` minimizes the same error digit by digit (`bit_split.py`).
2. `method="adaround"`: from there, unit by unit, rounding, biases and steps are learned by gradients through the activations
   (`soft.py`, `relaxed.py`). A unit is a layer (`unit="layer"`, AdaRound) or a block (`unit="block"`, BRECQ; `units.py`).
   `method="adaquant"` lets weights travel further than to the next code (`free.py`).

The float network is the simulated graph without its quantizers. Codes are stored as points of the grid (`weights.py`), so that
simulation, integers and artifact agree.

In both steps, what is found for a layer or unit is taken only where samples held out of the search gain by it
(`graphopt.fitting.fit`). The second starts from what the first found; with a few hundred images and steps it adds little: begin
with `gptq`. With `checkpoint`, every layer and unit that is done is written down, and the same call goes on behind the last.

Needs:  a graph straight from `Quantize` or `QuantizeWeights`; `CorrectBias` is not needed, biases are learned with the codes.
Papers: Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization"; Li et al. 2021, "BRECQ"; Frantar et al.
        2022, "GPTQ"; Hubara et al. 2020, "Improving Post Training Neural Quantization" (AdaQuant; asymmetric calibration).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal, get_args

from torch import Tensor
from torch.fx.node import Node

from graphopt.execution.executor import constant_calls
from graphopt.execution.reference import float_reference, unquantized
from graphopt.fitting.fit import Fit, Parametrization, fit
from graphopt.fitting.gradient import Search
from graphopt.fitting.region import Region
from graphopt.ir.batches import count
from graphopt.ir.facts import BIAS_CORRECTED, ROUNDING_LEARNED
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.passes import Change, in_eval_mode
from graphopt.ir.quantizers import quantizers
from graphopt.passes.rounding.codes import Codes
from graphopt.passes.rounding.free import FreeWeight
from graphopt.passes.rounding.relaxed import RelaxedRounding
from graphopt.passes.rounding.soft import SoftWeight
from graphopt.passes.rounding.units import block_units, layer_units
from graphopt.passes.rounding.weights import Rounded, other_layers, rounded_layers
from graphopt.utils.checks import check_count, check_repeatable
from graphopt.utils.errors import InputError

Method = Literal["gptq", "bit_split", "adaround", "adaquant"]
UnitKind = Literal["layer", "block"]
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
                raise InputError(f"{name} must be one of {', '.join(known)}, got {given!r}")
        if not 0 <= self.warmup < 1:
            raise InputError(f"warmup must be at least 0 and under 1, got {self.warmup}")
        if self.rate <= 0 or self.regularizer < 0:
            raise InputError(f"rate must be over 0 and regularizer not under 0, got {self.rate} and {self.regularizer}")

    @in_eval_mode
    def __call__(self, graph: Graph) -> list[Change]:
        if all(graph.fact(rounded.layer.node, ROUNDING_LEARNED) for rounded in self.check(graph)):
            return []
        reference = float_reference(graph)
        fits = self.choose_codes(graph, reference)
        notes = {node: f"error {found.before:.2g} -> {found.error:.2g}" for node, found in fits.items()}
        if self.method in WAYS:
            for layers, found in self.learn_units(graph, reference, fits):
                for node in layers:
                    together = f" with {len(layers) - 1} more" if len(layers) > 1 else ""
                    notes[node] += f", {found.before:.2g} -> {found.error:.2g} by gradients{together}"
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

    # ---- Both steps -------------------------------------------------------------------------------------------------

    def fit(
        self,
        graph: Graph,
        reference: Graph,
        tasks: Sequence[Parametrization],
        doing: str,
        *,
        importance: bool = False,
    ) -> list[Fit]:
        values = set(quantizers(graph)) - constant_calls(graph.nodes)
        return fit(
            reference,
            graph,
            self.data,
            tasks,
            doing,
            names={node.name: original(reference, node).name for node in values},
            importance=importance,
            memory=self.memory,
            folder=self.folder,
            checkpoint=self.checkpoint,
            options=f"{replace(self, data=(), memory=0, folder=None, checkpoint=None)}",
        )

    def choose_codes(self, graph: Graph, reference: Graph) -> dict[Node, Fit]:
        """Round layer by layer, in closed form."""
        tasks = []
        for rounded in rounded_layers(graph):
            source = Layer.of(original(reference, rounded.layer.node))
            assert source is not None
            how = {"rounded": rounded, "digits": self.method == "bit_split", "scales": self.learn_steps}
            tasks.append(Codes.of_layer(rounded.layer, source, **how))
        found = self.fit(graph, reference, tasks, "rounding layers")
        return {task.rounded.layer.node: each for task, each in zip(tasks, found, strict=True)}

    def learn_units(self, graph: Graph, reference: Graph, fits: Mapping[Node, Fit]) -> list[tuple[list[Node], Fit]]:
        """Go on from there by gradients, unit by unit; of each its layers, and what was found for them."""
        tasks = []
        layers = {rounded.layer.node: rounded for rounded in rounded_layers(graph)}
        for region in block_units(graph) if self.unit == "block" else layer_units(graph):
            inside = list({layers[n].quantizer: layers[n] for n in region.nodes if n in layers}.values())
            inputs = [original(reference, node) for node in region.inputs]
            tasks.append(
                RelaxedRounding(
                    region=region,
                    source=Region.between(inputs, original(reference, region.output)),
                    layers=inside,
                    aims=[fits[rounded.layer.node].found["aim"] for rounded in inside],
                    way=WAYS[self.method],
                    scales=self.learn_steps,
                    search=Search(self.iterations, self.batch, self.rate, self.seed),
                    warmup=self.warmup,
                    regularizer=self.regularizer,
                )
            )
        found = self.fit(graph, reference, tasks, "learning units", importance=self.importance)
        return [([n for n in task.region.nodes if n in layers], each) for task, each in zip(tasks, found, strict=True)]


def original(reference: Graph, node: Node) -> Node:
    """The call of the float network that computes a value of the simulated one."""
    name = unquantized(node).name
    return next(n for n in reference.nodes if n.name == name)
