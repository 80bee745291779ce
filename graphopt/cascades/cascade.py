"""Several networks of one task, small to large: a sample goes on until one is sure.

    cascade = graphopt.Cascade([small, large]).fit(images, labels, max_drop=0.2)
    cascade.rates(images)                       [0.86, 0.14]
    cascade.evaluate(test_images, test_labels).print()
    cascade.artifact.save("deployed")

Whatever the stages are: networks of any runtime, one network at several resolutions of its input, a graph with exits
(`Cascade.of_exits`). Wang et al. 2018, "IDK Cascades"; Teerapittayanon et al. 2016, "BranchyNet".
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.artifacts import registry
from graphopt.artifacts.artifact import Artifact
from graphopt.artifacts.staged import STAGES, StagedArtifact, assemble
from graphopt.cascades.answers import Answers, Score, answers
from graphopt.cascades.measure import measure
from graphopt.cascades.report import CascadeReport
from graphopt.cascades.simulation import StagedSimulation, simulate
from graphopt.cascades.split import last_answer, split
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.policies import Network, Policy, learned
from graphopt.policies.calibration import temperature
from graphopt.policies.confidence import probabilities
from graphopt.policies.policy import Confidence
from graphopt.policies.stages import History, skippable
from graphopt.policies.thresholds import Choice, Samples, choose, front
from graphopt.targets import Target, find
from graphopt.utils.errors import InputError

PRIOR = 250  # labels that calibrated probabilities count as much as
TIMED = 8  # samples that stages are timed on


class Cascade:
    """Stages, and when an answer is good enough.

    Attributes:
        artifact: what is deployed.
        graphs: of each stage the simulated graph, where it was given as `graphopt.optimize` returned it.
        targets: that stages were lowered for here; empty where they came as artifacts.
        front: after `fit`, every choice of thresholds that no other one betters in both time and score, the fastest first.
    """

    def __init__(
        self,
        stages: Sequence[Any],
        *,
        confidence: Confidence = "softmax",
        plain: Artifact | None = None,
        name: str = "cascade",
    ) -> None:
        """Args:
            stages: artifacts, or what `graphopt.optimize` returned, the fastest first; with the same inputs and outputs.
            confidence: `softmax`, `entropy`, `margin`, `agreement` (patience), `learned` (`graphopt.policies.confidence`), or a
                function of a stage's outputs that gives a number from 0 to 1 for each sample.
            plain: the network that reports compare with; the last stage where it is not given.
            name: of the model.

        Raises:
            InputError: fewer than two stages, stages that do not go together, or an unknown confidence.
        """
        artifacts = [getattr(stage, "artifact", stage) for stage in stages]
        if wrong := [stage for stage in artifacts if not isinstance(stage, Artifact)]:
            raise InputError(f"stages are artifacts, or what graphopt.optimize returned, got {type(wrong[0]).__name__}")
        reads = tuple(tuple((-1, i) for i in range(len(stage.manifest.inputs))) for stage in artifacts)
        answered = len(artifacts[0].manifest.outputs) if artifacts else 1
        self._begin(artifacts, Network(reads, answered), confidence, plain, name)
        self.artifact.manifest.options[STAGES]["macs"] = list(map(_macs, artifacts))
        given = [None if isinstance(stage, Artifact) else getattr(stage, "graph", None) for stage in stages]
        self.graphs = [graph if isinstance(graph, Graph) else None for graph in given]

    def _begin(
        self, stages: Sequence[Artifact], network: Network, confidence: Confidence, plain: Artifact | None, name: str
    ) -> None:
        start = Policy((None,) * (len(stages) - 1), "softmax" if confidence == "learned" else confidence)
        self.confidence, self.front = confidence, list[Choice]()
        self.targets: list[Target] = []
        self.artifact: StagedArtifact = assemble(stages, network, start, name)
        self.plain = plain or stages[-1]

    @classmethod
    def of_exits(
        cls,
        graph: Graph,
        *,
        target: str | Target = "arm",
        confidence: Confidence = "softmax",
        plain: Artifact | None = None,
        name: str = "exits",
    ) -> Cascade:
        """Of a graph with exits (`graphopt.passes.AddExits`), trained and quantized: each exit ends a stage, which begins where
        the one before ended.

        Args:
            graph: such as `Optimized.graph`; it is not changed.
            target: what it was quantized for.
            plain: the network without exits, which reports compare with; None: the graph without its exits.
            confidence, name: as for stages that are given one by one.

        Raises:
            InputError: the graph has no exits, or a stage cannot be lowered.
        """
        chosen = find(target)
        backend = registry.backend(chosen.runtime.name)
        parts, network = split(graph)
        cascade = cls.__new__(cls)
        stages = [backend.lower(part, chosen, name=f"{name}-{n}") for n, part in enumerate(parts)]
        cascade._begin(stages, network, confidence, plain or backend.lower(last_answer(graph), chosen, name=name), name)
        cascade.artifact.manifest.options[STAGES]["macs"] = [cost.macs(part) for part in parts]
        backend.hold_stages(cascade.artifact, graph, chosen)
        cascade.graphs, cascade.targets = list(parts), [chosen] * len(parts)
        return cascade

    # ---- Fitting ----------------------------------------------------------------------------------------------------

    def fit(
        self,
        inputs: Any,
        labels: Any = None,
        *,
        max_drop: float | None = None,
        budget: float | None = None,
        calibrate: bool = True,
        score: Score | None = None,
    ) -> Cascade:
        """Choose thresholds of all stages together, on samples that the networks were not trained on; returns the cascade itself.

        Args:
            inputs: of all samples: a tensor, a tuple of tensors, or a dictionary by name.
            labels: classes [N]; None: the answers of the last stage stand for them.
            max_drop: percentage points of accuracy that may be lost beside the last stage; with a `score`, so much of that.
                 The fastest thresholds that keep it are taken: by the clock, or where the stages do not run on this machine,
                 whose answers are then simulated, by their multiply-accumulates.
            budget: expected milliseconds of a sample, as stages are measured here; the best thresholds within it are taken.
            calibrate: divide the logits of each stage by the temperature at which its probabilities fit the labels best; and let
                these probabilities count as much as `PRIOR` labels do (see `shrunk`).
            score: from a stage's outputs and the labels to a number for each sample, for outputs that are no classes.

        Raises:
            InputError: neither or both of `max_drop` and `budget`, a budget that nothing keeps to, or one where the stages do not
                run here; stages that neither run nor are simulated; or data that do not fit.
        """
        if (max_drop is None) == (budget is None):
            raise InputError("give one of max_drop (percentage points of accuracy) and budget (expected milliseconds)")
        if max_drop is not None and not max_drop >= 0:
            raise InputError(f"max_drop must be at least 0, got {max_drop}")
        elsewhere = self.artifact.refusal
        if elsewhere and budget is not None:
            raise InputError(f"a budget is of milliseconds, which nothing measures here ({elsewhere}); give max_drop")
        known = answers(self.artifact, inputs, labels, score, self.simulate().compute if elsewhere else None)
        self.artifact.policy = policy = self._calibrated(known, calibrate and score is None)
        costs = self._macs() if elsewhere else self._milliseconds(known)
        never = policy.at([None] * len(policy.thresholds))
        skipped = [skippable(self.artifact.network, never, stage) for stage in range(len(policy.thresholds))]
        scores = known.score if score is not None or labels is None else shrunk(known, policy)
        self.front = front(Samples(known.confidence(policy), scores, costs, skipped))
        unit = 1.0 if score is not None else 100.0
        least = None if max_drop is None else float(scores[-1].mean()) - max_drop / unit
        self.artifact.policy = policy.at(choose(self.front, least_score=least, most_cost=budget).thresholds)
        return self

    def _milliseconds(self, known: Answers) -> list[float]:
        """What each stage takes of one sample, measured on a few."""
        few = [array[:TIMED] for array in known.inputs]
        each = [self.artifact.measured([array[i : i + 1] for array in few]) for i in range(len(few[0]))]
        return [float(np.median(column)) for column in zip(*each, strict=True)]

    def _macs(self) -> list[float]:
        """What each stage multiplies and accumulates for one sample."""
        known = self.artifact.manifest.options[STAGES]["macs"]
        return [
            float(cost.macs(graph)) if graph is not None else float(own)
            for own, graph in zip(known, self.graphs, strict=True)
        ]

    def _calibrated(self, known: Answers, calibrate: bool) -> Policy:
        """The policy with temperatures and, where confidence is learned, its weights; nothing stops."""
        start = Policy((None,) * (len(known.stages) - 1), "softmax")
        if callable(self.confidence) or (not calibrate and self.confidence != "learned"):
            return Policy(start.thresholds, self.confidence)
        temperatures = tuple(temperature(each[0], known.classes) for each in known.stages) if calibrate else ()
        if known.labels is None and temperatures:
            temperatures = (*temperatures[:-1], 1.0)  # its own answers say nothing of how sure it may be
        if self.confidence != "learned":
            return Policy(start.thresholds, self.confidence, temperatures)
        history, weights = History(Policy(start.thresholds, "agreement"), len(known)), []
        for stage, outputs in enumerate(known.stages[:-1]):
            history.confidence(stage, outputs)
            p = probabilities(outputs[0], temperatures[stage] if temperatures else 1.0)
            found = learned.features(p, history.streak, stage)
            weights.append(learned.fit(found, outputs[0].argmax(axis=1) == known.classes))
        return Policy(start.thresholds, "learned", temperatures, tuple(weights))

    # ---- Using ------------------------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The answers, as the last stage would return them."""
        return self.artifact(*args, **kwargs)

    def rates(self, *args: Any, **kwargs: Any) -> list[float]:
        """The share of the samples that each stage answers; arguments as for a call."""
        return self.artifact.rates(*args, **kwargs)

    def save(self, folder: str | Path) -> Path:
        """`artifact.save`."""
        return self.artifact.save(folder)

    def simulate(self, *, machine: str | None = None) -> StagedSimulation:
        """What devices will answer, and which stage, bit for bit; see `graphopt.simulate`.

        Raises:
            InputError: a stage was given as an artifact, or is not quantized; unknown machine.
        """
        targets = self.targets or [find(str(stage.manifest.target["name"])) for stage in self.artifact.stages]
        return simulate(self.graphs, targets, self.artifact.network, self.artifact.policy, machine)

    def evaluate(
        self, inputs: Any, labels: Any = None, *, score: Score | None = None, points: int = 8
    ) -> CascadeReport:
        """Measure accuracy, rates, time and calibration; on other samples than `fit` saw, or accuracy is too good.

        Args:
            inputs, labels, score: as for `fit`.
            points: of the curve, of those of `front`.

        Raises:
            InputError: as for `fit`.
        """
        known = answers(self.artifact, inputs, labels, score)
        return measure(self.artifact, self.plain, known, self.front, points, classes=score is None)


def shrunk(known: Answers, policy: Policy) -> np.ndarray[Any, Any]:
    """What each stage scores on each sample, [stages, N]: whether it is right, shrunk towards how sure it is.

        w right + (1 - w) max p         w = N / (N + PRIOR), p calibrated

    Of the choices that do equally well, one always seems better on few samples, and the search would find it. Calibrated
    probabilities vary less and are right on average; with many samples they hardly count, and without temperatures not at all.
    """
    if not policy.temperatures:
        return known.score
    weight = len(known) / (len(known) + PRIOR)
    sure = [probabilities(each[0], t).max(axis=1) for each, t in zip(known.stages, policy.temperatures, strict=True)]
    found: np.ndarray[Any, Any] = weight * known.score + (1 - weight) * np.stack(sure)
    return found


def _macs(artifact: Artifact) -> int | None:
    """What the report of its optimization says, without which nothing is said."""
    report = artifact.report
    return report.steps[-1].macs if report is not None and report.steps else None
