"""Load and run a session; where an operator does not take what it is given, say which and why in one sentence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from graphopt.utils.errors import ExecutionError, first_line

FAILED = re.compile(r"running (?P<operator>\w+) node\. Name:'(?P<name>[^']*)' Status Message: (?P<reason>.*)")
MISSING = re.compile(r"Could not find an implementation for (?P<operator>\w+)\(\d+\) node with name '(?P<name>[^']*)'")
# Where in ONNX Runtime's own source: a file and a line, then a function, alone or with its signature.
PLACE = re.compile(r"^\S+:\d+ (?:.*?\[with [^]]*\]|[\w:<>*& ]+::[\w:~<>]+\(.*?\)(?: const)?|\S+) ")

ADVICE = "give inputs that the original model takes"


def run_session(
    session: Any, outputs: list[str] | None, feeds: dict[str, np.ndarray[Any, Any]]
) -> list[np.ndarray[Any, Any]]:
    """The outputs of these names, in order; all where there are no names.

    Raises:
        ExecutionError: an operator does not take its values, such as an index beyond what it indexes; names it.
    """
    try:
        found: list[np.ndarray[Any, Any]] = session.run(outputs, feeds)
    except Exception as error:  # ONNX Runtime's own are no RuntimeErrors
        raise ExecutionError(failure(first_line(error))) from error
    return found


def failure(message: str) -> str:
    """From what ONNX Runtime says when a run fails: the value's name in the model, the operator, and the reason."""
    found = FAILED.search(message)
    if found is None:
        return f"ONNX Runtime cannot compute the model on these inputs: {message}; {ADVICE}"
    name = f"{found['name']}: " if found["name"] else ""
    reason = PLACE.sub("", found["reason"])
    return f"{name}ONNX Runtime cannot compute {found['operator']} on these inputs: {reason}; {ADVICE}"


def refusal(path: Path, message: str) -> str:
    """From what ONNX Runtime says when it does not load a model: the operator that has no kernel for a type, or the reason."""
    found = MISSING.search(message)
    if found is None:
        return f"ONNX Runtime {ort.__version__} cannot load {path.name}: {message}"
    types = _types(path, found["name"])
    of = f" of {types}" if types else " of these types"
    return (
        f"{found['name']}: ONNX Runtime {ort.__version__} has no kernel for {found['operator']}{of}; compute it in another "
        "type, as with .float() in front of it"
    )


def _types(path: Path, name: str) -> str:
    """The type of what a node reads first, as NumPy calls it; empty where the file does not say it."""
    model = onnx.shape_inference.infer_shapes(onnx.load(str(path), load_external_data=False))
    graph = model.graph
    types = {value.name: value.type.tensor_type.elem_type for value in [*graph.input, *graph.value_info, *graph.output]}
    kinds = {types.get(node.input[0], 0) for node in graph.node if node.name == name and node.input} - {0}
    return onnx.helper.tensor_dtype_to_np_dtype(kinds.pop()).name if kinds else ""
