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

from graphopt.backends.onnxruntime.artifact import OnnxRuntimeArtifact
from graphopt.backends.onnxruntime.assignment import RECORD, not_on
from graphopt.backends.onnxruntime.placed import NO_FALLBACK, PlacedArtifact, check_hardware, listed, quiet
from graphopt.targets import Target
from graphopt.utils.errors import ArtifactError, InputError, first_line

NVIDIA = "nvidia"  # what the target calls the hardware
CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
PROVIDERS = {"cuda": (CUDA,), "tensorrt": (TENSORRT, CUDA)}  # in the order in which they may take operators


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
            return self._open(path, {NO_FALLBACK: "1"})
        except Exception as error:
            raise self._explained(path, first, error) from error

    def _open(self, path: Path, entries: dict[str, str]) -> Any:
        providers = [(name, self.settings(name)) for name in PROVIDERS[self.kind]]
        return ort.InferenceSession(str(path), quiet(entries), providers=providers, enable_fallback=0)

    def _explained(self, path: Path, first: str, error: Exception) -> Exception:
        """Why a session that leaves nothing to the CPU could not be had."""
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
            return ArtifactError(f"{first} cannot load {path.name}: {first_line(error)}")
        shown = listed([f"{name} ({kind})" for name, kind in left])
        return ArtifactError(f"{self} does not take {len(left)} operators of {path.name}: {shown}")

    def settings(self, provider: str) -> dict[str, str]:
        """Options of a provider; TensorRT computes codes in integer and may compute the rest in float16."""
        own = {"device_id": str(self.number)}
        return own | {"trt_int8_enable": "1", "trt_fp16_enable": "1"} if provider == TENSORRT else own

    def __str__(self) -> str:
        return f"{self.kind}:{self.number}"


class GpuArtifact(PlacedArtifact):
    """An artifact on a GPU, the whole of it. Raises as `Gpu.session`, and InputError where it was made for other hardware."""

    def __init__(self, artifact: OnnxRuntimeArtifact, place: Gpu) -> None:
        check_hardware(NVIDIA, artifact.manifest.target)
        super().__init__(artifact, place)

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
        check_hardware(NVIDIA, target.to_dict())
    if PROVIDERS[kind][0] not in ort.get_available_providers():
        raise InputError(
            f"this ONNX Runtime has no {PROVIDERS[kind][0]}; install it with: pip uninstall onnxruntime; "
            "pip install onnxruntime-gpu"
        )
    return Gpu(kind, int(number or 0))
