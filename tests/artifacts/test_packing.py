"""Files of packed weights: bit for bit what the simulated graph computes, and damage that is found."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from blocks import conv, images
from rewriting import apply, capture
from torch import nn

from graphopt.artifacts import packing
from graphopt.formats import BFLOAT16, FLOAT16_WITHOUT_SUBNORMALS, BlockFloat, Codebook, Format, LogFormat, NumberFormat
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.passes.quantization import LayerFormat, Quantize
from graphopt.targets import find
from graphopt.utils.errors import InputError

FORMATS: list[NumberFormat] = [
    LogFormat(8), LogFormat(5, per_channel=True), LogFormat(16), BlockFloat(8), BlockFloat(3, block=5), Codebook(4),
    Codebook(3, per_channel=True), BFLOAT16, FLOAT16_WITHOUT_SUBNORMALS, Format(8, per_channel=True), Format(4), Format(16),
    Format(6, symmetric=False), Format(7, signed=False), Format(8, power_of_two=True),
]  # fmt: skip


def quantized(format: NumberFormat, **options: LayerFormat) -> Graph:
    model = nn.Sequential(conv(3, 7), nn.ReLU(), conv(7, 7, groups=7), nn.Flatten(), nn.Linear(448, 5))
    graph = capture(model, images(2))
    apply(Quantize(find("x86"), [[images(2)]], estimator="minmax", weights=format, formats=options), graph)
    return graph


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_what_is_read_is_what_the_graph_computes_with(format: NumberFormat, tmp_path: Path) -> None:
    graph, path = quantized(format), tmp_path / "weights.packed"
    assert packing.write(graph, path) == ["0.weight", "2.weight", "4.weight"]
    found = packing.read(path)
    for layer in (layer for node in graph.calls() if (layer := Layer.of(node))):
        source, *arguments = (a if not hasattr(a, "op") else graph.tensor(a) for a in layer.weight.args)
        weight = found[str(layer.weight.args[0].target)]  # type: ignore[union-attr]
        assert torch.equal(weight.values, layer.weight.target(source, *arguments))  # type: ignore[operator]
        assert weight.quantizer.format == format
    codes = sum(weight.codes.numel() for weight in found.values())
    parameters = sum(p.nbytes for w in found.values() for p in w.quantizer.parameters)
    assert path.stat().st_size < codes * format.bits / 8 + parameters + 3000


def test_each_layer_has_its_own_format(tmp_path: Path) -> None:
    graph = quantized(LogFormat(8), **{"4": LayerFormat(weights=Codebook(2)), "2": None})  # type: ignore[arg-type]
    packing.write(graph, tmp_path / "w")
    found = packing.read(tmp_path / "w")
    assert {name: weight.quantizer.format for name, weight in found.items()} == {
        "0.weight": LogFormat(8),
        "4.weight": Codebook(2),
    }


@pytest.mark.parametrize("bits", range(2, 17))
def test_codes_of_any_width_come_back(bits: int) -> None:
    for signed in (True, False):
        low = -(2 ** (bits - 1)) if signed else 0
        codes = torch.randint(low, low + 2**bits, (101,), dtype=torch.int32)
        content = packing.pack_codes(codes, bits)
        assert len(content) == -(-101 * bits // 8)
        assert torch.equal(packing.unpack_codes(content, bits, 101, signed=signed), codes)
        stream = int.from_bytes(content, "little")  # the layout, read the slow way
        assert [stream >> (bits * place) & (2**bits - 1) for place in range(101)] == [
            c % 2**bits for c in codes.tolist()
        ]


def test_the_layout_is_the_one_in_the_documentation(tmp_path: Path) -> None:
    """Read by hand, with nothing but the head of the file's module."""
    graph, path = quantized(LogFormat(8)), tmp_path / "weights.packed"
    packing.write(graph, path)
    content = path.read_bytes()
    assert content[:8] == b"GRAPHOPT"
    length = struct.unpack("<Q", content[8:16])[0]
    assert (48 + length) % 64 == 0
    entry = json.loads(content[48 : 48 + length])["tensors"]["0.weight"]
    body = content[48 + length :]
    begin, end = entry["codes"]
    codes = torch.frombuffer(bytearray(body[begin:end]), dtype=torch.int8).reshape(entry["shape"]).double()
    (parameter,) = entry["parameters"]
    last = struct.unpack("<i", body[slice(*parameter["bytes"])])[0]
    values = torch.sign(codes) * 2.0 ** ((last + codes.abs() - 127) / entry["format"]["steps"])
    torch.testing.assert_close(values.float(), packing.read(path)["0.weight"].values, rtol=1e-6, atol=0)


def test_a_weight_of_two_layers_is_stored_once(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = conv(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(self.layer(x).relu())  # type: ignore[no-any-return]

    graph = capture(Twice(), images(2))
    apply(Quantize(find("x86"), [[images(2)]], estimator="minmax", weights=LogFormat(8)), graph)
    assert packing.write(graph, tmp_path / "w") == ["layer.weight"]


def test_every_flipped_byte_and_every_cut_is_found(tmp_path: Path) -> None:
    path = tmp_path / "weights.packed"
    packing.write(quantized(BlockFloat(4)), path)
    content = path.read_bytes()
    for place in [*range(60), *range(60, len(content), 97), len(content) - 1]:
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"weights\.packed (is damaged|is no file of packed weights)"):
            packing.read(path)
    for length in (0, 5, 20, 48, 100, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"is damaged|is no file of packed weights"):
            packing.read(path)


def test_files_that_lie_under_a_right_checksum_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.packed"
    packing.write(quantized(Codebook(4)), path)
    content = path.read_bytes()
    length = struct.unpack("<Q", content[8:16])[0]

    def rewritten(change: object) -> None:
        described = json.loads(content[48 : 48 + length])
        change(described)  # type: ignore[operator]
        head = json.dumps(described).encode()
        rest = head + content[48 + length :]
        path.write_bytes(packing.HEAD.pack(packing.MAGIC, len(head), packing.checksum(len(head), rest)) + rest)

    entry = "0.weight"
    for change in (
        lambda d: d["tensors"][entry].update(shape=[7, 3, 3, 4]),
        lambda d: d["tensors"][entry].update(codes=[0, 10**9]),
        lambda d: d["tensors"][entry]["format"].update(bits=5),
        lambda d: d["tensors"][entry].update(parameters=[]),
        lambda d: d["tensors"][entry]["parameters"][0].update(dtype="Tensor"),
        lambda d: d.pop("tensors"),
    ):
        rewritten(change)
        with pytest.raises(InputError, match="is damaged"):
            packing.read(path)
    rewritten(lambda d: d.update(version=2))
    with pytest.raises(InputError, match="layout 2, this graphopt reads packed weights up to layout 1; upgrade"):
        packing.read(path)


def test_what_cannot_be_written_or_read_is_said(tmp_path: Path) -> None:
    graph = capture(nn.Sequential(conv(3, 4)), images(2))
    with pytest.raises(InputError, match="no quantized weights to store; run Quantize first"):
        packing.write(graph, tmp_path / "w")
    with pytest.raises(InputError, match=r"cannot read .*missing: No such file"):
        packing.read(tmp_path / "missing")
    with pytest.raises(InputError, match=r"the folder .*nowhere does not exist"):
        packing.write(quantized(LogFormat(8)), tmp_path / "nowhere" / "w")
    (tmp_path / "w").write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(InputError, match="w is no file of packed weights"):
        packing.read(tmp_path / "w")
