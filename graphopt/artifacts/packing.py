"""Quantized weights in a file: packed codes with their parameters, for devices whose formats no ONNX operator has.

    write(graph, "weights.packed")
    for name, weight in read("weights.packed").items():
        weight.codes, weight.quantizer.format, weight.quantizer.parameters
        weight.values                    what the simulated graph computes with, bit for bit

Layout, all integers little-endian:

    bytes 0-7       "GRAPHOPT"
    bytes 8-15      length of the description, u64
    bytes 16-47     SHA-256 of everything else: bytes 0-15, then from byte 48 on
    from byte 48    the description, JSON, with spaces behind it so that what follows begins at a multiple of 64:
                    {"kind": "packed weights", "version": 1,
                     "tensors": {name: {"format": {"kind": "log", "bits": 8, ...}, "axis": 0, "shape": [out, in, 3, 3],
                                        "codes": [begin, end],
                                        "parameters": [{"dtype": "int32", "shape": [out], "bytes": [begin, end]}]}}}
    then            the bytes; begin and end count from here, begins are multiples of 64

Codes stand in the tensor's row-major order, `bits` of the format to each, the first in the lowest bits of the first byte;
negative ones in two's complement. What codes and parameters mean, the heads of `graphopt/formats/*.py` say. Names are those of
the model's parameters. Nothing in the file is executed when it is read; it is written whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from graphopt.coding.pieces import Place
from graphopt.formats import Quantizer, from_json, in_blocks, to_json
from graphopt.ir import raw_tensors
from graphopt.ir.calls import operand
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.quantizers import is_quantizer, is_uniform, quantizer_of
from graphopt.utils import json_data
from graphopt.utils.errors import InputError
from graphopt.utils.files import write_atomically

T = TypeVar("T")

MAGIC, KIND, VERSION, ALIGNMENT = b"GRAPHOPT", "packed weights", 1, 64
HEAD = struct.Struct("<8sQ32s")  # magic, length of the description, checksum


@dataclass(frozen=True, eq=False)  # tensors have no equality that is a bool
class PackedWeight:
    """Codes, int32, of the weight's shape, and what they stand for."""

    codes: Tensor
    quantizer: Quantizer

    @property
    def values(self) -> Tensor:
        """The rounded weight, float32."""
        return self.quantizer.dequantize(self.codes)


# ---- Codes as bits --------------------------------------------------------------------------------------------------


def pack_codes(codes: Tensor, bits: int) -> bytes:
    """So many bits of each code, one after another from the lowest bit of the first byte."""
    words = codes.reshape(-1).numpy().astype("<i4").view(np.uint8).reshape(-1, 4)
    each = np.unpackbits(words, axis=1, bitorder="little")[:, :bits]
    return np.packbits(each.reshape(-1), bitorder="little").tobytes()


def unpack_codes(content: bytes, bits: int, count: int, *, signed: bool) -> Tensor:
    """The way back, int32 [count]."""
    each = np.unpackbits(np.frombuffer(content, np.uint8), count=count * bits, bitorder="little").reshape(count, bits)
    filler = np.repeat(each[:, -1:] if signed else np.zeros_like(each[:, :1]), 32 - bits, axis=1)
    words = np.packbits(np.concatenate([each, filler], axis=1), axis=1, bitorder="little")
    return torch.from_numpy(words.view("<i4").reshape(-1).astype(np.int32))


# ---- Writing --------------------------------------------------------------------------------------------------------


def write(graph: Graph, path: str | Path) -> list[str]:
    """Store the codes of all weights that a simulated graph rounds, in whatever format.

    Returns:
        Their names, in execution order. (Weights with a scale per block of `QuantizeWeights` belong to ONNX Runtime's artifact.)

    Raises:
        InputError: there are none; or the file cannot be written, and then what was there before still is.
    """
    weights = packed_weights(graph)
    if not weights:
        raise InputError(
            "the graph has no quantized weights to store; run Quantize first, and write the graph before it is deployed"
        )
    body = bytearray()

    def put(content: bytes) -> list[int]:
        body.extend(bytes(-len(body) % ALIGNMENT))
        begin = len(body)
        body.extend(content)
        return [begin, len(body)]

    tensors = {}
    for name, weight in weights.items():
        format = weight.quantizer.format
        tensors[name] = {
            "format": to_json(format),
            "axis": weight.quantizer.axis,
            "shape": list(weight.codes.shape),
            "codes": put(pack_codes(weight.codes, format.bits)),
            "parameters": [
                {**raw_tensors.describe(p.contiguous()), "bytes": put(raw_tensors.content(p))}
                for p in weight.quantizer.parameters
            ],
        }
    described = json.dumps({"kind": KIND, "version": VERSION, "tensors": tensors}, allow_nan=False).encode()
    described += b" " * (-(HEAD.size + len(described)) % ALIGNMENT)
    rest = described + bytes(body)
    write_atomically(path, HEAD.pack(MAGIC, len(described), checksum(len(described), rest)) + rest)
    return list(tensors)


def packed_weights(graph: Graph) -> dict[str, PackedWeight]:
    """The quantized weights of a simulated graph by name. One that several layers round alike is there once, else under names
    with a number."""
    found: dict[str, PackedWeight] = {}
    for layer in (layer for node in graph.calls() if (layer := Layer.of(node))):
        node = layer.weight
        if not is_quantizer(node) or (is_uniform(node) and in_blocks(node)) or not graph.is_constant(node.args[0]):
            continue
        quantizer = quantizer_of(graph, node)
        weight = PackedWeight(quantizer.quantize(graph.tensor(operand(node))), quantizer)
        name, number = str(node.args[0].target), 1  # type: ignore[union-attr]
        candidate = name
        while candidate in found and not _same(found[candidate], weight):
            number += 1
            candidate = f"{name}_{number}"
        found[candidate] = weight
    return found


def checksum(length: int, rest: bytes) -> bytes:
    """Of the whole file but the checksum itself."""
    return hashlib.sha256(MAGIC + struct.pack("<Q", length) + rest).digest()


def _same(one: PackedWeight, other: PackedWeight) -> bool:
    return one.quantizer.format == other.quantizer.format and all(
        torch.equal(a, b)
        for a, b in zip((one.codes, *one.quantizer.parameters), (other.codes, *other.quantizer.parameters), strict=True)
    )


# ---- Reading --------------------------------------------------------------------------------------------------------


def read(path: str | Path) -> dict[str, PackedWeight]:
    """What `write` stored, by name.

    Raises:
        InputError: no such file, another kind of file, one of a newer graphopt, or a damaged one.
    """
    return _read(path, lambda tensors, body, _: {name: _weight(tensor, body) for name, tensor in tensors.items()})


def places(path: str | Path) -> list[Place]:
    """Where codes and parameters lie in the file, for entropy coding.

    Raises:
        InputError: as `read`.
    """

    def found(tensors: dict[str, Any], body: bytes, first: int) -> list[Place]:
        listed = []
        for tensor in tensors.values():
            begin, end = tensor["codes"]
            bits = from_json(tensor["format"]).bits
            listed.append(Place(first + begin, first + end, bits // 8 if bits % 8 == 0 else 1, bits))
            for each in tensor["parameters"]:
                width = getattr(torch, each["dtype"]).itemsize
                listed.append(Place(first + each["bytes"][0], first + each["bytes"][1], width))
        return listed

    return _read(path, found)


def _read(path: str | Path, take: Callable[[dict[str, Any], bytes, int], T]) -> T:
    """What `take` makes of the description of tensors, the bytes behind it, and where in the file these begin."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    if not content.startswith(MAGIC):
        raise InputError(f"{path} is no file of packed weights: it does not begin with {MAGIC.decode()}")
    _, length, found = HEAD.unpack_from(content.ljust(HEAD.size, b"\0"))
    rest = content[HEAD.size :]
    if found != checksum(length, rest):
        raise InputError(f"{path} is damaged (its checksum does not fit); write it again")
    try:
        described = json_data.parse(rest[:length])
        kind, version = described["kind"], described["version"]
        if kind == KIND and version <= VERSION:
            return take(described["tensors"], rest[length:], HEAD.size + length)
    except Exception as error:  # of many kinds: formats and parameters meet whatever numbers there are
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error}); write it again") from error
    raise InputError(
        f"{path} holds {kind} in layout {version}, this graphopt reads {KIND} up to layout {VERSION}; upgrade graphopt"
    )


def _weight(described: dict[str, Any], body: bytes) -> PackedWeight:
    format, shape = from_json(described["format"]), described["shape"]
    if not raw_tensors.are_sizes(shape) or not 1 <= format.bits <= 32 or type(described["axis"]) is not int:
        raise ValueError(f"codes of shape {str(shape)[:80]} and {format.bits} bits")
    count, signed = math.prod(shape), format.code_range[0] < 0
    content = _part(body, described["codes"])
    if len(content) != -(-count * format.bits // 8):
        raise ValueError(f"{count} codes of {format.bits} bits do not take {len(content)} bytes")
    codes = unpack_codes(content, format.bits, count, signed=signed).reshape(shape)
    parameters = tuple(_parameter(each, body) for each in described["parameters"])
    weight = PackedWeight(codes, Quantizer(format, parameters, described["axis"]))
    if weight.values.shape != codes.shape:
        raise ValueError("parameters that do not fit the codes")
    return weight


def _parameter(described: dict[str, Any], body: bytes) -> Tensor:
    return raw_tensors.read(_part(body, described["bytes"]), {k: v for k, v in described.items() if k != "bytes"})


def _part(body: bytes, place: Any) -> bytes:
    begin, end = place
    if type(begin) is not int or type(end) is not int or not 0 <= begin <= end <= len(body):
        raise ValueError(f"bytes from {begin} to {end} of {len(body)}")
    return body[begin:end]
