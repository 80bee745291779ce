"""JSON Schemas of what is written: `report.schema.json` and `manifest.schema.json`, which lie beside this file.

They follow from the dataclasses that are written, so they cannot say anything else; `python -m graphopt.artifacts.schemas` writes
them anew, and a test holds that this was done. Standard: JSON Schema, draft 2020-12.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from graphopt.artifacts.manifest import FORMAT, Manifest
from graphopt.artifacts.report import Report
from graphopt.utils.json_data import parse
from graphopt.utils.version import __version__

DRAFT = "https://json-schema.org/draft/2020-12/schema"
PLAIN = {str: "string", int: "integer", bool: "boolean", type(None): "null"}
NUMBER = {"anyOf": [{"type": "number"}, {"enum": ["inf", "-inf", "nan"]}]}  # JSON has no word for them


def read(name: Literal["report", "manifest"]) -> dict[str, Any]:
    """The schema that came with this graphopt."""
    found: dict[str, Any] = parse(_path(name).read_bytes())
    return found


def report() -> dict[str, Any]:
    """Of `Report.to_dict()`, what `report.save("report.json")` and `graphopt optimize --report` write."""
    return _document("A report of graphopt.optimize", Report)


def manifest() -> dict[str, Any]:
    """Of `manifest.json` in the folder of a deployed model."""
    schema = _document("The manifest of a model deployed by graphopt", Manifest)
    schema["properties"]["format"] = {"const": FORMAT}
    schema["properties"]["checksum"] = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
    schema["required"] = sorted([*schema["properties"]])
    schema["properties"]["report"] = {"anyOf": [{"const": {}}, {"$ref": "#/$defs/Report"}]}
    _of(Report, schema["$defs"])
    return schema


def _document(title: str, kind: type) -> dict[str, Any]:
    definitions: dict[str, Any] = {}
    body = _object(kind, definitions)
    return {"$schema": DRAFT, "title": title, "$comment": f"graphopt {__version__}", **body, "$defs": definitions}


def _object(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind) if field.metadata.get("stored", True)]
    properties = {name: _of(hints[name], definitions) for name in names}
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def _of(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of a type; dataclasses are defined once, by their name."""
    origin, inside = get_origin(hint), get_args(hint)
    if hint is float:
        return NUMBER
    if hint in PLAIN:
        return {"type": PLAIN[hint]}
    if origin is Literal:
        return {"enum": list(inside)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_of(each, definitions) for each in inside]}
    if dataclasses.is_dataclass(hint):
        name = str(getattr(hint, "__name__", ""))
        if name not in definitions:
            definitions[name] = {}  # while it is being made
            definitions[name] = _object(hint, definitions)
        return {"$ref": f"#/$defs/{name}"}
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": _of(inside[1], definitions)}
    if origin is tuple and Ellipsis not in inside:
        return {"type": "array", "prefixItems": [_of(each, definitions) for each in inside], "items": False}
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return {"type": "array", "items": _of(inside[0], definitions)}
    return {}  # anything


def _path(name: str) -> Path:
    return Path(__file__).with_name(f"{name}.schema.json")


if __name__ == "__main__":
    import json

    for name, schema in (("report", report()), ("manifest", manifest())):
        _path(name).write_text(json.dumps(schema, indent=1) + "\n")
