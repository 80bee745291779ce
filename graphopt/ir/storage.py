"""Graphs in files: one zip archive with a JSON description and the raw bytes of every tensor.

    graph.json     nodes in order, constants, nested structure of inputs and outputs, names, notes, example
    tensors/0 ...  bytes, row by row; type and shape stand in graph.json

Nothing in it is pickled, so a file from an untrusted source can be looked at without running what it holds. (The format
of `torch.export.save` can hold pickles that `torch.export.load` runs; `load_program` refuses such files.) The archive
is written under a temporary name and moved into place, so a crash leaves the old file or none.
"""

from __future__ import annotations

import ast
import io
import json
import math
import os
import re
import secrets
import warnings
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from graphopt.ir import encoding
from graphopt.ir.graph import Example, Graph
from graphopt.ir.shapes import batched, fake_inputs
from graphopt.utils.errors import InputError

FORMAT = "graphopt graph"
VERSION = 1
# What torch keeps in a node's meta; everything else there belongs to passes and is saved where it is plain data.
TORCH_META = {
    "val",
    "tensor_meta",
    "from_node",
    "seq_nr",
    "torch_fn",
    "stack_trace",
    "nn_module_stack",
    "source_fn_stack",
}


def save(graph: Graph, path: Path, without: Collection[str] = ()) -> None:
    """See `Graph.save`.

    Args:
        without: constants by name whose elements are kept elsewhere: `load` takes them from its caller.
    """
    encoder = encoding.Encoder()
    description = json.dumps(_describe(graph, encoder, without), allow_nan=False)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                archive.writestr("graph.json", description)
                for index, tensor in enumerate(encoder.tensors):
                    archive.writestr(f"tensors/{index}", _bytes(tensor))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path, constants: Mapping[str, Tensor] | None = None) -> Graph:
    """See `Graph.load`; `constants` are those that were left out."""
    with _archive(path) as archive:
        if "graph.json" not in archive.namelist():
            hint = "; it is an exported program: use Graph.capture(path)" if _is_program(archive) else ""
            raise InputError(f"{path} is not a saved graph{hint}")
        try:
            data = json.loads(archive.read("graph.json"))
            if data["format"] != FORMAT:
                raise ValueError(data["format"])
            if data["version"] > VERSION:
                raise InputError(
                    f"{path} was saved by a newer graphopt (format {data['version']}, this one reads {VERSION}); "
                    "upgrade graphopt"
                )
            tensors = [_tensor(archive.read(f"tensors/{i}"), meta) for i, meta in enumerate(data["tensors"])]
            return _restore(data, tensors, constants or {})
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{path} is damaged ({_short(error)}); save the graph again") from error


# ---- A graph as data ------------------------------------------------------------------------------------------------


def _describe(graph: Graph, encoder: encoding.Encoder, without: Collection[str]) -> dict[str, Any]:
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
        "dynamic_batch": graph.dynamic_batch,
        "batched": batched([n.meta["val"] for n in graph.nodes if n.op == "placeholder"]),
        "notes": graph.notes,
        "training": graph.training,
        "arguments": list(info.orig_args),
        "inputs": encoding.spec(info.in_spec),
        "outputs": encoding.spec(info.out_spec),
        "example": {"structure": encoding.spec(structure), "leaves": [encoder.value(leaf) for leaf in leaves]},
        "constants": constants,
        "nodes": [_node(node, encoder) for node in graph.nodes],
    }
    data["tensors"] = [_type(tensor) for tensor in encoder.tensors]
    return data


def _node(node: fx.Node, encoder: encoding.Encoder) -> dict[str, Any]:
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
    if meta := {k: v for k, v in node.meta.items() if k not in TORCH_META and _is_plain(v)}:
        data["meta"] = meta
    return data


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, bool, int)) or (isinstance(value, float) and math.isfinite(value))


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
        _register(root, name, known.setdefault(key, value))
    graph = fx.Graph()
    for item in data["nodes"]:
        target = encoding.operator_of(item["target"]) if item["op"] == "call_function" else item["target"]
        args = tuple(decoder.value(a) for a in item["args"])
        kwargs = {k: decoder.value(v) for k, v in item["kwargs"].items()}
        node = graph.create_node(item["op"], target, args, kwargs, name=item["name"])
        node.meta.update(item.get("meta", {}))
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
    for node, value in zip(placeholders, fake_inputs(leaves, data["batched"]), strict=True):
        node.meta["val"] = value
    module = fx.GraphModule(root, graph)
    module.training = data["training"]
    loaded = Graph(
        module,
        Example(args, kwargs),
        input_names=data["input_names"],
        output_names=data["output_names"],
        dynamic_batch=data["dynamic_batch"],
        notes=data["notes"],
    )
    loaded.refresh()
    return loaded


def _register(root: nn.Module, name: str, value: Tensor) -> None:
    *path, leaf = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root._modules[part]  # type: ignore[assignment]
    if isinstance(value, nn.Parameter):
        root.register_parameter(leaf, value)
    else:
        root.register_buffer(leaf, value)


# ---- Tensors --------------------------------------------------------------------------------------------------------


def _type(tensor: Tensor) -> dict[str, Any]:
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise InputError(f"a {tensor.layout} tensor of type {tensor.dtype} cannot be saved")
    described: dict[str, Any] = {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
    if not tensor.is_contiguous() and 0 not in tensor.stride():  # channels last, transposed: kernels may choose by it
        described["stride"] = list(torch.empty_like(tensor).stride())
    return described


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _tensor(content: bytes, described: dict[str, Any]) -> Tensor:
    dtype, shape = encoding.enum("dtype", described["dtype"]), described["shape"]
    if not content:
        return torch.empty(shape, dtype=dtype)
    tensor = torch.frombuffer(bytearray(content), dtype=dtype).reshape(shape)
    if "stride" in described:
        return torch.empty_strided(shape, described["stride"], dtype=dtype).copy_(tensor)
    return tensor


# ---- Archives, and torch's own format -------------------------------------------------------------------------------


def _archive(path: Path) -> zipfile.ZipFile:
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    try:
        archive = zipfile.ZipFile(path)
        damaged = archive.testzip()
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{path} is not a saved graph, or is damaged ({_short(error)})") from error
    if damaged is not None:
        archive.close()
        raise InputError(f"{path} is damaged (checksum of {damaged}); save the graph again")
    return archive


def _is_program(archive: zipfile.ZipFile) -> bool:
    return any(n.endswith(("archive_format", "serialized_exported_program.json")) for n in archive.namelist())


def load_program(path: Path) -> ExportedProgram:
    """Read what `torch.export.save` wrote, provided reading it runs no code from the file.

    Raises:
        InputError: the file is missing, damaged, something else, or holds pickled objects.
    """
    with _archive(path) as archive:
        if "graph.json" in archive.namelist():
            raise InputError(f"{path} is a saved graph, not an exported program: use Graph.load(path)")
        if not _is_program(archive):
            raise InputError(f"{path} is not a program saved by torch.export.save")
        if (danger := next(_pickles(archive), None)) is not None:
            raise InputError(
                f"{path} holds {danger}, and loading it could run code from the file; export the model here instead"
            )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.load(path)
    except Exception as error:
        raise InputError(f"{path} cannot be read by torch.export.load: {_short(error)}") from error


def _pickles(archive: zipfile.ZipFile) -> Iterator[str]:
    """What in the archive `torch.export.load` would unpickle without restrictions, or evaluate."""
    for name in archive.namelist():
        if name.endswith((".pt", ".pkl", ".pickle")):
            content = archive.read(name)
            try:
                torch.load(io.BytesIO(content), weights_only=True)
            except Exception:
                if content:
                    yield f"Python objects in {name}"
        elif name.endswith(".json"):
            yield from _dangers(json.loads(archive.read(name)), name)


def _dangers(data: Any, name: str) -> Iterator[str]:
    if isinstance(data, dict):
        if data.get("use_pickle"):
            yield f"a pickled object ({data.get('path_name')})"
        # Sizes are symbolic expressions, which are parsed by evaluating them.
        if not _is_size(str(data.get("expr_str", "0"))):
            yield f"an odd expression in {name}"
        for value in data.values():
            yield from _dangers(value, name)
    elif isinstance(data, list):
        for value in data:
            yield from _dangers(value, name)


def _is_size(expression: str) -> bool:
    """Whether a text is arithmetic on sizes, such as Mul(Integer(2), Symbol('s0', integer=True)), and nothing else."""
    try:
        tree = ast.parse(expression, mode="eval")
    except (SyntaxError, ValueError):
        return False
    strings = {id(n) for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if not (isinstance(node.func, ast.Name) and re.fullmatch(r"[A-Z]\w+", node.func.id)):
                return False
            if node.func.id == "Symbol" and isinstance(node.args[0], ast.Constant):
                strings.discard(id(node.args[0]))
        elif isinstance(node, ast.Name):
            if not re.fullmatch(r"[A-Z]\w+|[a-z]{1,4}\d+", node.id):
                return False
        elif not isinstance(node, (*_ARITHMETIC, ast.Constant, ast.keyword, ast.Expression)):
            return False
    return not strings


_ARITHMETIC = (ast.BinOp, ast.UnaryOp, ast.Compare, ast.operator, ast.unaryop, ast.cmpop, ast.expr_context)


def _short(error: BaseException) -> str:
    line = next((part.strip() for part in str(error).splitlines() if part.strip()), "")
    return f"{type(error).__name__}: {line[:120]}" if line else type(error).__name__
