"""NVIDIA GPUs through ONNX Runtime's own providers, for the target nvidia.

there = artifact.on("tensorrt")    # or "tensorrt:1" for the second GPU; "cuda" computes quantized layers in float
there(images)

ONNX Runtime leaves to the CPU what a provider does not take, and falls back to it silently where the provider's libraries are
missing. Here that is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort

from graphopt.backends.onnxruntime.artifact import MODEL, OnnxRuntimeArtifact
from graphopt.backends.onnxruntime.assignment import RECORD, not_on
from graphopt.errors import ArtifactError, InputError
from graphopt.targets import Target

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
PROVIDERS = {"cuda": (CUDA,), "tensorrt": (TENSORRT, CUDA)}  # in the order in which they may take operators
SHOWN = 10  # operators that an error lists


@dataclass(frozen=True)
class Gpu:
    """A GPU as one provider drives it: `cuda` or `tensorrt`, and the GPU's number."""

    kind: str
    number: int = 0

    def session(self, path: Path) -> Any:
        """An `onnxruntime.InferenceSession` that leaves nothing to the CPU.

        Raises:
            InputError: the provider's libraries or the GPU are missing. ArtifactError: it does not take the whole model.
        """
        first, *_ = PROVIDERS[self.kind]
        try:
            return self._open(path, {"session.disable_cpu_ep_fallback": "1"})
        except Exception as error:
            raise self._explained(path, first, error) from error

    def _open(self, path: Path, entries: dict[str, str]) -> Any:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        for key, value in entries.items():
            options.add_session_config_entry(key, value)
        providers = [(name, self.settings(name)) for name in PROVIDERS[self.kind]]
        return ort.InferenceSession(str(path), options, providers=providers, enable_fallback=0)

    def _explained(self, path: Path, first: str, error: Exception) -> Exception:
        """Why a session that leaves nothing to the CPU could not be had."""
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        try:
            session = self._open(path, {RECORD: "1"})
            able = first in session.get_providers()
        except Exception:
            able = False
        if not able:
            return InputError(
                f"{first} of ONNX Runtime {ort.__version__} cannot be used here: it needs a GPU, NVIDIA's driver and the "
                f"libraries of CUDA{' and TensorRT' if first == TENSORRT else ''}"
            )
        left = not_on(PROVIDERS[self.kind], session)
        if not left:
            return ArtifactError(f"{first} cannot load {path.name}: {reason}")
        shown = ", ".join(f"{name} ({kind})" for name, kind in left[:SHOWN])
        more = f" and {len(left) - SHOWN} more" if len(left) > SHOWN else ""
        return ArtifactError(f"{self} does not take {len(left)} operators of {path.name}: {shown}{more}")

    def settings(self, provider: str) -> dict[str, str]:
        """Options of a provider; TensorRT computes codes in integer and may compute the rest in float16."""
        own = {"device_id": str(self.number)}
        return own | {"trt_int8_enable": "1", "trt_fp16_enable": "1"} if provider == TENSORRT else own

    def __str__(self) -> str:
        return f"{self.kind}:{self.number}"


class GpuArtifact(OnnxRuntimeArtifact):
    """An artifact on a GPU, the whole of it. Raises as `Gpu.session`."""

    def __init__(self, artifact: OnnxRuntimeArtifact, place: Gpu) -> None:
        super().__init__(artifact.folder, artifact.manifest)
        check_target(str(artifact.manifest.target.get("name")), str(artifact.manifest.target.get("architecture")))
        self._artifact, self.place = artifact, place  # the first owns the folder
        self._session = self.open(self.folder / MODEL)

    @property
    def device(self) -> str:
        return str(self.place)

    @property
    def exact(self) -> bool:
        return False

    def set_threads(self, threads: int) -> None:
        """A GPU has its own."""

    def open(self, path: Path) -> Any:
        return self.place.session(path)


def connect(device: str, target: Target | None = None) -> Gpu:
    """A GPU as `cuda`, `tensorrt` or `tensorrt:1`; with a target, after checking that it is for GPUs.

    Raises:
        InputError: it is not, the number is none, or this ONNX Runtime has no such provider.
    """
    kind, _, number = device.partition(":")
    if number and not number.isdecimal():
        raise InputError(f"{device!r} names no GPU; write {kind} or {kind}:1")
    if target is not None:
        check_target(target.name, target.architecture)
    if PROVIDERS[kind][0] not in ort.get_available_providers():
        raise InputError(
            f"this ONNX Runtime has no {PROVIDERS[kind][0]}; install it with: pip uninstall onnxruntime; "
            "pip install onnxruntime-gpu"
        )
    return Gpu(kind, int(number or 0))


def check_target(target: str, architecture: str) -> None:
    """Raises InputError where a target is not for NVIDIA's GPUs."""
    if architecture != "nvidia":
        raise InputError(
            f"GPUs run what is made for the target nvidia, not for {target}; optimize with target='nvidia'"
        )
