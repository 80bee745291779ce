"""Nested inputs and outputs: their leaves in order, and a name for each.

forward(image, extra={"scale": s, "boxes": (a, b)})   ->   image, extra_scale, extra_boxes_0, extra_boxes_1
return {"logits": y, "hidden": [h, i]}                ->   logits, hidden_0, hidden_1
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from graphopt.utils.errors import InputError

PLAIN = (Tensor, int, float, complex, bool, str, bytes, type(None), torch.dtype, torch.device)


def leaf_paths(spec: Any) -> list[tuple[str, ...]]:
    """For each leaf of a tree, the keys that lead to it: dict keys, field names, else positions."""
    if spec.is_leaf():
        return [()]
    children = [spec.child(i) for i in range(spec.num_children)]
    keys = keys_of(spec, len(children))
    return [(key, *rest) for key, child in zip(keys, children, strict=True) for rest in leaf_paths(child)]


def keys_of(spec: Any, count: int) -> list[str]:
    """What the children of a node of a tree are called."""
    # The context of a namedtuple is its class, of a dict its keys, of a defaultdict (factory, keys), of a dataclass
    # (names, names of the fields that are None).
    if spec.type in (list, tuple):
        return [str(i) for i in range(count)]
    fields = getattr(spec.context, "_fields", spec.context)
    candidates = [fields, *fields] if isinstance(fields, (list, tuple)) else []
    for names in candidates:
        if isinstance(names, (list, tuple)) and len(names) == count and all(isinstance(n, (str, int)) for n in names):
            return [str(n) for n in names]
    return [str(i) for i in range(count)]


def names_of(paths: Iterable[tuple[str, ...]], root: str, taken: Iterable[str] = ()) -> list[str]:
    """A unique identifier per path, none of them in `taken`; a bare leaf is called `root`."""
    used, names = set(taken), []
    for path in paths:
        bare = not path or path[0].isdigit()
        name = re.sub(r"\W+", "_", "_".join([root, *path] if bare else path))
        unique, number = name, 1
        while unique in used:
            unique, number = f"{name}_{number}", number + 1
        used.add(unique)
        names.append(unique)
    return names


def arguments(
    forward: Callable[..., Any], args: Any, kwargs: Mapping[str, Any] | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs as positional and keyword arguments: a tuple or list of them, a single one, or a dictionary of those that
    `forward` takes by name."""
    if isinstance(args, Mapping) and not kwargs and args:
        try:
            inspect.signature(forward).bind(**args)
        except TypeError:  # other names, or no names: the dictionary itself is what it takes
            return (args,), {}
        return (), dict(args)
    return tuple(args) if type(args) in (tuple, list) else (args,), dict(kwargs or {})


def bind(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], who: str) -> dict[str, Any]:
    """The arguments of a call by parameter name, `*args` as one tuple and `**kwargs` as one dict.

    Raises:
        InputError: they do not fit the signature.
    """
    signature = inspect.signature(forward)
    try:
        return dict(signature.bind(*args, **kwargs).arguments)
    except TypeError as error:
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        names = [p.name for p in signature.parameters.values() if p.kind in kinds]
        given = f"got {len(args)}" + (f" and {', '.join(kwargs)}" if kwargs else "")
        listed = f" ({', '.join(names)})" if names else ""
        raise InputError(
            f"{who}.forward takes {len(names)} input{'s' * (len(names) != 1)}{listed}, {given}: {error}; "
            "pass the inputs only, without labels"
        ) from None


def name_keywords(model: nn.Module, kwargs: Mapping[str, Any]) -> None:
    """Let the `forward` of a copy name the keywords that it collects in `**kwargs`: torch.export cannot free sizes of those."""
    inner = model.forward
    declared = inspect.signature(inner)
    kinds = {name: parameter.kind for name, parameter in declared.parameters.items()}
    collected = [name for name in kwargs if name not in kinds]
    if not collected:
        return

    def forward(*args: Any, **kwargs: Any) -> Any:
        return inner(*args, **kwargs)

    kept = [p for p in declared.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    named = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in collected]
    forward.__signature__ = declared.replace(parameters=[*kept, *named])  # type: ignore[attr-defined]
    model.forward = forward


def input_paths(bound: Mapping[str, Any], forward: Callable[..., Any]) -> list[tuple[str, ...]]:
    """Paths of the leaves of bound arguments; keyword parameters collected in `**kwargs` stand by their own name."""
    parameters = inspect.signature(forward).parameters
    paths: list[tuple[str, ...]] = []
    for name, value in bound.items():
        below = leaf_paths(pytree.tree_structure(value))
        variadic = name in parameters and parameters[name].kind is inspect.Parameter.VAR_KEYWORD
        paths += below if variadic else [(name, *path) for path in below]
    return paths


def by_name(bound: Mapping[str, Any], forward: Callable[..., Any]) -> dict[str, Any]:
    """Bound arguments by name; those collected in `**kwargs` stand by their own name, those in `*args` are numbered."""
    parameters = inspect.signature(forward).parameters
    out: dict[str, Any] = {}
    for name, value in bound.items():
        kind = parameters[name].kind if name in parameters else None
        if kind is inspect.Parameter.VAR_POSITIONAL:
            out |= {f"{name}_{number}": each for number, each in enumerate(value)}
        else:
            out |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
    return out


def register_dataclasses(value: Any) -> None:
    """Make plain dataclasses in a nested value known to pytree, so that their tensors count as leaves."""
    while unknown := {type(leaf) for leaf in pytree.tree_leaves(value) if dataclasses.is_dataclass(leaf)}:
        for kind in unknown:
            torch.export.register_dataclass(kind, serialized_type_name=f"{kind.__module__}.{kind.__qualname__}")


def unsupported_leaf(value: Any) -> Any:
    """The first leaf that neither is a tensor nor a plain value; None where there is none."""
    return next((leaf for leaf in pytree.tree_leaves(value) if not isinstance(leaf, PLAIN)), None)
