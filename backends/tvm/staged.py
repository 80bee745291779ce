"""Stages as C: what a staged artifact keeps for it, and the C that answers as soon as a stage is sure.

Stages of a network with exits are compiled from the whole network, so that what a stage hands on stays in the workspace as the
codes that it is. Other stages are compiled from what each of them keeps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.artifacts.audit import Audit
from graphopt.artifacts.lowered import write_form
from graphopt.artifacts.manifest import TensorSpec, listing
from graphopt.artifacts.memory import OBJECTS
from graphopt.artifacts.staged import STAGES, WHOLE, StagedArtifact
from graphopt.backends.tvm.artifact import NOT_IN_C, TvmArtifact
from graphopt.backends.tvm.bare import held, hold, recorded
from graphopt.backends.tvm.bare.export import check_prefix, write_stages
from graphopt.backends.tvm.bare.stages import Stages, merged, partitioned
from graphopt.backends.tvm.blame import blamed
from graphopt.backends.tvm.build import Code, kernels_of
from graphopt.backends.tvm.lowering import compiled
from graphopt.backends.tvm.profiling import SITES
from graphopt.ir.graph import Graph
from graphopt.lowering.static_batch import fix_batch
from graphopt.targets import Target
from graphopt.utils.errors import InputError


def hold_stages(artifact: StagedArtifact, graph: Graph, target: Target) -> None:
    """Keep what `compile_stages` needs of a network with exits: the kernels of all of it, for one sample.

    Where C without TVM's runtime cannot do what the network does, an option says why.
    """
    code, said = Code.of(target.runtime), artifact.manifest.options[STAGES]
    if code.device != "cpu":
        return
    emitted = compiled(fix_batch(graph, 1) if graph.dynamic_batch else graph, code)
    with blamed(emitted.module, emitted.makers, code):
        kernels = kernels_of(emitted.module, code, graph.output_names)
    try:
        content = hold(recorded(kernels), _stored(artifact))
    except InputError as reason:
        said[NOT_IN_C] = str(reason)
        return
    said[SITES] = [list(pair) for pair in emitted.sites]
    (artifact.folder / WHOLE).write_bytes(content)
    artifact.manifest.files = listing(artifact.folder)


def compile_stages(artifact: StagedArtifact, folder: str | Path, name: str = "model") -> Path:
    """C and objects of all stages; see `StagedArtifact.compile`, which has checked that all stages are TVM's.

    Raises:
        InputError: stages for several CPUs, for a GPU, or of several samples at once; a confidence that C cannot express; a
            network that needs TVM's runtime; `name` cannot begin names of C. ArtifactError: another release of TVM lowered it.
    """
    check_prefix(name)
    _check_policy(artifact)
    stages = _stages(artifact)
    first = artifact.stages[0].manifest
    runtime = {**artifact.manifest.target, "name": first.target["name"], "runtime": first.target["runtime"]}
    audit = _together([Audit(**stage.manifest.options["audit"]) for stage in artifact.stages])
    options = {"batch": 1, "code": first.options["code"], "audit": asdict(audit)}
    manifest = replace(artifact.manifest, target=runtime, options=options)
    return write_form(manifest, folder, OBJECTS, lambda new: write_stages(stages, artifact.policy, manifest, new, name))


def _check_policy(artifact: StagedArtifact) -> None:
    policy = artifact.policy
    if callable(policy.confidence):
        called = getattr(policy.confidence, "__name__", type(policy.confidence).__name__)
        raise InputError(
            f"confidence is the function {called} of Python, which C cannot express; give Cascade a confidence by name, such as "
            "'softmax'"
        )
    spec = artifact.manifest.outputs[0]
    if any(t is not None for t in policy.thresholds) and (
        spec.dtype not in ("float32", "float64") or len(spec.shape) != 2
    ):
        raise InputError(
            f"the stages answer {spec}, but C decides by the logits of classes, [1, C] in float32 or float64; set a policy whose "
            "thresholds are all None, and call ..._run_until"
        )


def _stages(artifact: StagedArtifact) -> Stages:
    """The calls of all stages, from what the artifact keeps."""
    name, said = artifact.manifest.model, artifact.manifest.options[STAGES]
    kinds = {str(Code.from_dict(stage.manifest.options["code"])) for stage in artifact.stages}
    if len(kinds) > 1:
        raise InputError(f"the stages of {name} are for {' and '.join(sorted(kinds))}; one program has one CPU")
    if (device := artifact.stages[0].manifest.options["code"]["device"]) != "cpu":
        raise InputError(
            f"the stages of {name} compute with {device}, and C is for CPUs only; take a target such as tvm-x86"
        )
    if NOT_IN_C in said:
        raise InputError(f"{name} cannot be compiled to C: {said[NOT_IN_C]}")
    with artifact.reading():
        if WHOLE in artifact.manifest.files:
            calls = held((artifact.folder / WHOLE).read_bytes(), _stored(artifact))
            sizes = [_bytes(artifact.manifest.outputs[0])] * len(artifact.stages)
            return partitioned(calls, sizes, [(kernel, site) for kernel, site in said.get(SITES, [])])
        if any(source >= 0 for sources in artifact.network.reads for source, _ in sources):
            raise InputError(f"{name} keeps no kernels of the whole network; make it again with this release")
        parts = [_kept(number, stage) for number, stage in enumerate(artifact.stages)]
    sites = [[(kernel, site) for kernel, site in stage.manifest.options.get(SITES, [])] for stage in artifact.stages]
    return merged(parts, artifact.network, sites)


def _kept(number: int, stage: Any) -> Any:
    """The calls of a stage by itself."""
    batch = stage.manifest.options["batch"]
    if batch not in (None, 1):
        raise InputError(
            f"stage {number} computes {batch} samples at once, and C decides about one; optimize it with an example of one sample"
        )
    try:
        return stage.kept()
    except InputError as error:
        raise InputError(f"stage {number}: {error}") from error


def _stored(artifact: StagedArtifact) -> bytes:
    """All files in which constants of the stages are, one behind the other."""
    return b"".join(stage.stored() for stage in artifact.stages if isinstance(stage, TvmArtifact))


def _bytes(spec: TensorSpec) -> int:
    """Of one sample."""
    return prod(int(size or 1) for size in spec.shape) * np.dtype(spec.dtype).itemsize


def _together(audits: Sequence[Audit]) -> Audit:
    """Of all stages."""
    return Audit(
        integer=[site for audit in audits for site in audit.integer],
        weight_only=[site for audit in audits for site in audit.weight_only],
        floating=[operator for audit in audits for operator in audit.floating],
        integer_macs=sum(audit.integer_macs for audit in audits),
        float16_macs=sum(audit.float16_macs for audit in audits),
        weight_only_macs=dict(sum((Counter(audit.weight_only_macs) for audit in audits), Counter[int]())),
        total_macs=sum(audit.total_macs for audit in audits),
        operators=dict(sum((Counter(audit.operators) for audit in audits), Counter[str]())),
        few_bits={site: how for audit in audits for site, how in audit.few_bits.items()},
        saturating=[site for audit in audits for site in audit.saturating],
    )
