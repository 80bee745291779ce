"""Run a graph call by call: whole or in part, from inputs or from the middle, some of it changed on the way.

    executor = Executor(graph)
    executor(images)                                 what the model returns, nested as it returns it
    executor.run([layer], [images])[layer]           one value; nothing behind it is computed
    executor.run(graph.outputs, {layer: other})      from the middle: what is given is not computed

    for node in executor.walk(values, graph.outputs):    call by call; `values` holds what is in flight there
        values[node] = values[node].clamp(-1, 1)         (another value may take the place of what was computed)

Nothing of the graph is touched, its mode included: calls run in eval mode (or in training mode) whatever the graph's own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch.fx.node import Node

from graphopt.ir.calls import with_argument
from graphopt.ir.choices import CHOOSE, skipped
from graphopt.ir.facts import ALWAYS_EVAL, ALWAYS_TRAINING
from graphopt.ir.graph import Graph
from graphopt.ir.ops import info
from graphopt.utils.errors import ExecutionError, GraphoptError, InputError, first_line

Values = dict[Node, Any]
Skips = dict[Node, tuple[bool, ...]]


class _Plan(NamedTuple):
    """Calls in execution order, and behind each the values that no later one reads; `unread`: given, but read by none;
    `fixed`: calls that read constants alone; `skips`: options of choices that count for nothing (`graphopt.ir.choices`)."""

    steps: list[tuple[Node, list[Node]]]
    unread: list[Node]
    fixed: set[Node]
    skips: Skips


class Executor:
    """Runs one graph. Calls may not be added to it or removed meanwhile; constants may change, they are read where they are used.

    Args:
        graph: not changed.
        constants: values of constants, or of calls on constants, in place of the graph's own.
        overrides: call -> what is called in place of its operator, with the same arguments.
        gradients: record them, from whatever requires them among inputs, given values and `constants`. The graph's own constants
            enter without gradient; hand them in (`constants={node: graph.parameter(node)}`) to have theirs.
        leaves: values to have gradients for: what is computed of them is a leaf, unless something in front of it requires
            gradients already. Implies `gradients`.
        training: batch norm and dropout behave as in training (and running statistics are written to). Calls that did so in the
            model's eval mode always do.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        constants: Mapping[Node, Any] | None = None,
        overrides: Mapping[Node, Callable[..., Any]] | None = None,
        gradients: bool = False,
        leaves: Collection[Node] = (),
        training: bool = False,
    ) -> None:
        self.graph, self.training = graph, training
        self.constants, self.overrides = constants or {}, overrides or {}
        self.leaves, self.gradients = frozenset(leaves), gradients or bool(leaves)
        self._plans: dict[Any, _Plan] = {}
        self._settled: dict[Node, Any] | None = None
        self._choosing = [node for node in graph.calls(CHOOSE) if node not in self.overrides]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns; arguments and result as those of the graph.

        Raises:
            InputError: an input does not fit what the graph was captured for.
            ExecutionError: an operator failed.
        """
        return self.nested(self.run(self.graph.results, self.graph.check_inputs(args, kwargs)))

    def run(
        self, wanted: Iterable[Node], given: Sequence[Tensor] | Mapping[Node, Any], *, start: Node | None = None
    ) -> Values:
        """Compute values, and no more than they need.

        Args:
            wanted: calls, inputs or constants.
            given: a batch (input tensors in the order of `graph.input_names`; inputs that are no tensors are as in the example,
                what stands behind them, such as labels, is left alone), or any values, which are not computed then.
            start: what is given of this call and of later ones does not count.

        Returns:
            The value of each that is wanted.

        Raises:
            InputError: a batch does not fit what the graph was captured for, or a value needs an input that is not given.
            ExecutionError: an operator failed; names it and where it is.
        """
        wanted = dict.fromkeys(wanted)
        values = dict(given) if isinstance(given, Mapping) else self.inputs(given)
        if start is not None:
            values = {node: value for node, value in values.items() if _is_before(node, start)}
        for _ in self.walk(values, (), keep=wanted):
            pass
        return {node: self.read(node, values) for node in wanted}

    def walk(self, values: Values, until: Iterable[Node], *, keep: Collection[Node] = ()) -> Iterator[Node]:
        """The calls that some values need, in execution order, each right after it was computed.

        Args:
            values: what is given (see `inputs`). The walk works in there: while it stands at a call, what that call reads, what
                it gives and what later ones read. A value put there counts from then on.
            until: what to compute; let go of behind its last reader.
            keep: what to compute, and to leave in `values`. With `graph.outputs`, whatever is there at a call is all that a run
                of the rest needs: `run(graph.outputs, values, start=node)`.
        """
        plan = self._plan(values, (*until, *keep), keep)
        for node in plan.unread:
            del values[node]
        for node in self.leaves & values.keys():
            values[node] = _leaf(node, values[node])
        for node, expired in plan.steps:
            values[node] = self._value(node, values, plan)
            yield node
            for past in expired:
                values.pop(past, None)

    def _value(self, node: Node, values: Mapping[Node, Any], plan: _Plan) -> Any:
        if node in plan.fixed:
            return self._once(node, values)
        if node not in plan.skips:
            return self.call(node, values)
        left = [self.read(option, values) for option in _options(node, plan.skips)]
        weights = self.read(node.args[1], values)  # type: ignore[arg-type]
        with torch.set_grad_enabled(self.gradients):
            weights = weights[torch.tensor(plan.skips[node]).logical_not()]
            return (
                left[0] if len(left) == 1 and not weights.requires_grad and weights[0] == 1 else CHOOSE(left, weights)
            )

    def _once(self, node: Node, values: Mapping[Node, Any]) -> Any:
        if self._settled is None:
            return self.call(node, values)
        if node not in self._settled:
            self._settled[node] = self.call(node, values)
        return self._settled[node]

    def call(self, node: Node, values: Mapping[Node, Any]) -> Any:
        """What one call gives for the values it reads."""
        args, kwargs = self.arguments(node, values)
        function: Any = self.overrides.get(node, node.target)
        with torch.set_grad_enabled(self.gradients):
            try:
                found = function(*args, **kwargs)
            except GraphoptError:
                raise
            except Exception as error:
                raise ExecutionError(self._failure(node, args, error)) from error
        return _leaf(node, found) if node in self.leaves else found

    def arguments(self, node: Node, values: Mapping[Node, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What a call is called with."""
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: self.read(source, values))
        flag = info(node).training_flag
        if flag is None or self.graph.fact(node, ALWAYS_TRAINING):
            return args, kwargs
        return with_argument(node, args, kwargs, flag, self.training and not self.graph.fact(node, ALWAYS_EVAL))

    def inputs(self, batch: Sequence[Tensor]) -> Values:
        """All inputs of the graph, from the tensors among them, where the graph's constants are.

        Raises:
            InputError: a tensor is missing or does not fit what the graph was captured for.
        """
        graph = self.graph
        if len(batch) < len(graph.inputs):
            raise InputError(
                f"the graph takes {len(graph.inputs)} input tensors ({', '.join(graph.input_names)}), got {len(batch)}"
            )
        tensors = {node: x.to(graph.device) for node, x in zip(graph.inputs, batch, strict=False)}
        graph.check_tensors(list(tensors.values()))
        return {node: tensors[node] if node in tensors else node.meta.get("val") for node in graph.placeholders}

    def nested(self, values: Mapping[Node, Any]) -> Any:
        """What the model returns, in its own structure, from the values of `graph.results`."""
        flat = fx.node.map_arg(self.graph.output.args[0], lambda node: self.read(node, values))
        return self.graph.module.graph.process_outputs(flat)

    def float_outputs(self, given: Sequence[Tensor] | Mapping[Node, Any], *, start: Node | None = None) -> list[Tensor]:
        """The floating-point tensors among what the model returns, in order; arguments as those of `run`."""
        return self.floating(self.run(self.graph.outputs, given, start=start))

    def floating(self, values: Mapping[Node, Any]) -> list[Tensor]:
        """The floating-point tensors among the values of `graph.outputs`."""
        leaves = pytree.tree_leaves([self.read(node, values) for node in self.graph.outputs])
        return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]

    def overriding(self, overrides: Mapping[Node, Callable[..., Any]]) -> Executor:
        """The same with other overrides."""
        other = copy.copy(self)  # which shares the plans
        other.overrides = overrides
        return other if self._settled is None else other.settled()

    def settled(self) -> Executor:
        """The same for as long as no constant changes: what is computed of constants alone, such as the rounded weight of a
        layer, is computed at most once."""
        other = copy.copy(self)
        other._settled = {}
        return other

    def alive(self, node: Node) -> list[Node]:
        """What is in flight just before a call is computed: what came before and is still read. Calls on constants are not; they
        are computed where they are used."""
        fixed = self._fixed
        earlier = (
            n
            for n in self.graph.nodes
            if n.op in ("placeholder", "call_function") and n not in fixed and _is_before(n, node)
        )
        return [n for n in earlier if any(not user < node and user.op != "output" for user in n.users)]

    @cached_property
    def _fixed(self) -> set[Node]:
        return constant_calls(self.graph.nodes)

    def read(self, source: Node, values: Mapping[Node, Any]) -> Any:
        """A value that is given or computed, or a constant."""
        if source in self.constants:
            return self.constants[source]
        if source in values:
            return values[source]
        return self.graph.tensor(source)

    def _plan(self, given: Mapping[Node, Any], wanted: Sequence[Node], keep: Collection[Node]) -> _Plan:
        skips = self._skips() if self._choosing else {}
        key = frozenset(given), wanted, frozenset(keep), tuple(skips.items())
        if key not in self._plans:
            self._plans[key] = self._made(given, wanted, keep, skips)
        return self._plans[key]

    def _skips(self) -> Skips:
        """Options that are not computed, as the weights of choices are now."""
        found = {node: skipped(self.graph, node) for node in self._choosing if node.args[1] not in self.constants}
        return {node: tuple(which) for node, which in found.items() if which is not None}

    def _made(self, given: Mapping[Node, Any], wanted: Sequence[Node], keep: Collection[Node], skips: Skips) -> _Plan:
        needed, todo = set[Node](), list(wanted)
        while todo:
            node = todo.pop()
            if node in needed or node in given or node in self.constants or node.op == "get_attr":
                continue
            if node.op == "placeholder":
                raise InputError(f"input {node.name!r} is needed and not given")
            needed.add(node)
            todo.extend(_read_by(node, skips))
        last = {node: node for node in sorted(needed)}
        for node in list(last):
            last.update(dict.fromkeys(_read_by(node, skips), node))
        expiring: dict[Node, list[Node]] = {node: [] for node in sorted(needed)}
        for source, reader in last.items():
            if source not in keep and (source in needed or source in given):
                expiring[reader].append(source)
        unread = [node for node in given if node not in last and node not in keep]
        return _Plan(list(expiring.items()), unread, constant_calls(expiring), skips)

    def _failure(self, node: Node, args: tuple[Any, ...], error: Exception) -> str:
        shapes = [list(leaf.shape) for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor)]
        name = str(getattr(node.target, "__name__", node.target)).split(".")[0]
        return f"{name} at {self.graph.site(node)!r} failed on tensors of shapes {shapes}: {first_line(error)}"


def _read_by(node: Node, skips: Skips) -> list[Node]:
    return node.all_input_nodes if node not in skips else [*_options(node, skips), node.args[1]]  # type: ignore[list-item]


def _options(node: Node, skips: Skips) -> list[Node]:
    """The options of a choice that are computed."""
    options: Sequence[Node] = node.args[0]  # type: ignore[assignment]
    return [option for option, left_out in zip(options, skips[node], strict=True) if not left_out]


def constant_calls(nodes: Iterable[Node]) -> set[Node]:
    """Those of some nodes, in execution order, that are calls which constants and each other lead to, and nothing else."""
    found: set[Node] = set()
    for node in nodes:
        sources = node.all_input_nodes
        if node.op == "call_function" and sources and all(s.op == "get_attr" or s in found for s in sources):
            found.add(node)
    return found


def _is_before(node: Node, other: Node) -> bool:
    """Inputs are before every call, wherever they stand: a pass may have put a call between them."""
    return node.op == "placeholder" or node < other


def _leaf(node: Node, value: Any) -> Any:
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
        raise InputError(f"gradients are wanted for {node.name!r}, which is no floating-point tensor")
    return value if value.requires_grad else value.detach().requires_grad_()
