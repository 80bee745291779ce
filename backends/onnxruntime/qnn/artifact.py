"""An artifact of the target hexagon on HTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from graphopt.backends.onnxruntime.artifact import MODEL, OnnxRuntimeArtifact
from graphopt.backends.onnxruntime.placed import PlacedArtifact, check_hardware
from graphopt.backends.onnxruntime.qnn.provider import HEXAGON, Htp, contexts_of
from graphopt.backends.onnxruntime.qnn.refusals import open_on
from graphopt.utils.errors import InputError


class HtpArtifact(PlacedArtifact):
    """An artifact on HTP, the whole of it.

    Raises:
        InputError: it was made for another target, or its contexts for other architectures; onnxruntime-qnn is missing.
        ArtifactError: HTP does not take all of its operators; lists the others.
    """

    def __init__(self, artifact: OnnxRuntimeArtifact, place: Htp) -> None:
        check_hardware(HEXAGON, artifact.manifest.target)
        contexts = contexts_of(artifact.manifest)
        if contexts and place.architecture not in contexts:
            raise InputError(
                f"{artifact.folder} holds contexts for {', '.join(contexts)}, none for {place.architecture}; "
                "take one of these, or compile it from the artifact they were made of"
            )
        super().__init__(artifact, place, contexts.get(place.architecture, MODEL))

    @property
    def emulated(self) -> bool:
        return bool(self.place.emulated)

    def open(self, path: Path) -> Any:
        return open_on(self.place, path, self.manifest.model)
