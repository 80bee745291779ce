"""The version of graphopt, and of what its results depend on."""

from __future__ import annotations

from importlib import metadata

__version__ = "0.1.0"


def versions() -> dict[str, str]:
    """graphopt's version and those of the libraries that make and run artifacts; what is not installed is left out."""
    found = {"graphopt": __version__}
    for name in ("torch", "onnx", "onnxruntime", "onnxruntime-qnn", "apache-tvm", "executorch"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
