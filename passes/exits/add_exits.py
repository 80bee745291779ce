"""Add exits to a classifier: heads that answer on the way. The graph returns their answers in front of its own.

    AddExits()                                       three exits, at a quarter, half and three quarters of the work
    AddExits(sites=["layer1", "layer2"])             behind these modules
    AddExits(count=2, head="linear")                 a mean over positions and a linear layer each

    logits                 ->   (logits of exit 0, logits of exit 1, ..., logits)

Exits are at dominators of the answer (`sites.py`): nothing behind one needs what was computed in front of it but through it.
Their heads know nothing yet: train them (`graphopt.training.exits`), quantize the graph, and `graphopt.Cascade.of_exits` makes a
stage of each.

Needs:  a float graph that returns the logits of classes, [N, classes].
Keeps:  the last output.
Papers: Teerapittayanon et al. 2016, "BranchyNet"; Kaya et al. 2019, "Shallow-Deep Networks" (exits at shares of the work).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch.fx.node import Node

from graphopt.execution.executor import Executor
from graphopt.ir.graph import Graph
from graphopt.ir.inline import inline
from graphopt.ir.layer import channels_last
from graphopt.ir.passes import Change, in_eval_mode
from graphopt.ir.quantizers import quantizers
from graphopt.passes.exits.heads import Head, make
from graphopt.passes.exits.sites import Site, sites
from graphopt.utils.checks import check_count
from graphopt.utils.errors import InputError, alternatives

NAME = "exit"  # begins the names of heads and outputs


@dataclass(frozen=True)
class AddExits:
    """See the head of this file.

    Attributes:
        sites: names of modules behind which exits are; `auto`: at even shares of the multiply-accumulates.
        count: how many, where sites are `auto`.
        head: `linear`, `conv` (see `heads.py`), or a function of a value's shape without the batch, and the number of classes,
            that makes a module.
        seed: of the heads.

    Raises:
        InputError: the graph does not return logits [N, classes] alone, is quantized, or has no such sites; a name at which
            something goes past, or a head that does not give [N, classes].
    """

    exact: ClassVar[bool] = False

    sites: str | Sequence[str] = "auto"
    count: int = 3
    head: Head = "conv"
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("count", self.count)
        if isinstance(self.sites, str) and self.sites != "auto":
            raise InputError(f"sites are 'auto' or a list of module names, got {self.sites!r}")

    @in_eval_mode
    def __call__(self, graph: Graph) -> list[Change]:
        classes = _classes(graph)
        known = sites(graph)
        chosen = spread(known, self.count) if self.sites == "auto" else [_named(graph, known, n) for n in self.sites]
        if len({site.node for site in chosen}) < len(chosen):
            raise InputError(f"two of the sites {', '.join(s.name for s in chosen)} are one and the same value")
        chosen.sort(key=lambda site: site.share)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            values = Executor(graph).run([site.node for site in chosen], graph.example.tensors())
            ends = [self._added(graph, n, site, values[site.node], classes) for n, site in enumerate(chosen)]
        _return_first(graph, ends)
        return [
            Change(site.name, f"exit {number} behind {site.share:.0%} of the multiply-accumulates")
            for number, site in enumerate(chosen)
        ]

    def _added(self, graph: Graph, number: int, site: Site, value: Tensor, classes: int) -> Node:
        """The answer of a new head."""
        module = make(self.head, value.shape[1:], classes, last=channels_last(site.node)).eval().to(value.dtype)
        part = Graph.capture(module, torch.cat([value] * 2)[:2], dynamic_batch=graph.dynamic_batch)
        if len(part.outputs) != 1 or tuple(part.outputs[0].meta["val"].shape[1:]) != (classes,):
            shape = [list(node.meta["val"].shape) for node in part.outputs]
            raise InputError(
                f"the head at {site.name!r} gives {shape}; it must give [N, {classes}], as the network does"
            )
        return inline(graph, part, site.node, f"{NAME}_{number}")


def spread(known: Sequence[Site], count: int) -> list[Site]:
    """So many sites next to even shares of the work.

    Raises:
        InputError: there are fewer.
    """
    if len(known) < count:
        raise InputError(
            f"the graph has {len(known)} values that all of the answer goes through, for {count} exits; give a smaller count"
        )
    left, found = list(known), list[Site]()
    for number in range(count):
        wanted = (number + 1) / (count + 1)
        best = min(left, key=lambda site: (abs(site.share - wanted), site.share))
        found.append(best)
        left.remove(best)
    return found


def _named(graph: Graph, known: Sequence[Site], name: str) -> Site:
    """The last site in a module."""
    inside = [site for site in known if site.name == name or site.name.startswith(f"{name}.")]
    if inside:
        return inside[-1]
    there = {graph.site(node) for node in graph.calls()}
    if any(site == name or site.startswith(f"{name}.") for site in there):
        raise InputError(
            f"no exit can be at {name!r}: the answer has other ways than through its value, or it is no map or sequence; sites: "
            f"{', '.join(site.name for site in known)}"
        )
    raise InputError(f"no module is called {name!r}; {alternatives(name, [site.name for site in known], 'sites')}")


def _classes(graph: Graph) -> int:
    shapes = [node.meta["val"].shape for node in graph.outputs]
    if len(shapes) != 1 or len(shapes[0]) != 2 or not isinstance(shapes[0][1], int):
        raise InputError(
            f"exits are for graphs that return the logits of classes, [N, classes], alone; this one returns "
            f"{', '.join(str(list(shape)) for shape in shapes)}"
        )
    if quantizers(graph):
        raise InputError("the graph is quantized; add exits to the float graph, train them, and quantize afterwards")
    return int(shapes[0][1])


def _return_first(graph: Graph, ends: Sequence[Node]) -> None:
    """Let the graph return these in front of its answer."""
    answer = graph.outputs[0]
    found = (*ends, answer)
    graph.output.args = (found,)
    _, spec = pytree.tree_flatten(found)
    info = graph.module.graph._codegen.pytree_info  # type: ignore[attr-defined]
    codegen = fx.graph._PyTreeCodeGen(fx.graph._PyTreeInfo(info.orig_args, info.in_spec, spec))
    graph.module.graph.set_codegen(codegen)
    graph.output_names = [*(f"{NAME}_{n}" for n in range(len(ends))), *graph.output_names]
    graph.refresh()
