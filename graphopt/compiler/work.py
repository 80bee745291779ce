"""The work of one `graphopt.optimize`, as its stages hand it on."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from graphopt.artifacts import registry
from graphopt.artifacts.artifact import Artifact
from graphopt.artifacts.backend import Backend, Tuning
from graphopt.artifacts.report import Report
from graphopt.compiler.ladder import Lowered
from graphopt.compiler.options import Options
from graphopt.compiler.recipes import clean
from graphopt.compiler.request import Request
from graphopt.data.calibration import Calibration
from graphopt.data.preprocessing import Preprocessing
from graphopt.evaluation.devices import stand_in
from graphopt.evaluation.timing import untimed
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.ir.passes import Pass
from graphopt.ir.quantizers import is_quantized
from graphopt.passmanager.runner import run
from graphopt.targets import Target
from graphopt.utils.memory import give_back
from graphopt.utils.timings import Timings

LOG = logging.getLogger(__name__)


class Floating(NamedTuple):
    """A float graph and its artifact."""

    graph: Graph
    artifact: Artifact


@dataclass
class Work:
    """What the stages hand on.

    Attributes:
        request: what was asked for.
        backend: of the target's runtime.
        original: the graph as it was captured; no stage changes it.
        graph: the one that passes rewrite.
        data: calibration batches that ranges, codes and layers are chosen on.
        held_out: batches that the result is judged on, where there is enough for both.
        report: what is known of the result so far.
        connection: to the device that artifacts are measured on, kept for all of them.
        preprocessing: what is done to images in front of the model. labels: of its classes.
        training_data: as `train` says, opened once.
        reference: the target through whose runtime the float original is timed.
        floats: of each runtime, the float original as it was lowered through it.
    """

    request: Request
    backend: Backend
    original: Graph
    graph: Graph
    data: Calibration
    held_out: Calibration | None
    report: Report
    connection: Any = None
    preprocessing: Preprocessing | None = None
    labels: Sequence[str] = ()
    training_data: Any = None
    reference: Target | None = None
    floats: dict[str, Floating] = field(
        default_factory=dict
    )  # also of the same work for another target, or other formats

    def aimed_at(self, target: Target) -> Work:
        """The same for another target, before any pass has run."""
        graph, report = self.original.clone(), copy.deepcopy(self.report)
        return replace(
            self,
            request=replace(self.request, target=target),
            backend=registry.backend(target.runtime.name),
            graph=graph,
            report=report,
            reference=self.target,
        )

    def repeatable(self, passes: Any) -> bool:
        """Whether all can be done once more for another target: passes in a list may be made for this one."""
        return not self.data.one_shot and (passes is None or callable(passes))

    @property
    def runtime(self) -> str:
        return self.target.runtime.name

    @property
    def target(self) -> Target:
        return self.request.target

    @property
    def options(self) -> Options:
        return self.request.options

    @property
    def timings(self) -> Timings:
        return self.report.timings

    def run(self, stages: Mapping[str, Sequence[Pass]]) -> None:
        """Run the passes of some stages on the graph; the report gets their steps, and the time of each stage."""
        names = [name for name, passes in stages.items() for _ in passes]
        passes = [each for group in stages.values() for each in group]
        follow = self.timings.follow(names)
        self.report.steps += run(passes, self.graph, dump=self.request.dump, on_step=follow)

    def lower(self, graph: Graph, tuning: Tuning | None = None) -> Lowered:
        """A graph's deployed form, its artifact, and what answers for that on this machine."""
        deployed, name = self.backend.deploy(graph, self.target), self.report.model
        if tuning is None:
            with self.timings.part("write"):
                artifact = self.backend.lower(deployed, self.target, name=name)
        else:
            with self.timings.part("tune and write"):
                artifact = self.backend.tune(deployed, self.target, name=name, tuning=tuning)
            LOG.info("%s", artifact.manifest.options.get("tuned", "nothing was tuned"))
        give_back(cost.weight_bytes(graph))
        return Lowered(deployed, artifact, stand_in(self.placed(artifact), graph, self.simulate))

    def floating(self, target: Target) -> Floating:
        """The float original through the runtime of a target, which is lowered once; its batch norms are folded."""
        runtime = target.runtime.name
        if runtime not in self.floats:
            graph = self.original.clone(share_weights=True)
            if not is_quantized(graph):
                run(clean(target), graph, verify=False)
            artifact = registry.backend(runtime).lower(graph, target, name=self.report.model)
            self.floats[runtime] = Floating(graph, artifact)
        return self.floats[runtime]

    def quick_ms(self, lowered: Lowered) -> float | None:
        """About what a call takes, to compare attempts; None where no time is asked for, or none can be measured here."""
        artifact, measurement = self.placed(lowered.artifact), self.options.measurement
        if not measurement.measure or untimed(self.target.runtime, artifact):
            return None
        artifact.set_threads(measurement.threads)
        args, kwargs = self.original.example.args, self.original.example.kwargs
        calls = {"call": lambda: artifact.milliseconds(*args, **kwargs)}
        return cost.timings(calls, repeats=15, warmup=2, budget_seconds=1.0, clocked=True).median("call")

    def milliseconds(self, *artifacts: Artifact) -> list[float]:
        """The median time of a call of each on the example, taken in turn."""
        example = self.original.example
        calls = {}
        for number, artifact in enumerate(artifacts):
            artifact.set_threads(self.options.measurement.threads)
            calls[str(number)] = lambda a=artifact: a.milliseconds(*example.args, **example.kwargs)
        taken = cost.timings(calls, clocked=True)
        return [taken.median(name) for name in calls]

    def simulate(self, graph: Graph) -> Callable[..., Any]:
        """What artifacts of a simulated graph answer, computed here."""
        return self.backend.simulate(graph, self.target)

    def placed(self, artifact: Artifact) -> Artifact:
        """The artifact where it is measured."""
        device = self.options.measurement.device
        return artifact if device is None else artifact.on(device)
