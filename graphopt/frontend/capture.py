"""Capture a PyTorch model into a `Graph` through `torch.export`.

    check      the model is in eval mode, on the CPU, its weights finite; the inputs fit its signature
    run        once on the example, for reference; the model's own complaint about the inputs surfaces here
    export     with a free batch where the model allows it, else with the example's sizes and a note why
    rewrite    functional, normalised (functional.py, normalize.py), with weights of its own
    compare    outputs against the reference, on the example and on other batch sizes

All of it works on copies: whatever happens, the caller's model and inputs stay as they were.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.fx.node import Node

from graphopt.frontend import diagnose, normalize, signature
from graphopt.frontend.compare import compare, shown_type
from graphopt.frontend.copies import first_names, own_weights, quiet, working_copy
from graphopt.frontend.functionalize import UnknownAliasError, make_functional
from graphopt.frontend.preconditions import check_inputs, check_model, tensors
from graphopt.frontend.programs import bare, of_export, of_program
from graphopt.frontend.squeezes import keep_batch
from graphopt.ir.checkpoint import entries
from graphopt.ir.facts import ALWAYS_TRAINING, FACTS, TORCH_META
from graphopt.ir.graph import Example, Graph, is_tensor
from graphopt.ir.linears import write_linears
from graphopt.ir.ops import argument, has_argument, info
from graphopt.ir.shapes import batched, fake_inputs, propagate, resized, stand_in
from graphopt.utils.alone import ALONE, undisturbed
from graphopt.utils.errors import CaptureError, GraphoptError, InputError

aten = torch.ops.aten

SQUEEZED = "squeeze() drops a batch of one from the model's answers; the graph keeps it"


def capture(model: Any, args: Any, kwargs: Mapping[str, Any] | None, *, dynamic_batch: bool) -> Graph:
    """See `Graph.capture`."""
    if isinstance(model, (str, Path)):
        from graphopt.frontend.exported_file import load_program

        program = load_program(Path(model))
        try:
            return capture(program, args, kwargs, dynamic_batch=dynamic_batch)
        except GraphoptError:
            raise
        except Exception as error:  # of many kinds: torch builds a module of whatever the file describes
            raise InputError(f"{model} holds no program that can be captured: {_short_reason(error)}") from error
    who = type(model).__name__
    if isinstance(model, ExportedProgram):
        model, args, kwargs = of_program(model, args, kwargs)
    elif isinstance(model, fx.GraphModule) and any(
        isinstance(n.target, torch._ops.OpOverload) for n in model.graph.nodes
    ):
        model = of_export(model)
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    check_model(model)
    args, kwargs = signature.arguments(model.forward, args, kwargs)
    signature.register_dataclasses((args, kwargs))
    bound = signature.bind(model.forward, args, kwargs, who)
    check_inputs(args, kwargs, who)
    kwargs = {
        k: kwargs[k] for k in [*(k for k in bound if k in kwargs), *kwargs]
    }  # in the order of forward's parameters
    example = Example(pytree.tree_map(_own, args), pytree.tree_map(_own, kwargs))
    with ALONE, quiet(), undisturbed():
        return _Capture(model, example, _input_names(model, bound)).run(dynamic_batch)


def _input_names(model: nn.Module, bound: Mapping[str, Any]) -> list[str]:
    names = signature.names_of(signature.input_paths(bound, model.forward), "input")
    return [n for n, leaf in zip(names, pytree.tree_leaves(dict(bound)), strict=True) if isinstance(leaf, Tensor)]


def _own(value: Any) -> Any:
    """A detached copy in the same memory layout."""
    return value.detach().clone() if isinstance(value, Tensor) else value


# ---- The capture itself ---------------------------------------------------------------------------------------------


class _FixedBatch(Exception):
    """The batch cannot be free; the message says why."""


@dataclass
class _Capture:
    model: nn.Module
    example: Example
    input_names: list[str]
    leaves: list[Any] = field(init=False)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.leaves, self.structure = pytree.tree_flatten((self.example.args, dict(self.example.kwargs)))

    def run(self, dynamic_batch: bool) -> Graph:
        with working_copy(self.model) as self.eager:
            self.reference = self._run(self.eager, self.leaves)
            if (odd := signature.unsupported_leaf(self.reference)) is not None:
                raise CaptureError(
                    f"{self._who} returns a {type(odd).__name__}, which holds no tensors as far as torch knows; "
                    "return tensors, tuples, lists, dicts, namedtuples or dataclasses"
                )
            if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(self.reference)):
                raise CaptureError(
                    f"{self._who} returns no tensor, so there is nothing to compile; return the result of forward"
                )
            graph = self._compared(dynamic_batch)
            write_linears(graph)  # last: sums in another order round in another way
            return graph

    def _compared(self, dynamic_batch: bool) -> Graph:
        """The graph, after comparing its outputs with the model's."""
        reason = ""
        if dynamic_batch:
            try:
                return self._dynamic()
            except _FixedBatch as why:
                reason = str(why)
        graph = self._static()
        if reason:
            size = next((t.shape[0] for t in self.example.tensors() if t.dim()), 1)
            graph.notes.insert(0, f"the batch is fixed at {size}: {reason}")
        return graph

    @property
    def _who(self) -> str:
        return type(self.model).__name__

    # ---- With a free batch, and without

    def _dynamic(self) -> Graph:
        candidates = [v.shape[0] if isinstance(v, Tensor) and v.dim() else None for v in self.leaves]
        size = next((c for c in candidates if c is not None), None)
        if size is None:
            raise _FixedBatch("no input has a dimension")
        free = [c == size for c in candidates]
        traced = stand_in(self.leaves, free, self.eager.state_dict().values())
        while True:
            try:
                program = self._export(free, traced)
            except Exception as error:
                first = [i == free.index(True) for i in range(len(free))]
                if first == free:
                    raise _FixedBatch(_short_reason(error)) from error
                free = first  # the others may share the size by chance
                continue
            still = batched(_placeholder_values(program))
            if still == free:
                break
            if not any(still):
                raise _FixedBatch(_why_fixed(_placeholder_values(program)))
            free = [f and s for f, s in zip(free, still, strict=True)]
        try:
            graph = self._graph(program, free)
        except (CaptureError, _FixedBatch):
            raise
        except Exception as error:
            raise _FixedBatch(_short_reason(error)) from error
        try:
            self._compare(graph, self.leaves, self.reference)
        except CaptureError as error:
            # It was traced with a batch of another size; where that is not why, `_static` meets it again.
            raise _FixedBatch(f"a batch of {size} needs another graph than others ({_first(error)})") from error
        one = {1} if SQUEEZED not in graph.notes else set()
        for other in sorted({max(size, 2) + 1, *one} - {size}):
            self._compare_batch(graph, free, other)
        return graph

    def _compare_batch(self, graph: Graph, free: list[bool], size: int) -> None:
        leaves = [resized(v, size) if f else v for v, f in zip(self.leaves, free, strict=True)]
        try:
            expected = self._run(self.eager, leaves)
        except InputError as error:
            raise _FixedBatch(f"the model itself rejects a batch of {size} ({_first(error.__cause__)})") from error
        try:
            self._compare(graph, leaves, expected)
        except Exception as error:
            raise _FixedBatch(f"a batch of {size} needs another graph ({_first(error)})") from error

    def _static(self) -> Graph:
        free = [False] * len(self.leaves)
        try:
            program = self._export(free, 0)
        except Exception as error:
            raise diagnose.capture_error(error, self.model) from error
        try:
            graph = self._graph(program, free)
        except GraphoptError:
            raise
        except Exception as error:
            raise diagnose.capture_error(error, self.model) from error
        self._compare(graph, self.leaves, self.reference)
        return graph

    def _export(self, free: list[bool], traced: int) -> ExportedProgram:
        leaves = [resized(v, traced) if f else _own(v) for v, f in zip(self.leaves, free, strict=True)]
        shapes: Any = ShapesCollection()  # type: ignore[no-untyped-call]
        for leaf, is_batched in zip(leaves, free, strict=True):
            if is_batched:
                shapes[leaf] = {0: Dim.AUTO}
        args, kwargs = pytree.tree_unflatten(leaves, self.structure)
        # Torch prints the unfinished graph of a failed attempt to stderr, whatever the log levels.
        silence = contextlib.redirect_stderr(io.StringIO())
        with working_copy(self.eager, share_parameters=True) as model, torch.enable_grad(), silence:
            signature.name_keywords(model, kwargs)
            return torch.export.export(model, args, kwargs, dynamic_shapes=shapes if any(free) else None, strict=False)

    # ---- From program to graph

    def _graph(self, program: ExportedProgram, free: list[bool]) -> Graph:
        module, notes = self._rewritten(program, free)
        names = first_names(self.model)
        own_weights(module, names, [] if self.eager is self.model else list(self.eager.parameters()))
        spec = module.graph._codegen.pytree_info.out_spec  # type: ignore[attr-defined]
        returned: Any = module.graph.output_node().args[0]
        leaves = zip(signature.leaf_paths(spec), returned, strict=True)
        paths = [path for path, leaf in leaves if isinstance(leaf, Node) and is_tensor(leaf)]
        graph = Graph(
            module,
            self.example,
            input_names=self.input_names,
            output_names=signature.names_of(paths, "output", taken=self.input_names),
            dynamic_batch=any(free),
            notes=notes,
        )
        for node in graph.nodes:  # what other tools left there means nothing here, and files would not hold it
            for key in node.meta.keys() - TORCH_META - FACTS.keys():
                del node.meta[key]
        for node in graph.calls():
            flag = info(node).training_flag
            if flag is not None and argument(node, flag) is True:
                graph.set_fact(node, ALWAYS_TRAINING, True)
        graph.refresh()
        graph.checkpoint = entries(self.model, names, [str(n.target) for n in graph.nodes if graph.is_constant(n)])
        if any(free) and (squeezed := keep_batch(graph)):
            if any(len(v) == 1 for v, f in zip(self.leaves, free, strict=True) if f):
                raise _FixedBatch(f"{graph.site(squeezed[0])!r} drops the batch where it is one, as in the example")
            graph.notes.append(SQUEEZED)
        if grouped := [
            n for n in graph.calls() if has_argument(n, "groups") and isinstance(argument(n, "groups"), Node)
        ]:
            raise _FixedBatch(f"the groups of the convolution {graph.site(grouped[0])!r} follow it")
        if any(free) and batched([n.meta["val"] for n in module.graph.nodes if n.op == "placeholder"]) != free:
            raise _FixedBatch(_why_fixed([n.meta["val"] for n in module.graph.nodes if n.op == "placeholder"]))
        return graph

    def _rewritten(self, program: ExportedProgram, free: list[bool]) -> tuple[fx.GraphModule, list[str]]:
        if normalize.has_active_autocast(program.graph_module):
            program = program.run_decompositions({})  # makes the casts of autocast visible
        module = self._inlined(program, free)
        try:
            changed = make_functional(module)
        except UnknownAliasError:
            module = self._inlined(program.run_decompositions({}), free)
            try:
                changed = make_functional(module)
            except UnknownAliasError as unknown:
                node = next(n for n in module.graph.nodes if str(n.target) == str(unknown))
                raise diagnose.make_error(
                    self.model, diagnose.place_of_node(node), diagnose.IN_PLACE, str(unknown)
                ) from None
        cut = normalize.strip(module)
        notes = self._notes(module, changed)
        norms = [m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if any(m.momentum is None and m.track_running_stats for m in norms):
            notes.append("training the graph leaves running statistics alone where batch norm has momentum=None")
        if cut:
            notes.append("gradients are not stopped where the model detaches a value or disables gradients")
        if normalize.needs_simplifying(module):
            propagate(module)
            normalize.simplify(module)
        return module, notes

    def _inlined(self, program: ExportedProgram, free: list[bool]) -> fx.GraphModule:
        module = bare(program.module(check_guards=False))
        normalize.inline_regions(module)
        normalize.drop_assertions(module)
        for node in module.graph.nodes:
            self._check_node(module, node)
        normalize.merge_constants(module)
        placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
        for node, value in zip(placeholders, fake_inputs(self.leaves, free), strict=True):
            node.meta["val"] = value
        return module

    def _check_node(self, module: fx.GraphModule, node: Node) -> None:
        """Refuse what no fixed plan can run: values and sizes that depend on the data, and control flow."""
        if node.op == "call_function" and isinstance(node.target, torch._ops.HigherOrderOperator):
            reason = diagnose.BRANCH
        elif node.target in (aten.item.default, aten._local_scalar_dense.default):
            reason = diagnose.ITEM
        elif normalize.has_data_dependent_size(node.meta.get("val")):
            reason = diagnose.DATA_SHAPE
        else:
            return
        raise diagnose.make_error(self.model, diagnose.place_of_node(node), reason, str(node.target))

    def _notes(self, module: fx.GraphModule, changed: Mapping[Node, Node]) -> list[str]:
        notes = []
        for node in changed:
            if node.op == "placeholder":
                notes.append(f"the model writes into its input {node.name!r}; the graph leaves it alone")
            elif node in module.graph.nodes and node.users:
                raise diagnose.make_error(
                    self.model, diagnose.place_of_node(changed[node]), diagnose.STATE, str(node.target)
                )
            else:
                notes.append(
                    f"the model keeps state in {str(node.target)!r} that no output depends on; the graph drops it"
                )
        return notes

    # ---- Running and comparing

    def _run(self, model: Callable[..., Any], leaves: Sequence[Any]) -> Any:
        """The model's outputs, detached. Random operators see the same seed each time."""
        args, kwargs = pytree.tree_unflatten([_own(v) for v in leaves], self.structure)
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                result = model(*args, **kwargs)
        except Exception as error:
            if model is not self.eager:
                raise
            shown = ", ".join(f"{n}: {shown_type(t)}" for n, t in zip(self.input_names, tensors(leaves), strict=True))
            place = diagnose.place_of_error(error)
            raise InputError(
                f"{self._who} fails on the example inputs ({shown})"
                + (f" at {place}" if place else "")
                + f": {_first(error)}"
            ) from error
        signature.register_dataclasses(result)
        return pytree.tree_map(_own, result)

    def _compare(self, graph: Graph, leaves: Sequence[Any], expected: Any) -> None:
        """Raise `CaptureError` where the graph's outputs are not the model's."""
        compare(self._run(graph, leaves), expected, graph.output_names, self._who)


def _placeholder_values(program: ExportedProgram) -> list[Any]:
    names = set(program.graph_signature.user_inputs)
    inputs = [n for n in program.graph.nodes if n.op == "placeholder"]
    weights = len(inputs) - len(program.graph_signature.user_inputs)
    assert len(names) <= len(inputs)
    return [n.meta.get("val") for n in inputs[weights:]]


def _why_fixed(values: Sequence[Any]) -> str:
    """The line of the model that turned the free batch into a number, as the inputs' shape environment remembers it."""
    environment = next((v.fake_mode.shape_env for v in values if hasattr(v, "fake_mode")), None)
    guards = [g for g in getattr(environment, "guards", []) if getattr(g.expr, "rel_op", "") == "=="]
    places = [diagnose.place_of_frame(f) for g in guards for f in (g.sloc.maybe_user_loc, g.sloc.framework_loc)]
    place = next((p for p in places if p), None)
    return "the model uses it as a plain number" + (f" at {place}" if place else "")


def _short_reason(error: BaseException) -> str:
    place = diagnose.place_of_error(error)
    return _first(error) + (f" at {place}" if place else "")


def _first(error: BaseException | None) -> str:
    return diagnose.headline(error) if error is not None else "it fails"
