"""From a graph to an artifact: kernels, tuned where that is asked for, in a library; or as C where no runtime could load one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

import torch

from graphopt.artifacts.backend import Tuning
from graphopt.artifacts.lowered import describe, temporary_folder
from graphopt.artifacts.manifest import listing
from graphopt.backends.tvm.artifact import LIBRARY, SOURCES, TvmArtifact
from graphopt.backends.tvm.bare import OBJECTS, recorded, write_objects
from graphopt.backends.tvm.blame import blamed
from graphopt.backends.tvm.build import Code, build, device_source, kernels_of, link, linker
from graphopt.backends.tvm.connection import connect
from graphopt.backends.tvm.emit import Emitted, emit
from graphopt.backends.tvm.machine import processor
from graphopt.backends.tvm.profiling import SITES
from graphopt.backends.tvm.schedules import Conv, Variant
from graphopt.backends.tvm.tuning import (
    Budget,
    Database,
    Here,
    There,
    Tuned,
    Tuner,
    TuningDevice,
    check_tuner,
    known,
    tune,
)
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.lowering.static_batch import check_only_batch, check_slices, example_batch, fix_batch
from graphopt.targets import Target
from graphopt.utils.errors import InputError

UNTUNED = Tuning()
KERNELS = "TVM kernels"  # what has fixed shapes, as refusals say it


def lower(
    graph: Graph, target: Target, *, name: str = "model", batch: int | None = None, tuning: Tuning = UNTUNED
) -> TvmArtifact:
    """Compile a graph into an artifact in a temporary folder.

    A simulated graph is deployed to integers first; a float graph stays float. The graph itself is not changed.

    Args:
        batch: samples that one call of the kernels computes, where the graph's batch is free. None: that of its example.
        tuning: measure other kernels for the layers, on one thread. Those that are faster are taken if the whole is.

    Raises:
        InputError: a free size other than the batch; unknown CPU, missing compiler; an output without the free batch, samples of
            it that are mixed; tuning for what does not run here.
        GraphoptError: an operator cannot be lowered; names it.
    """
    code = Code.of(target.runtime)
    check_only_batch(graph, KERNELS)
    batch = (batch or example_batch(graph)) if graph.dynamic_batch else None
    budget = check_tuning(target, tuning)
    lowering = _Lowering(graph, target, code, name, batch)
    if budget is None and tuning.database is None:
        return lowering.artifact()
    if budget is None:
        assert tuning.database is not None
        return lowering.artifact(known(lowering.layers, code, tuning.database))
    plain = lowering.artifact()  # first: what it refuses is refused before any time is spent
    place = _place(code, target.runtime.generated.compiler, tuning.device)
    tuned = tune(lowering.layers, place, budget, tuning.database, _tuner(tuning))
    taken, outcome = _faster(plain, lowering.artifact(tuned), tuning.device) if tuned.variants else (plain, "")
    taken.manifest.options["tuned"] = str(tuned) + outcome
    return taken


def check_graph(graph: Graph) -> None:
    """Raise `InputError` where a graph could not be lowered as it was captured: a size other than the batch is free."""
    check_only_batch(graph, KERNELS)


def check_tuning(target: Target, tuning: Tuning) -> Budget | None:
    """How long `lower` will tune with these options; None: not at all.

    Raises:
        InputError: it cannot. ArtifactError: the device is of another architecture. Either before any work is done.
    """
    code, tuner = Code.of(target.runtime), _tuner(tuning)
    if tuning.budget is None and tuner != "tiles":
        raise InputError(f"tuner={tuner!r} says how tune=... measures; give that, too")
    if code.device != "cpu" and (tuning.budget, tuning.database) != (None, None):
        raise InputError(f"tune measures kernels of CPUs; {target.name!r} computes with {code.device}: leave it out")
    if tuning.database is not None:
        Database(tuning.database, code, read_only=tuning.budget is None)
    if tuning.budget is None:
        return None
    budget = Budget.of(tuning.budget)
    check_tuner(tuner)
    _place(code, target.runtime.generated.compiler, tuning.device)
    return budget


def _tuner(tuning: Tuning) -> Tuner:
    """The one asked for, which may be unknown; see `check_tuner`."""
    return cast(Tuner, tuning.tuner or "tiles")


def _place(code: Code, compiler: str, device: str | None) -> TuningDevice:
    """Where kernels are measured. C without a runtime, which no server can load, is measured nowhere but here."""
    if device is None or code.bare:
        return Here(code)
    return There(code, connect(device), linker(code, compiler))


class _Lowering:
    """One graph to be lowered, with the rule's kernels or others.

    Attributes:
        batch: samples of one call; None where the graph says. command: that links. layers: every kind of layer there is.
    """

    def __init__(self, graph: Graph, target: Target, code: Code, name: str, batch: int | None) -> None:
        self.graph, self.target, self.code, self.name, self.batch = graph, target, code, name, batch
        self.command = [] if code.bare else linker(code, target.runtime.generated.compiler)
        if batch:
            check_slices(graph, KERNELS)
        self._fixed = fix_batch(graph, batch) if batch else graph
        self._emitted = compiled(self._fixed, code, samples=batch or 1)
        self.layers = self._emitted.layers

    def artifact(self, tuned: Tuned | None = None) -> TvmArtifact:
        code, folder, emitted = self.code, temporary_folder(), self._emitted
        if tuned is not None and tuned.variants:
            emitted = compiled(self._fixed, code, samples=self.batch or 1, variants=tuned.variants)
        with blamed(emitted.module, emitted.makers, code):
            kernels = kernels_of(emitted.module, code, self.graph.output_names)
            executable = None if code.bare else build(kernels, code)
        options: dict[str, Any] = {"batch": self.batch, "code": code.to_dict(), "audit": asdict(emitted.audit)}
        options[SITES] = [list(pair) for pair in emitted.sites]
        if tuned is not None:
            options["tuned"] = str(tuned)
        if executable is not None:
            link(executable, folder / LIBRARY, self.command)
            if code.device in SOURCES:
                (folder / SOURCES[code.device]).write_text(device_source(executable))
        manifest = describe(self.graph, self.target, folder, model=self.name, options=options)
        if code.bare:
            manifest.options[OBJECTS] = write_objects(recorded(kernels), manifest, folder)
            manifest.files = listing(folder)
        keeps = code.device == "cpu"
        return TvmArtifact(folder, manifest, temporary=True, graph=self.graph, kernels=kernels if keeps else None)


def _faster(plain: TvmArtifact, other: TvmArtifact, device: str | None) -> tuple[TvmArtifact, str]:
    """The tuned artifact if the whole is faster with its kernels, which were measured one by one; and what came of it."""
    ours, theirs = (artifact if device is None else artifact.on(device) for artifact in (plain, other))
    inputs = plain.zeros()
    calls = {"rule": lambda: ours.milliseconds(**inputs), "tuned": lambda: theirs.milliseconds(**inputs)}
    gain = cost.timings(calls, clocked=True).speedup("rule", "tuned")
    if gain > 1:
        return other, f"; the whole is {gain:.2f} times faster with them"
    return plain, "; the whole is not faster with them: they stay out"


def compiled(
    graph: Graph,
    code: Code,
    watch: Sequence[str] = (),
    samples: int = 1,
    variants: Mapping[Conv, Variant] | None = None,
) -> Emitted:
    """The module of a graph with a fixed batch."""
    with torch.no_grad():
        return emit(graph, processor(code.target()), watch, samples, variants)
