"""The HTP backend of onnxruntime-qnn as a provider of ONNX Runtime.

On a Snapdragon it is the hardware. In the package for x86-64 Linux it is Qualcomm's emulator, whose time says nothing about the
hardware's. Three things are asked for in every session, as none is a default:

    session.disable_cpu_ep_fallback         else ONNX Runtime computes on the CPU what HTP does not take, and says nothing
    offload_graph_io_quantization = 0       else it computes the first and last quantizers there
    htp_arch                                else the emulator computes as v68 does; so it does where it does not know the number
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort

from graphopt.artifacts.manifest import Manifest
from graphopt.backends.onnxruntime.assignment import RECORD, not_on
from graphopt.backends.onnxruntime.placed import NO_FALLBACK, check_hardware, quiet
from graphopt.targets import Target
from graphopt.utils.errors import InputError, first_line

PACKAGE = "onnxruntime_qnn"
NAME = "QNNExecutionProvider"
ARCHITECTURES = ("v68", "v69", "v73", "v75", "v79", "v81")
DEFAULT = "v73"
CONTEXTS = "contexts"  # in a manifest's options: architecture -> file
HEXAGON = "hexagon"  # what the target calls the hardware


@dataclass(frozen=True)
class Htp:
    """A place where HTP computes.

    Attributes:
        architecture: of Hexagon: what the emulator computes as, and what contexts are compiled for.
    """

    architecture: str = DEFAULT

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise InputError(f"unknown Hexagon architecture {self.architecture!r}; known: {', '.join(ARCHITECTURES)}")

    @property
    def emulated(self) -> bool:
        """Whether this machine has no such hardware."""
        return bool(_device().device.type == ort.OrtHardwareDeviceType.CPU)

    def session(self, path: Path, *, alone: bool = True, entries: Mapping[str, str] | None = None) -> Any:
        """An `onnxruntime.InferenceSession`. `alone`: an operator that HTP does not take is an error.

        Raises:
            InputError: onnxruntime-qnn is missing, or does not fit this ONNX Runtime. Whatever ONNX Runtime raises.
        """
        device = _device()
        options = quiet({NO_FALLBACK: "1" if alone else "0", **(entries or {})})
        settings = {
            "backend_path": importlib.import_module(PACKAGE).get_qnn_htp_path(),
            "offload_graph_io_quantization": "0",
        }
        if self.emulated or "ep.context_enable" in (entries or {}):
            settings["htp_arch"] = self.architecture.removeprefix("v")
        options.add_provider_for_devices([device], settings)
        return ort.InferenceSession(str(path), options)

    def left_out(self, path: Path) -> list[tuple[str, str]]:
        """Name and type of the operators of a model that HTP does not take, as ONNX Runtime distributes them."""
        return not_on([NAME], self.session(path, alone=False, entries={RECORD: "1"}))

    def __str__(self) -> str:
        return f"htp:{self.architecture}" + (" (emulator)" if self.emulated else "")


def connect(device: str, target: Target | None = None) -> Htp:
    """HTP as `htp`, or `htp:v75`; with a target, after checking that it is for HTP and that HTP is here.

    Raises:
        InputError: it is not, or the architecture is unknown; onnxruntime-qnn is missing.
    """
    architecture = device.partition(":")[2]
    place = Htp(architecture or DEFAULT)
    if target is not None:
        check_hardware(HEXAGON, target.to_dict())
        _device()
    return place


def contexts_of(manifest: Manifest) -> dict[str, str]:
    """Architecture -> file, in a folder of contexts; empty for other artifacts."""
    return dict(manifest.options.get(CONTEXTS, {}))


def missing() -> str:
    """Why HTP cannot be used here at all; empty where it can."""
    if importlib.util.find_spec(PACKAGE) is None:
        return "HTP needs onnxruntime-qnn, which is not installed; install it with: pip install 'graphopt[qnn]'"
    return ""


def _device() -> Any:
    """The device of the provider, which a process registers once: hardware before the emulator."""
    if reason := missing():
        raise InputError(reason)
    package = importlib.import_module(PACKAGE)
    try:
        if not any(device.ep_name == NAME for device in ort.get_ep_devices()):
            ort.register_execution_provider_library(NAME, package.get_library_path())
        devices = [device for device in ort.get_ep_devices() if device.ep_name == NAME]
    except Exception as error:  # ONNX Runtime's own are no RuntimeErrors
        raise InputError(
            f"onnxruntime-qnn {package.__version__} does not fit onnxruntime {ort.__version__} ({first_line(error)}); "
            "install versions that do with: pip install --upgrade 'graphopt[qnn]'"
        ) from error
    if not Path(package.get_qnn_htp_path()).exists() or not devices:
        raise InputError(f"onnxruntime-qnn {package.__version__} has no HTP backend for this machine")
    return min(devices, key=lambda device: device.device.type != ort.OrtHardwareDeviceType.NPU)
