"""An artifact of stages: after each stage the host decides which samples need the next one.

    deployed/manifest.json             stages, what each reads, the policy
    deployed/stages/0/model.onnx       what the runtime of stage 0 loads; equal files of two stages lie there once
    deployed/stages/1/model.so
    deployed/stages/whole.json.xz      of a network with exits through TVM: its kernels, from which C is compiled

Each stage is an artifact of any runtime. Between stages the samples whose answer is good enough leave, and the others are moved
together (`graphopt.policies.stages`). `graphopt.Cascade` makes them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphopt.artifacts import calling, registry, staged_usage
from graphopt.artifacts.artifact import Artifact
from graphopt.artifacts.lowered import temporary_folder
from graphopt.artifacts.manifest import Manifest, listing
from graphopt.artifacts.profile import KernelTime
from graphopt.artifacts.usage import Calls
from graphopt.coding.pieces import Place
from graphopt.ir import structure
from graphopt.policies import Network, Outcome, Policy, run_stages
from graphopt.policies.limits import anytime, budgeted
from graphopt.policies.stages import Limit
from graphopt.utils.errors import ArtifactError, GraphoptError, InputError
from graphopt.utils.files import MANIFEST
from graphopt.utils.version import versions

WHOLE = "stages/whole.json.xz"  # which no device needs
STAGES = "stages"  # of a manifest's options; and the name of its runtime
TIMED = 11  # runs through all stages, of which the fastest says what each takes
Arrays = list[np.ndarray[Any, Any]]


class StagedArtifact(Artifact):
    """See the head of this file.

    Attributes:
        stages: an artifact for each.
        network: what each stage reads, and how many of its outputs are the answer.
        policy: when an answer is good enough. Another one may be set; `save` writes it.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, stages: Sequence[Artifact], network: Network, policy: Policy,
        *, temporary: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(folder, manifest, temporary=temporary)
        self.stages, self.network, self.policy = list(stages), network, policy
        self._ms: list[float] = []

    # ---- Answers ----------------------------------------------------------------------------------------------------

    def _run(self, inputs: Arrays) -> Arrays:
        return self._outcome(inputs).outputs

    def _outcome(self, inputs: Arrays, policy: Policy | None = None, limit: Limit | None = None) -> Outcome:
        return run_stages(self.network, [stage._run for stage in self.stages], policy or self.policy, inputs, limit)

    def path(self, *args: Any, **kwargs: Any) -> Tensor:
        """The stage that answers each sample, int64 [N]; arguments as for a call."""
        return torch.from_numpy(self._outcome(calling.arrays(self.manifest, args, kwargs)).path)

    def rates(self, *args: Any, **kwargs: Any) -> list[float]:
        """The share of the samples that each stage answers; arguments as for a call."""
        counts = torch.bincount(self.path(*args, **kwargs), minlength=len(self.stages)).double()
        return [float(share) for share in counts / counts.sum()]

    def anytime(self, *args: Any, budget_ms: float, **kwargs: Any) -> Any:
        """The answer of one sample within a time: of the last stage that can be expected to end in it, or the first that is sure.

        What stages take is measured once, before the first call. The first stage always runs.

        Raises:
            InputError: a batch of several samples, or as a call.
        """
        arrays = calling.arrays(self.manifest, args, kwargs)
        if (count := len(arrays[0])) != 1:
            raise InputError(
                f"anytime answers one sample within its time, got a batch of {count}; budgeted(...) is for batches"
            )
        limit = anytime(self.stage_milliseconds(), budget_ms)
        return self._nested(arrays, self._outcome(arrays, limit=limit))

    def budgeted(self, *args: Any, budget_ms: float, **kwargs: Any) -> Any:
        """The answers of a batch within a time for all of it: where it does not suffice, the samples that a stage is surest of do
        not go on.

        What stages take a sample is measured once, before the first call. The first stage runs on all samples.
        """
        arrays = calling.arrays(self.manifest, args, kwargs)
        limit = budgeted(self.stage_milliseconds(), budget_ms)
        return self._nested(arrays, self._outcome(arrays, limit=limit))

    def _nested(self, arrays: Arrays, outcome: Outcome) -> Any:
        outputs = map(calling.tensor, outcome.outputs)
        return structure.decode(self.manifest.output_structure, outputs, calling.free(self.manifest, arrays))

    def stage_milliseconds(self) -> list[float]:
        """What each stage takes of one sample here, by the clock, the decision behind it included; measured once."""
        if not self._ms:
            arrays = calling.arrays(self.manifest, (), self.zeros())
            self._ms = self.measured(arrays)
        return list(self._ms)

    def measured(self, arrays: Arrays, runs: int = TIMED) -> list[float]:
        """The same on these inputs: the least of so many runs, for whatever else the machine does only adds."""
        never = self.policy.at([None] * len(self.policy.thresholds))
        taken: list[list[float]] = []
        for _ in range(runs + 2):
            marks = [time.perf_counter()]

            def note(stage: int, going: Any, sure: Any, marks: list[float] = marks) -> Any:
                marks.append(time.perf_counter())
                return going

            self._outcome(arrays, never, note)
            taken.append(np.diff([*marks, time.perf_counter()]).tolist())
        return [1e3 * min(each) for each in zip(*taken[2:], strict=True)]

    # ---- What every artifact has ------------------------------------------------------------------------------------

    def prepare(self) -> None:
        for stage in self.stages:
            stage.prepare()

    def set_threads(self, threads: int) -> None:
        for stage in self.stages:
            stage.set_threads(threads)
        self._ms = []

    @property
    def refusal(self) -> str:
        found = ((n, stage.refusal) for n, stage in enumerate(self.stages))
        return next((f"stage {n}: {reason}" for n, reason in found if reason), "")

    @property
    def exact(self) -> bool:
        return all(stage.exact for stage in self.stages)

    def zeros(self) -> dict[str, Tensor]:
        """See `Artifact.zeros`; one sample where the number is free."""
        return calling.least(self.manifest)

    @property
    def loaded(self) -> list[str]:
        return [name for name in self.manifest.files if not self._unneeded(name)]

    def _unneeded(self, name: str) -> bool:
        if name == WHOLE:
            return True
        stage, inner = self._stage(name), self._inner(name)[1]
        return inner in stage.manifest.files and inner not in stage.loaded

    def tensors(self, name: str) -> Sequence[Place]:
        """See `Artifact.tensors`: where the stage says."""
        if name == WHOLE:
            return ()
        return self._stage(name).tensors(self._inner(name)[1])

    def _stage(self, name: str) -> Artifact:
        return self.stages[self._inner(name)[0]]

    def _inner(self, name: str) -> tuple[int, str]:
        """The stage that a file belongs to, and what it is called there."""
        _, stage, inner = name.split("/", 2)
        return int(stage), inner

    def compile(self, folder: str | Path, architectures: Sequence[str] = (), *, name: str = "model") -> Path:
        """C and objects of all stages, which need no runtime; they return as soon as a stage is sure, and say which.

        `name` begins the names of files and functions. The policy is written into the C as it is now.

        Raises:
            InputError: a stage that is not of TVM, or as `Artifact.compile`; a confidence that is a function of Python.
        """
        if architectures:
            raise InputError(
                f"the stages of {self.manifest.model} are compiled for one CPU; leave out the architectures"
            )
        compilers = [registry.backend(stage.manifest.runtime).compile_stages for stage in self.stages]
        for number, (stage, found) in enumerate(zip(self.stages, compilers, strict=True)):
            if found is None:
                raise InputError(
                    f"stage {number}, {stage.manifest.model}, runs on {stage.manifest.runtime}, which is not compiled to C; make "
                    "every stage for a CPU through TVM (tvm-...)"
                )
        kinds = {stage.manifest.runtime for stage in self.stages}
        if len(kinds) > 1 or compilers[0] is None:
            raise InputError(f"the stages run on {' and '.join(sorted(kinds))}; one program has one runtime")
        return compilers[0](self, folder, name)

    def _profile(self, inputs: Arrays, runs: int) -> list[KernelTime]:
        raise InputError(
            "kernels are those of a stage: artifact.stages[0].profile(...); stage_milliseconds() has all stages"
        )

    def calls(self) -> Calls:
        """See `Artifact.calls`: with the runtimes of the stages and NumPy."""
        folders = [str(entry["folder"]) for entry in self.manifest.options[STAGES]["stages"]]
        return staged_usage.calls([stage.calls() for stage in self.stages], folders, self.network, self.policy)

    def save(self, folder: str | Path) -> Path:
        """See `Artifact.save`; with the policy as it is.

        Raises:
            InputError: as there; or its confidence is a function, which no file holds.
        """
        self.manifest.options[STAGES]["policy"] = self.policy.to_dict()
        return super().save(folder)


def assemble(stages: Sequence[Artifact], network: Network, policy: Policy, name: str) -> StagedArtifact:
    """An artifact of these stages, in a temporary folder.

    Raises:
        InputError: stages that answer differently, or take more samples than one at a time and no other number.
    """
    check_stages(stages, network)
    folder = temporary_folder()
    described: list[dict[str, Any]] = []
    known: dict[str, str] = {}
    for number, stage in enumerate(stages):
        place = folder / STAGES / str(number)
        place.parent.mkdir(exist_ok=True)
        if not network.handing - {-1}:
            stage.hold()
        stage.save(place)
        text = (place / MANIFEST).read_text()
        (place / MANIFEST).unlink()
        where = known.setdefault(json.dumps(_contents(json.loads(text))), f"{STAGES}/{number}")
        if where != f"{STAGES}/{number}":
            for file in sorted(place.rglob("*"), reverse=True):
                file.rmdir() if file.is_dir() else file.unlink()
            place.rmdir()
        reads = [list(source) for source in network.reads[number]]
        described.append({"manifest": json.loads(text), "folder": where, "reads": reads})
    options = {"stages": described, "answers": network.answers}
    return StagedArtifact(folder, _manifest(stages, folder, options, network, name), stages, network, policy,
                          temporary=True)  # fmt: skip


def _contents(manifest: Mapping[str, Any]) -> Any:
    return sorted((name, entry["sha256"]) for name, entry in manifest["files"].items())


def _manifest(
    stages: Sequence[Artifact], folder: Path, options: dict[str, Any], network: Network, name: str
) -> Manifest:
    first, last = stages[0].manifest, stages[-1].manifest
    names = list(dict.fromkeys(str(stage.manifest.target["name"]) for stage in stages))
    target = {**first.target, "name": " + ".join(names), "runtime": {**first.target["runtime"], "name": STAGES}}
    shape = last.output_structure if len(last.outputs) == network.answers else {"list": [None] * network.answers}
    if shape == {"list": [None]}:
        shape = None
    return replace(
        first, model=name, target=target, outputs=last.outputs[: network.answers], output_structure=shape,
        files=listing(folder), report={}, options={STAGES: options}, versions=versions(),
        labels=list(first.labels or last.labels),
    )  # fmt: skip


def check_stages(stages: Sequence[Artifact], network: Network) -> None:
    """Whether stages can stand one behind the other.

    Raises:
        InputError: names the stage whose inputs or answer are not the first one's, or whose number of samples is fixed.
    """
    if len(stages) < 2 or len(stages) != len(network):
        raise InputError(f"{len(stages)} stage{'s' * (len(stages) != 1)}; give two or more, the cheapest first")
    first = stages[0].manifest
    for number, stage in enumerate(stages):
        found = stage.manifest
        if any(spec.shape[:1] not in ((None,), (1,)) for spec in found.inputs):
            raise InputError(
                f"stage {number} takes {', '.join(map(str, found.inputs))}: the samples that go on are any number, so let the "
                "batch be free, or one"
            )
        for place, (source, output) in enumerate(network.reads[number]):
            given = first.inputs[output] if source < 0 else stages[source].manifest.outputs[output]
            wanted = found.inputs[place]
            if (given.dtype, given.shape[1:]) != (wanted.dtype, wanted.shape[1:]):
                raise InputError(f"stage {number} takes {wanted}, but is given {given}")
        for ours, theirs in zip(found.outputs, first.outputs[: network.answers], strict=False):
            if (ours.dtype, ours.shape[1:]) != (theirs.dtype, theirs.shape[1:]):
                raise InputError(f"stage {number} answers {ours}, but stage 0 answers {theirs}; they must be alike")


def load(folder: Path, manifest: Manifest, opened: Callable[[Path, Manifest], Artifact]) -> StagedArtifact:
    """Open a saved artifact of stages whose manifest has been verified.

    Args:
        opened: opens a stage.

    Raises:
        ArtifactError: its manifest does not fit together. InputError: the runtime of a stage is not installed.
    """
    try:
        said = manifest.options[STAGES]
        policy = Policy.from_dict(said["policy"])
        reads = tuple(tuple((int(k), int(j)) for k, j in each["reads"]) for each in said["stages"])
        network, stages = Network(reads, int(said["answers"])), []
        inner = [(str(each["folder"]), json.dumps(each["manifest"]).encode()) for each in said["stages"]]
        if policy.stages != len(network):
            raise ValueError(f"a policy of {policy.stages} stages for {len(network)}")
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"the stages in {folder} are not described as they should be ({error})") from error
    for number, (where, text) in enumerate(inner):
        own = Manifest.from_json(text, f"stage {number} of {folder / MANIFEST}")
        listed = {name: manifest.files.get(f"{where}/{name}") for name in own.files}
        if listed != own.files:
            raise ArtifactError(f"stage {number} of {folder} does not have the files that it names; write it again")
        try:
            stages.append(opened(folder / where, own))
        except InputError as error:
            raise InputError(f"stage {number} of {manifest.model}: {error}") from error
    try:
        check_stages(stages, network)
    except (GraphoptError, IndexError) as error:
        raise ArtifactError(f"the stages in {folder} do not go together: {error}") from error
    return StagedArtifact(folder, manifest, stages, network, policy)


def stage_lines(manifest: Manifest) -> list[str]:
    """What a manifest that was read says of its stages, in words; nothing where it has none."""
    if not is_staged(manifest):
        return []
    said = manifest.options[STAGES]
    policy, lines = Policy.from_dict(said["policy"]), []
    for number, stage in enumerate(said["stages"]):
        threshold = policy.thresholds[number] if number < len(policy.thresholds) else None
        until = "" if threshold is None else f", answers from {policy.confidence} {threshold:.4f} on"
        lines.append(f"stage {number}  {stage['manifest']['model']}, {_runtime(stage)}{until}")
    return lines


def _runtime(stage: Mapping[str, Any]) -> str:
    return str(stage["manifest"]["target"]["runtime"]["name"])


def is_staged(manifest: Manifest) -> bool:
    """Whether a manifest that was read is of an artifact of stages."""
    return manifest.runtime == STAGES
