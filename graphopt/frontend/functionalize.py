"""Rewrite in-place operators into functional ones, views and their bases included.

In PyTorch `y = x.view(-1); y.add_(1)` changes `x` as well. A functional graph says so explicitly: whoever reads `x`
later reads a new value made from the old `x` and the new `y`. Walking the graph in order, this file keeps for every
value the node that holds its current content:

    in-place op on v   ->  its functional twin; the result is v's content from now on, and is written through the chain
                           of views v, parent(v), ..., down to the base the memory belongs to
    read of a stale v  ->  v's view operator is replayed on its parent's current content

What aliases what is read off fake tensors that went through the graph: two values alias where they share a storage. So
operators that sometimes return their input (`reshape`, `contiguous`, `to`, dropout at inference) need no table.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch.fx.node import Node

from graphopt.ir.ops import registered
from graphopt.ir.shapes import propagate

aten = torch.ops.aten

RESHAPES = {
    *registered(lambda info: info.family == "reshape"),
    aten.view_as.default, aten.reshape_as.default, aten.ravel.default,
}  # fmt: skip
LISTS = {
    *registered(lambda info: info.family == "split"),
    aten.unbind.int, aten.tensor_split.sections, aten.tensor_split.indices,
}  # fmt: skip
# At inference these return their input itself, which fake tensors do not show.
DROPOUTS = registered(lambda info: info.family == "identity" and info.training_flag)


class UnknownAliasError(Exception):
    """A view or in-place operator this file has no functional form for; the caller falls back to torch's own rules."""


def mutated_argument(node: Node) -> int | None:
    """The position of the argument that a call writes into; None for a functional call.

    Raises:
        UnknownAliasError: it writes into several.
    """
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None:
        return None
    written = [i for i, a in enumerate(schema.arguments) if a.alias_info is not None and a.alias_info.is_write]
    if len(written) > 1:
        raise UnknownAliasError(str(node.target))
    return written[0] if written else None


def make_functional(module: fx.GraphModule) -> dict[Node, Node]:
    """Replace every in-place operator of the graph, in place.

    Returns:
        For each input, weight or buffer that the graph used to write into (which it no longer does), the node that
        holds what would have been written.

    Raises:
        UnknownAliasError: see there; the graph is then unusable.
    """
    if not any(mutated_argument(n) is not None for n in module.graph.nodes):
        return {}
    propagate(module)  # shapes and storages as they are before the rewrite
    return _Rewriter(module).run()


class _Rewriter:
    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.graph = module.graph
        self.parent: dict[Node, Node] = {}  # a view -> the value it was made from
        self.content: dict[Node, Node] = {}  # a value -> the node with its current content, if `seen` is up to date
        self.seen: dict[Node, int] = {}  # a value -> the version of its base that `content` belongs to
        self.version: dict[Node, int] = {}  # a base -> how often it was written
        self.value: dict[Node, Any] = {}  # fake results as they were before the rewrite
        self.parts: dict[Node, Node] = {}  # an element taken out -> the list it was taken from
        self.at: Node = next(iter(self.graph.nodes))  # the call that is being rewritten

    def run(self) -> dict[Node, Node]:
        nodes = list(self.graph.nodes)
        self.value = {n: n.meta.get("val") for n in nodes}
        for node in nodes:
            self.at = node
            with self.graph.inserting_before(node):
                if (position := mutated_argument(node)) is not None:
                    self._write(node, position)
                    continue
                if (source := self._source(node)) is not None:
                    self.parent[node] = source
                if node.target is operator.getitem:
                    self.parts[node] = node.all_input_nodes[0]
                self._replace_inputs(node)
            self.content[node] = node
            self.seen[node] = self.version.setdefault(self._base(node), 0)
        changed = {n: self.content[n] for n in nodes if n.op in ("placeholder", "get_attr") and self.version[n]}
        for node in reversed(nodes):
            if mutated_argument(node) is not None:
                self.graph.erase_node(node)
        self.graph.eliminate_dead_code()
        return changed

    # ---- Reading ----------------------------------------------------------------------------------------------------

    def _base(self, node: Node) -> Node:
        while node in self.parent:
            node = self.parent[node]
        return node

    def _read(self, node: Node) -> Node:
        """The node that holds the current content of `node`; replays views of a base that was written meanwhile."""
        base = self._base(node)
        if self.seen[node] != self.version[base]:
            self.content[node] = self._replay(node, self._read(self.parent[node]))
            self.seen[node] = self.version[base]
        return self.content[node]

    def _replay(self, view: Node, source: Node) -> Node:
        if view.target is operator.getitem:  # one of the parts that split or unbind made
            return self._call(operator.getitem, self._copy(self.parts[view], source), view.args[1])
        if mutated_argument(view) is not None:
            return source  # an in-place call returns the value it wrote
        return self._copy(view, source)

    def _copy(self, view: Node, source: Node) -> Node:
        return self._call(view.target, source, *view.args[1:], **view.kwargs)

    def _current(self, argument: Any) -> Any:
        return fx.map_arg(argument, self._read)

    def _replace_inputs(self, node: Node) -> None:
        node.args = fx.map_arg(node.args, self._read)
        node.kwargs = fx.map_arg(node.kwargs, self._read)

    def _source(self, node: Node) -> Node | None:
        """The input that a call's result shares memory with, if any."""
        if node.op != "call_function":
            return None
        if node.target is operator.getitem:  # see through the list of parts
            return self.parent.get(node.all_input_nodes[0])
        if node.target in DROPOUTS and node.args[2] is False:
            return node.all_input_nodes[0]
        storages = _storages(self.value[node])
        return next((i for i in node.all_input_nodes if storages & _storages(self.value[i])), None)

    # ---- Writing ----------------------------------------------------------------------------------------------------

    def _write(self, node: Node, position: int) -> None:
        target = node.args[position] if position < len(node.args) else None
        if not isinstance(target, Node):
            raise UnknownAliasError(str(node.target))  # out=...
        chain = [target]
        while chain[-1] in self.parent:
            chain.append(self.parent[chain[-1]])
        before = {link: self._read(link) for link in chain}
        new = self._twin(node, target, before[target])
        base, previous = chain[-1], target
        self.version[base] += 1
        for link in chain:
            if link is not target:
                new = self._scatter(previous, before[link], link, new)
            self.content[link], self.seen[link] = new, self.version[base]
            previous = link
        self.parent[node] = target
        self.content[node], self.seen[node] = self.content[target], self.version[base]

    def _twin(self, node: Node, target: Node, current: Node) -> Node:
        """The functional form of an in-place call, with the type of the value it wrote into."""
        was: Any = self.value[target]
        arguments: Any = node.args
        if node.target is aten.copy_.default:
            new, result = self._current(arguments[1]), self.value[arguments[1]]
            if tuple(result.shape) != tuple(was.shape):
                new = self._call(aten.expand_as.default, new, current)
        elif node.target is aten.zero_.default:
            return self._call(aten.zeros_like.default, current)
        elif node.target is aten.detach_.default:
            return current
        else:
            twin = _functional_twin(node.target)
            if twin is None or mutated_argument(node) != 0:
                raise UnknownAliasError(str(node.target))
            result = self._fake(twin, node)
            if tuple(map(str, result.shape)) != tuple(map(str, was.shape)):
                raise UnknownAliasError(str(node.target))  # unsqueeze_, resize_: the value itself gets another shape
            new = self._call(twin, *self._current(node.args), **self._current(node.kwargs))
        return new if result.dtype == was.dtype else self._call(aten.to.dtype, new, was.dtype)

    def _fake(self, twin: Any, node: Node) -> Tensor:
        """What the twin returns for the arguments of the in-place call, to see how it promotes types."""
        values = fx.map_arg((node.args, node.kwargs), lambda n: self.value[n])
        mode = next(v.fake_mode for v in pytree.tree_leaves(values) if hasattr(v, "fake_mode"))
        with mode, torch.no_grad(), enable_python_dispatcher():
            result: Tensor = twin(*values[0], **values[1])
        return result

    def _scatter(self, view: Node, source: Node, parent: Node, new: Node) -> Node:
        """The content of `parent` (now in `source`) after its view `view` got the content `new`."""
        whole, part = self.value[parent], self.value[view]
        if mutated_argument(view) is not None or view.target in DROPOUTS or _same_place(whole, part):
            return new
        if view.target is operator.getitem:
            return self._scatter_part(view, source, parent, new)
        a: list[Any] = list(view.args[1:])
        match view.target:
            case t if t in RESHAPES:
                return self._call(aten.reshape.default, new, _sizes(whole))
            case aten.transpose.int:
                return self._call(aten.transpose.int, new, *a)
            case aten.t.default:
                return self._call(aten.t.default, new)
            case aten.permute.default:
                order = [d % whole.dim() for d in a[0]]
                return self._call(aten.permute.default, new, [order.index(d) for d in range(len(order))])
            case aten.slice.Tensor:
                return self._call(aten.slice_scatter.default, source, new, *a)
            case aten.narrow.default if all(isinstance(x, int) for x in a):
                return self._call(aten.slice_scatter.default, source, new, a[0], a[1], a[1] + a[2])
            case aten.select.int:
                return self._call(aten.select_scatter.default, source, new, *a)
            case aten.diagonal.default:
                return self._call(aten.diagonal_scatter.default, source, new, *a)
        raise UnknownAliasError(str(view.target))

    def _scatter_part(self, view: Node, source: Node, parent: Node, new: Node) -> Node:
        parts, index = self.parts[view], view.args[1]
        if parts.target not in LISTS or not isinstance(index, int):
            raise UnknownAliasError(str(view.target))
        unbind = parts.target is aten.unbind.int
        position = 1 if unbind else 2
        dim: Any = parts.args[position] if len(parts.args) > position else parts.kwargs.get("dim", 0)
        if unbind:
            return self._call(aten.select_scatter.default, source, new, dim, index)
        sizes = [part.shape[dim] for part in self.value[parts]]
        if not all(isinstance(s, int) for s in sizes):
            raise UnknownAliasError("parts along the batch")
        start = sum(sizes[:index])
        return self._call(aten.slice_scatter.default, source, new, dim, start, start + sizes[index])

    def _call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        node = self.graph.call_function(target, args, kwargs)
        node.meta.update({k: v for k, v in self.at.meta.items() if k in ("nn_module_stack", "stack_trace")})
        return node


def _functional_twin(target: Any) -> Any:
    """aten.add_.Tensor -> aten.add.Tensor, aten.__iand__.Tensor -> aten.bitwise_and.Tensor; None without such."""
    namespace, name = target._schema.name.split("::")
    if name.startswith("__i"):
        name = {"lshift": "bitwise_left_shift", "rshift": "bitwise_right_shift"}.get(
            name[3:-2], f"bitwise_{name[3:-2]}"
        )
    elif name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    else:
        return None
    packet = getattr(getattr(torch.ops, namespace), name, None)
    return getattr(packet, target._overloadname, None)


def _storages(value: Any) -> set[int]:
    return {v.untyped_storage()._cdata for v in pytree.tree_leaves(value) if isinstance(v, Tensor)}


def _same_place(a: Any, b: Any) -> bool:
    """Whether two aliases are element for element the same memory in the same shape."""
    text = [(str(tuple(v.shape)), str(tuple(v.stride())), str(v.storage_offset()), v.dtype) for v in (a, b)]
    return text[0] == text[1]


def _sizes(value: Tensor) -> list[int]:
    """The sizes of a value for `reshape`, a free batch as -1."""
    free = [d for d, size in enumerate(value.shape) if not isinstance(size, int)]
    if len(free) > 1:
        raise UnknownAliasError("a view with several free sizes")
    return [-1 if d in free else int(size) for d, size in enumerate(value.shape)]
