"""An artifact on a device that ONNX Runtime drives from this machine: the whole of it, called like any other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import onnxruntime as ort

from graphopt.artifacts.artifact import Artifact
from graphopt.artifacts.profile import KernelTime
from graphopt.backends.onnxruntime.artifact import MODEL, OnnxRuntimeArtifact
from graphopt.utils.errors import InputError

RUNS = {"hexagon": "HTP runs", "nvidia": "GPUs run"}  # by what a target calls its hardware
NO_FALLBACK = (
    "session.disable_cpu_ep_fallback"  # else the CPU computes what a device does not take, and nothing is said
)
SHOWN = 10  # operators that an error lists


class PlacedArtifact(OnnxRuntimeArtifact):
    """See above. Subclasses say in `open` how a session is had there, and raise what that raises when they are made."""

    def __init__(self, artifact: OnnxRuntimeArtifact, place: Any, file: str = MODEL) -> None:
        """Args:
        place: which `str` names.
        file: of the artifact's, which the device loads.
        """
        super().__init__(artifact.folder, artifact.manifest)
        self._artifact, self.place = artifact, place  # the first owns the folder
        with artifact.reading():
            self._session = self.open(self.folder / file)

    @property
    def refusal(self) -> str:
        return ""

    @property
    def device(self) -> str:
        return str(self.place)

    @property
    def exact(self) -> bool:
        return False

    def set_threads(self, threads: int) -> None:
        """A device has its own."""

    def set_exact_products(self, exact: bool = True) -> None:
        """It is about CPUs."""

    def _profile(self, inputs: list[Any], runs: int) -> list[KernelTime]:
        return Artifact._profile(self, inputs, runs)  # to ONNX Runtime, the whole is one kernel of the device's

    def calls(self) -> NoReturn:
        """Of the artifact that was placed, for the CPU. Raises InputError: there is none for a device."""
        raise InputError(f"usage() is for the CPU, not for {self.device}; call it on the artifact before .on(...)")


def check_hardware(wanted: str, target: Mapping[str, Any]) -> None:
    """Raises InputError where a target, as `Target.to_dict` describes it, is for other hardware."""
    if target["runtime"]["architecture"] != wanted:
        raise InputError(
            f"{RUNS[wanted]} what is made for the target {wanted}, not for {target.get('name')}; "
            f"optimize with target={wanted!r}"
        )


def quiet(entries: Mapping[str, str]) -> Any:
    """Options of a session whose refusals are looked into afterwards.

    Args:
        entries: of its configuration.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    return options


def listed(operators: list[str]) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(operators) - SHOWN} more" if len(operators) > SHOWN else ""
    return ", ".join(operators[:SHOWN]) + more
