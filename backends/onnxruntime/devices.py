"""Devices that ONNX Runtime drives from this machine, by name."""

from __future__ import annotations

from typing import Any

from graphopt.backends.onnxruntime import gpu, qnn
from graphopt.backends.onnxruntime.artifact import OnnxRuntimeArtifact
from graphopt.targets import Target
from graphopt.utils.errors import InputError

CONNECT: dict[str, Any] = {"htp": qnn.connect} | dict.fromkeys(gpu.PROVIDERS, gpu.connect)


def connect(device: str, target: Target | None = None) -> qnn.Htp | gpu.Gpu:
    """`htp` or `htp:v75`; `cuda`, `tensorrt` or `tensorrt:1`. With a target, after checking that it runs there.

    Raises:
        InputError: an unknown device, or one that is not here; the target is for something else.
    """
    kind = device.partition(":")[0]
    if kind not in CONNECT:
        raise InputError(
            f"onnxruntime does not run on devices over the network: take a tvm-... target for {device}; what is made for hexagon "
            "runs on htp, or as on one architecture, htp:v75; what is made for nvidia on tensorrt or cuda"
        )
    place: qnn.Htp | gpu.Gpu = CONNECT[kind](device, target)
    return place


def placed(artifact: OnnxRuntimeArtifact, device: str) -> OnnxRuntimeArtifact:
    """An artifact on a device; see `connect`. ArtifactError: the device does not take all of it."""
    place = connect(device)
    return gpu.GpuArtifact(artifact, place) if isinstance(place, gpu.Gpu) else qnn.HtpArtifact(artifact, place)
