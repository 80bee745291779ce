"""What an exported program's description may say, checked against torch's own schema before torch reads it.

torch reads such a description trustingly: it evaluates sizes as Python, imports modules that the nesting of inputs names, walks
attributes to find functions, puts names into generated code, and takes any JSON for a number. Here every field must be of the
type that torch's schema gives it, and every text must fit what its field is for. What comes back holds only fields that
the schema knows, without those that are mere notes to torch's own tools.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import functools
import re
import types
import typing
from collections.abc import Callable
from typing import Any

from torch._export.serde import schema as torch_schema
from torch._export.serde.union import _Union

from graphopt.ir import operators
from graphopt.ir.plain_data import LABEL, constant, identifier
from graphopt.ir.schema import DEVICE
from graphopt.utils import json_data

# Regions that capture resolves, and a branch, which it refuses by name.
REGIONS = {"wrap_with_set_grad_enabled", "wrap_with_autocast", "cond"}
SYMBOL = re.compile(r"[a-z]{1,4}\d{1,9}")
# Functions of sympy and torch that sizes are made of. None of them takes text, grows numbers quickly, or loops.
ARITHMETIC = {
    "Abs", "Add", "And", "CeilDiv", "CeilToInt", "CleanDiv", "Eq", "Equality", "FloatTrueDiv", "Float", "FloorDiv", "FloorToInt",
    "Ge", "GreaterThan", "Gt", "Half", "Identity", "IntTrueDiv", "Integer", "Le", "LessThan", "Lt", "Max", "Min", "Mod",
    "ModularIndexing", "Mul", "Ne", "NegativeOne", "Not", "One", "Or", "PythonMod", "Rational", "RoundToInt",
    "StrictGreaterThan", "StrictLessThan", "ToFloat", "TruncToFloat", "TruncToInt", "Unequality", "Where", "Zero",
    "ceiling", "floor",
}  # fmt: skip
# The factory of a defaultdict, which torch would import.
FACTORIES = {"list", "dict", "set", "tuple", "int", "float", "str", "bool"}


def program(data: Any) -> Any:
    """The description of a program (`models/model.json`), checked.

    Raises:
        ValueError, KeyError, TypeError: names what does not fit.
        InputError: it calls an operator that a file may not call.
    """
    checked = conform(torch_schema.ExportedProgram, data, "a program")
    module = checked["graph_module"]
    module["module_call_graph"] = module["module_call_graph"][
        :1
    ]  # of the model itself; the others are for unflattening
    module["metadata"] = {}
    checked["guards_code"] = []  # Python, for checks of the inputs that capture makes itself
    return checked


def payloads(data: Any) -> Any:
    """The table of weights or constants (`..._config.json`), checked."""
    return conform(torch_schema.PayloadConfig, data, "a table of tensors")


def conform(kind: Any, data: Any, field: str) -> Any:
    """`data` reduced to what a type of torch's schema describes.

    Args:
        field: where it stands, such as "Node.target".

    Raises:
        ValueError: it is of another type, or a text that does not belong into its field.
    """
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        inner = next(a for a in typing.get_args(kind) if a is not type(None))
        return None if data is None else conform(inner, data, field)
    if origin is list:
        return [conform(typing.get_args(kind)[0], each, field) for each in _of(list, data, field)]
    if origin is dict:
        return _mapping(typing.get_args(kind)[1], data, field)
    if issubclass(kind, _Union):
        return _union(kind, data, field)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _record(kind, data, field)
    if issubclass(kind, enum.Enum):
        return kind(_of(int, data, field)).value
    if kind is float:
        return data if data in ("Infinity", "-Infinity", "NaN") else float(_of((int, float), data, field))
    if kind is str:
        return _text(_of(str, data, field), field)
    if kind is int and abs(_of(int, data, field)) >= 2**64:
        raise ValueError(f"{field} is out of range")
    return _of(kind, data, field)


def _of(kind: Any, data: Any, field: str) -> Any:
    if type(data) is not kind and not (isinstance(kind, tuple) and type(data) in kind):
        raise ValueError(f"{field} is {str(data)[:100]!r}")
    return data


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind, globalns=vars(torch_schema))


def _union(kind: type, data: Any, field: str) -> Any:
    ((name, value),) = _of(dict, data, field).items() if data else [("nothing", None)]
    where = f"{kind.__name__}.{name}"
    if name not in _hints(kind) or where in REFUSED:
        raise ValueError(f"{field} is {REFUSED.get(where, 'unknown')} ({name[:100]})")
    if name == "as_none":
        return {name: True}  # older releases of torch write an empty list
    return {name: conform(_hints(kind)[name], value, where)}


def _record(kind: type, data: Any, field: str) -> Any:
    _of(dict, data, field)
    where = kind.__name__
    if where in REFUSED:
        raise ValueError(f"{field} is {REFUSED[where]}")
    if unknown := data.keys() - _hints(kind).keys():  # a newer schema, or something in hiding: torch would pass over it
        raise ValueError(f"{where} holds {sorted(unknown)[0][:100]!r}")
    found = {n: conform(hint, data[n], f"{where}.{n}") for n, hint in _hints(kind).items() if n in data}
    if where == "PayloadMeta" and (found["use_pickle"] or found["tensor_meta"] is None):
        raise ValueError(f"{found['path_name']} is pickled")
    if where == "Node":
        found["metadata"] = {k: v for k, v in found["metadata"].items() if k in ("nn_module_stack", "stack_trace")}
        _check_arithmetic(found)
    return found


def _mapping(kind: Any, data: Any, field: str) -> Any:
    rule = KEYS.get(field)
    for key in _of(dict, data, field):
        if rule is None:
            raise ValueError(f"{field} holds {key[:100]!r}")
        rule(key, field)
    return {key: conform(kind, value, field) for key, value in data.items()}


def _check_arithmetic(node: dict[str, Any]) -> None:
    """Plain functions of Python take numbers and values, or a text times a number could fill the memory."""
    if not node["target"].startswith("torch.ops."):
        for each in node["inputs"]:
            ((kind, value),) = each["arg"].items()
            if kind not in ("as_tensor", "as_int", "as_float", "as_bool", "as_sym_int", "as_sym_float", "as_sym_bool"):
                raise ValueError(f"{node['target']} of {kind}")
            if node["target"] == "_operator.pow" and kind == "as_int" and abs(value) > operators.LARGEST_EXPONENT:
                raise ValueError(f"{node['target']} of {value}")


# ---- Texts ----------------------------------------------------------------------------------------------------------


def _text(text: str, field: str) -> str:
    rule = TEXTS.get(field)
    if rule is None:
        raise ValueError(f"{field} is {text[:100]!r}")
    return rule(text, field) or text


def _free(text: str, field: str) -> None:
    """Any text: torch keeps it, or quotes it."""


def _pattern(pattern: re.Pattern[str]) -> Callable[[str, str], None]:
    def check(text: str, field: str) -> None:
        if len(text) > 1000 or not pattern.fullmatch(text):
            raise ValueError(f"{field} is {text[:100]!r}")

    return check


def _schema_name(text: str, field: str) -> None:
    if text and not text.isidentifier():
        raise ValueError(f"{field} is {text[:100]!r}")


def _target(text: str, field: str) -> None:
    parts = text.split(".")
    if parts[:3] == ["torch", "ops", "higher_order"] and len(parts) == 4 and parts[3] in REGIONS:
        return
    if parts[:2] == ["torch", "ops"] and len(parts) == 5:
        operators.find(f"{parts[2]}::{parts[3]}.{parts[4]}", in_place=True)
    elif text.removeprefix("_") not in operators.FUNCTIONS or text.startswith("operator."):
        raise ValueError(f"{field} is {text[:100]!r}, which no file may call")


def _size(text: str, field: str) -> None:
    """Arithmetic on sizes, such as Mul(Integer(2), Symbol('s0', integer=True)), and nothing else: torch evaluates it."""
    if len(text) > 10_000:
        raise ValueError(f"{field} has {len(text)} characters")
    for node in ast.walk(ast.parse(text, mode="eval")):
        if not _is_arithmetic(node):
            raise ValueError(f"{field} is {text[:100]!r}, an odd expression")


def _is_arithmetic(node: ast.AST) -> bool:
    """Whether a part of an expression may stand there; its own parts are looked at in turn."""
    if isinstance(node, ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name in ("Pow", "PowByNatural"):
            return len(node.args) == 2 and _is_power(*node.args)
        if name == "Symbol":  # its name is the one text
            return len(node.args) == 1 and isinstance(node.args[0], ast.Constant) and _is_symbol(node.args[0].value)
        return name in ARITHMETIC
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return _is_power(node.left, node.right)
    if isinstance(node, ast.Constant):
        number = isinstance(node.value, (int, float)) and abs(node.value) < 2**64
        return number or _is_symbol(node.value)
    if isinstance(node, ast.Name):
        return node.id in ARITHMETIC | {"Pow", "PowByNatural", "Symbol", "true", "false"} or _is_symbol(node.id)
    return isinstance(node, _SYNTAX)


def _is_symbol(name: Any) -> bool:
    return isinstance(name, str) and SYMBOL.fullmatch(name) is not None


def _is_power(base: ast.AST, exponent: ast.AST) -> bool:
    """A symbol to a small number; powers of numbers would be worked out, whatever their length."""
    symbol = isinstance(base, ast.Name) or (
        isinstance(base, ast.Call) and isinstance(base.func, ast.Name) and base.func.id == "Symbol"
    )
    return symbol and re.fullmatch(r"(Integer\()?-?\d{1,2}\)?", ast.unparse(exponent)) is not None


_SYNTAX = (
    ast.Add, ast.BinOp, ast.Call, ast.Compare, ast.Div, ast.Expression, ast.FloorDiv, ast.Load, ast.Mod, ast.Mult, ast.Pow,
    ast.Sub, ast.USub, ast.UAdd, ast.UnaryOp, ast.cmpop, ast.keyword,
)  # fmt: skip


def _nesting(text: str, field: str) -> str:
    """The structure of inputs or outputs, a JSON text in the text."""
    protocol, tree = json_data.parse(text.encode())
    if protocol != 1:
        raise ValueError(f"{field} is of protocol {protocol!r}")
    _subtree(tree, field)
    if field.endswith(".in_spec"):
        _check_call(tree, field)
    return text


def _subtree(tree: Any, field: str) -> None:
    if not isinstance(tree, dict) or tree.keys() != {"type", "context", "children_spec"}:
        raise ValueError(f"{field} holds {str(tree)[:100]}")
    kind, context = tree["type"], tree["context"]
    if kind is not None:
        _pattern(_CLASS)(_of(str, kind, field), field)
        if kind == "collections.defaultdict":
            context = _factory(context, field)
        elif kind == "collections.namedtuple":
            _pattern(_CLASS)(_of(str, context, field), field)
        elif not _is_plain(json_data.parse(_of(str, context, field).encode())):
            raise ValueError(f"{field} holds {str(context)[:100]}")
    for child in _of(list, tree["children_spec"], field):
        _subtree(child, field)


def _factory(context: Any, field: str) -> Any:
    named = context.get("default_factory_name") if isinstance(context, dict) else None
    builtin = named in FACTORIES and context.get("default_factory_module") == "builtins"
    if not builtin or not _is_plain(context.get("dict_context")):
        raise ValueError(f"{field} holds a defaultdict of {str(context)[:100]}")
    return context


def _is_plain(data: Any) -> bool:
    """No object: torch takes some for the name of a module to import."""
    return all(map(_is_plain, data)) if isinstance(data, list) else not isinstance(data, dict)


def _check_call(tree: Any, field: str) -> None:
    """The inputs are (args, kwargs), whose keys stand in generated code."""
    kinds = [child["type"] for child in tree["children_spec"]]
    if tree["type"] != "builtins.tuple" or kinds != ["builtins.tuple", "builtins.dict"]:
        raise ValueError(f"{field} is of {kinds}, not (args, kwargs)")
    for key in json_data.parse(tree["children_spec"][1]["context"].encode()):
        identifier(key, field)


_CLASS = re.compile(r"[\w.<>]+")
_NAMES = (
    "TensorArgument.name", "TokenArgument.name", "GraphArgument.name", "Node.name", "InputToConstantInputSpec.name",
    "SymIntArgument.as_name", "SymFloatArgument.as_name", "SymBoolArgument.as_name", "UserInputMutationSpec.user_input_name",
    "GradientToUserInputSpec.user_input_name", "ModuleCallSignature.forward_arg_names",
)  # fmt: skip
_PATHS = (
    "InputToParameterSpec.parameter_name", "InputToBufferSpec.buffer_name", "InputToTensorConstantSpec.tensor_constant_name",
    "BufferMutationSpec.buffer_name", "ParameterMutationSpec.parameter_name", "GradientToParameterSpec.parameter_name",
)  # fmt: skip
# What each text of the schema may be; a function that checks it, and may return another text in its place.
TEXTS: dict[str, Callable[[str, str], Any]] = {
    **dict.fromkeys(_NAMES, identifier),
    **dict.fromkeys(_PATHS, constant),
    "Argument.as_string": _free,
    "Argument.as_strings": _free,
    "ConstantValue.as_string": _free,
    "Device.type": _pattern(DEVICE),
    "ExportedProgram.torch_version": _free,
    "ExportedProgram.guards_code": _free,
    "ExportedProgram.verifiers": _pattern(LABEL),
    "GraphModule.metadata": _free,
    "ModuleCallEntry.fqn": _free,
    "ModuleCallSignature.in_spec": _nesting,
    "ModuleCallSignature.out_spec": _nesting,
    "NamedArgument.name": _schema_name,
    "NamedTupleDef.field_names": identifier,
    "Node.metadata": _free,
    "Node.target": _target,
    "PayloadMeta.path_name": _pattern(re.compile(r"(weight|tensor)_\d{1,9}")),
    "SymExpr.expr_str": _size,
}
KEYS: dict[str, Callable[[str, str], Any]] = {
    "Argument.as_string_to_argument": identifier,
    "ExportedProgram.opset_version": _pattern(LABEL),
    "ExportedProgram.range_constraints": _size,
    "Graph.tensor_values": identifier,
    "Graph.sym_int_values": identifier,
    "Graph.sym_float_values": identifier,
    "Graph.sym_bool_values": identifier,
    "GraphModule.metadata": _free,
    "GraphModule.treespec_namedtuple_fields": _pattern(_CLASS),
    "Node.metadata": _free,
    "PayloadConfig.config": constant,
}
# Kinds of values that a program may not hold.
REFUSED = {
    "CustomObjArgument": "an object of a class",
    "InputToCustomObjSpec": "an object of a class",
    "Argument.as_custom_obj": "an object of a class",
    "Argument.as_operator": "a function",
}
