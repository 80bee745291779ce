"""What a cascade will answer on its devices, and which stage answers it, bit for bit: its stages are simulated."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphopt.artifacts import registry
from graphopt.data import batches
from graphopt.ir import structure
from graphopt.ir.graph import Graph
from graphopt.lowering.integers.simulation import Simulation
from graphopt.policies import Network, Outcome, Policy, run_stages
from graphopt.policies.stages import Compute
from graphopt.targets import Target
from graphopt.utils.errors import InputError

Array = np.ndarray[Any, Any]


class StagedSimulation:
    """Called like the cascade; `path` says the stage that answers each sample.

    Attributes:
        stages: the simulation of each.
    """

    def __init__(self, stages: Sequence[Simulation], network: Network, policy: Policy) -> None:
        self.stages, self.network, self.policy = list(stages), network, policy

    def __call__(self, *inputs: Tensor) -> Any:
        """The answer: a tensor, or a list where a stage answers several."""
        outputs = [torch.from_numpy(array) for array in self._outcome(inputs).outputs]
        return outputs[0] if len(outputs) == 1 else outputs

    def path(self, *inputs: Tensor) -> Tensor:
        """The stage that answers each sample, int64 [N]."""
        return torch.from_numpy(self._outcome(inputs).path)

    @property
    def compute(self) -> list[Compute]:
        """What each stage computes, from its inputs to its outputs."""

        def computed(simulation: Simulation, given: list[Array]) -> list[Array]:
            args, kwargs = batches.nested(simulation.example, [torch.from_numpy(array) for array in given])
            return [tensor.numpy() for tensor in structure.tensors(simulation(*args, **kwargs))]

        return [partial(computed, stage) for stage in self.stages]

    def _outcome(self, inputs: Sequence[Tensor]) -> Outcome:
        return run_stages(self.network, self.compute, self.policy, [tensor.numpy() for tensor in inputs])


def simulate(
    graphs: Sequence[Graph | None], targets: Sequence[Target], network: Network, policy: Policy, machine: str | None
) -> StagedSimulation:
    """Of the quantized graph of each stage.

    Raises:
        InputError: a stage was given as an artifact, whose graph is not known; or its graph is not quantized.
    """
    stages = []
    for number, (graph, target) in enumerate(zip(graphs, targets, strict=True)):
        if graph is None:
            raise InputError(
                f"stage {number} was given as an artifact, whose graph is not known; give what graphopt.optimize returned"
            )
        stages.append(registry.backend(target.runtime.name).simulate(graph, target, machine))
    return StagedSimulation(stages, network, policy)
