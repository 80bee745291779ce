"""Calls with a tensor or two and no sizes to choose: those of `tests/helpers/operator_calls.py`, taken from its text."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import operator_calls as calls
from drawing import Draw, Kind, other


@cache
def lambdas() -> dict[str, list[tuple[list[str], ast.expr]]]:
    """Lists of calls in `operator_calls.py`: for each call its parameters and its expression."""
    found: dict[str, list[tuple[list[str], ast.expr]]] = {}
    for line in ast.parse(Path(calls.__file__).read_text()).body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.value, ast.List) and isinstance(line.target, ast.Name):
            found[line.target.id] = [_call(element) for element in line.value.elts]
    return found


def _call(element: ast.expr) -> tuple[list[str], ast.expr]:
    if isinstance(element, ast.Lambda):
        return [a.arg for a in element.args.args], element.body
    return [], element


def listed(name: str, arity: int, *, wrap: str = "{}", floating: bool = True) -> Kind:
    """One of a list's calls, of values of ours."""

    def kind(d: Draw) -> str | None:
        if (x := d.pick(floating=floating)) is None:
            return None
        given = [wrap.format(x), *([other(d, x)] if arity == 2 else [])]
        if name == "INDEXING":
            given[1:] = ["torch.tensor([1, -1])"]
        parameters, body = d.of(*lambdas()[name])
        if not parameters:
            return f"{ast.unparse(body)}({', '.join(map(str, given))})"
        return ast.unparse(_Substituted(dict(zip(parameters, map(str, given), strict=True))).visit(_copy(body)))

    return kind


class _Substituted(ast.NodeTransformer):
    def __init__(self, given: dict[str, str]) -> None:
        self.given = given

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.parse(self.given[node.id], mode="eval").body if node.id in self.given else node


def _copy(node: ast.expr) -> ast.expr:
    return ast.parse(ast.unparse(node), mode="eval").body
