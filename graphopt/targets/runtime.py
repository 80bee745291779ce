"""What runs the model: a runtime on a machine, and the code it generates where it compiles."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from graphopt.utils.errors import InputError

Device = Literal["cpu", "cuda", "opencl"]
COMPILING = frozenset({"tvm"})  # runtimes of ours that generate code
INTERPRETING = frozenset({"onnxruntime", "packed", "executorch"})  # those that do not
LINKERS = {  # of C++, for other machines: architecture -> (compiler, Debian package)
    "x86_64": ("x86_64-linux-gnu-g++", "g++-x86-64-linux-gnu"),
    "aarch64": ("aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu"),
    "armv7l": ("arm-linux-gnueabihf-g++", "g++-arm-linux-gnueabihf"),
    "riscv64": ("riscv64-linux-gnu-g++", "g++-riscv64-linux-gnu"),
}
CUDA_NAME = r"sm_\d+[af]?"  # a compute capability


@dataclass(frozen=True)
class CodeGeneration:
    """What a compiling runtime generates code for.

    Attributes:
        triple: LLVM's name of the platform of the CPU ("aarch64-linux-gnu"); empty: this machine's.
        cpu: LLVM's name of the CPU ("cortex-a76"); empty: this machine's. Where `device` is `cuda`, the GPU's compute capability
            ("sm_87"); where it is `opencl`, empty.
        features: LLVM's names of CPU features to add or leave out ("+dotprod", "-sve").
        compiler: the command of the C++ compiler that links the library; empty: the system's, or its cross compiler.
        device: what runs the kernels: the CPU, or a GPU beside it through `cuda` or `opencl`.

    Raises:
        InputError: an unknown device, a GPU that CUDA does not know by this name, or a GPU without the triple of its machine.
    """

    triple: str = ""
    cpu: str = ""
    features: tuple[str, ...] = ()
    compiler: str = ""
    device: Device = "cpu"

    def __post_init__(self) -> None:
        if self.device not in get_args(Device):
            raise InputError(f"device must be one of {', '.join(get_args(Device))}, got {self.device!r}")
        if self.device != "cpu" and not self.triple:
            raise InputError(
                f"device={self.device!r} needs the triple of the machine the GPU is part of, such as x86_64-linux-gnu"
            )
        if self.device == "cuda" and not re.fullmatch(CUDA_NAME, self.cpu):
            raise InputError(f"cpu={self.cpu!r} is no GPU of CUDA; give its compute capability, such as cpu='sm_87'")
        if self.device == "opencl" and self.cpu:
            raise InputError(f"OpenCL compiles on the device itself; leave out cpu={self.cpu!r}")
        for feature in self.features:
            if not re.fullmatch(r"[+-].+", feature):
                raise InputError(f"features start with + or -, as in '+dotprod', got {feature!r}")


@dataclass(frozen=True)
class Runtime:
    """The runtime of a target, and the machine it runs on.

    Attributes:
        name: of the runtime, by which its backend is found: `onnxruntime`, `tvm`, `executorch`, `packed`, or one of a package.
        architecture: of the CPU, as `platform.machine()` returns it there ("aarch64"), or the name of the accelerator; latency is
            measured on a machine of this architecture only, or on a device.
        machine: whose integer kernels `graphopt.simulate` computes, where the architecture has several: `avx2` for x86-64 without
            VNNI. None: those of the architecture.
        static_shapes: the batch size must be fixed when the model is captured.
        vendor_compiler: the artifact is an ONNX file for the compiler of the hardware's vendor, which reads QuantizeLinear and
            DequantizeLinear but no integer operators.
        code: what a compiling runtime generates code for; None for the others.
        opset: the newest opset of ONNX that it reads; None: not known, or any that files are written in. Files have the oldest
            that holds the graph, whatever this says; a graph that needs a newer one is refused.

    Raises:
        InputError: a compiling runtime without `code`, another of ours with it, or one that makes no ONNX files for a vendor's
            compiler or with an opset.
    """

    name: str
    architecture: str
    machine: str | None = None
    static_shapes: bool = False
    vendor_compiler: bool = False
    code: CodeGeneration | None = None
    opset: int | None = None

    def __post_init__(self) -> None:
        if self.name in COMPILING and self.code is None:
            raise InputError(
                f"the runtime {self.name!r} compiles: say for what, code=CodeGeneration(triple, cpu), or CodeGeneration() for "
                "this machine"
            )
        if self.name in INTERPRETING and self.code is not None:
            raise InputError(f"the runtime {self.name!r} generates no code; leave out code={self.code}")
        if self.vendor_compiler and self.name in COMPILING | {"packed", "executorch"}:
            raise InputError(
                f"the runtime {self.name!r} writes no ONNX file for a vendor's compiler; name 'onnxruntime'"
            )

        if self.opset is not None and self.name in COMPILING | {"packed", "executorch"}:
            raise InputError(f"the runtime {self.name!r} reads no ONNX; leave out opset={self.opset!r}")
        if self.opset is not None and (type(self.opset) is not int or self.opset < 7):
            raise InputError(f"opset must be a version of ONNX's operators, 7 or later, got {self.opset!r}")

    @property
    def listed_formats_only(self) -> bool:
        """Whether the hardware takes no number formats but those of its target; kernels of CPUs take every uniform one."""
        return self.vendor_compiler or self.name == "packed"

    @property
    def generated(self) -> CodeGeneration:
        """`code`, of a runtime that compiles.

        Raises:
            InputError: it does not.
        """
        if self.code is None:
            raise InputError(
                f"the runtime {self.name!r} generates no code: no triple, cpu, features, compiler or device is to be given"
            )
        return self.code
