"""Exported programs made to do harm: reading and running them executes nothing of what stands in them."""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import (
    FLAG,
    as_json,
    entries,
    example,
    hidden_twin,
    payloads,
    replaced,
    set_off,
    shape_of,
    texts,
    write,
    zipped,
)
from torch import nn

from graphopt.frontend import exported_schema
from graphopt.frontend.exported_file import load_program
from graphopt.ir.graph import Graph
from graphopt.ir.structure import tensors
from graphopt.utils.errors import GraphoptError, InputError

pytestmark = pytest.mark.filterwarnings("ignore")


def model_of(content: dict[str, bytes]) -> str:
    return next(n for n in content if n.endswith("models/model.json"))


@pytest.mark.thorough
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
