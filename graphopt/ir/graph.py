"""The intermediate representation: one functional `torch.fx` graph of ATen calls, with its weights beside it.

A `Graph` holds a `torch.fx.GraphModule` whose nodes are placeholders (the model's inputs), `get_attr` (weights and other
constants, under the model's own parameter names), `call_function` of ATen operators, and one output. Nothing in it is
in-place, so a pass may move nodes freely. Inputs and outputs keep the nested structure of the original model.

Passes edit a graph with the few methods under "For passes". They never write into an existing tensor: they add a constant
and rewire its readers, which keeps shared weights and other copies of the graph intact.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import operator
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.fx.node import Argument, Node

from graphopt.ir.checkpoint import Entries, translated
from graphopt.ir.facts import ALWAYS_TRAINING, FLOAT_REFERENCE, REFERENCE_LEFT_OUT, Fact
from graphopt.ir.ops import info, set_argument
from graphopt.ir.structure import tensors
from graphopt.utils import printing
from graphopt.utils.errors import InputError

T = TypeVar("T")

LIFTED = "lifted_tensor_"  # what torch.export calls tensors that a model's code makes


@dataclass(frozen=True)
class Example:
    """The inputs a graph was captured with, in the model's own structure; used to verify passes and to measure."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def tensors(self) -> list[Tensor]:
        return tensors((self.args, dict(self.kwargs)))


class Graph:
    """A captured model: callable like the original, trainable, printable, and open to rewriting.

    Attributes:
        module: the `torch.fx.GraphModule` that computes the model.
        example: inputs it was captured with.
        input_names: one name per input tensor, in order.
        output_names: one name per output tensor, in order.
        dynamic_batch: whether the first dimension of the inputs may have any size.
        notes: remarks of the capture that the report repeats (for instance why the batch is fixed).
        checkpoint: what the model calls its tensors where the graph has other names for them; see `load_state_dict`.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        example: Example,
        *,
        input_names: list[str],
        output_names: list[str],
        dynamic_batch: bool,
        notes: list[str] | None = None,
        checkpoint: Entries | None = None,
    ) -> None:
        self.module = module
        self.example = example
        self.input_names = input_names
        self.output_names = output_names
        self.dynamic_batch = dynamic_batch
        self.notes = notes or []
        self.checkpoint = dict(checkpoint or {})
        _one_node_per_constant(module)

    # ---- Making, copying, keeping -----------------------------------------------------------------------------------

    @classmethod
    def capture(
        cls,
        model: Any,
        args: Any = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        dynamic_batch: bool = True,
    ) -> Graph:
        """Capture a model through `torch.export`.

        Args:
            model: an `nn.Module` in eval mode, a `torch.fx.GraphModule`, an `ExportedProgram`, or the path of a `.pt2` file.
            args: example positional inputs: a tuple, or a single tensor. Not needed for an `ExportedProgram` with examples.
            kwargs: example keyword inputs.
            dynamic_batch: let the first dimension of the inputs vary where the model allows it; where it does not, the
                graph is captured with the example's own sizes and `notes` says so.

        Raises:
            CaptureError: the model cannot be captured; the message names the source line, the reason and the remedy.
            InputError: the example inputs do not fit the model, or the model is in training mode.
        """
        from graphopt.frontend.capture import capture

        return capture(model, args, kwargs, dynamic_batch=dynamic_batch)

    def save(self, path: str | Path, *, reference: bool = True) -> None:
        """Write the graph to one `.pt2` file (weights, structure, names, facts; no pickled code), atomically.

        Args:
            reference: with the weights as they were before rounding was made up for, where passes did so. They take as much
                room as the weights once more; without them `analyze` of the loaded graph compares with the weights it has.

        Raises:
            InputError: the file cannot be written, or something the graph holds has no form in files.
        """
        from graphopt.ir.storage import save

        save(self, Path(path), reference=reference)

    @classmethod
    def load(cls, path: str | Path) -> Graph:
        """Read a graph written by `save`. Raises `InputError` where the file is missing or damaged."""
        from graphopt.ir.storage import load

        return load(Path(path))

    def __deepcopy__(self, memo: dict[int, Any]) -> Graph:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own, about the structure of inputs and outputs
            module = copy.deepcopy(self.module, memo)
        return Graph(
            module,
            self.example,
            input_names=list(self.input_names),
            output_names=list(self.output_names),
            dynamic_batch=self.dynamic_batch,
            notes=list(self.notes),
            checkpoint=self.checkpoint,
        )

    def clone(self, share_weights: bool = False) -> Graph:
        """An independent copy: its own nodes and its own weights.

        Args:
            share_weights: the same tensors instead, for copies that are only run or rewritten. Passes replace tensors and never
                write into them, so both graphs stay what they are; training one of them would train both.
        """
        memo: dict[int, Any] = {}
        if share_weights:
            memo = {id(t): t for t in [*self.module.parameters(), *self.module.buffers()]}
        return copy.deepcopy(self, memo)

    # ---- Running and training ---------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the model. Same arguments and same result structure as the original.

        Raises:
            InputError: an input does not fit what the graph was captured for.
        """
        self.check_inputs(args, kwargs)
        return self.module(*args, **kwargs)

    def train(self, mode: bool = True) -> Graph:
        """Switch batch norm and dropout to training behaviour (or back), like `nn.Module.train`.

        Calls that had training behaviour in the model's eval mode (batch norm without running statistics, dropout that is
        always on) keep it.
        """
        for node in self.nodes:
            flag = info(node).training_flag
            if flag is not None and not self.fact(node, ALWAYS_TRAINING):
                set_argument(node, flag, mode)
        self.module.training = mode
        self.module.recompile()
        return self

    def eval(self) -> Graph:
        return self.train(False)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[Graph]:
        """In eval mode inside, and afterwards in the mode it was in."""
        training = self.training
        if training:
            self.eval()
        try:
            yield self
        finally:
            if training:
                self.train()

    @property
    def lifted(self) -> set[str]:
        """The constants that come from the model's code, not from its parameters or buffers."""
        return {name for name, _ in self.named_buffers() if name.startswith(LIFTED)}

    @property
    def training(self) -> bool:
        return self.module.training

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.module.parameters()

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self.module.named_parameters()

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        return self.module.named_buffers()

    def state_dict(self) -> dict[str, Tensor]:
        return self.module.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor], strict: bool = True) -> Any:
        """As `nn.Module.load_state_dict`, for checkpoints of the graph and of the model it was captured from.

        Constants that no checkpoint of the model names (they are computed in its code) stay as they are where it is one.

        Returns:
            The names that are missing and those that are not expected.

        Raises:
            RuntimeError: a shape differs; with `strict`, a name is missing or unexpected.
        """
        lifted = {name: value for name, value in self.module.state_dict().items() if name in self.lifted}
        return self.module.load_state_dict(lifted | translated(state, self.checkpoint), strict=strict)

    # ---- Reading ----------------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        return printing.canonical(self.module)

    def __repr__(self) -> str:
        count = sum(n.op == "call_function" for n in self.nodes)
        return f"Graph({count} operators, inputs {', '.join(self.input_names)})"

    @property
    def nodes(self) -> list[Node]:
        return list(self.module.graph.nodes)

    @property
    def inputs(self) -> list[Node]:
        """The input tensors, in the order of `input_names`. (Numbers and flags the model takes are built in.)"""
        return [n for n in self.placeholders if isinstance(n.meta.get("val"), Tensor)]

    @property
    def placeholders(self) -> list[Node]:
        """All leaves of the inputs, those that are no tensors included."""
        return [n for n in self.module.graph.nodes if n.op == "placeholder"]

    @property
    def output(self) -> Node:
        return self.module.graph.output_node()

    @property
    def outputs(self) -> list[Node]:
        """The tensors the model returns, in order (one returned twice stands twice)."""
        return [leaf for leaf in self.returned if isinstance(leaf, Node) and is_tensor(leaf)]

    @property
    def results(self) -> list[Node]:
        """What is computed of what the model returns: the tensors, and sizes that follow the batch."""
        return [leaf for leaf in self.returned if isinstance(leaf, Node)]

    @property
    def returned(self) -> list[Any]:
        """All leaves of the outputs in order: nodes (tensors, and sizes that follow the batch), flags, numbers."""
        return list(pytree.tree_leaves(self.output.args[0]))

    def calls(self, *targets: Any) -> list[Node]:
        """The calls of these operators, in execution order; every call where none is named."""
        return [n for n in self.module.graph.nodes if n.op == "call_function" and (not targets or n.target in targets)]

    def is_constant(self, node: Any) -> bool:
        return isinstance(node, Node) and node.op == "get_attr"

    def tensor(self, node: Node) -> Tensor:
        """The value of a constant, or of a call that only constants lead to, without gradient.

        Raises:
            InputError: inputs of the graph lead to it.
        """
        if node.op == "get_attr":
            return self.parameter(node).detach()
        if not node.all_input_nodes:
            raise InputError(f"{node.name} is no constant: inputs of the graph lead to it")
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.tensor)
        found: Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
        return found

    def parameter(self, node: Node) -> Tensor:
        """The tensor object behind a constant (an `nn.Parameter` where it is trainable)."""
        value: Tensor = operator.attrgetter(str(node.target))(self.module)
        return value

    def site(self, node: Node) -> str:
        """The name users know a node by: the path of the module it came from, else the node's own name."""
        stack = node.meta.get("nn_module_stack") or {}
        paths = [str(path) for path, _ in stack.values() if path]
        return paths[-1].removeprefix("L['self'].") if paths else node.name

    # ---- What is known about nodes (`graphopt.ir.facts`) -----------------------------------------------------------

    def fact(self, node: Node, fact: Fact[T]) -> T | None:
        """What is known about a node; None where nothing is."""
        found: T | None = node.meta.get(fact.name)
        return found

    def set_fact(self, node: Node, fact: Fact[T], value: T) -> None:
        """Let this be known about a node.

        Raises:
            TypeError: the value is not of the fact's type.
        """
        if not isinstance(value, fact.type):
            raise TypeError(f"the fact {fact.name!r} is a {fact.type.__name__}, got {value!r:.100}")
        node.meta[fact.name] = value

    # ---- For passes -------------------------------------------------------------------------------------------------

    def add_constant(self, name: str, value: Tensor, *, before: Node, like: Sequence[Node] = ()) -> Node:
        """A new constant next to `before`; `name` is made unique by a number where it is taken.

        Args:
            like: constants that it is made of: it is a parameter where one of them is, and frozen where all of those are.
        """
        return self._new_constant(name, value, before, [self.parameter(node) for node in like])

    def _new_constant(self, name: str, value: Tensor, before: Node, like: Sequence[Tensor]) -> Node:
        name = self._free_name(name)
        owner = self.module
        *path, leaf = name.split(".")
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner._modules[part]  # type: ignore[assignment]
        value = value.detach()
        made_of = [t for t in like if isinstance(t, nn.Parameter)]
        if made_of and value.is_floating_point():
            owner.register_parameter(leaf, nn.Parameter(value, any(t.requires_grad for t in made_of)))
        else:
            owner.register_buffer(leaf, value)
        with self.module.graph.inserting_before(before):
            node = self.module.graph.get_attr(name)
        node.meta["val"] = value.to("meta")
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
        from graphopt.ir.invalidation import constant_changed, value_changed

        old = self.parameter(node)
        path, _, leaf = str(node.target).rpartition(".")
        owner = self.module.get_submodule(path)
        delattr(owner, leaf)
        if isinstance(old, nn.Parameter):
            owner.register_parameter(leaf, nn.Parameter(value.detach(), requires_grad=old.requires_grad))
        else:
            owner.register_buffer(leaf, value.detach())
        node.meta["val"] = value.detach().to("meta")
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

    def refresh(self) -> None:
        """Make the graph consistent after an edit: sweep, lint, shapes derived anew with fake tensors, code rebuilt.

        Raises:
            Exception: whatever the checks or an operator's shape rule raise; `pipeline.run` names the pass behind it.
        """
        from graphopt.ir.shapes import propagate

        self.sweep()
        self.module.graph.lint()
        propagate(self.module)
        self.module.recompile()

    def check_inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """The input tensors of a call in order, after checking structure, types and sizes.

        Raises:
            InputError: names the input that does not fit, what was expected and what came.
        """
        info = self.module.graph._codegen.pytree_info  # type: ignore[attr-defined]
        wanted = _describe(self.example.args, self.example.kwargs)
        try:
            arguments = inspect.signature(self.module.forward).bind(*args, **kwargs).arguments
        except TypeError:
            raise InputError(f"the model takes {wanted}, got {_describe(args, kwargs)}") from None
        expected = [info.in_spec.child(0).child(i) for i in range(info.in_spec.child(0).num_children)]
        expected += [info.in_spec.child(1).child(i) for i in range(info.in_spec.child(1).num_children)]
        leaves: list[Any] = []
        for (name, value), structure in zip(arguments.items(), expected, strict=True):
            found, came = pytree.tree_flatten(value)
            if came != structure:
                raise InputError(f"argument {name!r} must be nested like the example: the model takes {wanted}")
            leaves += found
        tensors = []
        for node, leaf in zip(self.placeholders, leaves, strict=True):
            fake = node.meta["val"]
            if isinstance(fake, Tensor):
                tensors.append(leaf)
            elif type(leaf) is not type(fake) or leaf != fake:
                raise InputError(
                    f"argument {node.name!r} was captured as {fake!r}, got {leaf!r}; capture once per value"
                )
        self.check_tensors(tensors)
        return tensors

    def check_tensors(self, tensors: Sequence[Any]) -> None:
        """Check types and sizes of the input tensors in order.

        Raises:
            InputError: names the input that does not fit, what was expected and what came.
        """
        batch: tuple[str, int] | None = None
        for name, node, leaf in zip(self.input_names, self.inputs, tensors, strict=True):
            fake = node.meta["val"]
            free = fake.dim() > 0 and isinstance(fake.shape[0], torch.SymInt)
            shape = (0, *fake.shape[1:]) if free else tuple(fake.shape)
            check_tensor(name, leaf, shape, fake.dtype, free)
            if free and batch is not None and leaf.shape[0] != batch[1]:
                raise InputError(
                    f"inputs {batch[0]!r} and {name!r} have different batches: {batch[1]} and {leaf.shape[0]}"
                )
            batch = (name, leaf.shape[0]) if free else batch


def is_tensor(node: Node) -> bool:
    """Whether a node's value is a tensor, as far as shapes are known; sizes and tuples are none."""
    value = node.meta.get("val")
    return value is None or isinstance(value, Tensor)


def check_tensor(name: str, value: Any, shape: tuple[int, ...], dtype: torch.dtype, dynamic_batch: bool) -> None:
    """Raise `InputError` where `value` is not a tensor of this type and shape (the batch size free if dynamic)."""
    if not isinstance(value, Tensor):
        raise InputError(f"input {name!r} must be a tensor, got {type(value).__name__}")
    want: tuple[Any, ...] = ("N", *shape[1:]) if dynamic_batch and shape else shape
    fits = len(value.shape) == len(want) and all(w in ("N", s) for w, s in zip(want, value.shape, strict=True))
    if not fits or value.dtype != dtype:
        wanted = f"{printing.dtype(dtype)}[{', '.join(map(str, want))}]"
        came = f"{printing.dtype(value.dtype)}[{', '.join(map(str, value.shape))}]"
        raise InputError(f"input {name!r} must be {wanted}, got {came}")


def _describe(args: Any, kwargs: Mapping[str, Any]) -> str:
    leaves = len(pytree.tree_leaves((tuple(args), dict(kwargs))))
    named = f" and keywords {', '.join(kwargs)}" if kwargs else ""
    return f"{len(args)} positional input{'s' * (len(args) != 1)}{named} ({leaves} tensor{'s' * (leaves != 1)})"


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


def _one_node_per_constant(module: fx.GraphModule) -> None:
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
