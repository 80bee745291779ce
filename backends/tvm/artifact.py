"""Lower to `model.so`, and run it with TVM's virtual machine; or to C, for systems that have none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tvm
from tvm import relax

from graphopt.artifacts.audit import Audit
from graphopt.artifacts.manifest import Manifest, listing
from graphopt.artifacts.profile import KernelTime
from graphopt.artifacts.report import FloatOperator
from graphopt.artifacts.sliced import Arrays, SlicedArtifact
from graphopt.artifacts.usage import Calls
from graphopt.backends.tvm.bare import HELD, OBJECTS, compile_objects, held, hold, recorded
from graphopt.backends.tvm.bare import Calls as Kernels
from graphopt.backends.tvm.build import refusal, use_threads
from graphopt.backends.tvm.connection import connect
from graphopt.backends.tvm.places import stored_tensors
from graphopt.backends.tvm.profiling import SITES, kernel_times
from graphopt.coding.pieces import Place
from graphopt.ir.graph import Graph
from graphopt.utils.errors import ArtifactError, InputError
from graphopt.utils.files import MANIFEST

LIBRARY = "model.so"
SOURCES = {"cuda": "kernels.cu", "opencl": "kernels.cl"}  # of a GPU, which the library holds as well
NOT_IN_C = "not_in_c"  # in a manifest's options: why


class TvmArtifact(SlicedArtifact):
    """A model compiled to machine code for one CPU and one batch size.

    Other batch sizes, where the model allows them, are computed in slices of that one.

    Attributes:
        threads: of the kernels. All artifacts of a process share one pool.
        graph: what it was lowered from; None for one that was loaded.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        *,
        temporary: bool = False,
        graph: Graph | None = None,
        kernels: Any = None,
    ) -> None:
        super().__init__(folder, manifest, temporary=temporary)
        self.threads, self.graph = 1, graph
        self._kernels = kernels  # what `compile` needs, until it is in a file
        self._main: Any = None

    @property
    def code(self) -> dict[str, Any]:
        """What it was compiled for: architecture, triple, cpu, features, and all features it requires."""
        return dict(self.manifest.options["code"])

    @property
    def refusal(self) -> str:
        if OBJECTS in self.manifest.options:
            prefix = self.manifest.options[OBJECTS]["prefix"]
            return f"it is C and objects for {self.code['triple']}: link {prefix}.c and its objects into a program"
        return refusal(self.code)

    @property
    def loaded(self) -> list[str]:
        return [name for name in self.manifest.files if name != HELD]

    def tensors(self, name: str) -> Sequence[Place]:
        """See `Artifact.tensors`: the constants that TVM wrote into the library."""
        return stored_tensors((self.folder / name).read_bytes()) if name == LIBRARY else ()

    def set_threads(self, threads: int) -> None:
        self.threads = threads

    def prepare(self) -> None:
        if self._main is None:
            self._main = self._opened()["main"]

    def _opened(self) -> Any:
        if self.refusal:
            raise ArtifactError(f"{self.manifest.model} cannot run here: {self.refusal}")
        with self.reading():
            executable = tvm.runtime.load_module(str(self.folder / LIBRARY))
        return relax.VirtualMachine(executable, self._device)

    def on(self, device: str) -> TvmArtifact:
        """The same on a device: `rpc://host:port`, or `tracker://host:port/key`; see `graphopt.backends.tvm.remote`.

        Raises:
            InputError: nothing answers there. ArtifactError: the device cannot run its code.
        """
        from graphopt.backends.tvm.remote import RemoteArtifact

        if self.code["device"] != "cpu":
            raise InputError(
                "artifacts for GPUs run where they are loaded; copy the folder to the device and load it there"
            )
        if OBJECTS in self.manifest.options:
            raise InputError(f"{self.manifest.model} runs in a program of yours: {self.refusal}")
        return RemoteArtifact(self, connect(device))

    def compile(self, folder: str | Path, architectures: Sequence[str] = (), *, name: str = "model") -> Path:
        """C and objects that need no runtime; see `graphopt.backends.tvm.bare`. `name` begins the names of files and functions.

        Raises:
            InputError: it is for a GPU, or C already, or needs TVM's runtime; or an architecture is given.
            ArtifactError: another release of TVM lowered it.
        """
        target = self.manifest.target.get("name")
        if architectures:
            raise InputError(f"{self.manifest.model} is compiled for {target}; lower it again for another CPU")
        if OBJECTS in self.manifest.options:
            raise InputError(f"{self.manifest.model} for {target} is C and objects already; save() copies them")
        return compile_objects(self.kept(), self.manifest, folder, name)

    def kept(self) -> Kernels:
        """The kernels as C takes them.

        Raises:
            InputError: it is for a GPU, or needs TVM's runtime. ArtifactError: another release of TVM lowered it.
        """
        self._keep_kernels()
        if NOT_IN_C in self.manifest.options:
            raise InputError(f"{self.manifest.model} cannot be compiled to C: {self.manifest.options[NOT_IN_C]}")
        if HELD not in self.manifest.files and OBJECTS in self.manifest.options:
            raise InputError(
                f"{self.manifest.model} is C already, without the kernels that stages are compiled from together; put together "
                "what graphopt.optimize returned"
            )
        if HELD not in self.manifest.files:
            raise InputError(
                f"{self.manifest.model} for {self.manifest.target.get('name')} holds no kernels to compile to C, which is for "
                "CPUs only; take a target such as tvm-x86 or tvm-cortex-a53, and lower it with this release"
            )
        with self.reading():
            return held((self.folder / HELD).read_bytes(), self.stored())

    def stored(self) -> bytes:
        """The file in which its constants are."""
        objects = self.manifest.options.get(OBJECTS)
        return (self.folder / (LIBRARY if objects is None else f"{objects['prefix']}_weights.o")).read_bytes()

    def hold(self) -> None:
        """See `Artifact.hold`: kernels, also where it is C already."""
        self._keep_kernels()

    def calls(self) -> Calls:
        """See `Artifact.calls`: with TVM's runtime and NumPy."""
        if OBJECTS in self.manifest.options:
            raise InputError(f"{self.manifest.model} runs in a program of yours: {self.refusal}")
        fed = ", ".join(f"tvm.runtime.tensor(inputs[{n}], device)" for n in range(len(self.manifest.inputs)))
        return Calls(
            first=["", 'os.environ.setdefault("TVM_BIND_THREADS", "0")', ""],
            imports=["import tvm", "from tvm import relax"],
            open=[
                f'tvm.get_global_func("runtime.config_threadpool")(1, {int(self.threads)})',
                f"device = tvm.device({str(self.code['device'])!a}, 0)",
                f"library = tvm.runtime.load_module(os.path.join(folder, {LIBRARY!a}))",
                'main = relax.VirtualMachine(library, device)["main"]',
            ],
            run=[f"outputs = [output.numpy() for output in main({fed})]"],
            labels=f'json.load(open(os.path.join(folder, {MANIFEST!a}), encoding="utf-8"))["labels"]',
            batch=self.batch,
        )

    def save(self, folder: str | Path) -> Path:
        """See `Artifact.save`; with what `compile` needs."""
        if OBJECTS not in self.manifest.options:
            self._keep_kernels()
        return super().save(folder)

    def _keep_kernels(self) -> None:
        """Write what `compile` needs beside the library, once; where it could not, an option says why.

        That takes a quarter of the time that lowering does, and most artifacts are only measured.
        """
        kernels, self._kernels = self._kernels, None
        if kernels is None:
            return
        try:
            (self.folder / HELD).write_bytes(hold(recorded(kernels), self.stored()))
            self.manifest.files = listing(self.folder)
        except InputError as reason:
            self.manifest.options[NOT_IN_C] = str(reason)

    def _call(self, inputs: Arrays) -> Arrays:
        """One call of the kernels."""
        self.prepare()
        use_threads(self.threads)
        return call(self._main, inputs, self._device)

    def _profile(self, inputs: Arrays, runs: int) -> list[KernelTime]:
        if self.code["device"] != "cpu":
            return super()._profile(inputs, runs)  # kernels of a GPU go on behind the calls that start them
        if not self._fits(inputs):
            raise InputError(f"{self.manifest.model} computes {self.batch} samples at once; give as many to profile()")
        machine = self._opened()  # of its own, for it stays slower
        use_threads(self.threads)
        sites = self.manifest.options.get(SITES, [])
        return kernel_times(machine, lambda: call(machine["main"], inputs), runs, sites)

    @property
    def _device(self) -> Any:
        return tvm.device(self.code["device"], 0)


def call(main: Any, inputs: Arrays, device: Any = None) -> Arrays:
    device = device or tvm.cpu()
    return [output.numpy() for output in main(*(tvm.runtime.tensor(array, device) for array in inputs))]


def load(folder: Path, manifest: Manifest) -> TvmArtifact:
    """Open a saved artifact whose manifest has been verified. It need not run on this machine."""
    return TvmArtifact(folder, manifest)


def audit(artifact: TvmArtifact) -> Audit:
    """What an artifact computes in integer, noted when it was lowered."""
    noted = artifact.manifest.options["audit"]
    floating = [FloatOperator(**operator) for operator in noted["floating"]]
    return replace(Audit(**noted), floating=floating)
