"""Saved graphs: the round trip, files that are no good, and that reading one runs no code."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from graphopt.ir.facts import LEFT
from graphopt.ir.graph import Graph
from graphopt.utils.errors import InputError

aten = torch.ops.aten

Pair = collections.namedtuple("Pair", "first second")


@dataclasses.dataclass
class Result:
    scores: Tensor
    extra: dict[str, Tensor]
    loss: Tensor | None = None


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
        self.layers.to(memory_format=torch.channels_last)
        self.fc = nn.Linear(4, 4)
        self.fc.bias.requires_grad_(False)
        self.head = nn.Linear(4, 4)
        self.head.weight = self.fc.weight
        self.register_buffer("table", torch.arange(4, dtype=torch.int8))
        self.register_buffer("factor", torch.tensor(0.5, dtype=torch.bfloat16))

    def forward(self, x: Tensor, flags: dict[str, Any], scale: float, *, mask: Tensor) -> Any:
        y = self.head(self.fc(self.layers(x).mean((2, 3)))) * scale + self.table * self.factor
        y = torch.where(mask, y, float("-inf"))
        return {"pair": Pair(y, y.to(torch.float64)), "result": Result(y * 2, {"a": y[:, :2]}), "count": 3}


def example(batch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    torch.manual_seed(batch)
    return (torch.randn(batch, 3, 5, 5), {"on": True, "way": "up"}, 1.5), {"mask": torch.rand(batch, 4) > 0.5}


@pytest.fixture
def graph() -> Graph:
    torch.manual_seed(0)
    args, kwargs = example(1)
    graph = Graph.capture(Model().eval(), args, kwargs)
    graph.notes.append("a note")
    return graph


def same(a: Graph, b: Graph, batch: int) -> None:
    args, kwargs = example(batch)
    with torch.no_grad():
        found, expected = a(*args, **kwargs), b(*args, **kwargs)
    assert pytree.tree_structure(found) == pytree.tree_structure(expected)
    for x, y in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
        assert torch.equal(x, y) if isinstance(y, Tensor) else x == y


@pytest.mark.thorough
def test_a_saved_graph_comes_back_the_same(graph: Graph, tmp_path: Path) -> None:
    graph.save(tmp_path / "graph.pt2")
    loaded = Graph.load(str(tmp_path / "graph.pt2"))
    assert str(loaded) == str(graph)
    for field in ("input_names", "output_names", "free_sizes", "notes", "training"):
        assert getattr(loaded, field) == getattr(graph, field)
    assert [graph.site(n) for n in graph.calls()] == [loaded.site(n) for n in loaded.calls()]
    assert {n: p.requires_grad for n, p in loaded.named_parameters()} == {
        n: p.requires_grad for n, p in graph.named_parameters()
    }
    assert [n for n, _ in loaded.named_buffers()] == [n for n, _ in graph.named_buffers()]
    for a, b in zip(loaded.state_dict().values(), graph.state_dict().values(), strict=True):
        assert torch.equal(a, b)
        assert (a.dtype, a.stride()) == (b.dtype, b.stride())
    for a, b in zip(loaded.example.tensors(), graph.example.tensors(), strict=True):
        assert torch.equal(a, b)
    assert loaded.dynamic_batch
    for batch in (1, 3):
        same(loaded, graph, batch)
    assert os.listdir(tmp_path) == ["graph.pt2"]


@pytest.mark.thorough
def test_a_loaded_graph_can_be_edited_trained_and_saved_again(graph: Graph, tmp_path: Path) -> None:
    graph.train().save(tmp_path / "a")
    loaded = Graph.load(tmp_path / "a")
    assert loaded.training
    assert "training=True" in str(loaded)
    args, kwargs = example(4)
    loaded(*args, **kwargs)["result"].extra["a"].nan_to_num(neginf=0).sum().backward()
    assert loaded.parameter(next(n for n in loaded.nodes if n.target == "fc.weight")).grad is not None
    loaded.eval()
    loaded.replace(loaded.calls(aten.relu.default)[0], loaded.calls(aten.batch_norm.default)[0])
    loaded.refresh()
    loaded.save(tmp_path / "a")
    same(Graph.load(tmp_path / "a"), loaded, 2)


def test_quantized_operators_and_int8_constants(tmp_path: Path) -> None:
    import torch.ao.quantization.fx._decomposed

    decomposed = torch.ops.quantized_decomposed
    graph = Graph.capture(nn.Linear(3, 2).eval(), torch.randn(2, 3))
    (layer,) = graph.calls()
    weight = graph.add_constant("weight_int8", torch.randint(-128, 127, (2, 3), dtype=torch.int8), before=layer)
    scale = graph.add_constant("scale", torch.rand(2), before=layer)
    zero = graph.add_constant("zero", torch.zeros(2, dtype=torch.int64), before=layer)
    target = decomposed.dequantize_per_channel.default
    layer.update_arg(1, graph.call(target, weight, scale, zero, 0, -128, 127, torch.int8, before=layer))
    graph.set_fact(layer, LEFT, "eight bits")
    graph.refresh()
    graph.save(tmp_path / "g")
    loaded = Graph.load(tmp_path / "g")
    assert str(loaded) == str(graph)
    assert loaded.fact(loaded.calls(aten.linear.default)[0], LEFT) == "eight bits"
    x = torch.randn(5, 3)
    assert torch.equal(loaded(x), graph(x))


def test_a_static_graph_stays_static(tmp_path: Path) -> None:
    Graph.capture(nn.Linear(3, 2).eval(), torch.randn(2, 3), dynamic_batch=False).save(tmp_path / "g")
    loaded = Graph.load(tmp_path / "g")
    assert not loaded.dynamic_batch
    with pytest.raises(InputError, match=r"must be f32\[2, 3\], got f32\[3, 3\]"):
        loaded(torch.randn(3, 3))


@pytest.mark.thorough
def test_a_process_that_lacks_the_classes_gets_namedtuples(graph: Graph, tmp_path: Path) -> None:
    graph.save(tmp_path / "g")
    script = f"""
import torch
from graphopt import Graph
graph = Graph.load({str(tmp_path / "g")!r})
out = graph(*graph.example.args, **graph.example.kwargs)
print(type(out["pair"]).__name__, out["result"].scores.shape, out["result"].extra["a"].shape, out["pair"].first.dtype)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "Pair torch.Size([1, 4]) torch.Size([1, 2]) torch.float32"


@pytest.mark.thorough
def test_an_interrupted_save_leaves_the_old_file(graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "g"
    graph.save(path)
    content = path.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InputError, match=r"cannot write .*: the disk is full"):
        graph.save(path)
    assert os.listdir(tmp_path) == ["g"]
    assert path.read_bytes() == content
    with pytest.raises(InputError, match="cannot write"):
        graph.save(tmp_path / "missing" / "g")


# ---- Files that are no good -----------------------------------------------------------------------------------------


def rewritten(path: Path, **changes: Any) -> None:
    """The archive with some keys of its description changed."""
    with zipfile.ZipFile(path) as archive:
        content = {n: archive.read(n) for n in archive.namelist()}
    content["graph.json"] = json.dumps({**json.loads(content["graph.json"]), **changes}).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def test_bad_files_are_named_in_one_sentence(graph: Graph, tmp_path: Path) -> None:
    path = tmp_path / "g"

    def refused(match: str) -> None:
        with pytest.raises(InputError, match=match) as caught:
            Graph.load(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)

    refused("no such file")
    path.write_bytes(b"")
    refused("is not a saved graph, or is damaged")
    path.write_text("hello")
    refused("is not a saved graph, or is damaged")
    graph.save(path)
    good = path.read_bytes()
    for end in (10, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:end])
        refused("damaged")
    middle = good.index(b"tensors/0") + 60
    path.write_bytes(good[:middle] + bytes([good[middle] ^ 255]) + good[middle + 1 :])
    refused("damaged")
    path.write_bytes(good)
    rewritten(path, version=99)
    refused("saved by a newer graphopt .format 99, this one reads 4.; upgrade graphopt")
    path.write_bytes(good)
    rewritten(path, nodes=[{"op": "call_function"}])
    refused("damaged .KeyError")
    path.write_bytes(good)
    rewritten(path, format="something else")
    refused("damaged")
    torch.save({}, path)
    refused("is not a saved graph")
    torch.export.save(torch.export.export(nn.Linear(2, 2).eval(), (torch.randn(2, 2),)), path)
    refused(r"is an exported program: use Graph.capture\(path\)")
    path.unlink()
    path.mkdir()
    refused("no such file")


def test_a_file_cannot_name_arbitrary_functions(graph: Graph, tmp_path: Path) -> None:
    graph.save(tmp_path / "g")
    for target in (
        "os.system",
        "operator.methodcaller",
        "builtins.eval",
        "aten::from_file.default",
        "nowhere::op.default",
    ):
        nodes = [{"op": "call_function", "name": "a", "target": target, "args": ["true"], "kwargs": {}}]
        rewritten(tmp_path / "g", nodes=nodes)
        with pytest.raises(InputError):
            Graph.load(tmp_path / "g")


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("evil",)


def test_exported_programs_with_pickled_objects_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    program = torch.export.export(nn.Linear(2, 2).eval(), (torch.randn(2, 2),))
    torch.export.save(program, "good.pt2")
    Graph.capture("good.pt2")
    with zipfile.ZipFile("good.pt2") as archive:
        content = {n: archive.read(n) for n in archive.namelist()}
    torch.save(Evil(), "evil.pt")
    sample = next(n for n in content if n.endswith("sample_inputs/model.pt"))
    config = next(n for n in content if n.endswith("constants_config.json"))
    model = next(n for n in content if n.endswith("model.json"))
    opaque = {
        "config": {"a": {"path_name": "opaque_obj_0", "use_pickle": True, "is_param": False, "tensor_meta": None}}
    }
    attacks = {
        sample: Path("evil.pt").read_bytes(),
        config: json.dumps(opaque).encode(),
        model: content[model].replace(
            b'"range_constraints": {', b'"x": {"expr_str": "__import__(\'os\')"}, "range_constraints": {'
        ),
    }
    for name, attack in attacks.items():
        assert attack != content[name]
        with zipfile.ZipFile("bad.pt2", "w") as archive:
            for member, data in {**content, name: attack}.items():
                archive.writestr(member, data)
        with pytest.raises(InputError, match="could run code from the file"):
            Graph.capture("bad.pt2")
    assert not Path("evil").exists()


def test_other_files_are_no_programs(graph: Graph, tmp_path: Path) -> None:
    graph.save(tmp_path / "g")
    with pytest.raises(InputError, match=r"use Graph.load\(path\)"):
        Graph.capture(tmp_path / "g")
    torch.save({}, tmp_path / "w")
    with pytest.raises(InputError, match=r"not a program saved by torch.export.save"):
        Graph.capture(tmp_path / "w")
    with pytest.raises(InputError, match="no such file"):
        Graph.capture(tmp_path / "none.pt2")
