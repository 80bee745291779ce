"""What the description of a saved graph may look like, checked before anything is built from it.

torch.fx turns a graph into the text of a Python function, and names, paths and keys stand in that text as they are. So
everything that is text is checked here against a pattern that cannot be more than a name: arguments and nodes, keywords,
constants, operators, devices. Every other text stays data.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping
from typing import Any

from graphopt.ir import operators, raw_tensors, sizes, stored_facts
from graphopt.ir.facts import FACTS, FLOAT_REFERENCE, TORCH_META
from graphopt.ir.plain_data import LABEL, as_list, constant, has_keys, identifier, is_a, matches
from graphopt.utils.errors import InputError

MEMORY_FORMATS = {"contiguous_format", "preserve_format", "channels_last", "channels_last_3d"}
CONTAINERS = {"tuple", "list", "dict", "OrderedDict", "defaultdict", "deque"}
KEYS = {
    "format", "version", "input_names", "output_names", "notes", "training", "arguments", "inputs", "outputs", "example",
    "constants", "nodes", "tensors",
}  # fmt: skip
DEVICE = re.compile(r"(cpu|cuda|meta|mps|xpu|hip)(:\d{1,3})?", re.ASCII)
CLASS = re.compile(r"[\w.]+:[\w.<>]+")
FACTS_SINCE = 2  # the version of the format that holds facts; before, passes left any plain data
CHECKPOINT_SINCE = 3  # the version that holds the model's own names
SIZES_SINCE = 4  # the version that holds free sizes; before, the batch alone could be free


def check(data: Any) -> None:
    """Check the description of a graph.

    Raises:
        ValueError, KeyError: names what does not fit.
        InputError: an operator that a file may not call.
    """
    has_keys(data, _known(data.get("version", 0)), "the description")
    for tensor in as_list(data["tensors"], "tensors"):
        if not isinstance(tensor, dict):
            raise ValueError("a tensor's description is no object")
    is_a(data["training"], bool, "training")
    for name in ("input_names", "output_names"):
        for label in as_list(data[name], name):
            matches(label, LABEL, f"one of {name}")
    for note in as_list(data["notes"], "notes"):
        is_a(note, str, "a note")
    _checkpoint(data.get("checkpoint", {}))
    _constants(data["constants"], len(data["tensors"]))
    places = _nodes(data["nodes"], data["constants"], data["tensors"], loose=data["version"] < FACTS_SINCE)
    _signature(data["arguments"], data["inputs"])
    if leaves(data["inputs"]) != len(places):
        raise ValueError(f"inputs of {leaves(data['inputs'])} leaves for {len(places)} placeholders")
    leaves(data["outputs"])
    _example(data["example"], len(data["tensors"]), len(places))
    indices = [leaf["tensor"] for leaf in data["example"]["leaves"] if isinstance(leaf, dict) and "tensor" in leaf]
    if len(data["input_names"]) != len(indices):
        raise ValueError(f"{len(data['input_names'])} names for {len(indices)} inputs")
    _free(data, [data["tensors"][index]["shape"] for index in indices], len(places))


def _known(version: Any) -> set[str]:
    found = KEYS | {"checkpoint"} if version >= CHECKPOINT_SINCE else KEYS
    return found | ({"free_sizes"} if version >= SIZES_SINCE else {"dynamic_batch", "batched"})


def _free(data: Any, shapes: list[Any], places: int) -> None:
    """The free sizes, which the example must have."""
    if "free_sizes" in data:
        if not all(map(raw_tensors.are_sizes, shapes)):
            raise ValueError("the example has no sizes")
        sizes.check(data["free_sizes"], [len(shape) for shape in shapes])
        sizes.read(map(sizes.FreeSize.from_dict, data["free_sizes"]), data["input_names"], shapes)
        return
    is_a(data["dynamic_batch"], bool, "dynamic_batch")
    if len(as_list(data["batched"], "batched")) != places:
        raise ValueError(f"{len(data['batched'])} of {places} placeholders are said to be batched or not")
    for free in data["batched"]:
        is_a(free, bool, "batched")


# ---- Constants and nodes --------------------------------------------------------------------------------------------


def _constants(data: Any, tensors: int) -> None:
    is_a(data, dict, "constants")
    for name, described in data.items():
        constant(name, "a constant")
        has_keys(described, {"tensor", "kind", "requires_grad"}, f"constant {name}")
        if described["tensor"] is not None:
            _index(described["tensor"], tensors)
        if described["kind"] not in ("parameter", "buffer"):
            raise ValueError(f"constant {name} is neither parameter nor buffer")
        is_a(described["requires_grad"], bool, f"requires_grad of {name}")


def _nodes(data: Any, constants: Mapping[str, Any], tensors: list[Any], *, loose: bool) -> set[str]:
    """Check the nodes in order, each of which may read those before it; the targets of the placeholders."""
    names: set[str] = set()
    places: set[str] = set()
    for number, node in enumerate(as_list(data, "nodes")):
        where = f"node {number}"
        is_a(node, dict, where)
        op, target = node["op"], node["target"]
        has_keys(node, {"op", "name", "target", "args", "kwargs"}, where, {"modules", "meta"})
        if op == "placeholder":
            if identifier(target, f"the target of {where}") in places:
                raise ValueError(f"two inputs are called {target}")
            places.add(target)
        elif op == "get_attr":
            if not isinstance(target, str) or target not in constants:
                raise ValueError(f"{where} reads {str(target)[:100]!r}, which is no constant")
        elif op == "call_function":
            is_a(target, str, f"the target of {where}")
            operators.find(target)
        elif op != "output" or target != "output" or number != len(data) - 1:
            raise ValueError(f"{where} is {str(op)[:100]!r} of {str(target)[:100]!r}")
        _arguments(node, names, where)
        if identifier(node["name"], f"the name of {where}") in names:
            raise ValueError(f"two nodes are called {node['name']}")
        names.add(node["name"])
        _notes(node, where)
        if loose:
            _loose(node, where)
        else:
            _facts(node, where, constants, tensors)
    if not data or data[-1]["op"] != "output":
        raise ValueError("the last node is no output")
    return places


def _arguments(node: dict[str, Any], names: Container[str], where: str) -> None:
    args, kwargs = as_list(node["args"], f"args of {where}"), node["kwargs"]
    is_a(kwargs, dict, f"kwargs of {where}")
    # A default of a placeholder would become text of a signature, which torch.fx takes apart at colons.
    if (args and node["op"] in ("placeholder", "get_attr")) or (kwargs and node["op"] != "call_function"):
        raise ValueError(f"{where} is {node['op']} with arguments")
    if node["op"] == "output" and len(args) != 1:
        raise ValueError(f"{where} is an output of {len(args)} values")
    for value in args:
        _value(value, names, 0)
    for key, value in kwargs.items():
        identifier(key, f"a keyword of {where}")
        _value(value, names, 0)


def _checkpoint(data: Any) -> None:
    is_a(data, dict, "the checkpoint")
    for name, found in data.items():
        for entry in as_list(found, f"the checkpoint's entry {name!r:.100}"):
            if not isinstance(entry, list) or [type(part) for part in entry] != [str, bool]:
                raise ValueError(f"the checkpoint's entry {name!r:.100}")


def _notes(node: dict[str, Any], where: str) -> None:
    for entry in as_list(node.get("modules", []), f"modules of {where}"):
        if len(as_list(entry, f"modules of {where}")) != 3 or not all(isinstance(text, str) for text in entry):
            raise ValueError(f"modules of {where} are not three texts each")


def _loose(node: dict[str, Any], where: str) -> None:
    """What passes left before facts were declared: plain data."""
    meta = node.get("meta", {})
    is_a(meta, dict, f"meta of {where}")
    for key, value in meta.items():
        if identifier(key, f"meta of {where}") in TORCH_META or not _plain(value):
            raise ValueError(f"meta of {where} holds {key}")
        if key in FACTS and not stored_facts.matches(FACTS[key].type, value):
            raise ValueError(f"the fact {key} of {where} is {str(value)[:100]}")


def _facts(node: dict[str, Any], where: str, constants: Mapping[str, Any], tensors: list[Any]) -> None:
    facts = node.get("meta", {})
    is_a(facts, dict, f"meta of {where}")
    for name, value in facts.items():
        if identifier(name, f"a fact of {where}") not in FACTS:
            raise InputError(
                f"{where} has the fact {name!r}, which is not declared here; import the package that declares it before loading"
            )
        _value(value, (), len(tensors))
        fact = FACTS[name]
        if not fact.saved or not stored_facts.matches(fact.type, value):
            raise ValueError(f"the fact {name} of {where} is {str(value)[:100]}, not a {fact.type.__name__}")
        if fact is FLOAT_REFERENCE:
            _reference(node, where, value["tensor"], constants, tensors)


def _reference(node: dict[str, Any], where: str, index: int, constants: Mapping[str, Any], tensors: list[Any]) -> None:
    """A float reference stands in for its constant, so it has the constant's type and shape."""
    if node["op"] != "get_attr":
        raise ValueError(f"{where} has a float reference and is no constant")
    own = constants[node["target"]]["tensor"]
    if own is not None and any(tensors[own].get(k) != tensors[index].get(k) for k in ("dtype", "shape")):
        raise ValueError(f"the float reference of {where} has another type or shape than the constant")


def _plain(value: Any) -> bool:
    return all(map(_plain, value)) if isinstance(value, list) else _scalar(value)


def _scalar(value: Any) -> bool:
    if isinstance(value, int):
        return -(2**63) <= value < 2**64
    return value is None or isinstance(value, (str, float))


# ---- Values ---------------------------------------------------------------------------------------------------------


def _value(data: Any, nodes: Container[str], tensors: int) -> None:
    """Check one encoded value; see `encoding`."""
    if isinstance(data, list):
        for each in data:
            _value(each, nodes, tensors)
    elif not isinstance(data, dict):
        if not _scalar(data):
            raise ValueError(f"the value {str(data)[:100]} is out of range")
    else:
        if len(data) != 1:
            raise ValueError(f"a value with the keys {', '.join(data)[:100] or '(none)'}, not one")
        ((kind, content),) = data.items()
        _special(kind, content, nodes, tensors)


def _special(kind: str, content: Any, nodes: Container[str], tensors: int) -> None:
    if kind in ("tuple", "dict"):
        for each in as_list(content, f"a {kind}"):
            if kind == "dict":
                if len(as_list(each, "an entry of a dict")) != 2 or not isinstance(each[0], str):
                    raise ValueError("an entry of a dict is not a text and a value")
                each = each[1]
            _value(each, nodes, tensors)
    elif kind in ("slice", "complex"):
        if len(as_list(content, f"a {kind}")) != (3 if kind == "slice" else 2):
            raise ValueError(f"a {kind} of {len(content)} values")
        for each in content:
            if isinstance(each, (list, str)) or (isinstance(each, dict) and not each.keys() <= {"node", "float"}):
                raise ValueError(f"a {kind} of something other than numbers")
            _value(each, nodes if kind == "slice" else (), tensors)
    elif kind == "tensor":
        _index(content, tensors)
    elif not (isinstance(content, str) and kind in _TEXTS and _TEXTS[kind](content, nodes)):
        raise ValueError(f"a value {kind[:100]!r} of {str(content)[:100]!r}")


_TEXTS: dict[str, Callable[[str, Container[str]], bool]] = {
    "node": lambda text, nodes: text in nodes,
    "float": lambda text, _: text in ("inf", "-inf", "nan"),
    "device": lambda text, _: DEVICE.fullmatch(text) is not None,
    "dtype": lambda text, _: text in raw_tensors.DTYPES,
    "layout": lambda text, _: text == "strided",
    "memory_format": lambda text, _: text in MEMORY_FORMATS,
}


def _index(value: Any, count: int) -> None:
    if type(value) is not int or not 0 <= value < count:
        raise ValueError(f"tensor {str(value)[:100]} of {count}")


# ---- Nested structures ----------------------------------------------------------------------------------------------


def leaves(data: Any) -> int:
    """The number of leaves of a structure, checked; see `encoding.spec`."""
    if data is None:
        return 1
    is_a(data, dict, "a structure")
    named = "type" in data
    has_keys(data, {"type" if named else "class", "context", "children"}, "a structure")
    children, context = as_list(data["children"], "children"), data["context"]
    if not named:
        matches(data["class"], CLASS, "a class")
        if not _plain(context):
            raise ValueError(f"a structure {data['class']} with {str(context)[:100]}")
    elif not _fits(data["type"], context, len(children)):
        raise ValueError(f"a structure {str(data['type'])[:100]!r} of {len(children)} with {str(context)[:100]}")
    return sum(map(leaves, children))


def _fits(kind: Any, context: Any, count: int) -> bool:
    """What torch knows about a container beside its children: keys, or the largest length."""
    if kind in ("tuple", "list"):
        return context is None
    if kind == "deque":
        return context is None or (type(context) is int and context >= count)
    keys = isinstance(context, list) and all(map(_scalar, context)) and len(set(context)) == len(context) == count
    return kind in CONTAINERS and keys


def _signature(arguments: Any, inputs: Any) -> None:
    """The arguments by name; keywords stand in generated code too."""
    for name in as_list(arguments, "arguments"):
        if identifier(name, "an argument") == "self":
            raise ValueError("an argument is called self")
    positional, keywords = _parts(inputs)
    if len(set(arguments)) != len(arguments) or len(arguments) != positional + len(keywords):
        raise ValueError(f"{len(arguments)} arguments for {positional} and {len(keywords)} inputs")
    for name in keywords:
        identifier(name, "a keyword argument")


def _parts(data: Any) -> tuple[int, list[Any]]:
    """Of a structure that is (args, kwargs): the number of the former and the keys of the latter."""
    leaves(data)
    if data is not None and data.get("type") == "tuple" and len(data["children"]) == 2:
        args, kwargs = data["children"]
        if args is not None and kwargs is not None and (args.get("type"), kwargs.get("type")) == ("tuple", "dict"):
            return len(args["children"]), kwargs["context"]
    raise ValueError("inputs that are not (args, kwargs)")


def _example(data: Any, tensors: int, places: int) -> None:
    has_keys(data, {"structure", "leaves"}, "the example")
    _, keywords = _parts(data["structure"])
    for name in keywords:
        identifier(name, "a keyword of the example")
    if not leaves(data["structure"]) == len(as_list(data["leaves"], "the example's leaves")) == places:
        raise ValueError(f"an example of {len(data['leaves'])} leaves for {places} placeholders")
    for value in data["leaves"]:
        _value(value, (), tensors)
