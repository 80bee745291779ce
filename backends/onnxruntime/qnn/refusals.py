"""Sessions on HTP alone, and what it does not take where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graphopt.artifacts.artifact import Artifact
from graphopt.backends.onnxruntime.placed import listed
from graphopt.backends.onnxruntime.qnn.provider import HEXAGON, Htp, contexts_of, missing
from graphopt.evaluation.compliance.model import FILE, Model
from graphopt.utils.errors import ArtifactError, InputError, first_line

QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


def open_on(place: Htp, path: Path, name: str, entries: Mapping[str, str] | None = None) -> Any:
    """A session of a model on HTP alone.

    Args:
        name: of the model. entries: of the session's configuration.

    Raises:
        ArtifactError: HTP does not take every operator; lists those, with what to do. Or the runtime's own reason.
    """
    try:
        return place.session(path, entries=entries)
    except InputError:
        raise
    except Exception as error:
        raise ArtifactError(
            _refusal(place, path, name) or f"QNN cannot load {path.name}: {first_line(error)}"
        ) from error


def left_to_cpu(artifact: Artifact) -> dict[str, str]:
    """Operators that HTP does not take, with the reason, by node; asked of the runtime, where it is installed.

    Empty for targets other than hexagon, and for contexts, which HTP has taken whole.
    """
    if artifact.manifest.target["runtime"]["architecture"] != HEXAGON or missing() or contexts_of(artifact.manifest):
        return {}
    path = artifact.folder / FILE
    try:
        left = Htp().left_out(path)
    except Exception as error:  # whatever the runtime raises: then nothing runs there
        model = Model.read(path)
        return {
            model.name(n): f"QNN fails on the model: {first_line(error)}"
            for n in model.nodes
            if n.op_type not in QUANTIZERS
        }
    return {name: "HTP does not take it, the CPU computes it" for name, kind in left if kind not in QUANTIZERS}


def _refusal(place: Htp, path: Path, name: str) -> str:
    """Which operators HTP does not take; empty where that is not why it failed."""
    try:
        left = place.left_out(path)
    except Exception:  # what made the session fail makes this one fail, too
        return ""
    if not left:
        return ""
    model = Model.read(path)
    nodes = {model.name(node): node for node in model.nodes}
    operators = [(node, kind) for node, kind in left if kind not in QUANTIZERS] or left
    shown = listed([f"{node} ({kind}{_why(model, nodes.get(node))})" for node, kind in operators])
    return (
        f"HTP does not take {len(operators)} of {len(nodes)} operators of {name}: {shown}; quantize what is "
        "float, write the others in operators that HTP has, or leave out the device to compute on this CPU"
    )


def _why(model: Model, node: Any) -> str:
    """What is the matter with an operator, as far as the model tells."""
    if node is None or node.op_type in QUANTIZERS:
        return ""
    if model.grid(node.input[0]) is None:
        return " of floats"
    readers = model.behind(node)
    return "" if readers and all(r.op_type == "QuantizeLinear" for r in readers) else " with a float result"
