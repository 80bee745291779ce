"""Run a session; where an operator does not take what it is given, say which and why in one sentence."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from graphopt.utils.errors import ExecutionError, first_line

FAILED = re.compile(r"running (?P<operator>\w+) node\. Name:'(?P<name>[^']*)' Status Message: (?P<reason>.*)")
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
