"""ONNX Runtime on a CPU without VNNI: an emulated one, where qemu's user mode is installed (Debian: `apt-get install qemu-user`).

Run as a program, this file needs no more than onnxruntime, so that the emulated interpreter starts in seconds.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

QEMU = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
CPU = "Haswell"  # AVX2, neither AVX-512 nor VNNI


def run(folder: Path, inputs: list[np.ndarray[Any, Any]], **entries: str) -> dict[str, np.ndarray[Any, Any]]:
    """What the emulated CPU answers to `model.onnx` in a folder, by name; `entries` configure the session.

    Raises:
        subprocess.CalledProcessError: the program failed there.
    """
    assert QEMU is not None
    np.savez(folder / "inputs.npz", *inputs)
    options = [f"session.{key}={value}" for key, value in entries.items()]
    command = [QEMU, "-cpu", CPU, sys.executable, __file__, str(folder), *options]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    with np.load(folder / "outputs.npz") as found:
        return dict(found)


def main(folder: Path, *entries: str) -> None:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    for entry in entries:
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
    np.savez(folder / "outputs.npz", **dict(zip(names, session.run(names, feeds), strict=True)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
