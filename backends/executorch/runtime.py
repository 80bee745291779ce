"""ExecuTorch itself, imported when it is first needed: what is installed, and what it has kernels for.

Its libraries log to standard error when they are loaded and whenever they refuse; what matters of that is in errors raised here.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import logging
import re
import warnings
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from graphopt.utils.errors import InputError, first_line
from graphopt.utils.silence import ERR, OUT, silent

OLDEST = (1, 5)  # release that this is written for: its patterns of quantizers, and its kernels
BACKEND = "XnnpackBackend"
REMEDY = "write that otherwise, or use a target of ONNX Runtime or TVM (arm, tvm-arm64)"  # where there is no kernel
INSTALL = "install it with: pip install 'graphopt[executorch]'"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Around their code: nothing is printed, no warnings, and handlers of logs are what they were."""
    handlers = list(logging.root.handlers)
    with warnings.catch_warnings(), silent(OUT, ERR):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.root.handlers[:] = handlers  # one of their modules calls basicConfig


@lru_cache(maxsize=1)
def modules() -> tuple[Any, Any]:
    """`executorch.runtime`, and the library behind it.

    Raises:
        InputError: ExecuTorch is missing, too old, or cannot be imported; says how to install it.
    """
    check_release()
    try:
        with quiet():
            runtime = importlib.import_module("executorch.runtime")
            library = importlib.import_module("executorch.extension.pybindings.portable_lib")
    except ImportError as error:
        raise InputError(f"ExecuTorch cannot be imported ({first_line(error)}); {INSTALL}") from error
    if BACKEND not in library._get_registered_backend_names():
        raise InputError(f"this build of ExecuTorch has no XNNPACK ({BACKEND}), which programs are made for; {INSTALL}")
    return runtime, library


def check_release() -> None:
    """Raise `InputError` where ExecuTorch is missing or too old."""
    try:
        found = importlib.metadata.version("executorch")
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError(f"the runtime 'executorch' is not installed; {INSTALL}") from error
    release = tuple(int(part) for part in re.findall(r"\d+", found)[:2])
    if release < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise InputError(f"executorch {found} is too old, graphopt needs {oldest} or newer; {INSTALL}")


def operators() -> frozenset[str]:
    """The operators that the runtime here has kernels for, such as `aten::add.out`."""
    return frozenset(modules()[1]._get_operator_names())
