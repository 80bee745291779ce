"""Other CPUs, emulated by qemu's user mode: x86-64 without VNNI, and 64-bit ARM in the root that `arm/make_root.py` sets up.

    HASWELL.missing                              why it cannot be had here; empty where it can
    HASWELL.onnxruntime({folder: [images]})      what ONNX Runtime answers there to the `model.onnx` of each folder
    arm("cortex-a76").library(path, [images])    what TVM's runtime answers there with a compiled `model.so`
    arm("cortex-a76").instructions(work)         how many instructions a call of either takes

Run as a program, this file needs no more than onnxruntime, so that the emulated interpreter starts in seconds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

Arrays = list[np.ndarray[Any, Any]]

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
ARM = Path(os.environ.get("GRAPHOPT_ARM", CACHE / "graphopt" / "arm64")).absolute()  # made by arm/make_root.py
READY = ARM / "ready.json"
MAKE = "python tests/helpers/arm/make_root.py"


@dataclass(frozen=True)
class Emulator:
    """A CPU that qemu emulates.

    Attributes:
        cpu: as qemu names it.
        qemu: its program, None where it is not installed.
        missing: why nothing runs on it here; empty where it does.
        python: the interpreter of that architecture.
        environment: of the programs that run there. options: of qemu.
    """

    cpu: str
    qemu: str | None
    missing: str
    python: str = sys.executable
    environment: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()

    def command(self, *program: str | Path) -> list[str]:
        """What runs a program there."""
        assert self.qemu is not None, self.missing
        settings = [word for name, value in self.environment.items() for word in ("-E", f"{name}={value}")]
        return [self.qemu, "-cpu", self.cpu, *self.options, *settings, *map(str, program)]

    def run(self, *program: str | Path) -> str:
        """What it prints.

        Raises:
            RuntimeError: it failed; with its last words.
        """
        done = subprocess.run(self.command(*program), capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(
                f"on the emulated {self.cpu}, {program[0]} ended with {done.returncode}: {done.stderr[-2000:]}"
            )
        return done.stdout

    def onnxruntime(
        self, jobs: Mapping[Path, Arrays], calls: int = 1, **entries: str
    ) -> dict[Path, dict[str, np.ndarray[Any, Any]]]:
        """For each folder the outputs of its `model.onnx` by name; `entries` configure the sessions."""
        for folder, inputs in jobs.items():
            np.savez(folder / "inputs.npz", *inputs)
        options = [word for name, value in entries.items() for word in ("--entry", f"session.{name}={value}")]
        self.run(self.python, __file__, *jobs, "--calls", str(calls), *options)
        found = {}
        for folder in jobs:
            with np.load(folder / "outputs.npz") as outputs:
                found[folder] = dict(outputs)
        return found

    def library(self, library: Path, inputs: Arrays, batch: int | None = None, calls: int | None = None) -> Arrays:
        """The outputs of a `model.so` compiled for inputs of `batch` samples (None: all of those given).

        `calls` of the kernels, if given, begin again at the first samples when they have been through.
        """
        count = len(inputs[0])
        batch = batch or count
        with tempfile.TemporaryDirectory() as folder:
            described = []
            for number, array in enumerate(inputs):
                file = Path(folder, f"input{number}")
                array.tofile(file)
                described.append(f"{file}:{array.dtype}:{','.join(map(str, (batch, *array.shape[1:])))}")
            output = Path(folder, "output")
            printed = self.run(ARM / "run_library", library, str(calls or count // batch), output, *described)
            return _outputs(printed.splitlines(), output.read_bytes())

    def instructions(self, work: Callable[[Emulator, int], Any], calls: int = 1) -> float:
        """Executed by one call, where `work(emulator, calls)` makes so many.

        The difference between `2 calls` and `calls`, so that what starting takes does not count.
        """
        with tempfile.TemporaryDirectory() as folder:
            counted = Path(folder, "counted")
            emulator = replace(self, options=(*self.options, "-plugin", f"{ARM / 'count.so'},to={counted}"))
            totals = []
            for number in (calls, 2 * calls):
                work(emulator, number)
                totals.append(int(counted.read_text()))
        return (totals[1] - totals[0]) / calls


def _outputs(described: list[str], data: bytes) -> Arrays:
    """From the types and shapes of one call's outputs, and the bytes of all calls one behind the other."""
    fields = []
    for number, line in enumerate(described):
        dtype, sizes = line.split(" ")
        fields.append((f"output{number}", dtype, tuple(int(size) for size in sizes.split(",") if size)))
    calls = np.frombuffer(data, dtype=fields)
    return [np.concatenate(list(calls[name])) for name, *_ in fields]


def _qemu(architecture: str) -> str | None:
    return shutil.which(f"qemu-{architecture}") or shutil.which(f"qemu-{architecture}-static")


_X86 = _qemu("x86_64")
HASWELL = Emulator(
    "Haswell", _X86, "" if _X86 else "needs qemu's user mode: apt-get install qemu-user"
)  # AVX2, no VNNI


def arm(cpu: str) -> Emulator:
    """A 64-bit ARM CPU of `make_root.CPUS`."""
    qemu = _qemu("aarch64")
    missing = "needs qemu's user mode: apt-get install qemu-user" if qemu is None else ""
    if not missing and not READY.exists():
        missing = f"needs an arm64 root in {ARM}: {MAKE}"
    libraries = ":".join(str(ARM / "site" / package / "lib") for package in ("tvm", "tvm_ffi"))
    environment = {
        "PYTHONHOME": str(ARM / "root" / "usr"),
        "PYTHONPATH": str(ARM / "site"),
        "LD_LIBRARY_PATH": libraries,
        "TVM_USE_RUNTIME_LIB": "1",  # without its compiler, TVM loads in half the time
        "OMP_NUM_THREADS": "1",
    }
    python = str(ARM / "root" / "usr" / "bin" / "python3")
    return Emulator(cpu, qemu, missing, python, environment, ("-L", str(ARM / "cpus" / cpu)))


def program(arguments: argparse.Namespace) -> None:
    import onnxruntime as ort

    for folder in arguments.folders:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = 1, 1, 3
        for entry in arguments.entry:
            options.add_session_config_entry(*entry.split("=", 1))
        session = ort.InferenceSession(
            str(folder / "model.onnx"),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["WeightBiasQuantization"],
        )
        with np.load(folder / "inputs.npz") as inputs:
            feeds = {spec.name: inputs[f"arr_{i}"] for i, spec in enumerate(session.get_inputs())}
        names = [spec.name for spec in session.get_outputs()]
        for _ in range(arguments.calls):
            outputs = session.run(names, feeds)
        np.savez(folder / "outputs.npz", **dict(zip(names, outputs, strict=True)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--entry", action="append", default=[])
    parser.add_argument("--calls", type=int, default=1)
    program(parser.parse_args())
