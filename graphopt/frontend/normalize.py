"""Bring a freshly exported graph into the form passes expect: no regions, no assertions, nothing that computes nothing.

regions for no_grad and autocast      ->  their calls, in place
shape assertions, detach, alias, ...  ->  gone
two readers of one tied weight        ->  one constant node with two readers
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch.fx.node import Node

from graphopt.ir.calls import bound

aten = torch.ops.aten

ASSERTIONS = {
    aten._assert_async.default, aten._assert_async.msg, aten._assert_scalar.default,
    aten._assert_tensor_metadata.default,
    aten.sym_constrain_range.default, aten.sym_constrain_range_for_size.default, torch._assert, torch._check,
}  # fmt: skip
# A functional graph has no use for another name of the same value. (`detach` matters for gradients; capture says so.)
SAME_VALUE = {
    aten.alias.default, aten.detach.default, aten.detach_.default, aten.lift.default, aten.lift_fresh.default,
    aten.lift_fresh_copy.default,
}  # fmt: skip
LAST = torch.iinfo(torch.int64).max


def inline_regions(module: fx.GraphModule) -> None:
    """Replace `wrap_with_set_grad_enabled` and `wrap_with_autocast(enabled=False)` by what they wrap."""
    graph = module.graph
    wrappers = {torch.ops.higher_order.wrap_with_set_grad_enabled: 1, torch.ops.higher_order.wrap_with_autocast: 4}
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in wrappers or active_autocast(node):
            continue
        position = wrappers[node.target]
        body = getattr(module, node.args[position].target)
        inline_regions(body)
        arguments = iter(node.args[position + 1 :])
        values: dict[Node, Any] = {}
        with graph.inserting_before(node):
            for inner in body.graph.nodes:
                if inner.op == "placeholder":
                    values[inner] = next(arguments)
                elif inner.op != "output":
                    if inner.op == "get_attr" and not hasattr(module, str(inner.target)):
                        setattr(module, str(inner.target), getattr(body, str(inner.target)))
                    values[inner] = graph.node_copy(inner, values.__getitem__)
        results = fx.map_arg(body.graph.output_node().args[0], values.__getitem__)
        for reader in list(node.users):
            if reader.target is operator.getitem:
                reader.replace_all_uses_with(results[reader.args[1]], propagate_meta=False)
                graph.erase_node(reader)
        if node.users:  # the body returns a single value
            node.replace_all_uses_with(results, propagate_meta=False)
        graph.erase_node(node)


def active_autocast(node: Node) -> bool:
    """Whether a call runs its body with autocast on, which casts inputs behind the scenes."""
    return node.target is torch.ops.higher_order.wrap_with_autocast and bool(node.args[2])


def has_active_autocast(module: fx.GraphModule) -> bool:
    modules = [m for m in module.modules() if isinstance(m, fx.GraphModule)]
    return any(active_autocast(n) for m in modules for n in m.graph.nodes)


def drop_assertions(module: fx.GraphModule) -> None:
    """Remove checks of sizes, types and values, and what only they read."""
    for node in reversed(list(module.graph.nodes)):
        check = node.op == "call_module" or (node.op == "call_function" and node.target in ASSERTIONS)
        if check and not node.users:
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()


def strip(module: fx.GraphModule) -> bool:
    """Remove other names of the same value. True where a `detach` cut the gradient of something trainable."""
    graph, cut = module.graph, False
    for node in list(graph.nodes):
        if node.op == "call_function" and (node.target in SAME_VALUE or _whole_slice(node)):
            source = node.args[0]
            assert isinstance(source, Node)
            cut = cut or (node.target in (aten.detach.default, aten.detach_.default) and _trainable(module, source))
            node.replace_all_uses_with(source, propagate_meta=False)
            graph.erase_node(node)
    graph.eliminate_dead_code()
    return cut


def has_data_dependent_size(value: Any) -> bool:
    """Whether a result of export has a size that only the data decides."""
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    leaves = [v for v in pytree.tree_leaves(value) if isinstance(v, (Tensor, torch.SymInt))]
    return any(free_unbacked_symbols(v) for v in leaves)


def _whole_slice(node: Node) -> bool:
    """x[:], which Python's slicing leaves behind for every dimension in front of the one that is cut."""
    if node.target is not aten.slice.Tensor:
        return False
    _, _, start, end, step = bound(node).values()
    return start in (0, None) and end in (LAST, None) and step == 1


def _trainable(module: fx.GraphModule, node: Node) -> bool:
    """Whether a trainable weight takes part in a value."""
    stack, met = [node], set()
    while stack:
        at = stack.pop()
        if at in met:
            continue
        met.add(at)
        if at.op == "get_attr":
            value = operator.attrgetter(str(at.target))(module)
            if isinstance(value, Tensor) and value.requires_grad:
                return True
        stack += at.all_input_nodes
    return False


def merge_constants(module: fx.GraphModule) -> None:
    """One node per constant tensor, so that a shared weight shows as one value with several readers.

    Export gives every name of a tied weight a tensor object of its own; they share their memory.
    """
    first: dict[Any, Node] = {}
    for node in list(module.graph.nodes):
        if node.op == "get_attr":
            value = operator.attrgetter(str(node.target))(module)
            key: Any = id(value)
            if isinstance(value, Tensor) and value.layout == torch.strided and value.numel():
                memory = value.untyped_storage()._cdata
                key = (memory, value.storage_offset(), value.shape, value.stride(), value.dtype, value.requires_grad)
            if (known := first.setdefault(key, node)) is not node:
                node.replace_all_uses_with(known, propagate_meta=False)
                module.graph.erase_node(node)
