"""From a traced program to a graph: functional, normalised, with weights and names of its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.fx.node import Node

from graphopt.frontend import diagnose, normalize, operator_variants, signature
from graphopt.frontend.copies import first_names, own_weights
from graphopt.frontend.free_sizes import Tied
from graphopt.frontend.functionalize import UnknownAliasError, make_functional
from graphopt.frontend.programs import bare
from graphopt.frontend.squeezes import keep_free
from graphopt.ir.calls import argument, has_argument
from graphopt.ir.checkpoint import entries
from graphopt.ir.facts import ALWAYS_TRAINING, FACTS, TORCH_META
from graphopt.ir.graph import Example, Graph
from graphopt.ir.ops import info
from graphopt.ir.reading import is_tensor
from graphopt.ir.shapes import fake_inputs, propagate, sizes_of
from graphopt.ir.sizes import FreeSize

aten = torch.ops.aten

SQUEEZED = "squeeze() drops a batch of one from the model's answers; the graph keeps it"


@dataclass
class Translation:
    """What a program was traced from.

    Attributes:
        leaves: of the example.
        ours: parameters of a working copy, which need no further copy.
    """

    model: nn.Module
    example: Example
    input_names: list[str]
    leaves: list[Any]
    ours: Collection[nn.Parameter]

    def graph(self, program: ExportedProgram, sizes: Sequence[FreeSize]) -> Graph:
        """The graph of a traced program.

        Raises:
            CaptureError: it does what no fixed plan can run. Tied: a free size cannot be free.
        """
        module, notes = self._rewritten(program, sizes)
        names = first_names(self.model)
        own_weights(module, names, self.ours)
        spec = module.graph._codegen.pytree_info.out_spec  # type: ignore[attr-defined]
        returned: Any = module.graph.output_node().args[0]
        leaves = zip(signature.leaf_paths(spec), returned, strict=True)
        paths = [path for path, leaf in leaves if isinstance(leaf, Node) and is_tensor(leaf)]
        graph = Graph(
            module,
            self.example,
            input_names=self.input_names,
            output_names=signature.names_of(paths, "output", taken=self.input_names),
            free_sizes=sizes,
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
        if sizes and (squeezed := keep_free(graph)):
            _check_squeezed(graph, squeezed, sizes)
            graph.notes.append(SQUEEZED)
        if grouped := [
            n for n in graph.calls() if has_argument(n, "groups") and isinstance(argument(n, "groups"), Node)
        ]:
            raise Tied(f"the groups of the convolution {graph.site(grouped[0])!r} follow it")
        return graph

    def _rewritten(self, program: ExportedProgram, sizes: Sequence[FreeSize]) -> tuple[fx.GraphModule, list[str]]:
        if normalize.has_active_autocast(program.graph_module):
            program = program.run_decompositions({})  # makes the casts of autocast visible
        module = self._inlined(program, sizes)
        try:
            changed = make_functional(module)
        except UnknownAliasError:
            module = self._inlined(program.run_decompositions({}), sizes)
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
        if operator_variants.needs_simplifying(module):
            propagate(module)
            operator_variants.simplify(module)
        return module, notes

    def _inlined(self, program: ExportedProgram, sizes: Sequence[FreeSize]) -> fx.GraphModule:
        module = bare(program.module(check_guards=False))
        normalize.inline_regions(module)
        normalize.drop_assertions(module)
        for node in module.graph.nodes:
            self._check_node(module, node)
        normalize.merge_constants(module)
        placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
        for node, value in zip(placeholders, fake_inputs(self.leaves, sizes), strict=True):
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


def _check_squeezed(graph: Graph, squeezed: Sequence[Node], sizes: Sequence[FreeSize]) -> None:
    """Where the example itself has a size of one, the model drops it, and the graph would not."""
    if 1 in sizes_of(sizes, graph.example.tensors()):
        raise Tied(f"{graph.site(squeezed[0])!r} drops the batch where it is one, as in the example")
