"""Turn parts of a network into sparsely gated mixtures of experts: copies, of which a router chooses some for each sample.

    AddExperts()                                          the branch of every residual block: 4 experts, of which 1 is taken
    AddExperts(what="layers", parts=["layer3.*"])         convolutions and linear layers, with batch norm and activation
    AddExperts(what="mlps", each="token", take=2)         MLPs of transformers, token by token; saves no time in dense runtimes

    y = sum over e of g_e(x) f_e(x)        scores h = W mean over positions of x      h, g: [N, E]      W: [E, channels]
    g = softmax of the `take` largest scores, 0 for the others; 1 where one is taken

All experts begin as copies and all scores as zero, so the first `take` are taken and their gates add up to one: the network
answers as before. Train it with `graphopt.training.experts.NoisyTopK`, whose noise gives each expert samples of its own, by
which they become different. Experts that are not taken for a sample are gates that are closed (`graphopt.analysis.gates`): in
ONNX Runtime, one sample at a time, they are not computed. Of equal scores the first is taken, in every runtime.

Needs:  a float graph whose inputs have a batch.
Keeps:  the outputs, up to rounding.
Papers: Shazeer et al. 2017, "Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer", section 2;
        Komatsuzaki et al. 2023, "Sparse Upcycling: Training Mixture-of-Experts from Dense Checkpoints" (copies, and gates that
        add up to one).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.experts import mixtures
from graphopt.analysis.gates import gates as gates_of
from graphopt.execution.executor import Executor
from graphopt.ir.build import Build
from graphopt.ir.calls import value
from graphopt.ir.facts import ROUTER, TAKEN
from graphopt.ir.graph import Graph
from graphopt.ir.inline import inline
from graphopt.ir.ops import aten
from graphopt.ir.passes import Change, in_eval_mode
from graphopt.ir.quantizers import quantizers
from graphopt.ir.selecting import best, spread
from graphopt.networks.heads import Router
from graphopt.passes.experts.copies import copied
from graphopt.passes.experts.parts import KINDS, Part, chosen_parts
from graphopt.utils.checks import check_count
from graphopt.utils.errors import InputError

NAME = "router"  # begins the names of routers


@dataclass(frozen=True)
class AddExperts:
    """See the head of this file.

    Attributes:
        what: `blocks`, the branches of residual blocks; `layers`; or `mlps`, two linear layers around an activation.
        parts: patterns of their names (of layers, of modules that add branches, of the first layers of MLPs); `auto`: all.
        experts: of each part.
        take: how many of them are taken; fewer than there are.
        each: `sample`, or `token` of values [N, ..., channels], what a router decides for.

    Raises:
        InputError: the graph is quantized, has gates or experts already, or no such parts, or none of these names; a layer has
            weights that the graph computes, or values that are not of samples; an option is none.
    """

    exact: ClassVar[bool] = True

    what: str = "blocks"
    parts: str | Sequence[str] = "auto"
    experts: int = 4
    take: int = 1
    each: str = "sample"

    def __post_init__(self) -> None:
        check_count("experts", self.experts, 2)
        check_count("take", self.take)
        if self.take >= self.experts:
            raise InputError(f"take must be under the number of experts, got {self.take} of {self.experts}")
        if self.what not in KINDS:
            raise InputError(f"experts are of {', '.join(map(repr, KINDS))}, got {self.what!r}")
        if self.each not in ("sample", "token"):
            raise InputError(f"a router decides for each 'sample' or 'token', got {self.each!r}")
        if isinstance(self.parts, str) and self.parts != "auto":
            raise InputError(f"parts are 'auto' or a list of patterns, got {self.parts!r}")

    @in_eval_mode
    def __call__(self, graph: Graph) -> list[Change]:
        if quantizers(graph):
            raise InputError(
                "the graph is quantized; add experts to the float graph, train it, and quantize afterwards"
            )
        if gates_of(graph) or mixtures(graph):
            raise InputError("the graph has gates or experts already; add experts to a graph without")
        parts = chosen_parts(graph, self.what, self.parts)
        with torch.no_grad():
            values = Executor(graph).run([part.entry for part in parts], graph.example.tensors())
            routers = [self._router(graph, part, values[part.entry]) for part in parts]
            names = _unique([part.name for part in parts])
            mixed: dict[Node, Node] = {}  # the end of a part -> what its readers read now
            for number, (part, router, name) in enumerate(zip(parts, routers, names, strict=True)):
                entry = mixed.get(part.entry, part.entry)
                mixed[part.end] = self._mix(graph, part._replace(entry=entry), router, name, f"{NAME}_{number}")
        graph.refresh()
        return [Change(name, f"{self.experts} experts, of which each {self.each} takes {self.take}") for name in names]

    def _router(self, graph: Graph, part: Part, example: Tensor) -> Graph:
        if self.each == "token" and not (part.last and example.dim() > 2 and value(part.end).dim() == example.dim()):
            raise InputError(f"{part.name!r} has no tokens [N, ..., channels] to decide for, but {list(example.shape)}")
        router = Router(
            example.shape[-1 if part.last else 1], self.experts, last=part.last, tokens=self.each == "token"
        )
        return Graph.capture(
            router.eval().to(example.dtype), torch.cat([example] * 2)[:2], dynamic_batch=graph.dynamic_batch
        )

    def _mix(self, graph: Graph, part: Part, router: Graph, name: str, constants: str) -> Node:
        readers, behind = list(part.end.users), graph.after(part.end)
        scores = inline(graph, router, part.entry, constants, before=behind)
        opened = best(graph, scores, self.take, constants, before=behind)
        graph.set_fact(scores, ROUTER, name)
        graph.set_fact(opened, TAKEN, name)
        results = [part.end]
        for number in range(1, self.experts):
            results.append(copied(graph, part.calls, part.end, f"expert_{number}", before=behind))
        mixing = _Mixing(graph, value(part.end).dim(), value(scores).dim(), behind)
        total = mixing.one(results, opened) if self.take == 1 else mixing.several(results, opened, scores, constants)
        for reader in readers:
            reader.replace_input_with(part.end, total)
        return total


class _Mixing:
    """What becomes of the results of experts. `dims`: of scores; `whole`: of results."""

    def __init__(self, graph: Graph, whole: int, dims: int, behind: Node) -> None:
        self.graph, self.whole, self.dims, self.behind = graph, whole, dims, behind

    def one(self, results: list[Node], opened: Node) -> Node:
        """The result of the expert that is taken."""
        total = results[0]
        for number, result in enumerate(results[1:], 1):
            test = self._of(opened, number)
            total = self.graph.call(aten.where.self, test, result, total, before=self.behind, like=result)
        return total

    def several(self, results: list[Node], opened: Node, scores: Node, name: str) -> Node:
        """Sums, by gates, of the results of those that are taken."""
        weights, total = self._weights(scores, opened, name), None
        for number, result in enumerate(results):
            test, weight = self._of(opened, number), self._of(weights, number)
            share = self._call(aten.mul.Tensor, result, weight, like=result)
            if total is None:  # the weight is 0 where it is not taken, which is all that the other side needs
                left_out = self._like(weight, result)
            else:
                share, left_out = self._call(aten.add.Tensor, total, share, like=result), total
            total = self._call(aten.where.self, test, share, left_out, like=result)
        assert total is not None
        return total

    def _weights(self, scores: Node, opened: Node, name: str) -> Node:
        """softmax over the taken: shares of all, those of others set to 0, by their sum."""
        shares = self._call(aten.softmax.int, scores, -1, like=scores)
        zero = self.graph.add_constant(f"{name}.zero", torch.zeros((), dtype=value(scores).dtype), before=self.behind)
        kept = self._call(aten.where.self, opened, shares, zero, like=scores)
        return self._call(
            aten.div.Tensor, kept, self._call(aten.sum.dim_IntList, kept, [-1], True, like=scores), like=scores
        )

    def _of(self, values: Node, number: int) -> Node:
        """One column of [N, E], or [N, ..., E], as [N, 1, ...]."""
        column = self._call(aten.slice.Tensor, values, -1, number, number + 1, like=values)
        return spread(self.graph, column, self.dims, self.whole, before=self.behind)

    def _like(self, weight: Node, result: Node) -> Node:
        """A weight [N, 1, ...] with the sizes of a result."""
        build = Build(self.graph, self.behind, {})
        sizes = [-1 if dim < self.dims - 1 else build.size(result, dim) for dim in range(self.whole)]
        return self._call(aten.expand.default, weight, sizes, like=result)

    def _call(self, target: object, *args: object, like: Node) -> Node:
        return self.graph.call(target, *args, before=self.behind, like=like)  # type: ignore[arg-type]


def _unique(names: list[str]) -> list[str]:
    """Names of modules that are called several times are numbered."""
    return [name if names.count(name) == 1 else f"{name}@{names[:n].count(name)}" for n, name in enumerate(names)]
