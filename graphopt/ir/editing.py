"""How passes rewrite a graph: constants put in the place of others, calls added and replaced, what no one reads swept away.

No edit writes into an existing tensor: it adds a constant and rewires the readers.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.node import Argument, Node

from graphopt.ir.facts import FLOAT_REFERENCE, REFERENCE_LEFT_OUT, Fact
from graphopt.ir.reading import Reading


def register(root: nn.Module, name: str, value: Tensor) -> None:
    """Let a tensor be the parameter or buffer of this dotted name; modules on the way are made."""
    *path, leaf = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root._modules[part]  # type: ignore[assignment]
    if isinstance(value, nn.Parameter):
        root.register_parameter(leaf, value)
    else:
        root.register_buffer(leaf, value)


class Editing(Reading):
    """The part of `Graph` for passes."""

    def add_constant(self, name: str, value: Tensor, *, before: Node, like: Sequence[Node] = ()) -> Node:
        """A new constant next to `before`; `name` is made unique by a number where it is taken.

        Args:
            like: constants that it is made of: it is a parameter where one of them is, and frozen where all of those are.
        """
        return self._new_constant(name, value, before, [self.parameter(node) for node in like])

    def _new_constant(self, name: str, value: Tensor, before: Node, like: Sequence[Tensor]) -> Node:
        name = self._free_name(name)
        value = value.detach()
        made_of = [t for t in like if isinstance(t, nn.Parameter)]
        if made_of and value.is_floating_point():
            value = nn.Parameter(value, any(t.requires_grad for t in made_of))
        register(self.module, name, value)
        with self.module.graph.inserting_before(before):
            node = self.module.graph.get_attr(name)
        node.meta["val"] = value.detach().to("meta")
        return node

    def set_constant(self, reader: Node, position: int, value: Tensor, *, keeps: Collection[Fact[Any]] = ()) -> Node:
        """Let argument `position` of `reader` be `value` from now on, under the old constant's name where no one else
        reads that one. The old tensor itself is not touched. What depended on it is forgotten, except for `keeps`."""
        from graphopt.ir.invalidation import constant_changed, value_changed

        old = reader.args[position]
        assert isinstance(old, Node), f"argument {position} of {reader} is not a constant"
        assert old.op == "get_attr", f"argument {position} of {reader} is not a constant"
        name, original = str(old.target), self.parameter(old)
        known = {f.name: old.meta[f.name] for f in (FLOAT_REFERENCE, REFERENCE_LEFT_OUT) if f.name in old.meta}
        if len(old.users) == 1 and sum(a is old for a in reader.all_input_nodes) == 1:
            reader.update_arg(position, None)
            self._erase_constant(old)
        new = self._new_constant(name, value, reader, [original])
        reader.update_arg(position, new)
        new.meta.update(known)
        value_changed(new, keeps)
        constant_changed(reader, position, keeps)
        return new

    def put_constant(self, node: Node, value: Tensor, *, keeps: Collection[Fact[Any]] = ()) -> None:
        """Let the constant `node` be `value` from now on for all its readers, under its name. The old tensor is not touched.
        What depended on it is forgotten, except for `keeps`."""
        old = self.parameter(node)
        path, _, leaf = str(node.target).rpartition(".")
        owner = self.module.get_submodule(path)
        delattr(owner, leaf)
        if isinstance(old, nn.Parameter):
            owner.register_parameter(leaf, nn.Parameter(value.detach(), requires_grad=old.requires_grad))
        else:
            owner.register_buffer(leaf, value.detach())
        node.meta["val"] = value.detach().to("meta")
        self.changed_in_place(node, keeps=keeps)

    def make_parameter(self, node: Node) -> None:
        """Let the constant `node` be a trainable parameter, with the elements that it has."""
        path, _, leaf = str(node.target).rpartition(".")
        owner, value = self.module.get_submodule(path), self.parameter(node).detach()
        delattr(owner, leaf)
        owner.register_parameter(leaf, nn.Parameter(value))

    def changed_in_place(self, node: Node, *, keeps: Collection[Fact[Any]] = ()) -> None:
        """Forget, except for `keeps`, what depended on the elements that the constant `node` had before."""
        from graphopt.ir.invalidation import constant_changed, value_changed

        value_changed(node, keeps)
        for reader in node.users:
            for position, argument in enumerate(reader.args):
                if argument is node:
                    constant_changed(reader, position, keeps)

    def set_bias(self, layer: Node, value: Tensor, *, keeps: Collection[Fact[Any]] = ()) -> Node:
        """Give a convolution or linear layer this bias, whether it had one or not; `keeps` as for `set_constant`."""
        from graphopt.ir.invalidation import constant_changed

        if len(layer.args) > 2 and isinstance(layer.args[2], Node):
            return self.set_constant(layer, 2, value, keeps=keeps)
        weight = layer.args[1]
        assert isinstance(weight, Node)
        made_of = [weight] if weight.op == "get_attr" else []
        name = str(weight.target).rpartition(".")[0] if weight.op == "get_attr" else layer.name
        bias = self.add_constant(f"{name}.bias" if name else "bias", value, before=layer, like=made_of)
        layer.args = (*layer.args[:2], bias, *layer.args[3:])
        constant_changed(layer, 2, keeps)
        return bias

    def call(self, target: Any, *args: Argument, before: Node, like: Node | None = None, **kwargs: Argument) -> Node:
        """A new call in front of `before`, which inherits the source position of `like` (default: of `before`)."""
        with self.module.graph.inserting_before(before):
            node = self.module.graph.call_function(target, args, dict(kwargs))
        origin = (like or before).meta
        node.meta.update({k: origin[k] for k in ("nn_module_stack", "stack_trace") if k in origin})
        return node

    def add_expression(self, name: str, target: Any, *args: Argument, before: Node) -> Node:
        """A call on constants that stands where a constant of this name could stand, and is called like it."""
        graph = self.module.graph
        with graph.inserting_before(before):
            return graph.create_node("call_function", target, args, {}, graph._target_to_str(name))

    def replace(self, old: Node, new: Node) -> None:
        """Let every reader of `old` read `new`, and remove `old`. A new call has the shape of what it stands for from then on."""
        if "val" in old.meta:
            new.meta.setdefault("val", old.meta["val"])
        old.replace_all_uses_with(new, propagate_meta=False)
        self.module.graph.erase_node(old)

    def after(self, node: Node) -> Node:
        """The node behind `node`: what `before=` takes to insert right after it."""
        return node.next

    def _free_name(self, name: str) -> str:
        if _below_a_tensor(self.module, name):
            name = name.replace(".", "_")
        number, candidate = 0, name
        while _taken(self.module, candidate):
            number += 1
            candidate = f"{name}_{number}"
        return candidate

    def _erase_constant(self, node: Node) -> None:
        self.module.graph.erase_node(node)
        *path, leaf = str(node.target).split(".")
        delattr(self.module.get_submodule(".".join(path)), leaf)

    def sweep(self) -> int:
        """Remove calls no one reads and constants no node names. Returns the number of calls removed."""
        dead = 0
        for node in reversed(self.nodes):
            if not node.users and node.op in ("call_function", "get_attr"):
                dead += node.op == "call_function"
                self.module.graph.erase_node(node)
        used = {str(n.target) for n in self.module.graph.nodes if n.op == "get_attr"}
        for owner_name, owner in list(self.module.named_modules()):
            prefix = f"{owner_name}." if owner_name else ""
            for leaf in [*owner._parameters, *owner._buffers]:
                if prefix + leaf not in used:
                    delattr(owner, leaf)
        _drop_empty(self.module)
        return dead


def _below_a_tensor(root: nn.Module, name: str) -> bool:
    """Would this dotted name lie inside something that is no module?"""
    owner: Any = root
    for part in name.split(".")[:-1]:
        owner = getattr(owner, part, None)
        if owner is None:
            return False
        if not isinstance(owner, nn.Module):
            return True
    return False


def _taken(root: nn.Module, name: str) -> bool:
    """Can no new tensor be registered under this dotted name?"""
    owner: Any = root
    *path, leaf = name.split(".")
    for part in path:
        if not hasattr(owner, part):
            return False
        owner = getattr(owner, part)
        if not isinstance(owner, nn.Module):
            return True
    return hasattr(owner, leaf)


def one_node_per_constant(module: fx.GraphModule) -> None:
    """Merge `get_attr` nodes of one name, so that a constant's readers are its node's users."""
    first: dict[str, Node] = {}
    for node in list(module.graph.nodes):
        if node.op != "get_attr":
            continue
        known = first.setdefault(str(node.target), node)
        if known is not node:
            node.replace_all_uses_with(known)
            module.graph.erase_node(node)


def _drop_empty(module: nn.Module) -> bool:
    """Remove sub-modules that hold nothing any more; True where `module` itself holds nothing."""
    for name, child in list(module._modules.items()):
        if child is None or _drop_empty(child):
            del module._modules[name]
    return not (module._parameters or module._buffers or module._modules)
