"""Files made to do harm, for `tests/ir/hostile_files` and `fuzz_files.py`: good ones, ways to change them, payloads, a canary."""

from __future__ import annotations

import builtins
import copy
import io
import json
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from graphopt.ir.graph import Graph

FLAG = "graphopt_canary"  # of builtins, so that a payload needs no import to be noticed
Entries = dict[str, bytes]
Change = Callable[[Any], Any]


def set_off() -> bool:
    """Whether a payload ran."""
    return hasattr(builtins, FLAG)


# Without a dot, a colon, a quote or a blank, at which torch.fx takes names apart.
RUN = f"exec(bytes({[*f'import builtins;builtins.{FLAG}=1'.encode()]}))".replace(" ", "")


def payloads(place: str) -> list[str]:
    """Texts that run where they reach Python's compiler: alone, as an argument, behind a quote, in a new line, as a default."""
    return [
        RUN,
        f"{place}={RUN}",
        f"{place};{RUN};{place}",
        f"{place}\n{RUN}",
        f"{place}:{RUN}",
        f"{place}':{RUN},'b",
        f'a")or({RUN})or getattr(self,"a',
        f"**{{}}), {RUN}, dict(a",
        f"a):\n  pass\n{RUN}\ndef f(b",
        f"x'+str({RUN})+'",
        f"*{place}",
        f"__import__('builtins').__setattr__('{FLAG}',1)",
        f"torch.ops.aten.{RUN}",
        f"{place}.__class__",
        "builtins:eval",
        "subprocess:Popen",
        "__import__",
    ]


class Net(nn.Module):
    """Every kind of field that a saved graph has: nesting, keywords, constants, a free batch, numbers and texts as inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.register_buffer("shift", torch.arange(4.0))
        self.table = nn.ParameterDict({"a-b": torch.ones(4)})

    def forward(self, x: Tensor, pair: dict[str, Tensor], mode: str, *, scale: float = 1.0) -> Any:
        y = self.body(x) * scale + self.shift + pair["one"]
        first, second = torch.split(y * self.table["a-b"], 2, 1)
        full = torch.full((x.shape[0] * 2, 2), float("-inf"), dtype=torch.float64)
        return {"sum": y[:, 1:3], "halves": (first.view(x.shape[0], -1), [second]), "full": full}


def example() -> tuple[tuple[Any, ...], dict[str, Any]]:
    torch.manual_seed(0)
    return (torch.randn(3, 4), {"one": torch.randn(3, 4)}, "way"), {"scale": 1.5}


def graph() -> Graph:
    torch.manual_seed(0)
    args, kwargs = example()
    return Graph.capture(Net().eval(), args, kwargs)


def exported(path: Path) -> Path:
    """The same as `torch.export.save` writes it, with a free batch and a region without gradient."""

    class Region(Net):
        def forward(self, x: Tensor, pair: dict[str, Tensor], mode: str, *, scale: float = 1.0) -> Any:
            with torch.no_grad():
                x = torch.add(x, cast("Tensor", self.shift))
            return super().forward(x, pair, mode, scale=scale)

    args, kwargs = example()
    free = {0: torch.export.Dim.AUTO}
    shapes = {"x": free, "pair": {"one": free}, "mode": None, "scale": None}
    torch.export.save(torch.export.export(Region().eval(), args, kwargs, dynamic_shapes=shapes), path)
    return path


# Changes of a saved graph whose parts agree with each other, each of which runs a payload where nothing checks it.
def in_the_signature(data: Any) -> None:
    """A default of an argument of a model that reads none of its inputs."""
    empty: dict[str, Any] = {"type": "tuple", "context": None, "children": []}
    whole = {"type": "tuple", "context": None, "children": [empty, {"type": "dict", "context": [], "children": []}]}
    constant = next(n for n in data["nodes"] if n["op"] == "get_attr")
    output = {**data["nodes"][-1], "args": [{"tuple": [{"node": constant["name"]}]}]}
    leaf = {"type": "tuple", "context": None, "children": [None]}
    data.update(nodes=[constant, output], arguments=[f"a={RUN}"], inputs=whole, outputs=leaf, free_sizes=[])
    data["example"] = {"structure": whole, "leaves": []}


def in_an_input(data: Any) -> None:
    node = next(n for n in data["nodes"] if n["op"] == "placeholder")
    node["target"] = f"{node['target']};{RUN};{node['target']}"


def in_a_keyword(data: Any) -> None:
    data["inputs"]["children"][1]["context"] = [f"scale':{RUN},'b"]


def in_a_constant(data: Any) -> None:
    node = next(n for n in data["nodes"] if n["op"] == "get_attr")
    name = f'a")if({RUN})else getattr(self,"a'
    data["constants"] = {name if k == node["target"] else k: v for k, v in data["constants"].items()}
    node["target"] = name


INJECTIONS = (in_the_signature, in_an_input, in_a_keyword, in_a_constant)


# ---- Archives -------------------------------------------------------------------------------------------------------


def entries(path: Path) -> Entries:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path: Path, content: Entries) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def zipped(items: list[tuple[str | zipfile.ZipInfo, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    """An archive with these entries, also where names repeat."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in items:
            archive.writestr(name, data)
    return file.getvalue()


def link(name: str, target: str) -> tuple[zipfile.ZipInfo, bytes]:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, 0o120777 << 16
    return info, target.encode()


def hidden_twin(archive: bytes, name: str, evil: bytes) -> bytes:
    """The archive with a second directory behind the first, whose entry of this name is another one.

    Readers that search for the directory from the end take the last; those that trust the first find the first.
    """
    with zipfile.ZipFile(io.BytesIO(archive)) as good:
        items: list[tuple[str | zipfile.ZipInfo, bytes]] = [
            (n, evil if n == name else good.read(n)) for n in good.namelist()
        ]
    return archive + zipped(items)


def lying_sizes(archive: bytes, name: str, size: int) -> bytes:
    """The archive whose directory says that an entry has another size than it has."""
    central = archive.rindex(b"PK\x01\x02", 0, archive.rindex(name.encode()))
    return archive[: central + 24] + struct.pack("<I", size) + archive[central + 28 :]


# ---- JSON -----------------------------------------------------------------------------------------------------------


def texts(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every text in JSON data: of values, and of keys (marked by a trailing `None`)."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield (*path, key, None)
            yield from texts(value, (*path, key))
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from texts(value, (*path, index))
    elif isinstance(data, str):
        yield path


def replaced(data: Any, path: tuple[Any, ...], new: Callable[[str], Any]) -> Any:
    """The data with the text at a place replaced."""
    result = copy.deepcopy(data)
    owner, key = result, path[-1]
    for step in path[:-2] if key is None else path[:-1]:
        owner = owner[step]
    if key is None:
        items = [(new(k) if k == path[-2] else k, v) for k, v in owner.items()]
        owner.clear()
        owner.update(items)
    else:
        owner[key] = new(owner[key])
    return result


def as_json(data: Any) -> bytes:
    return json.dumps(data).encode()


def shape_of(path: tuple[Any, ...]) -> tuple[Any, ...]:
    """A place without its positions, which stands for all of its kind."""
    return tuple("*" if isinstance(step, int) else step for step in path)
