"""Choices that are live in a graph: of every part that can be had in several ways, all of them, and weights that say which.

    y  = graphopt::choose([a, b, c], weights)        the sum of weights[i] times option i: operators, blocks, kernel sizes
    w' = graphopt::keep(w, weights, levels, dim)     w times the sum of weights[i] times levels[i], along a dimension: widths

`weights` is a constant, [options], that several calls may read: they choose together. One-hot, it is a choice that is made, and
what the executor runs is the option alone. Any other weights mix the options; training may put an expression in their place
(`graphopt.training.choices`). A graph with choices is a *supernet*: it can be trained, saved, copied and printed like any other,
and `graphopt.analysis.choices.extract` takes an ordinary smaller graph out of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.ir.calls import operand, value
from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten
from graphopt.utils.errors import InputError, alternatives

KINDS = ("width", "block", "kernel", "operator", "edge")
_NAME = re.compile(rf"(?:(?P<name>.+)\.)?(?P<kind>{'|'.join(KINDS)})_choice(?P<number>_\d+)?", re.ASCII)


@torch.library.custom_op("graphopt::choose", mutates_args=())
def choose(options: Sequence[Tensor], weights: Tensor) -> Tensor:
    """The weighted sum of tensors of one shape, [options] weights."""
    return sum((w * x for w, x in zip(weights.unbind(), options, strict=True)), torch.zeros_like(options[0]))


@choose.register_fake
def _(options: Sequence[Tensor], weights: Tensor) -> Tensor:
    if len(options) != weights.shape[0]:
        raise InputError(f"a choice has {len(options)} options, and weights {list(weights.shape)}")
    if shapes := [tuple(x.shape) for x in options if x.dim() != options[0].dim()]:
        raise InputError(f"options of a choice must have one shape, got {tuple(options[0].shape)} and {shapes[0]}")
    return torch.empty_like(options[0])


def _save_options(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    options, weights = inputs
    ctx.count = len(options)
    ctx.save_for_backward(*options, weights.clone())  # the weights may be set anew before gradients are asked for


def _choose_backward(ctx: Any, gradient: Tensor) -> tuple[list[Tensor], Tensor | None]:
    *options, weights = ctx.saved_tensors
    to_options = [w * gradient for w in weights.unbind()]
    to_weights = torch.stack([(gradient * x).sum() for x in options]) if ctx.needs_input_grad[1] else None
    return to_options, to_weights


choose.register_autograd(_choose_backward, setup_context=_save_options)


@torch.library.custom_op("graphopt::keep", mutates_args=())
def keep(x: Tensor, weights: Tensor, levels: Tensor, dim: int) -> Tensor:
    """x times the mix of levels along `dim`: weights [options], levels [options, size of the dimension]."""
    return x * _along(weights @ levels, x, dim)


@keep.register_fake
def _(x: Tensor, weights: Tensor, levels: Tensor, dim: int) -> Tensor:
    return torch.empty_like(x)


def _save_kept(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weights, levels, ctx.dim = inputs
    ctx.save_for_backward(x, weights @ levels, levels)


def _keep_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
    x, kept, levels = ctx.saved_tensors
    to_weights = None
    if ctx.needs_input_grad[1]:
        along = (gradient * x).movedim(ctx.dim, 0).flatten(1).sum(1) if x.dim() > 1 else gradient * x
        to_weights = levels @ along
    return gradient * _along(kept, x, ctx.dim), to_weights, None, None


keep.register_autograd(_keep_backward, setup_context=_save_kept)


def _along(vector: Tensor, x: Tensor, dim: int) -> Tensor:
    return vector.view([-1 if d == dim % x.dim() else 1 for d in range(x.dim())]).to(x.dtype)


CHOOSE: Any = torch.ops.graphopt.choose.default
KEEP: Any = torch.ops.graphopt.keep.default
WEIGHTS = 1  # the argument of both


@dataclass(frozen=True)
class LiveChoice:
    """One choice of a graph.

    Attributes:
        name: the layer, block or module that is chosen about.
        kind: `width`, `block`, `kernel`, `operator` or `edge`.
        node: the constant that holds its weights, [options].
        labels: of its options; the first is the network as it was, where it was made from one.
    """

    name: str
    kind: str
    node: Node
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


def constant_name(name: str, kind: str) -> str:
    """What the weights of a choice are called in a graph."""
    return f"{name}.{kind}_choice" if name else f"{kind}_choice"


def is_choice(graph: Graph, node: object) -> bool:
    """Whether a node is the constant that holds the weights of a choice."""
    return isinstance(node, Node) and graph.is_constant(node) and bool(_NAME.fullmatch(str(node.target)))


def choices(graph: Graph) -> list[LiveChoice]:
    """The choices of a graph, in execution order."""
    found: dict[Node, list[Node]] = {}
    for call in graph.calls(CHOOSE, KEEP):
        if (node := weights_of(graph, call)) is not None:
            found.setdefault(node, []).append(call)
    return [_live(graph, node, calls) for node, calls in found.items()]


def weights_of(graph: Graph, call: Node) -> Node | None:
    """The constant that a call chooses by, be it through an expression; None where there is none."""
    todo, seen = [call.args[WEIGHTS]], set[object]()
    while todo:
        node = todo.pop()
        if not isinstance(node, Node) or node in seen:
            continue
        seen.add(node)
        if is_choice(graph, node):
            return node
        todo += node.all_input_nodes
    return None


def generated_from(graph: Graph, node: object) -> Node | None:
    """The constant that a generated weight is a sum of, with what choices add to it
    (`graphopt.training.choices.generated`); None where a node is none."""
    if not isinstance(node, Node) or node.target is not aten.add.Tensor or len(node.all_input_nodes) != 2:
        return None
    constant, more = node.args[:2]
    made = isinstance(more, Node) and more.op == "call_function" and any(KEEP is user.target for user in node.users)
    return constant if made and graph.is_constant(constant) else None  # type: ignore[return-value]


def generated(graph: Graph) -> list[tuple[Node, Node]]:
    """The generated weights of a graph, each with the constant that it is a sum of."""
    held = dict.fromkeys(call.args[0] for call in graph.calls(KEEP))
    return [(node, constant) for node in held if (constant := generated_from(graph, node)) is not None]  # type: ignore[misc]


def _live(graph: Graph, node: Node, calls: Sequence[Node]) -> LiveChoice:
    parts = _NAME.fullmatch(str(node.target))
    assert parts is not None
    name = (parts["name"] or "") + (parts["number"] or "")
    return LiveChoice(name, parts["kind"], node, tuple(_labels(graph, parts["kind"], calls)))


def _labels(graph: Graph, kind: str, calls: Sequence[Node]) -> list[str]:
    if calls[0].target is KEEP:
        counts = [graph.tensor(call.args[2]).sum(1) for call in calls]  # type: ignore[arg-type]
        return [f"{int(n)}" for n in max(counts, key=lambda n: len(set(n.tolist())) * 1e6 + float(n[0]))]
    options: Sequence[Node] = calls[0].args[0]  # type: ignore[assignment]
    if kind == "block":
        return ["there", "gone"]
    if kind == "kernel":
        return ["x".join(map(str, value(operand(option, 1)).shape[2:])) for option in options]
    found = [_described(graph, option) for option in options]
    return [name if found.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(found)]


def _described(graph: Graph, option: Node) -> str:
    """The module that an option ends with; its operator, where that is no module's."""
    name = str(getattr(option.target, "__name__", option.target)).split(".")[0]
    return f"{graph.site(option)}" if option.op == "call_function" else f"{option.name or name}"


# ---- Making choices ---------------------------------------------------------------------------------------------------


def assignment(graph: Graph) -> tuple[int, ...]:
    """The option that each choice has; that of the largest weight, where several are mixed."""
    return tuple(int(graph.tensor(choice.node).argmax()) for choice in choices(graph))


@torch.no_grad()
def assign(
    graph: Graph, chosen: Sequence[int] | Mapping[str, int], *, known: Sequence[LiveChoice] | None = None
) -> None:
    """Give each choice one option, in place.

    Args:
        chosen: the number of an option for each of `choices(graph)`; or for some of them, by name.
        known: the graph's choices, where they are at hand.

    Raises:
        InputError: another number of choices, an unknown name, or an option that there is not.
    """
    known = choices(graph) if known is None else known
    if isinstance(chosen, Mapping):
        named = {choice.name: choice for choice in known}
        if unknown := set(chosen) - set(named):
            name = min(unknown)
            raise InputError(f"there is no choice {name!r}; {alternatives(name, named, 'choices')}")
        pairs = [(named[name], option) for name, option in chosen.items()]
    elif len(chosen) != len(known):
        raise InputError(f"the graph has {len(known)} choices, got {len(chosen)} options")
    else:
        pairs = list(zip(known, chosen, strict=True))
    for choice, option in pairs:
        if not 0 <= option < len(choice):
            raise InputError(
                f"the choice {choice.name!r} has {len(choice)} options ({', '.join(choice.labels)}), got {option}"
            )
        graph.parameter(choice.node).copy_(one_hot(option, len(choice)))


@torch.no_grad()
def transfer(source: Graph, target: Graph) -> None:
    """Give the choices of a graph, in place, the weights of those of the same names of another.

    Raises:
        InputError: a choice of `target` has no counterpart of as many options.
    """
    given = {(choice.name, choice.kind): source.tensor(choice.node) for choice in choices(source)}
    for choice in choices(target):
        weights = given.get((choice.name, choice.kind))
        if weights is None or len(weights) != len(choice):
            raise InputError(
                f"the choice {choice.name!r} has no counterpart of {len(choice)} options in the other graph"
            )
        target.parameter(choice.node).copy_(weights)


def one_hot(option: int, options: int) -> Tensor:
    """[options]"""
    found = torch.zeros(options)
    found[option] = 1.0
    return found


def skipped(graph: Graph, call: Node) -> list[bool] | None:
    """Of a `choose`, the options that count for nothing, [options]; None where none is known to.

    They are those whose weight is a constant zero, or a product with one: what training samples.
    """
    weights = call.args[WEIGHTS]
    found = None
    for node in (weights, *(weights.args if _is_product(weights) else ())):  # type: ignore[union-attr]
        if isinstance(node, Node) and graph.is_constant(node) and not graph.parameter(node).requires_grad:
            zero = (graph.parameter(node) == 0).tolist()
            found = zero if found is None else [a or b for a, b in zip(found, zero, strict=True)]
    return found if found and any(found) and not all(found) else None


def _is_product(node: object) -> bool:
    return isinstance(node, Node) and node.target is aten.mul.Tensor
