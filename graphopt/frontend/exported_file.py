"""Files of `torch.export.save`, read so that nothing in them runs, whoever wrote them.

`torch.export.load` unpickles, evaluates and loads compiled libraries as its file says. So torch never sees the file: its entries
are read once and checked, each for what it is for, and written anew into an archive in memory, which is what torch loads.

    models/model.json                     exported_schema.py         serialized_exported_program.json  (torch up to 2.7)
    data/weights/weight_0 ...             bytes
    data/weights/..._config.json          exported_schema.py
    data/constants/tensor_0 ...           bytes
    data/sample_inputs/model.pt           tensors and plain values   serialized_..._inputs.pt, _state_dict.pt, _constants.pt

Everything else that torch would take is refused: libraries, objects of classes, pickles, weights in other places.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch._export.serde.serialize import _SERIALIZE_TO_TORCH_DTYPE
from torch.export import ExportedProgram

from graphopt.frontend import exported_schema
from graphopt.ir.storage import DESCRIPTION, is_program
from graphopt.utils import archive, json_data
from graphopt.utils.errors import InputError, first_line

NEW = {
    "note": re.compile(
        r"archive_format|archive_version|byteorder|version|\.data/\w+|\.format_version|\.storage_alignment"
    ),
    "program": re.compile(r"models/model\.json"),
    "table": re.compile(r"data/(weights/model_weights_config|constants/model_constants_config)\.json"),
    "bytes": re.compile(r"data/(weights/weight|constants/tensor)_\d+"),
    "values": re.compile(r"data/(weights|constants|sample_inputs)/model\.pt"),
    "text": re.compile(r"extra/.+"),
}
OLD = {
    "note": re.compile("version"),
    "program": re.compile(r"serialized_exported_program\.json"),
    "values": re.compile(r"serialized_(state_dict|constants)\.(pt|json)|serialized_example_inputs\.pt"),
    "text": re.compile(r"extra_files/.+"),
}
EXPANDED = 2**28  # bytes that a tensor may take beyond those in the file, where it repeats elements


def load_program(path: Path) -> ExportedProgram:
    """Read what `torch.export.save` wrote.

    Raises:
        InputError: the file is missing, damaged, something else, or holds what could run code or reach beyond the file.
    """
    entries = archive.read(path, "a saved graph")
    if DESCRIPTION in entries:
        raise InputError(f"{path} is a saved graph, not an exported program: use Graph.load(path)")
    if not is_program(entries):
        raise InputError(f"{path} is not a program saved by torch.export.save")
    try:
        copy = _verified(entries)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{path} holds what torch.export.save does not write ({first_line(error)[:200]}), and loading it could run code from "
            "the file; export the model here instead"
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.load(copy)
    except Exception as error:
        raise InputError(f"{path} cannot be read by torch.export.load: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)[:120]}"


def _verified(entries: dict[str, bytes]) -> io.BytesIO:
    """An archive of what is good of these entries."""
    old = "serialized_exported_program.json" in entries
    if not old:
        roots = {name.partition("/")[0] for name in entries}
        if len(roots) != 1:
            raise ValueError(f"entries in several folders: {', '.join(sorted(roots)[:3])}")
        entries = {name.partition("/")[2]: content for name, content in entries.items()}
    checked = {}
    for name, content in entries.items():
        kind = next((k for k, pattern in (OLD if old else NEW).items() if pattern.fullmatch(name)), None)
        if kind is None:
            raise ValueError(f"the entry {name[:100]!r}")
        if kind != "text":
            checked[name] = _entry(kind, name, content)
    for folder, table in (("weights", "model_weights_config.json"), ("constants", "model_constants_config.json")):
        if (found := checked.get(f"data/{folder}/{table}")) is not None:
            _check_payloads(json.loads(found), {n: len(c) for n, c in checked.items()}, f"data/{folder}/")
    return _written(checked, old)


def _entry(kind: str, name: str, content: bytes) -> bytes:
    if kind == "program":
        return json.dumps(exported_schema.program(json_data.parse(content))).encode()
    if kind == "table":
        return json.dumps(exported_schema.payloads(json_data.parse(content))).encode()
    if kind == "values":
        return _values(content, name)
    if kind == "note" and (len(content) > 100 or (name == "byteorder" and content != b"little")):
        raise ValueError(f"{name} of {content[:100]!r}")
    return content


def _written(entries: dict[str, bytes], old: bool) -> io.BytesIO:
    copy = io.BytesIO()
    if old:
        with zipfile.ZipFile(copy, "w") as packed:
            for name, content in entries.items():
                packed.writestr(name, content)
    else:
        writer = torch._C.PyTorchFileWriter(copy)
        for name, content in entries.items():
            if not NEW["note"].fullmatch(name) or name.startswith("archive_"):  # the writer adds the others itself
                writer.write_record(name, content, len(content))
        writer.write_end_of_file()
    copy.seek(0)
    return copy


# ---- Tensors --------------------------------------------------------------------------------------------------------


def _values(content: bytes, name: str) -> bytes:
    """What `torch.save` wrote, written anew: tensors and plain values in plain containers."""
    if not content:
        return content
    archive.read(io.BytesIO(content), "what torch.save writes", name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.load(io.BytesIO(content), weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(f"Python objects in {name}") from None
    for leaf in pytree.tree_leaves(found):
        if isinstance(leaf, Tensor):
            _check_tensor(leaf, name)
        elif not (leaf is None or type(leaf) in (bool, int, float, complex, str, torch.dtype, torch.device)):
            raise ValueError(f"a {type(leaf).__name__} in {name}")
    copy = io.BytesIO()
    torch.save(found, copy)
    return copy.getvalue()


def _check_tensor(tensor: Tensor, name: str) -> None:
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided or tensor.is_quantized:
        raise ValueError(f"a {type(tensor).__name__} in {name}")
    if tensor.numel() * tensor.itemsize > max(tensor.untyped_storage().nbytes(), EXPANDED):
        raise ValueError(f"a tensor of {tensor.numel()} elements in {name}")


def _check_payloads(table: Any, sizes: dict[str, int], folder: str) -> None:
    """Every tensor lies inside its bytes: torch checks some of this after taking the memory."""
    dtypes: dict[str, torch.dtype] = {}
    for name, payload in table["config"].items():
        path, meta = payload["path_name"], payload["tensor_meta"]
        dtype = _SERIALIZE_TO_TORCH_DTYPE[meta["dtype"]]
        shape, stride = ([s["as_int"] for s in meta[key]] for key in ("sizes", "strides"))
        offset, there = meta["storage_offset"]["as_int"], sizes[folder + path] // dtype.itemsize
        count = math.prod(shape)
        if len(shape) != len(stride) or min([offset, *shape, *stride]) < 0 or dtypes.setdefault(path, dtype) != dtype:
            raise ValueError(f"{name} of shape {shape} and strides {stride}")
        last = offset + sum((s - 1) * t for s, t in zip(shape, stride, strict=True))
        if (count and last >= there) or count * dtype.itemsize > max(sizes[folder + path], EXPANDED):
            raise ValueError(f"{name} of shape {shape} in {sizes[folder + path]} bytes")
