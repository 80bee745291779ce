"""Saved graphs that are malformed, or huge once they run, are refused before they are built."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import (
    Change,
    as_json,
    entries,
    write,
)
from rewriting import Model
from torch import nn

from graphopt.ir import bounds
from graphopt.ir.graph import Graph
from graphopt.utils.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore")


def put(value: Any, *path: Any) -> Change:
    def change(data: Any) -> None:
        for step in path[:-1]:
            data = data[step]
        data[path[-1]] = value

    return change


def first_call(data: Any) -> Any:
    return next(n for n in data["nodes"] if n["op"] == "call_function")


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


MALFORMED: dict[str, Change] = {
    "a tensor of 10^12 elements": put([10**6, 10**6], "tensors", 0, "shape"),
    "sizes that multiply to fewer by overflow": put([2**32, 2**32], "tensors", 0, "shape"),
    "negative sizes": put([-4, -4], "tensors", 0, "shape"),
    "strides beyond the bytes": put([10**9, 1], "tensors", 0, "stride"),
    "overlapping strides": put([0, 1], "tensors", 0, "stride"),
    "strides of another rank": put([1], "tensors", 0, "stride"),
    "a type that is no type": put("save", "tensors", 0, "dtype"),
    "a quantized type": put("qint8", "tensors", 0, "dtype"),
    "another key": put(1, "tensors", 0, "storage"),
    "a tensor that is not there": put({"tensor": 99}, "example", "leaves", 0),
    "a negative index": put({"tensor": -1}, "example", "leaves", 0),
    "a truth value as index": put({"tensor": True}, "example", "leaves", 0),
    "two keys in one value": lambda d: first_call(d).update(args=[{"node": "x", "tensor": 0}]),
    "no key in a value": lambda d: first_call(d).update(args=[{}]),
    "an unknown kind of value": lambda d: first_call(d).update(args=[{"eval": "1"}]),
    "a dtype that is a function": lambda d: first_call(d).update(args=[{"dtype": "load"}]),
    "a value of a later node": lambda d: first_call(d).update(args=[{"node": "relu"}]),
    "nesting without end": lambda d: first_call(d).update(args=[nested(90)]),
    "a default of an input": lambda d: d["nodes"][0].update(args=["x"]),
    "a call of a method": lambda d: first_call(d).update(op="call_method", target="numpy"),
    "a call of a module": lambda d: first_call(d).update(op="call_module", target="body"),
    "a constant that is none": lambda d: d["nodes"].insert(
        0, {"op": "get_attr", "name": "a", "target": "_modules", "args": [], "kwargs": {}}
    ),
    "two nodes of one name": lambda d: d["nodes"][1].update(name=d["nodes"][0]["name"]),
    "no output": lambda d: d["nodes"].pop(),
    "meta of torch's own": lambda d: d["nodes"][0].update(meta={"stack_trace": "x"}),
    **{
        f"a fact that is {what}": lambda d, facts=facts: d["nodes"][1].update(meta=facts)  # type: ignore[misc]
        for what, facts in {
            "unknown": {"anything": 1},
            "no name": {"a b": 1},
            "torch's own": {"val": {"tensor": 0}},
            "a list in place of facts": [1],
            "a number in place of a text": {"left": 1},
            "a text in place of a tensor": {"float_reference": "x"},
            "a tensor that is not there": {"float_reference": {"tensor": 99}},
            "a tensor in place of two": {"moments": {"tensor": 0}},
            "one tensor short": {"moments": {"tuple": [{"tensor": 0}]}},
            "a node": {"moments": {"tuple": [{"node": "x"}, {"tensor": 0}]}},
            "a number in place of a truth value": {"refined": 1},
            "nested": {"left": {"tuple": ["x"]}},
        }.items()
    },
    "a float reference of an output": lambda d: d["nodes"][-1].update(meta={"float_reference": {"tensor": 0}}),
    "a float reference of another shape": lambda d: [
        n.update(meta={"float_reference": {"tensor": 0}}) for n in d["nodes"] if n["op"] == "get_attr"
    ],
    "a power that fills the memory": lambda d: first_call(d).update(
        target="operator.pow", args=[10, 10**10], kwargs={}
    ),
    "a text times a number": lambda d: first_call(d).update(target="operator.mul", args=["x", 10**12], kwargs={}),
    "a list times a number": lambda d: first_call(d).update(target="operator.mul", args=[[1], 10**12], kwargs={}),
    "a formatted number": lambda d: first_call(d).update(target="operator.mod", args=["%1000000000d", 1], kwargs={}),
    "a number of any length": put(10**300, "example", "leaves", 0),
    "no arguments": put([], "arguments"),
    "an unknown container": put("set", "outputs", "type"),
    "keys that do not fit": put(["a"], "outputs", "context"),
    "an unknown part": put(1, "code"),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_graphs_are_refused_before_they_are_built(what: str, saved: Path, tmp_path: Path) -> None:
    content = entries(saved)
    data = json.loads(content["graph.json"])
    MALFORMED[what](data)
    began = time.perf_counter()
    with pytest.raises(InputError):
        Graph.load(write(tmp_path / "bad.pt2", {**content, "graph.json": as_json(data)}))
    assert time.perf_counter() - began < 5


HUGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "full": lambda d: ("aten::full.default", [[2**20, 2**20], 1.0], {}),
    "zeros": lambda d: ("aten::zeros.default", [[2**40]], {}),
    "arange": lambda d: ("aten::arange.default", [2**40], {}),
    "eye": lambda d: ("aten::eye.default", [2**20], {}),
    "expand": lambda d: ("aten::expand.default", [x_of(d), [2**34, -1, -1, -1, -1]], {}),
    "repeat": lambda d: ("aten::repeat.default", [x_of(d), [2**32, 1, 1, 1]], {}),
    "pad": lambda d: ("aten::constant_pad_nd.default", [x_of(d), [2**30, 2**30]], {}),
    "upsampling": lambda d: ("aten::upsample_nearest2d.vec", [x_of(d), [2**20, 2**20], None], {}),
    "one_hot": lambda d: ("aten::new_zeros.default", [x_of(d), [2**36]], {}),
}


def x_of(data: dict[str, Any]) -> Any:
    return {"node": next(n["name"] for n in data["nodes"] if n["op"] == "placeholder")}


@pytest.mark.parametrize("what", HUGE)
def test_calls_of_huge_values_are_refused_before_they_run(what: str, tmp_path: Path) -> None:
    Graph.capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), torch.randn(2, 3, 8, 8)).save(tmp_path / "g.pt2")
    content = entries(tmp_path / "g.pt2")
    data = json.loads(content["graph.json"])
    target, args, kwargs = HUGE[what](data)
    first = next(i for i, n in enumerate(data["nodes"]) if n["op"] == "call_function")
    calls = {
        "huge": (target, args, kwargs),
        "most": ("aten::amax.default", [{"node": "huge"}], {}),
        "cast": ("aten::to.dtype", [{"node": "most"}, {"dtype": "float32"}], {}),
        "more": ("aten::add.Tensor", [x_of(data), {"node": "cast"}], {}),
    }
    data["nodes"][first:first] = [
        {"op": "call_function", "name": name, "target": t, "args": a, "kwargs": k} for name, (t, a, k) in calls.items()
    ]
    data["nodes"][first + 4]["args"][0] = {"node": "more"}
    with pytest.raises(
        InputError, match=rf"huge: up to this {target.replace('::', '.')} .* bytes at once, beyond the 1\.1e\+09"
    ):
        Graph.load(write(tmp_path / "bad.pt2", {**content, "graph.json": as_json(data)}))


class Growing(nn.Module):
    """From 4 KB to 256 KB at a time, 80 times."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.expand(2**6, -1)
        for _ in range(80):
            wide = torch.sin(wide)
        return wide[0] @ x.T.expand(-1, 3)


def test_what_is_held_one_after_the_other_is_no_large_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "ROOM", 2**24)
    x = torch.randn(1, 2**10)
    Graph.capture(Growing().eval(), x).save(tmp_path / "g.pt2")
    assert torch.equal(Graph.load(tmp_path / "g.pt2")(x), Growing()(x))


def test_products_without_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of values that fit into memory, by the sizes of the example where some are free."""
    monkeypatch.setattr(bounds, "WORK", 2**24)
    monkeypatch.setattr(bounds, "WORK_OF_BYTE", 1)

    def body(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        for _ in range(9):
            x = x @ x.new_ones(128, 128)
        return x

    Graph.capture(Model(body).eval(), torch.randn(1, 128)).save(tmp_path / "small.pt2")
    assert Graph.load(tmp_path / "small.pt2").dynamic_batch
    Graph.capture(Model(body).eval(), torch.randn(99, 128)).save(tmp_path / "large.pt2")
    with pytest.raises(InputError, match=r"_\d: up to this aten.* multiply-accumulates, beyond the 1.7e\+07"):
        Graph.load(tmp_path / "large.pt2")


def test_a_bool_is_zero_or_one(tmp_path: Path) -> None:
    Graph.capture(nn.Identity().eval(), torch.ones(2, 3, dtype=torch.bool)).save(tmp_path / "g.pt2")
    content = entries(tmp_path / "g.pt2")
    with pytest.raises(InputError, match="neither 0 nor 1"):
        Graph.load(write(tmp_path / "g.pt2", {**content, "tensors/0": b"\x01\x02\x01\x01\x01\x01"}))
