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

from graphopt.errors import InputError
from graphopt.manifest import Manifest
from graphopt.targets import Target

PACKAGE = "onnxruntime_qnn"
NAME = "QNNExecutionProvider"
ARCHITECTURES = ("v68", "v69", "v73", "v75", "v79", "v81")
DEFAULT = "v73"


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
        options = ort.SessionOptions()
        options.log_severity_level = 4  # what is refused is found out below
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1" if alone else "0")
        for key, value in (entries or {}).items():
            options.add_session_config_entry(key, value)
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
        session = self.session(path, alone=False, entries={"session.record_ep_graph_assignment_info": "1"})
        parts = session.get_provider_graph_assignment_info()
        nodes = [node for part in parts if part.ep_name != NAME for node in part.get_nodes()]
        return list(dict.fromkeys((own_name(node.name), str(node.op_type)) for node in nodes))

    def __str__(self) -> str:
        return f"htp:{self.architecture}" + (" (emulator)" if self.emulated else "")


def connect(device: str, target: Target | None = None) -> Htp:
    """HTP as `htp`, or `htp:v75`; with a target, after checking that it is for HTP and that HTP is here.

    Raises:
        InputError: it is neither, or the architecture is unknown; onnxruntime-qnn is missing.
    """
    kind, _, architecture = device.partition(":")
    if kind != "htp":
        raise InputError(
            f"onnxruntime does not run on devices over the network: take a tvm-... target for {device}; "
            "what is made for hexagon runs on htp, or as on one architecture, htp:v75"
        )
    place = Htp(architecture or DEFAULT)
    if target is not None:
        check_architecture(target.name, target.architecture)
        _device()
    return place


def check_architecture(target: str, architecture: str) -> None:
    """Raises InputError where a target is not for HTP."""
    if architecture != "hexagon":
        raise InputError(
            f"HTP runs what is made for the target hexagon, not for {target}; optimize with target='hexagon'"
        )


def contexts_of(manifest: Manifest) -> dict[str, str]:
    """Architecture -> file, in a folder of contexts; empty for other artifacts."""
    return dict(manifest.options.get("contexts", {}))


def own_name(name: str) -> str:
    """What a node was called before the runtime copied it."""
    return name.partition("_token_")[0].partition("/")[0]


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


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
