"""Context binaries: what HTP loads without compiling, one for each architecture.

A folder with `v73.onnx`, a model of one operator (EPContext) that ONNX Runtime loads on the device, `v73_qnn.bin` beside it, the
context itself, and a manifest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from graphopt.artifacts.artifact import Artifact
from graphopt.artifacts.lowered import write_form
from graphopt.backends.onnxruntime.placed import check_hardware
from graphopt.backends.onnxruntime.qnn.provider import ARCHITECTURES, CONTEXTS, HEXAGON, Htp, contexts_of
from graphopt.backends.onnxruntime.qnn.refusals import open_on
from graphopt.evaluation.compliance.model import FILE
from graphopt.utils.errors import InputError
from graphopt.utils.progress import track


def compile_contexts(artifact: Artifact, folder: str | Path, architectures: Sequence[str] = ()) -> Path:
    """Compile an artifact for architectures (all known) into a folder, written whole or not at all; return its absolute path.

    Raises:
        InputError: another target, contexts already, unknown architecture, or the place cannot be written.
        ArtifactError: HTP does not take all operators.
    """
    manifest = artifact.manifest
    check_hardware(HEXAGON, manifest.target)
    if contexts_of(manifest):
        raise InputError(f"{artifact.folder} holds contexts already; compile the artifact that they were made of")
    places = [Htp(architecture) for architecture in dict.fromkeys(architectures or ARCHITECTURES)]

    def write(new: Path) -> dict[str, str]:
        for place in track(places, "compiling contexts"):
            entries = {
                "ep.context_enable": "1",
                "ep.context_file_path": str(new / f"{place.architecture}.onnx"),
                "ep.context_embed_mode": "0",
            }
            open_on(place, artifact.folder / FILE, manifest.model, entries)
        return {place.architecture: f"{place.architecture}.onnx" for place in places}

    return write_form(manifest, folder, CONTEXTS, write)
