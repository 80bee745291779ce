"""What a backend is: the functions that lower graphs for one runtime and say what became of them, under the runtime's name.

A package of someone else adds a runtime by an entry point, whose value is a `Backend`:

    [project.entry-points."graphopt.backends"]
    myruntime = "mypackage.backend:BACKEND"

and a target that names it: `Target(..., runtime=Runtime("myruntime", ...))`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

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


class Lower(Protocol):
    """Lowers a graph, float, simulated or deployed, to an artifact in a temporary folder. The graph itself is not changed.

    Raises:
        InputError: the graph holds what the backend has no kernel for; names it, with the layer.
    """

    def __call__(self, graph: Graph, target: Target, *, name: str = ...) -> Artifact: ...


class Tune(Protocol):
    """As `Lower`, with kernels that are measured and chosen.

    Raises:
        InputError: the graph cannot be lowered, or nothing can be measured.
    """

    def __call__(self, graph: Graph, target: Target, *, name: str = ..., tuning: Tuning) -> Artifact: ...


class Simulate(Protocol):
    """What an artifact of a simulated graph answers, to the last bit; see `graphopt.simulate`.

    Raises:
        InputError: the machine is unknown to the backend, or the graph cannot be simulated.
    """

    def __call__(self, graph: Graph, target: Target, machine: str | None = ...) -> Simulation: ...


def own_copy(graph: Graph, target: Target) -> Graph:
    """The simulated graph as it is, for backends that store that."""
    return graph.clone()


def takes_every_graph(graph: Graph) -> None:
    """For backends that refuse nothing before they lower."""


def runs_here_only(device: str, target: Target) -> NoReturn:
    """For backends that reach no devices. Raises InputError."""
    raise InputError(f"{target.runtime.name} runs on this machine only; leave out {device}")


def holds_nothing(artifact: Any, graph: Graph, target: Target) -> None:
    """For backends whose stages are not compiled further."""


def cannot_be_tuned(target: Target, tuning: Tuning) -> NoReturn:
    """For backends whose kernels are what they are. Raises InputError."""
    raise InputError(f"tune is for targets of TVM, such as tvm-x86; the kernels of {target.name!r} cannot be tuned")


def _tune_nothing(graph: Graph, target: Target, *, name: str = "model", tuning: Tuning) -> Artifact:
    cannot_be_tuned(target, tuning)


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A runtime that graphs are lowered to, as functions.

    Attributes:
        name: of the runtime, as targets name it.
        lower: makes an artifact of a graph.
        load: opens the artifact in a folder, whose files have been verified.
        audit: what of an artifact computes in integer, and what does not and why; takes what `lower` and `load` return.
        simulate: what artifacts answer, computed in torch.
        deploy: the form of a simulated graph that is stored, as a new graph.
        connect: a connection to a device, kept as long as the object lives; artifacts then run there with `.on(device)`. Raises
            InputError where nothing answers there, or it does not run what is made for the target.
        check_graph: raises InputError where `lower` could not take a graph as it was captured; called before any work.
        check_tuning: raises InputError where `tune` could not tune so; cheap, so it is called before any work.
        tune: lowers with kernels that were measured.
        hold_stages: keeps in a staged artifact of a graph with exits what `compile_stages` needs of the whole graph.
        compile_stages: writes a staged artifact, all of whose stages are its own, into a folder, in a form that devices take as
            it is, whose names begin with the last argument; None: there is no such form.
    """

    name: str
    lower: Lower
    load: Callable[[Path, Manifest], Artifact]
    audit: Callable[[Any], Audit]
    simulate: Simulate
    deploy: Callable[[Graph, Target], Graph] = own_copy
    connect: Callable[[str, Target], Any] = runs_here_only
    check_graph: Callable[[Graph], object] = takes_every_graph
    check_tuning: Callable[[Target, Tuning], object] = cannot_be_tuned
    tune: Tune = _tune_nothing
    hold_stages: Callable[[Any, Graph, Target], object] = holds_nothing
    compile_stages: Callable[[Any, str | Path, str], Path] | None = None
