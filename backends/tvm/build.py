"""From a Relax module to a shared library: what to generate code for, the passes of TVM, and the linker.

Code is generated for the machine at hand where a target names no CPU; what that machine lacks although its CPU's name promises it
(a hypervisor may hide features) is left out. Otherwise the code is linked by a cross compiler.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tvm
from tvm import relax
from tvm.support import cc
from tvm.target import codegen

from graphopt.backends.tvm.functions import LEGALIZED
from graphopt.backends.tvm.machine import Gpu, Processor, processor
from graphopt.backends.tvm.schedules import PASS_CONFIG, written_for
from graphopt.backends.tvm.schedules.gpu.leftovers import threaded
from graphopt.backends.tvm.schedules.leftovers import scheduled
from graphopt.targets import LINKERS, Runtime, architecture
from graphopt.utils.errors import GraphoptError, InputError, alternatives, last_line


@dataclass(frozen=True)
class Code:
    """What code is generated for, in LLVM's words.

    Attributes:
        architecture: as `Runtime.architecture`.
        triple, cpu: LLVM's; where a GPU computes, `triple` is that of the machine it is part of, and `cpu` CUDA's name of it.
        features: `+dotprod`, `-avx512fp16`, ...: what differs from the CPU's own.
        device: what computes: `cpu`, or a GPU through `cuda` or `opencl`.
    """

    architecture: str
    triple: str
    cpu: str
    features: tuple[str, ...] = ()
    device: str = "cpu"

    @classmethod
    def of(cls, runtime: Runtime) -> Code:
        """What a runtime generates code for, with this machine's names where it leaves them open.

        Raises:
            InputError: LLVM does not know the CPU, or it is this machine's and the architecture is another.
        """
        asked = runtime.generated
        code = cls(runtime.architecture, asked.triple, asked.cpu, asked.features, asked.device)
        if code.device != "cpu":
            return code
        if code.cpu:
            _check_cpu(code.triple, code.cpu)
            return code
        if runtime.architecture != architecture():
            raise InputError(
                f"the target compiles for the machine at hand and is {runtime.architecture}, but this machine is "
                f"{architecture()}; name a CPU, for instance target.replace(triple='x86_64-linux-gnu', cpu='x86-64-v3')"
            )
        triple, cpu = str(codegen.llvm_get_system_triple()), str(codegen.llvm_get_system_cpu())
        promised = {str(f) for f in codegen.llvm_get_cpu_features(_described(triple, cpu))}
        missing = tuple(f"-{f}" for f in sorted(promised & lacking()))
        return cls(runtime.architecture, triple, cpu, (*missing, *asked.features))

    @property
    def bare(self) -> bool:
        """There is no operating system, so nothing that could load a library."""
        return "none" in self.triple.split("-")

    def target(self) -> Any:
        """The `tvm.target.Target`."""
        if self.device != "cpu":
            gpu = {"kind": self.device} | ({"arch": self.cpu} if self.device == "cuda" else {})
            return tvm.target.Target(gpu, host=_described(self.triple, "", self.features))
        return _described(self.triple, self.cpu, self.features)

    def required(self) -> list[str]:
        """Every instruction-set feature of a CPU that the generated code may use."""
        if self.device != "cpu":
            return []
        return sorted(str(f) for f in codegen.llvm_get_cpu_features(self.target()))

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "features": list(self.features), "required": self.required()}

    @classmethod
    def from_dict(cls, described: Mapping[str, Any]) -> Code:
        architecture, triple, cpu = (str(described[name]) for name in ("architecture", "triple", "cpu"))
        return cls(architecture, triple, cpu, tuple(described["features"]), described["device"])

    def __str__(self) -> str:
        return " ".join([self.cpu or self.device, *self.features, f"({self.triple})"])


def _check_cpu(triple: str, cpu: str) -> None:
    """Raise `InputError` where LLVM knows no such CPU, with the nearest that it knows."""
    known = [str(name) for name in codegen.llvm_get_cpu_archlist(_described(triple, ""))]
    if cpu not in known:
        meant = alternatives(cpu, sorted(known), "CPUs")
        raise InputError(f"LLVM knows no CPU {cpu!r} for {triple}; {meant}")


def _described(triple: str, cpu: str, features: tuple[str, ...] = ()) -> Any:
    options: dict[str, Any] = {"kind": "llvm", "mtriple": triple or str(codegen.llvm_get_system_triple())}
    if triple.endswith(
        "eabihf"
    ):  # which TVM does not read: without, functions such as floorf get floats in wrong registers
        options["mfloat-abi"] = "hard"
    if triple.startswith("thumb"):
        options["vector-width"] = 128  # what TVM assumes with a warning; matters only to CPUs with vectors
    return tvm.target.Target(options | ({"mcpu": cpu} if cpu else {}) | ({"mattr": list(features)} if features else {}))


def host_features() -> dict[str, bool]:
    """LLVM's name of every instruction-set feature -> whether this machine has it."""
    found = tvm.get_global_func("tvm.codegen.llvm.GetHostCPUFeatures")()
    return {str(name): bool(has) for name, has in found.items()}


def lacking() -> set[str]:
    """The features that this machine is known to lack."""
    return {name for name, has in host_features().items() if not has}


def refusal(code: Mapping[str, Any]) -> str:
    """Why code, described as by `to_dict`, does not run on this machine; empty where it does."""
    made = f"it was compiled for {code['cpu'] or 'OpenCL'} ({code['triple']})"
    device = code["device"]
    if code["architecture"] != architecture():
        here = f"{made}; this machine is {architecture()}"
        if device != "cpu":
            return f"{here}: copy the folder to a machine with such a GPU, and load it there"
        return f"{here}: copy the folder to such a device and load it there, or run it there from here: .on('rpc://host:port')"
    if device != "cpu" and not has_gpu(device):
        lack = f"{made}, for a GPU; this machine has no {GPU_RUNTIMES[device]}"
        return f"{lack}: copy the folder to one that has, and load it there"
    if missing := sorted(set(code["required"]) & lacking()):
        return f"{made}, which has {', '.join(missing)}; this machine has not: run it on a machine that has, or compile again"
    return ""


GPU_RUNTIMES = {
    "cuda": "NVIDIA GPU that TVM can use",
    "opencl": "OpenCL device that TVM can use (a build of TVM with USE_OPENCL=ON, which the one of PyPI is not)",
}


def has_gpu(kernels: str) -> bool:
    """Whether a GPU is at hand and this TVM has the runtime for it."""
    try:
        return bool(tvm.device(kernels, 0).exist)
    except (RuntimeError, ValueError, AttributeError):
        return False


def use_threads(threads: int) -> None:
    """Let TVM's kernels use this many threads from now on.

    The pool is made at the first call. Left to itself, TVM binds this thread and every later one to single cores, and makes
    a pool of $OMP_NUM_THREADS, which is meant for torch.
    """
    if _POOL.get("threads") == threads:
        return  # setting it anew takes as long as a small kernel
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    os.environ.setdefault("TVM_NUM_THREADS", str(os.cpu_count() or 1))
    tvm.get_global_func("runtime.config_threadpool")(1, threads)
    _POOL["threads"] = threads


_POOL: dict[str, int] = {}  # what TVM's pool of this process was set to


def linker(code: Code, given: str) -> list[str]:
    """The command that links code, without its files.

    Raises:
        InputError: it is not installed; the message names the package.
    """
    if given:
        command = shlex.split(given)
        if shutil.which(command[0]) is None:
            raise InputError(f"there is no compiler {command[0]!r}, which was given to link for {code.triple}")
        return command
    if code.architecture == architecture() and "linux" in code.triple:
        name, package = "g++", "g++"
    elif "linux" in code.triple and code.architecture in LINKERS:
        name, package = LINKERS[code.architecture]
    else:
        raise InputError(
            f"no compiler is known that links for {code.triple}; name one: "
            "target.replace(compiler='python -m ziglang c++ -target ...')"
        )
    if shutil.which(name) is None:
        raise InputError(
            f"linking for {code.triple} needs {name}, which is not installed: install the Debian package {package}, or name "
            "another compiler: target.replace(compiler='...')"
        )
    return [name]


def _as_kernels(machine: Processor) -> Any:
    """Operators become scheduled functions; sizes change without copies."""
    legalized = {"relax.reshape": lambda builder, call: call, **LEGALIZED}
    return tvm.transform.Sequential(
        [
            relax.transform.DeadCodeElimination(["main"]),
            relax.backend.DispatchSampling(),
            relax.backend.DispatchSortScan(),
            relax.transform.LegalizeOps(legalized),
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
            relax.transform.DeadCodeElimination(["main"]),
            _schedule_leftovers(machine),
        ]
    )


_MEMORY_AND_CALLS = [
    relax.transform.ToNonDataflow(),
    relax.transform.RemovePurityChecking(),
    relax.transform.CallTIRRewrite(),
    relax.transform.StaticPlanBlockMemory(),
    relax.transform.LowerAllocTensor(),
    relax.transform.KillAfterLastUse(),
    relax.transform.LowerRuntimeBuiltin(),
    relax.transform.ComputePrimValue(),
    relax.transform.VMShapeLower(),
    relax.transform.AttachGlobalSymbol(),
]


def _schedule_leftovers(machine: Processor) -> Any:
    def schedule(module: Any, context: Any) -> Any:
        if isinstance(machine, Gpu):
            return threaded(module)
        for name, function in module.functions_items():
            if isinstance(function, tvm.tirx.PrimFunc):
                module.update_func(name, scheduled(function, machine))
        return module

    return tvm.transform.module_pass(schedule, opt_level=0)


@contextmanager
def explained(code: Code) -> Iterator[None]:
    """Raises GraphoptError in place of what TVM raises inside."""
    try:
        yield
    except GraphoptError:
        raise
    except Exception as error:
        raise GraphoptError(f"TVM cannot compile the model for {code}: {last_line(error)}") from error


def kernels_of(module: Any, code: Code, outputs: Sequence[str] = ()) -> Any:
    """A module that calls scheduled kernels only, which `build` compiles.

    Args:
        outputs: the names of what it returns, for the refusal.

    Raises:
        GraphoptError: TVM cannot make them, or there are none.
    """
    target = code.target()
    chosen = processor(target)
    with explained(code), tvm.transform.PassContext(config=PASS_CONFIG), written_for(chosen), target:
        kernels = _as_kernels(chosen)(module)
    if not any(isinstance(function, tvm.tirx.PrimFunc) for _, function in kernels.functions_items()):
        named = " and ".join(f"output {name!r}" for name in outputs) or "the output"
        raise GraphoptError(
            f"{named} of the model computes nothing, it hands inputs or constants out as they are, which leaves TVM nothing to "
            "compile; return what is computed from them, or use an ONNX Runtime target (arm, x86)"
        )
    return kernels


def build(kernels: Any, code: Code) -> Any:
    """Compile a module of kernels to an executable in memory."""
    target = code.target()
    memory_and_calls = tvm.transform.Sequential(_MEMORY_AND_CALLS)
    with explained(code), tvm.transform.PassContext(config=PASS_CONFIG), written_for(processor(target)):
        return relax.build(kernels, target, relax_pipeline=memory_and_calls)


def device_source(executable: Any) -> str:
    """The source of a GPU's kernels."""
    waiting, found = [executable.mod], []
    while waiting:
        module = waiting.pop()
        waiting += list(module.imports)
        if module.kind in GPU_RUNTIMES:
            found.append(str(module.inspect_source()))
    return "\n".join(found)


def link(executable: Any, path: Path, command: list[str]) -> None:
    """Write an executable as a shared library.

    Raises:
        GraphoptError: the linker fails; with its last words.
    """

    def run(output: str, objects: list[str], options: list[str] | None = None) -> None:
        arguments = [*command, "-shared", "-fPIC", "-o", output, *(options or []), *objects]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        if done.returncode or not Path(output).exists():
            said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
            raise GraphoptError(
                f"{shlex.join(command)} could not link {path.name}: {said[-1] if said else 'it wrote nothing'}"
            )

    executable.export_library(str(path), fcompile=cc.cross_compiler(run, output_format="so"))
