"""What a backend is: an object that lowers graphs for one runtime.

A package of someone else adds a runtime by an entry point, whose value is such an object:

    [project.entry-points."graphopt.backends"]
    myruntime = "mypackage.backend:BACKEND"

and a target that names it: `Target(..., runtime="myruntime")`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from graphopt.artifacts.artifact import Artifact
from graphopt.artifacts.audit import Audit
from graphopt.artifacts.manifest import Manifest
from graphopt.ir.graph import Graph
from graphopt.lowering.integers.simulation import Simulation
from graphopt.targets import Target
from graphopt.utils.errors import InputError


@dataclass(frozen=True)
class Tuning:
    """How kernels are tuned while a graph is lowered; see `graphopt.optimize`.

    Attributes:
        budget: trials, or seconds as "60s"; None: nothing is measured, what `database` knows is used.
        database: the file that remembers what was measured.
        tuner: what is tried: `tiles`, which None stands for, or `metaschedule`.
        device: where kernels are measured; None: this machine.
    """

    budget: int | str | None = None
    database: str | Path | None = None
    tuner: str | None = None
    device: str | None = None

    @property
    def asked_for(self) -> bool:
        """Whether any of it is set: else nothing is tuned."""
        return (self.budget, self.database, self.tuner) != (None, None, None)


class Backend(ABC):
    """A runtime that graphs are lowered to.

    Attributes:
        name: of the runtime, as targets name it.
        runs_on_devices: `connect` reaches devices other than this machine.
        tunes: `lower` takes a `Tuning`.
    """

    name: ClassVar[str]
    runs_on_devices: ClassVar[bool] = False
    tunes: ClassVar[bool] = False

    @abstractmethod
    def deploy(self, graph: Graph, target: Target) -> Graph:
        """The form of a simulated graph that the backend stores; the graph itself is not changed."""

    @abstractmethod
    def lower(self, graph: Graph, target: Target, *, name: str = "model", tuning: Tuning | None = None) -> Artifact:
        """Lower a graph, float, simulated or deployed, to an artifact in a temporary folder.

        Raises:
            InputError: the graph holds what the backend has no kernel for (named, with the layer), or it cannot tune.
        """

    @abstractmethod
    def load(self, folder: Path, manifest: Manifest) -> Artifact:
        """The artifact in a folder, whose files have been verified."""

    @abstractmethod
    def audit(self, artifact: Artifact) -> Audit:
        """What of an artifact computes in integer, and what does not and why."""

    @abstractmethod
    def simulate(self, graph: Graph, target: Target, machine: str | None = None) -> Simulation:
        """What an artifact of a simulated graph answers, to the last bit; see `graphopt.simulate`.

        Raises:
            InputError: the machine is unknown to the backend, or the graph cannot be simulated.
        """

    def connect(self, device: str, target: Target) -> Any:
        """A connection to a device, kept as long as the object lives; artifacts then run there with `.on(device)`.

        Raises:
            InputError: nothing answers there, or it does not run what is made for the target.
        """
        raise InputError(f"{self.name} runs on this machine only; leave out {device}")

    def check_graph(self, graph: Graph, target: Target) -> None:  # noqa: B027 - most take every graph
        """Raise `InputError` where `lower` could not take a graph as it was captured; cheap, so it is called before any work."""

    def check_tuning(self, target: Target, tuning: Tuning) -> None:
        """Raise `InputError` where `lower` could not tune so; cheap, so it is called before any work."""
        raise InputError(f"tune is for targets of TVM, such as tvm-x86; the kernels of {target.name!r} cannot be tuned")
