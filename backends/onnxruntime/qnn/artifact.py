"""An artifact of the target hexagon on HTP, called like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from graphopt.backends.onnxruntime.artifact import MODEL, OnnxRuntimeArtifact
from graphopt.backends.onnxruntime.qnn.provider import Htp, check_architecture, contexts_of
from graphopt.backends.onnxruntime.qnn.refusals import open_on
from graphopt.errors import InputError


class HtpArtifact(OnnxRuntimeArtifact):
    """An artifact on HTP, the whole of it.

    Raises:
        InputError: it was made for another target, or its contexts for other architectures; onnxruntime-qnn is missing.
        ArtifactError: HTP does not take all of its operators; lists the others.
    """

    def __init__(self, artifact: OnnxRuntimeArtifact, place: Htp) -> None:
        super().__init__(artifact.folder, artifact.manifest)
        target = artifact.manifest.target
        check_architecture(str(target.get("name")), str(target.get("architecture")))
        self._artifact, self.place = artifact, place  # the first owns the folder
        contexts = contexts_of(artifact.manifest)
        if contexts and place.architecture not in contexts:
            raise InputError(
                f"{artifact.folder} holds contexts for {', '.join(contexts)}, none for {place.architecture}; "
                "take one of these, or compile it from the artifact they were made of"
            )
        self._session = self.open(self.folder / contexts.get(place.architecture, MODEL))

    @property
    def refusal(self) -> str:
        return ""

    @property
    def device(self) -> str:
        return str(self.place)

    @property
    def emulated(self) -> bool:
        return self.place.emulated

    @property
    def exact(self) -> bool:
        return False

    def set_threads(self, threads: int) -> None:
        """HTP has its own."""

    def open(self, path: Path) -> Any:
        return open_on(self.place, path, self.manifest.model)
