"""What a backend leaves when it has lowered a graph: a folder of files, and a manifest that describes them.

folder = temporary_folder()             filled by the backend
manifest = describe(graph, target, folder)
write_form(manifest, place, ...)        another form of it, for a device
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx.node import Node

from graphopt.artifacts.manifest import Manifest, TensorSpec, listing
from graphopt.ir import sizes, structure
from graphopt.ir.graph import Graph
from graphopt.ir.shapes import is_free, label, size_of
from graphopt.targets import Target
from graphopt.utils.files import MANIFEST, check_replaceable, folder_atomically
from graphopt.utils.printing import dtype_name
from graphopt.utils.version import versions


def temporary_folder() -> Path:
    """A fresh folder for an artifact that is not saved yet."""
    return Path(tempfile.mkdtemp(prefix="graphopt-"))


def write_form(manifest: Manifest, folder: str | Path, option: str, write: Callable[[Path], Any]) -> Path:
    """Write another form of a deployed model into a folder, whole or not at all, and return its absolute path.

    Args:
        write: fills the folder.
        option: of the new form's manifest; what `write` returns.

    Raises:
        InputError: the place cannot be written, or holds files that graphopt did not write.
    """
    target = check_replaceable(folder)
    with folder_atomically(target) as new:
        options = {**manifest.options, option: write(new)}
        described = replace(manifest, files=listing(new), options=options, versions=versions())
        (new / MANIFEST).write_bytes(described.to_json())
    return target


def describe(
    graph: Graph,
    target: Target,
    folder: Path,
    *,
    model: str = "model",
    options: Mapping[str, Any] | None = None,
) -> Manifest:
    """The manifest of `graph` lowered into `folder`, whose files must be complete.

    The float graph, or the graph as it was captured, serves as well as the final one: names, types and shapes of inputs
    and outputs are all that is read. It is run once on its example.

    Raises:
        InputError: the model takes or returns something other than tensors and plain values.
    """
    with torch.no_grad():
        result = graph(*graph.example.args, **graph.example.kwargs)
    tensors = structure.tensors(result)
    names = graph.size_names
    outputs = [
        _described(name, tensor, [label(s, names) or int(s) for s in node.meta["val"].shape])
        for name, node, tensor in zip(graph.output_names, graph.outputs, tensors, strict=True)
    ]
    given = graph.example.tensors()
    shapes = sizes.labels(graph.free_sizes, [t.shape for t in given])
    inputs = [_described(*each) for each in zip(graph.input_names, given, shapes, strict=True)]
    return Manifest(
        model=model,
        target=target.to_dict(),
        inputs=inputs,
        outputs=outputs,
        input_structure=structure.encode((tuple(graph.example.args), dict(graph.example.kwargs))),
        output_structure=structure.encode(_with_sizes(graph, result)),
        free_sizes=list(graph.free_sizes),
        files=listing(folder),
        options=dict(options or {}),
    )


def _with_sizes(graph: Graph, result: Any) -> Any:
    """What a model returned, with numbers that follow free sizes as such."""
    leaves, spec = pytree.tree_flatten(result)
    values: list[Any] = [node.meta.get("val") if isinstance(node, Node) else None for node in graph.returned]
    fakes = [node.meta["val"] for node in graph.inputs]
    found = [
        size_of(v, fakes, graph.free_sizes) if is_free(v) else leaf for v, leaf in zip(values, leaves, strict=True)
    ]
    return pytree.tree_unflatten(found, spec)


def _described(name: str, tensor: Tensor, shape: Sequence[int | str]) -> TensorSpec:
    """An input or output whose free sizes are names in `shape`."""
    free = tuple(s for s in shape if isinstance(s, str))
    return TensorSpec(name, dtype_name(tensor.dtype), tuple(None if isinstance(s, str) else s for s in shape), free)
