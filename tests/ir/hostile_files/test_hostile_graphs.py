"""Saved graphs made to do harm: reading and running them executes nothing of what stands in them."""

from __future__ import annotations

import builtins
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import (
    FLAG,
    INJECTIONS,
    Change,
    as_json,
    entries,
    payloads,
    replaced,
    set_off,
    shape_of,
    texts,
    write,
)
from torch import nn

import graphopt
from graphopt.ir import operators, schema
from graphopt.ir.graph import Graph
from graphopt.utils.errors import GraphoptError, InputError

pytestmark = pytest.mark.filterwarnings("ignore")


def run(path: Path) -> bool:
    """Load a graph and call it; whether that came to an end without an error of ours."""
    try:
        loaded = Graph.load(path)
    except GraphoptError:
        return False
    args, kwargs = loaded.example.args, loaded.example.kwargs
    try:
        loaded(*args, **kwargs)
    except Exception:  # a graph of other operators may not fit its inputs any more
        return False
    return True


@pytest.mark.parametrize("inject", INJECTIONS)
def test_injections_that_run_where_nothing_checks_them_are_refused(
    inject: Change, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = entries(saved)
    data = json.loads(content["graph.json"])
    inject(data)
    bad = write(tmp_path / "bad.pt2", {**content, "graph.json": as_json(data)})
    with pytest.raises(InputError, match="damaged"):
        Graph.load(bad)
    assert not set_off()
    monkeypatch.setattr(schema, "check", lambda _: None)  # else the tests here could not fail
    with contextlib.suppress(Exception):
        loaded = Graph.load(bad)
        loaded(*loaded.example.args, **loaded.example.kwargs)
    assert set_off()
    delattr(builtins, FLAG)


def test_no_text_of_a_saved_graph_is_run(saved: Path, tmp_path: Path) -> None:
    content = entries(saved)
    data = json.loads(content["graph.json"])
    kinds: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    for path in texts(data):
        kinds.setdefault(shape_of(path), path)
    assert len(kinds) > 60
    for number, path in enumerate(kinds.values()):
        # Each place gets a few payloads, all of them come up many times; the fuzzer tries the rest.
        for payload in payloads("x")[number % 9 :: 9]:
            changed = replaced(data, path, lambda old, p=payload: p)
            run(write(tmp_path / "bad.pt2", {**content, "graph.json": as_json(changed)}))
            assert not set_off(), (path, payload)


@pytest.mark.parametrize("field", ["arguments", "placeholders", "both", "keywords", "names"])
def test_payloads_that_agree_with_each_other_are_refused(saved: Path, tmp_path: Path, field: str) -> None:
    """A single changed text often contradicts another; these do not."""
    content = entries(saved)
    for payload in (p for p in payloads("x") if not p.isidentifier()):
        text = content["graph.json"].decode()
        data = json.loads(text)
        if field in ("arguments", "both"):
            data["arguments"][0] = payload
        if field in ("placeholders", "both"):
            data["nodes"][0]["target"] = payload
        if field == "keywords":
            for structure in (data["inputs"], data["example"]["structure"]):
                structure["children"][1]["context"] = [payload]
        if field == "names":
            data = json.loads(text.replace('"relu"', json.dumps(payload)))
        bad = write(tmp_path / "bad.pt2", {**content, "graph.json": as_json(data)})
        with pytest.raises(InputError, match="damaged"):
            Graph.load(bad)


REACHING = [
    "aten::from_file.default", "aten::set_.source_Storage", "aten::_print.default", "aten::relu_.default", "aten::add.out",
    "aten::fbgemm_pack_gemm_matrix_fp16.default", "aten::max_pool2d_with_indices_backward.default",
    "aten::segment_reduce.default", "aten::_sparse_coo_tensor_unsafe.default", "aten::relu.__class__",
    "aten::__class__.default", "aten::relu._schema",
    "loaded_libraries::add.default", "load_library::x.default", "prim::Print.default", "higher_order::cond.default",
    "c10d::broadcast_.default", "prims::add.default", "os.system", "operator.attrgetter", "operator.methodcaller",
    "torch.load", "math.__loader__", "builtins.eval", "aten::relu", "::.", "aten::relu.default.x", "nowhere::op.default",
    "aten::record_stream.default", "aten::nothing_of_the_kind.default",
]  # fmt: skip


@pytest.mark.parametrize("name", REACHING)
def test_operators_that_reach_beyond_tensors_cannot_be_called(name: str, saved: Path, tmp_path: Path) -> None:
    content = entries(saved)
    data = json.loads(content["graph.json"])
    next(n for n in data["nodes"] if n["op"] == "call_function")["target"] = name
    with pytest.raises(InputError):
        Graph.load(write(tmp_path / "bad.pt2", {**content, "graph.json": as_json(data)}))


def test_operators_of_other_packages_run_only_where_the_caller_allows_them(tmp_path: Path) -> None:
    library = torch.library.Library("hostile_tests", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: x * 2, "CompositeExplicitAutograd")
    library.impl("twice", lambda x: torch.empty_like(x), "Meta")
    found = Graph.capture(nn.ReLU().eval(), torch.randn(2, 3))
    found.calls()[0].target = torch.ops.hostile_tests.twice.default
    found.refresh()
    found.save(tmp_path / "g.pt2")
    with pytest.raises(InputError, match=r"import the package that defines it first and allow it: .*allow_operators"):
        Graph.load(tmp_path / "g.pt2")
    graphopt.allow_operators("hostile_tests")
    try:
        x = torch.randn(4, 3)
        assert torch.equal(Graph.load(tmp_path / "g.pt2")(x), 2 * x)
    finally:
        operators._allowed.clear()
    for namespace in ("prim", "higher_order", "a b", "__class__.x"):
        with pytest.raises(InputError):
            graphopt.allow_operators(namespace)


def test_a_graph_names_no_constructor_that_does_more_than_keep_fields(tmp_path: Path, saved: Path) -> None:
    content = entries(saved)
    for name in (
        "subprocess:Popen",
        "hostile_classes:Busy",
        "hostile_classes:Tuple",
        "functools:partial",
        "ast:Module",
    ):
        data = json.loads(content["graph.json"])
        kept = [[data["outputs"]["context"], []], data["outputs"]["children"]]
        data["outputs"] = {"class": name, "context": kept[0], "children": kept[1]}
        import hostile_classes

        hostile_classes.made.clear()
        assert run(write(tmp_path / "bad.pt2", {**content, "graph.json": as_json(data)}))
        assert hostile_classes.made == []
