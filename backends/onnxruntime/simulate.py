"""What a device will answer, computed in torch with the integers of ONNX Runtime's kernels.

The deployed graph, in the dialect it is exported in, becomes a graph of kernels on codes (`fusion.py`), which is interpreted node
by node; a value is dropped when its last reader has run.

    simulation = simulate(graph, "arm")
    simulation(images)                      the artifact's answer
    simulation.codes(images)                the codes of every quantized value
    simulation.mismatches(artifact, images) where an artifact, run on this machine, computes other codes
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx.node import Node

from graphopt.backends.onnxruntime.arithmetic import exact_products
from graphopt.backends.onnxruntime.artifact import OnnxRuntimeArtifact, intermediate
from graphopt.backends.onnxruntime.dialect import speak
from graphopt.backends.onnxruntime.fusion import fuse
from graphopt.backends.onnxruntime.machines import MACHINES
from graphopt.deploy import deploy
from graphopt.errors import InputError
from graphopt.graph import Graph
from graphopt.numerics import in_blocks
from graphopt.quantizers import is_uniform, quantizer_of, quantizers
from graphopt.targets import Target, architecture
from graphopt.twins import unquantized

Watch = Callable[[Node, str, Tensor], Tensor]


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


class Simulation:
    """A quantized graph that computes as the runtime does on one architecture.

    Attributes:
        machine: whose kernels: `x86_64` or `aarch64`.
    """

    def __init__(self, graph: Graph, machine: str) -> None:
        """`graph`: simulated, with fake-quantize nodes; it is not changed."""
        self.machine = machine
        with exact_products():
            self._graph = deploy(graph)
            speak(self._graph)
            self._names = fuse(self._graph, machine)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The answer, nested like the original model's.

        Raises:
            InputError: an input does not fit what the graph was captured for.
        """
        return self._run(args, kwargs, lambda node, name, codes: codes)

    def codes(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The codes of every quantized value by its name in the artifact's model, in the order they are computed."""
        found: dict[str, Tensor] = {}

        def keep(node: Node, name: str, codes: Tensor) -> Tensor:
            found[name] = codes
            return codes

        self._run(args, kwargs, keep)
        return found

    def mismatches(
        self, artifact: OnnxRuntimeArtifact, *args: Any, free_running: bool = False, **kwargs: Any
    ) -> list[Mismatch]:
        """Compare codes with those that an artifact of the same graph computes on this machine, in the order of execution.

        Each kernel is given the artifact's own codes to compute with, so that a line tells what that kernel alone does;
        with `free_running`, those the simulation computed, so that a difference spreads to what follows.

        Raises:
            InputError: this machine's architecture is not the simulated one, or the artifact is of another graph.
        """
        if self.machine != architecture():
            raise InputError(
                f"this machine is {architecture()}, the simulation computes as {self.machine}; "
                f"simulate(..., machine={architecture()!r}) can be compared here"
            )
        tensors = self._graph.check_inputs(args, kwargs)
        theirs = intermediate(artifact, list(self._names.values()), [t.numpy() for t in tensors])
        found: list[Mismatch] = []

        def compare(node: Node, name: str, codes: Tensor) -> Tensor:
            if name not in theirs:  # the exporter merged it with an equal one
                return codes
            other = torch.from_numpy(theirs[name])
            if other.shape != codes.shape or other.dtype != codes.dtype:
                raise InputError(f"the artifact is of another graph: its value {name!r} has shape {list(other.shape)}")
            apart = (codes.int() - other.int()).abs()
            differing, largest = int((apart > 0).sum()), int(apart.max()) if apart.numel() else 0
            site = self._graph.site(node)
            found.append(Mismatch(name, site, _kernel(node), differing, codes.numel(), largest))
            return codes if free_running else other

        self._run(args, kwargs, compare)
        return found

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any], watch: Watch) -> Any:
        tensors = iter(self._graph.check_inputs(args, kwargs))
        fakes = [node.meta["val"] for node in self._graph.placeholders]
        leaves = [next(tensors) if isinstance(fake, Tensor) else fake for fake in fakes]
        interpreter = _Interpreter(self._graph.module, self._names, watch)
        with exact_products():
            answer = interpreter.run(*leaves, enable_io_processing=False)
        return self._graph.module.graph.process_outputs(answer)

    def __str__(self) -> str:
        return str(self._graph)


def _kernel(node: Node) -> str:
    return str(getattr(node.target, "__name__", node.target)).partition(".")[0]


class _Interpreter(fx.Interpreter):
    """Hands the codes a node computed to `watch`, and goes on with what that returns."""

    def __init__(self, module: fx.GraphModule, names: dict[Node, str], watch: Watch) -> None:
        super().__init__(module)
        self.names, self.watch = names, watch

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        return self.watch(n, self.names[n], result) if n in self.names else result


def simulate(graph: Graph, target: Target, machine: str | None = None) -> Simulation:
    """See `graphopt.simulate`."""
    machine = machine or target.architecture
    if machine not in MACHINES:
        raise InputError(f"no kernels are known for the machine {machine!r}; known: {', '.join(sorted(MACHINES))}")
    found = quantizers(graph)
    if (other := next((node for node in found if not is_uniform(node)), None)) is not None:
        raise InputError(
            f"{unquantized(other).name} is in {quantizer_of(graph, other).format}, which has no integers of {target.runtime} to "
            "simulate; the graph itself computes what a device with that format answers"
        )
    if found and all(map(in_blocks, found)):
        raise InputError(
            "only weights are quantized, values stay float, so there are no integers to simulate; the graph itself answers "
            "what the artifact answers, up to rounding (target.block_products='float32')"
        )
    if not found:
        raise InputError(
            "the graph is not quantized, so there are no integers to simulate; "
            "pass the graph of graphopt.optimize(...), or apply Quantize first"
        )
    return Simulation(graph, machine)
