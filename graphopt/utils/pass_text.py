"""Passes as the text that `graphopt.optimize(passes=...)` and `--passes` read (`graphopt.compiler.pipeline`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


def text_name(name: str) -> str:
    """FoldBatchNorm -> fold-batch-norm, CP -> cp."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()


def pass_text(kind: str, options: Mapping[str, Any]) -> str:
    """`svd{layers={'conv1': (3,), '*': None}}`, of a class's name and options that are plain values of Python."""
    said = ", ".join(f"{name}={value!r}" for name, value in options.items())
    return f"{text_name(kind)}{{{said}}}" if said else text_name(kind)
