"""A model as `model.pte`, run by ExecuTorch's own runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from graphopt.artifacts.audit import Audit
from graphopt.artifacts.manifest import Manifest
from graphopt.artifacts.report import FloatOperator
from graphopt.artifacts.sliced import Arrays, SlicedArtifact
from graphopt.artifacts.usage import Calls
from graphopt.backends.executorch.running import METHOD, Program
from graphopt.ir.graph import Graph
from graphopt.utils.files import MANIFEST

MODEL = "model.pte"
AUDIT, FLOATING = "audit", "floating"  # in a manifest's options: what was read back; in that, what is in float


class ExecutorchArtifact(SlicedArtifact):
    """A program with one method, whose shapes are fixed.

    Attributes:
        threads: of the one pool that all programs of a process share.
        graph: what it was lowered from; None for one that was loaded.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, *, temporary: bool = False, graph: Graph | None = None
    ) -> None:
        super().__init__(folder, manifest, temporary=temporary)
        self.threads, self.graph = 1, graph
        self._program: Program | None = None

    @property
    def exact(self) -> bool:
        """Whether nothing but codes is computed with: float kernels of XNNPACK are not those of torch to the last bit."""
        return not self.manifest.options[AUDIT][FLOATING]

    def set_threads(self, threads: int) -> None:
        self.threads = threads

    def prepare(self) -> None:
        self._read().open(self.threads)

    def _read(self) -> Program:
        if self._program is None:
            with self.reading():
                content = (self.folder / MODEL).read_bytes()
            self._program = Program(content, MODEL)
        return self._program

    def _call(self, inputs: Arrays) -> Arrays:
        return self._read()(inputs, self.threads)

    def calls(self) -> Calls:
        """See `Artifact.calls`: with ExecuTorch's runtime and torch."""
        return Calls(
            imports=["import torch", "from executorch.runtime import Runtime"],
            open=[
                f"program = Runtime.get().load_program(os.path.join(folder, {MODEL!a}))",
                f"method = program.load_method({METHOD!a})  # of the program, which has to stay",
            ],
            run=["outputs = [output.numpy() for output in method.execute([torch.from_numpy(a) for a in inputs])]"],
            labels=f'json.load(open(os.path.join(folder, {MANIFEST!a}), encoding="utf-8"))["labels"]',
            batch=self.batch,
        )


def load(folder: Path, manifest: Manifest) -> ExecutorchArtifact:
    """Open a saved artifact whose manifest has been verified."""
    return ExecutorchArtifact(folder, manifest)


def audit(artifact: ExecutorchArtifact) -> Audit:
    """What an artifact computes in integer, read back from the program when it was made."""
    noted = artifact.manifest.options[AUDIT]
    return replace(Audit(**noted), floating=[FloatOperator(**operator) for operator in noted[FLOATING]])
