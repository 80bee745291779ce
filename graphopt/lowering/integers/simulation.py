"""What a device will answer, computed in torch with the integers of its kernels.

The deployed graph, in the dialect its backend lowers, becomes a graph of kernels on codes (`fusion.py`), which is run call by
call; a value is dropped when its last reader has run.

    simulation = graphopt.simulate(graph, "arm")
    simulation(images)                      the artifact's answer
    simulation.codes(images)                the codes of every quantized value
    simulation.mismatches(artifact, images) where an artifact, run on this machine, computes other codes
    simulation.saturation(images)           on a CPU without VNNI: where sums saturate on the way
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.execution.executor import Executor
from graphopt.execution.reference import unquantized
from graphopt.formats import FLOAT16_FORMATS, in_blocks
from graphopt.ir import structure
from graphopt.ir.graph import Example, Graph
from graphopt.ir.ops import family
from graphopt.ir.quantizers import is_signs, is_uniform, quantizer_of, quantizers
from graphopt.lowering.integers.arithmetic import dequantize, exact_products
from graphopt.lowering.integers.fusion import fuse
from graphopt.lowering.integers.kernels import LayerKernel
from graphopt.lowering.integers.machines import MACHINES
from graphopt.lowering.qdq import deploy
from graphopt.targets import machine_here
from graphopt.utils.errors import InputError

ROUNDING = 1e-4  # of the largest answer: what float kernels differ by, far less than a step of 8 bits

Watch = Callable[[Node, str, Tensor], Tensor]
Seen = Callable[[Node, tuple[Any, ...]], None]
Intermediate = Callable[[Any, list[str], list[Any]], tuple[list[Any], dict[str, Any]]]


class Mismatch(NamedTuple):
    """How one kernel's codes compare.

    Attributes:
        name: of the value in the artifact's model.
        site: where it comes from in the original model.
        kernel: what computed it: `conv`, `add`, `quantize`, ...
        differing, total: codes that differ, and codes.
        largest: difference, in steps.
    """

    name: str
    site: str
    kernel: str
    differing: int
    total: int
    largest: int

    def __str__(self) -> str:
        return f"{self.site} ({self.kernel}, {self.name}): {self.differing} of {self.total} differ, by {self.largest} at most"


class Saturation(NamedTuple):
    """How many sums of one layer lack what saturation took from their products.

    Attributes:
        site: where the layer comes from in the original model.
        kernel: `conv` or `linear`.
        wrong, total: sums that are not the exact ones, and sums.
        largest: difference, in the units of the layer's result.
    """

    site: str
    kernel: str
    wrong: int
    total: int
    largest: float

    def __str__(self) -> str:
        return (
            f"{self.site} ({self.kernel}): {self.wrong} of {self.total} sums saturated, by {self.largest:.3g} at most"
        )


class Simulation:
    """A quantized graph that computes as the runtime does on one kind of CPU.

    Attributes:
        machine: whose kernels: `x86_64`, `avx2` (x86 without VNNI) or `aarch64`.
    """

    def __init__(
        self,
        graph: Graph,
        machine: str,
        legalize: Callable[[Graph], None],
        intermediate: Intermediate,
        *,
        everywhere: bool = False,
        half: bool = False,
    ) -> None:
        """Args:
            graph: simulated, with fake-quantize nodes; it is not changed.
            machine: see above.
            legalize: rewrites the deployed graph in place the way the backend does before it lowers it.
            intermediate: (artifact, names, inputs) -> answers of the artifact while it is watched, values inside it by name.
            everywhere: artifacts compute alike on every machine, and whatever signs codes have.
            half: they have float16 values; see `graphopt.lowering.qdq`.

        Raises:
            InputError: no values are quantized, or the machine is unknown.
        """
        if machine not in MACHINES:
            raise InputError(f"no kernels are known for the machine {machine!r}; known: {', '.join(sorted(MACHINES))}")
        _check_quantized(graph, half)
        self.machine, self._intermediate, self._everywhere = machine, intermediate, everywhere
        with exact_products():
            self._graph = deploy(graph, half=half)
            legalize(self._graph)
            self._names = fuse(self._graph, machine, mixes_signs=everywhere)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The answer, nested like the original model's.

        Raises:
            InputError: an input does not fit what the graph was captured for.
        """
        return self._run(args, kwargs, lambda node, name, codes: codes)

    @property
    def example(self) -> Example:
        """The inputs the graph was captured with."""
        return self._graph.example

    def codes(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The codes of every quantized value by its name in the artifact's model, in the order they are computed."""
        found: dict[str, Tensor] = {}

        def keep(node: Node, name: str, codes: Tensor) -> Tensor:
            found[name] = codes
            return codes

        self._run(args, kwargs, keep)
        return found

    def mismatches(self, artifact: Any, *args: Any, free_running: bool = False, **kwargs: Any) -> list[Mismatch]:
        """Compare codes with those that an artifact (`graphopt.Artifact`) of the same graph computes on this machine, in the
        order of execution.

        Each kernel is given the artifact's own codes to compute with, so that a line tells what that kernel alone does;
        with `free_running`, those the simulation computed, so that a difference spreads to what follows. To read its codes the
        artifact has to return them; an output that it answers otherwise when it does not has a line at the end
        (`merged kernels`).

        Raises:
            InputError: this machine's kernels are not the simulated ones, or the artifact is of another graph.
        """
        if not self._everywhere and self.machine != (here := machine_here()):
            raise InputError(
                f"this machine is {here}, the simulation computes as {self.machine}; "
                f"simulate(..., machine={here!r}) can be compared here"
            )
        tensors = self._graph.check_inputs(args, kwargs)
        answers, theirs = self._intermediate(artifact, list(self._names.values()), [t.numpy() for t in tensors])
        found: list[Mismatch] = []

        def compare(node: Node, name: str, codes: Tensor) -> Tensor:
            if name not in theirs:  # merged with an equal one
                return codes
            other = torch.from_numpy(theirs[name])
            exported = _as_exported(node, codes, other)
            if other.shape != exported.shape or other.dtype != codes.dtype:
                raise InputError(f"the artifact is of another graph: its value {name!r} has shape {list(other.shape)}")
            apart = (exported.int() - other.int()).abs()
            differing, largest = int((apart > 0).sum()), int(apart.max()) if apart.numel() else 0
            site = self._graph.site(node)
            found.append(Mismatch(name, site, _kernel(node), differing, exported.numel(), largest))
            return codes if free_running or exported is not codes else other

        self._run(args, kwargs, compare)
        return found + self._unwatched(artifact, answers, tensors)

    def _unwatched(self, artifact: Any, watched: list[Any], tensors: list[Tensor]) -> list[Mismatch]:
        """What the artifact answers only while it is watched: values that are returned can keep kernels from being merged."""
        found = []
        plain = structure.tensors(artifact(*tensors))
        for name, answer, alone in zip(self._graph.output_names, map(torch.from_numpy, watched), plain, strict=True):
            answer, alone = answer.double(), alone.double()  # of any type: truths, too
            apart = (answer - alone).abs()
            differing = int((apart > ROUNDING * float(alone.abs().max())).sum()) if apart.numel() else 0
            if differing:
                steps = float(apart.max()) / self._step(name)
                found.append(Mismatch(name, name, "merged kernels", differing, apart.numel(), round(steps)))
        return found

    def _step(self, output: str) -> float:
        """Of the grid that an output stands on; 1 for a float one."""
        maker = self._graph.outputs[self._graph.output_names.index(output)]
        return float(maker.args[1]) if maker.target is dequantize else 1.0  # type: ignore[arg-type]

    def saturation(self, *args: Any, **kwargs: Any) -> list[Saturation]:
        """Where products leave 16 bits before they are added up: the layers whose weights make it possible, in order.

        Empty where nothing can saturate: on machines that add products in 32 bits, and with weights of 7 bits.
        """
        found: list[Saturation] = []

        def count(node: Node, inputs: tuple[Any, ...]) -> None:
            layer = getattr(node.target, "function", None)
            if not isinstance(layer, LayerKernel) or layer.pairs is None:
                return
            excess = layer.pairs.excess(*inputs)
            size = excess.abs() * layer.along_channels(layer.scale, excess)
            wrong, largest = int(excess.count_nonzero()), float(size.max()) if size.numel() else 0.0
            found.append(Saturation(self._graph.site(node), _kernel(node), wrong, excess.numel(), largest))

        self._run(args, kwargs, lambda node, name, codes: codes, count)
        return found

    def _run(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], watch: Watch, seen: Seen = lambda node, inputs: None
    ) -> Any:
        executor, outputs = Executor(self._graph), self._graph.results
        values = executor.inputs(self._graph.check_inputs(args, kwargs))
        with exact_products():
            for node in executor.walk(values, (), keep=outputs):
                seen(node, executor.arguments(node, values)[0])
                if node in self._names:
                    values[node] = watch(node, self._names[node], values[node])
        return executor.nested(values)

    def __str__(self) -> str:
        return str(self._graph)


def _as_exported(node: Node, codes: Tensor, other: Tensor) -> Tensor:
    """Without a padding in front of the quantizer, where lowering has moved that into the convolution behind."""
    source: Any = node.args[0] if node.args else None
    if family(source) != "pad" or codes.shape == other.shape:
        return codes
    before, after = source.args[1][::2], source.args[1][1::2]
    inside = codes
    for offset, (start, end) in enumerate(zip(before, after, strict=True)):
        dim = codes.dim() - 1 - offset
        inside = inside.narrow(dim, start, codes.shape[dim] - start - end)
    return inside


def _kernel(node: Node) -> str:
    return str(getattr(node.target, "__name__", node.target)).partition(".")[0]


def _check_quantized(graph: Graph, half: bool) -> None:
    found = [
        n for n in quantizers(graph) if is_uniform(n) or not (half and quantizer_of(graph, n).format in FLOAT16_FORMATS)
    ]
    if (other := next((node for node in found if not (is_uniform(node) or is_signs(node))), None)) is not None:
        raise InputError(
            f"{unquantized(other).name} is in {quantizer_of(graph, other).format}, of which there are no integers to simulate; "
            "the graph itself computes what a device with that format answers"
        )
    if found and all(is_uniform(node) and in_blocks(node) for node in found):
        raise InputError(
            "only weights are quantized, values stay float, so there are no integers to simulate; the graph itself answers "
            "what the artifact answers, up to rounding (target.kernels.block_products='float32')"
        )
    if not found:
        raise InputError(
            "the graph is not quantized, so there are no integers to simulate; "
            "pass the graph of graphopt.optimize(...), or apply Quantize first"
        )
