"""Graphs in files: one zip archive with a JSON description and the raw bytes of every tensor.

    graph.json     nodes in order and what is known about them, constants, structure of inputs and outputs, names, notes, example
    tensors/0 ...  bytes, row by row; type and shape stand in graph.json

Reading one runs nothing that the file holds, whoever wrote it: nothing is pickled, the archive is read within bounds
(`archive.py`), and the description is checked (`schema.py`) before the graph is built, whose operators are those of
`operators.py`; nor may a call of it take more than goes with the file's size (`bounds.py`). The archive appears whole or not at
all (`graphopt.utils.files`).
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from graphopt.ir import encoding, operators, raw_tensors, schema, stored_facts
from graphopt.ir.bounds import check_bounds
from graphopt.ir.checkpoint import Entry
from graphopt.ir.editing import register
from graphopt.ir.graph import Example, Graph
from graphopt.ir.module import LazyModule
from graphopt.ir.shapes import fake_inputs
from graphopt.ir.sizes import BATCH, FreeSize, Place
from graphopt.utils import archive, json_data
from graphopt.utils.errors import InputError, first_line
from graphopt.utils.files import write_atomically

FORMAT = "graphopt graph"
VERSION = 4
DESCRIPTION = "graph.json"


def save(graph: Graph, path: Path, without: Collection[str] = (), *, reference: bool = True) -> None:
    """See `Graph.save`.

    Args:
        without: constants by name whose elements are kept elsewhere: `load` takes them from its caller.
    """
    encoder = encoding.Encoder()
    description = json.dumps(_describe(graph, encoder, without, reference), allow_nan=False)

    def write(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as packed:
            packed.writestr(DESCRIPTION, description)
            for index, tensor in enumerate(encoder.tensors):
                packed.writestr(f"tensors/{index}", raw_tensors.content(tensor))

    write_atomically(path, write)


def load(path: Path, constants: Mapping[str, Tensor] | None = None) -> Graph:
    """See `Graph.load`; `constants` are those that were left out."""
    content = archive.read(path, "a saved graph")
    if DESCRIPTION not in content:
        hint = "; it is an exported program: use Graph.capture(path)" if is_program(content) else ""
        raise InputError(f"{path} is not a saved graph{hint}")
    try:
        data = json_data.parse(content.pop(DESCRIPTION))
        if data["format"] != FORMAT:
            raise ValueError(data["format"])
        if data["version"] > VERSION:
            raise InputError(
                f"{path} was saved by a newer graphopt (format {data['version']}, this one reads {VERSION}); upgrade graphopt"
            )
        schema.check(data)
        names = [f"tensors/{index}" for index in range(len(data["tensors"]))]
        if content.keys() != set(names):
            raise ValueError("the tensors described are not those there")
        tensors = [raw_tensors.read(content.pop(n), d) for n, d in zip(names, data["tensors"], strict=True)]
        graph = _restore(data, tensors, constants or {})
        held = {t.data_ptr(): t.numel() * t.element_size() for t in [*tensors, *(constants or {}).values()]}
        check_bounds(graph, sum(held.values()))
        return graph
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path} is damaged ({_short(error)}); save the graph again") from error


def is_program(names: Collection[str]) -> bool:
    """Whether an archive with these entries is one of `torch.export.save`."""
    return any(n.endswith(("archive_format", "serialized_exported_program.json")) for n in names)


# ---- A graph as data ------------------------------------------------------------------------------------------------


def _describe(graph: Graph, encoder: encoding.Encoder, without: Collection[str], reference: bool) -> dict[str, Any]:
    info = graph.module.graph._codegen.pytree_info  # type: ignore[attr-defined]
    example = (graph.example.args, dict(graph.example.kwargs))
    leaves, structure = pytree.tree_flatten(example)
    constants = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            value = graph.parameter(node)
            kind = "parameter" if isinstance(value, nn.Parameter) else "buffer"
            constants[str(node.target)] = {
                "tensor": None if node.target in without else encoder.tensor(value),
                "kind": kind,
                "requires_grad": value.requires_grad,
            }
    data = {
        "format": FORMAT,
        "version": VERSION,
        "input_names": graph.input_names,
        "output_names": graph.output_names,
        "free_sizes": [size.to_dict() for size in graph.free_sizes],
        "notes": graph.notes,
        "checkpoint": {name: [[e.name, e.transposed] for e in found] for name, found in graph.checkpoint.items()},
        "training": graph.training,
        "arguments": list(info.orig_args),
        "inputs": encoding.spec(info.in_spec),
        "outputs": encoding.spec(info.out_spec),
        "example": {"structure": encoding.spec(structure), "leaves": [encoder.value(leaf) for leaf in leaves]},
        "constants": constants,
        "nodes": [_node(node, encoder, reference) for node in graph.nodes],
    }
    data["tensors"] = [raw_tensors.describe(tensor) for tensor in encoder.tensors]
    return data


def _node(node: fx.Node, encoder: encoding.Encoder, reference: bool) -> dict[str, Any]:
    called = node.op == "call_function"
    data: dict[str, Any] = {
        "op": node.op,
        "name": node.name,
        "target": encoding.operator_name(node.target) if called else str(node.target),
        "args": [encoder.value(a) for a in node.args],
        "kwargs": {k: encoder.value(v) for k, v in node.kwargs.items()},
    }
    if stack := node.meta.get("nn_module_stack"):
        data["modules"] = [[str(k), str(p), c if isinstance(c, str) else c.__qualname__] for k, (p, c) in stack.items()]
    if facts := stored_facts.encode(node, encoder, reference=reference):
        data["meta"] = facts
    return data


def _restore(data: dict[str, Any], tensors: list[Tensor], elsewhere: Mapping[str, Tensor]) -> Graph:
    decoder = encoding.Decoder(tensors)
    root = nn.Module()
    known: dict[Any, Tensor] = {}
    for name, constant in data["constants"].items():
        index = constant["tensor"]
        value = elsewhere[name] if index is None else tensors[index]
        key = name if index is None else index
        if constant["kind"] == "parameter" and key not in known:
            known[key] = nn.Parameter(value, constant["requires_grad"])
        register(root, name, known.setdefault(key, value))
    graph = fx.Graph()
    for item in data["nodes"]:
        target = operators.find(item["target"]) if item["op"] == "call_function" else item["target"]
        args = tuple(decoder.value(a) for a in item["args"])
        kwargs = {k: decoder.value(v) for k, v in item["kwargs"].items()}
        node = graph.create_node(item["op"], target, args, kwargs, name=item["name"])
        node.meta.update(stored_facts.decode(item.get("meta", {}), decoder))
        if "modules" in item:
            node.meta["nn_module_stack"] = {key: (path, kind) for key, path, kind in item["modules"]}
        decoder.nodes[item["name"]] = node
    codegen = fx.graph._PyTreeCodeGen(
        fx.graph._PyTreeInfo(data["arguments"], encoding.spec_of(data["inputs"]), encoding.spec_of(data["outputs"]))
    )
    graph.set_codegen(codegen)
    leaves = [decoder.value(leaf) for leaf in data["example"]["leaves"]]
    args, kwargs = pytree.tree_unflatten(leaves, encoding.spec_of(data["example"]["structure"]))
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    free_sizes = _free_sizes(data, leaves)
    for node, value in zip(placeholders, fake_inputs(leaves, free_sizes), strict=True):
        node.meta["val"] = value
    module = LazyModule(root, graph)
    module.training = data["training"]
    loaded = Graph(
        module,
        Example(args, kwargs),
        input_names=data["input_names"],
        output_names=data["output_names"],
        free_sizes=free_sizes,
        notes=data["notes"],
        checkpoint={name: tuple(Entry(*e) for e in found) for name, found in data.get("checkpoint", {}).items()},
    )
    loaded.refresh()
    return loaded


def _free_sizes(data: dict[str, Any], leaves: list[Any]) -> list[FreeSize]:
    """Those of a graph; until format 3, a free first dimension of some inputs."""
    if "free_sizes" in data:
        return [FreeSize.from_dict(size) for size in data["free_sizes"]]
    tensors = [free for free, leaf in zip(data["batched"], leaves, strict=True) if isinstance(leaf, Tensor)]
    places = tuple(Place(index, 0) for index, free in enumerate(tensors) if free)
    return [FreeSize(BATCH, places)] if places else []


def _short(error: BaseException) -> str:
    line = first_line(error, "")[:120]
    return f"{type(error).__name__}: {line}" if line != type(error).__name__ else line
