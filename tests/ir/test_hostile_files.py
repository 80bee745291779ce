"""Files made to do harm: whatever stands in them, reading and running them executes nothing of it."""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import (
    FLAG,
    INJECTIONS,
    as_json,
    entries,
    example,
    exported,
    graph,
    hidden_twin,
    link,
    lying_sizes,
    payloads,
    replaced,
    set_off,
    texts,
    write,
    zipped,
)
from rewriting import Model
from torch import nn

import graphopt
from graphopt.artifacts.manifest import listing, read_manifest
from graphopt.frontend import exported_schema
from graphopt.frontend.exported_file import load_program
from graphopt.ir import bounds, operators, schema
from graphopt.ir.graph import Graph
from graphopt.ir.structure import tensors
from graphopt.utils import json_data
from graphopt.utils.errors import ArtifactError, GraphoptError, InputError

Change = Callable[[Any], Any]
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def nothing_is_set_off() -> Iterator[None]:
    yield
    assert not set_off()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "graph.pt2"
    graph().save(path)
    return path


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("program") / "program.pt2")


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


# ---- Saved graphs ---------------------------------------------------------------------------------------------------


def shape_of(path: tuple[Any, ...]) -> tuple[Any, ...]:
    """A place without its positions, which stands for all of its kind."""
    return tuple("*" if isinstance(step, int) else step for step in path)


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
    """From 4 KB to 16 MB at a time, 80 times."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.expand(2**12, -1)
        for _ in range(80):
            wide = torch.sin(wide)
        return wide[0] @ x.T.expand(-1, 3)


def test_what_is_held_one_after_the_other_is_no_large_memory(tmp_path: Path) -> None:
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


# ---- Archives -------------------------------------------------------------------------------------------------------


def test_an_archive_that_readers_could_differ_about_is_refused(saved: Path, program: Path, tmp_path: Path) -> None:
    for path, read in ((saved, Graph.load), (program, Graph.capture)):
        good = entries(path)
        for name, content in list(good.items())[:8]:
            rest: list[Any] = [(n, c) for n, c in good.items() if n != name]
            for twice in ([(name, content), *rest, (name, b"evil")], [(name, b"evil"), *rest, (name, content)]):
                (tmp_path / "bad.pt2").write_bytes(zipped(twice))
                with pytest.raises(InputError, match="twice"):
                    read(tmp_path / "bad.pt2")


def test_links_and_names_that_lead_elsewhere_are_refused(saved: Path, program: Path, tmp_path: Path) -> None:
    for path, read in ((saved, Graph.load), (program, Graph.capture)):
        good: list[Any] = list(entries(path).items())
        odd = ("../a", "/etc/a", "a/../../b", "a\\b", "C:a", "a/", "a\nb", "", "a\0b")
        for extra in (link("tensors/9", "/etc/passwd"), *((zipfile.ZipInfo(name), b"x") for name in odd)):
            extra[0].filename = extra[0].orig_filename  # the writer cuts names at NUL
            (tmp_path / "bad.pt2").write_bytes(zipped([*good, extra]))
            with pytest.raises(InputError):
                read(tmp_path / "bad.pt2")


def test_bombs_are_refused_before_they_unpack(saved: Path, program: Path, tmp_path: Path) -> None:
    for path, read in ((saved, Graph.load), (program, Graph.capture)):
        good: list[Any] = list(entries(path).items())
        root = good[0][0].partition("/")[0]
        bomb = zipped([*good, (f"{root}/data/weights/weight_99", bytes(2**26))], zipfile.ZIP_DEFLATED)
        assert len(bomb) < 2**20
        (tmp_path / "bad.pt2").write_bytes(bomb)
        with pytest.raises(InputError, match="would unpack to"):
            read(tmp_path / "bad.pt2")
        (tmp_path / "bad.pt2").write_bytes(lying_sizes(zipped(good), good[-1][0], 2**31))
        with pytest.raises(InputError):
            read(tmp_path / "bad.pt2")


def test_json_is_read_within_bounds() -> None:
    for text in (
        b"[" * 100_000, b"[" * 101 + b"]" * 101, b'{"a": 1, "a": 2}', b"NaN", b"[1e999]", b"-Infinity", b"9" * 5000, b'"\\ud800"',
        b"\xff",
        "[1]".encode("utf-16"), b"", b'{"a":' * 5000,
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r""):
            json_data.parse(text)
    with pytest.raises(ValueError, match="more than 3"):
        json_data.parse(b"[1, 2]", limit=3)
    assert json_data.parse(b"[" * 99 + b"]" * 99)


# ---- Exported programs ----------------------------------------------------------------------------------------------


def model_of(content: dict[str, bytes]) -> str:
    return next(n for n in content if n.endswith("models/model.json"))


def test_a_good_program_is_read(program: Path) -> None:
    args, kwargs = example()
    read = load_program(program).module()(*args, **kwargs)
    captured = Graph.capture(program)(*args, **kwargs)
    wanted = torch.export.load(program).module()(*args, **kwargs)
    for found in (read, captured):
        torch.testing.assert_close(found, wanted)
    assert tensors(wanted)


def test_the_layout_of_older_releases_of_torch_is_read_and_checked(tmp_path: Path) -> None:
    from torch._export.serde.schema import SCHEMA_VERSION
    from torch._export.serde.serialize import serialize

    x = torch.randn(2, 3)
    done = serialize(torch.export.export(nn.Linear(3, 2).eval(), (x,)))
    content = {
        "version": ".".join(map(str, SCHEMA_VERSION)).encode(),
        "serialized_exported_program.json": done.exported_program,
        "serialized_state_dict.pt": done.state_dict,
        "serialized_constants.pt": done.constants,
        "serialized_example_inputs.pt": done.example_inputs,
    }
    assert Graph.capture(write(tmp_path / "old.pt2", content))(x).shape == (2, 2)
    torch.save(Evil(), tmp_path / "evil.pt")
    for name in ("serialized_state_dict.pt", "serialized_constants.pt", "serialized_example_inputs.pt"):
        with pytest.raises(InputError, match="could run code from the file"):
            Graph.capture(write(tmp_path / "old.pt2", {**content, name: (tmp_path / "evil.pt").read_bytes()}))
    for name in ("a.so", "code.py", "data/x"):
        with pytest.raises(InputError, match="could run code from the file"):
            Graph.capture(write(tmp_path / "old.pt2", {**content, name: b"x"}))


@pytest.mark.slow
def test_no_text_of_a_program_is_run(program: Path, tmp_path: Path) -> None:
    content = entries(program)
    for table in [n for n in content if n.endswith(".json")]:
        data = json.loads(content[table])
        kinds: dict[tuple[Any, ...], tuple[Any, ...]] = {}
        for path in texts(data):
            kinds.setdefault(shape_of(path), path)
        for number, path in enumerate(kinds.values()):
            payload = payloads("x")[number % len(payloads("x"))]
            changed = replaced(data, path, lambda old, p=payload: p)
            with contextlib.suppress(GraphoptError):
                Graph.capture(write(tmp_path / "bad.pt2", {**content, table: as_json(changed)}))
            assert not set_off(), (path, payload)


def test_a_program_of_which_torch_makes_nothing_is_refused_in_our_words(program: Path, tmp_path: Path) -> None:
    content = entries(program)
    name = model_of(content)
    data = json.loads(content[name])
    data["graph_module"]["module_call_graph"][0]["fqn"] = "x"
    with pytest.raises(InputError, match="holds no program that can be captured"):
        Graph.capture(write(tmp_path / "bad.pt2", {**content, name: as_json(data)}))


ENTRIES = [
    "data/aotinductor/model/model.so", "data/aotinductor/model/wrapper.cpp", "data/aotinductor/model/model.json",
    "data/weights/a.so", "data/constants/custom_obj_0", "data/constants/opaque_obj_0", "data/executorch/a",
    "data/mtia/a", "models/other.json",
    "data/sample_inputs/other.pt", "xl_model_weights/a", "code/a.py", "data.pkl", "data/weights/a.pkl", "constants.pkl",
]  # fmt: skip


@pytest.mark.parametrize("name", ENTRIES)
def test_entries_that_torch_would_load_otherwise_are_refused(name: str, program: Path, tmp_path: Path) -> None:
    content = entries(program)
    root = model_of(content).partition("/")[0]
    with pytest.raises(InputError, match="could run code from the file"):
        Graph.capture(write(tmp_path / "bad.pt2", {**content, f"{root}/{name}": b"evil"}))


class Evil:
    def __reduce__(self) -> Any:
        return eval, (payloads("x")[0],)


def test_pickles_are_never_opened(program: Path, tmp_path: Path) -> None:
    content = entries(program)
    root = model_of(content).partition("/")[0]
    torch.save(Evil(), tmp_path / "evil.pt")
    evil = (tmp_path / "evil.pt").read_bytes()
    bomb = zipped([("evil/data.pkl", bytes(2**27)), ("evil/version", b"3\n")], zipfile.ZIP_DEFLATED)
    table = f"{root}/data/constants/model_constants_config.json"
    for path in ("custom_obj_0", "opaque_obj_0", "tensor_0", "../../a"):
        for pickled in (True, False):
            entry = {"path_name": path, "use_pickle": pickled, "is_param": False, "tensor_meta": None}
            bad = {**content, table: as_json({"config": {"a": entry}}), f"{root}/data/constants/{path}": evil}
            with pytest.raises(InputError):
                Graph.capture(write(tmp_path / "bad.pt2", bad))
    for name in ("data/sample_inputs/model.pt", "data/weights/model.pt", "data/constants/model.pt"):
        for data in (evil, bomb, b"\x80\x02}q\x00.", entries(tmp_path / "evil.pt")["evil/data.pkl"]):
            with pytest.raises(InputError):
                Graph.capture(write(tmp_path / "bad.pt2", {**content, f"{root}/{name}": data}))


@pytest.mark.parametrize(
    "expression",
    [
        payloads("x")[0], f"Symbol({payloads('x')[0]!r})", "Symbol('s0 or x')", "S('1')", "Lambda(s0, 1)", "sympify('1')",
        "().__class__",
        "Pow(Integer(9), Pow(Integer(9), Integer(99999999)))", "10**10**10", "s0**(10**9)", "factorial(10**9)", "Integer('1')",
        "[1 for a in s0]", "lambda: 1", "LShift(1, 10**12)", "Symbol('s0', cls=Evil)", "Symbol(*s0)", "1 if s0 else 2",
    ],
)  # fmt: skip
def test_sizes_are_arithmetic_alone(expression: str, program: Path, tmp_path: Path) -> None:
    content = entries(program)
    name = model_of(content)
    data = json.loads(content[name])
    places = [p for p in texts(data) if p[-1] == "expr_str"]
    changed = replaced(data, places[0], lambda _: expression)
    with pytest.raises(InputError, match="could run code from the file"):
        Graph.capture(write(tmp_path / "bad.pt2", {**content, name: as_json(changed)}))


def test_a_size_that_runs_where_nothing_checks_it_is_refused(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = entries(program)
    name = model_of(content)
    data = json.loads(content[name])
    data = replaced(
        data,
        next(p for p in texts(data) if p[-1] == "expr_str"),
        lambda _: f"__import__('builtins').__setattr__('{FLAG}',1)",
    )
    bad = write(tmp_path / "bad.pt2", {**content, name: as_json(data)})
    with pytest.raises(InputError, match="could run code from the file"):
        Graph.capture(bad)
    assert not set_off()
    monkeypatch.setattr(exported_schema, "program", lambda data: data)  # else the tests here could not fail
    with contextlib.suppress(GraphoptError):
        Graph.capture(bad)
    assert set_off()
    delattr(builtins, FLAG)


def test_nesting_names_no_module_to_import(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "canary_module.py").write_text(f"import builtins\nbuiltins.{FLAG} = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    content = entries(program)
    name = model_of(content)
    enumeration = json.dumps([{"__enum__": True, "fqn": "canary_module:A", "name": "a"}])
    default = {"default_factory_module": "canary_module", "default_factory_name": "a", "dict_context": []}
    for kind, context in (("builtins.list", enumeration), ("collections.defaultdict", default)):
        data = json.loads(content[name])
        signature = data["graph_module"]["module_call_graph"][0]["signature"]
        spec = json.loads(signature["out_spec"])
        spec[1].update(type=kind, context=context)
        signature["out_spec"] = json.dumps(spec)
        with pytest.raises(InputError, match="could run code from the file"):
            Graph.capture(write(tmp_path / "bad.pt2", {**content, name: as_json(data)}))


def test_shapes_of_payloads_stay_inside_their_bytes(program: Path, tmp_path: Path) -> None:
    content = entries(program)
    name = next(n for n in content if n.endswith("model_weights_config.json"))
    for field, value in (
        ("sizes", [10**6, 10**6]), ("strides", [10**9, 1]), ("storage_offset", 10**6), ("sizes", [-1, -1]), ("strides", [-1, 1]),
        ("sizes", []),
    ):  # fmt: skip
        data = json.loads(content[name])
        meta = data["config"]["body.0.weight"]["tensor_meta"]
        meta[field] = [{"as_int": v} for v in value] if isinstance(value, list) else {"as_int": value}
        with pytest.raises(InputError):
            Graph.capture(write(tmp_path / "bad.pt2", {**content, name: as_json(data)}))


def test_torch_is_handed_what_was_checked(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the path, which someone may change meanwhile, nor what readers could find elsewhere in the file."""
    content = program.read_bytes()
    name = model_of(entries(program))
    (tmp_path / "twin.pt2").write_bytes(hidden_twin(content, name, b"{}"))
    handed: list[Any] = []
    load = torch.export.load
    monkeypatch.setattr(torch.export, "load", lambda f: handed.append(f) or load(f))
    with pytest.raises(InputError):  # the last directory counts, as for every reader of zip files
        load_program(tmp_path / "twin.pt2")
    (tmp_path / "twin.pt2").write_bytes(hidden_twin(content, "nothing", b""))
    load_program(tmp_path / "twin.pt2")
    assert len(handed) == 1
    assert not isinstance(handed[0], (str, os.PathLike))
    assert len(handed[0].getvalue()) < 1.2 * len(content)


# ---- Artifacts ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    done = graphopt.optimize(model, torch.randn(2, 4), target="nnie", calibration=torch.randn(8, 4))
    return done.artifact.save(tmp_path_factory.mktemp("artifact") / "deployed")


def relisted(folder: Path) -> None:
    """Let the manifest list the files as they are now, as whoever alters an artifact would."""
    from graphopt.artifacts.manifest import Manifest

    manifest = Manifest.from_json((folder / "manifest.json").read_bytes())
    manifest.files = listing(folder)
    (folder / "manifest.json").write_bytes(manifest.to_json())


def test_no_text_of_an_artifacts_graph_is_run(packed_folder: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "bad"
    shutil.copytree(packed_folder, folder)
    content = entries(folder / "network.graph")
    data = json.loads(content["graph.json"])
    kinds: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    for path in texts(data):
        kinds.setdefault(shape_of(path), path)
    for number, path in enumerate(kinds.values()):
        payload = payloads("x")[number % len(payloads("x"))]
        changed = replaced(data, path, lambda old, p=payload: p)
        write(folder / "network.graph", {**content, "graph.json": as_json(changed)})
        relisted(folder)
        with contextlib.suppress(GraphoptError):
            graphopt.load(folder)(torch.randn(2, 4))
        assert not set_off(), (path, payload)


def test_links_in_an_artifact_are_refused(packed_folder: Path, tmp_path: Path) -> None:
    import shutil

    for name in ("network.graph", "manifest.json"):
        folder = tmp_path / name
        shutil.copytree(packed_folder, folder)
        (folder / name).rename(tmp_path / f"elsewhere-{name}")
        (folder / name).symlink_to(tmp_path / f"elsewhere-{name}")
        with pytest.raises(ArtifactError):
            graphopt.load(folder)


def test_a_file_that_the_manifest_does_not_list_is_not_read(packed_folder: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "a"
    shutil.copytree(packed_folder, folder)
    manifest = read_manifest(folder)
    del manifest.files["weights.packed"]
    (folder / "manifest.json").write_bytes(manifest.to_json())
    with pytest.raises(ArtifactError):
        graphopt.load(folder)
