"""Add gates to residual blocks: a small head decides for each sample whether a block runs.

    AddGates()                                   every residual block, each with a head on what it reads
    AddGates(blocks=["layer2.*"], hidden=8)      some of them
    AddGates(heads="one")                        one head in front of the first block decides about all
    AddGates(what="channels")                    the channels between the layers of a block, each by itself

    x + f(x)   ->   where(a(x) > 0, x + f(x), x)            a(x) = W2 relu(W1 mean over positions of x)

An activation behind the sum is computed on the side of the branch.

The heads know nothing yet, and begin with gates that are open: train them (`graphopt.training.gates`). Then `RemoveGates` makes
plain what always opens and removes what never does, and the graph quantizes and lowers as any other. A runtime saves time by
the gates of blocks where it computes one sample at a time; by those of channels no dense kernel does.

Needs:  a float graph whose inputs have a batch, and residual blocks.
Keeps:  the outputs, as long as all gates are open.
Papers: Veit and Belongie 2018, "Convolutional Networks with Adaptive Inference Graphs", section 3; Wang et al. 2018, "SkipNet",
        section 3; Wu et al. 2018, "BlockDrop" (one head for all); Hua et al. 2019, "Channel Gating Neural Networks"
        (channels).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.blocks import Block, blocks
from graphopt.analysis.gates import gates as gates_of
from graphopt.execution.executor import Executor
from graphopt.ir.calls import value
from graphopt.ir.graph import Graph
from graphopt.ir.inline import inline
from graphopt.ir.layer import Layer, channels_last
from graphopt.ir.ops import aten
from graphopt.ir.passes import Change, in_eval_mode
from graphopt.ir.quantizers import quantizers
from graphopt.ir.reading import leading
from graphopt.ir.selecting import choose
from graphopt.networks.heads import decision
from graphopt.passes.gates.selecting import gate_block
from graphopt.utils.checks import check_count, matching
from graphopt.utils.errors import InputError

NAME = "gate"  # begins the names of heads


@dataclass(frozen=True)
class AddGates:
    """See the head of this file.

    Attributes:
        blocks: patterns of the modules that add the branches of blocks; `auto`: all that can be passed by.
        what: `blocks`, or the `channels` that are made inside of each and read there.
        heads: `each`: a head for each gate, on what its block reads; `one`: one for all blocks, in front of the first.
        hidden: units of a head's first layer.
        start: the logits before training; over 0, so that gates are open.
        seed: of the heads.

    Raises:
        InputError: the graph is quantized, has gates already, or no residual block, or none of these names; or an option is none.
    """

    exact: ClassVar[bool] = True

    blocks: str | Sequence[str] = "auto"
    what: str = "blocks"
    heads: str = "each"
    hidden: int = 16
    start: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("hidden", self.hidden)
        if isinstance(self.blocks, str) and self.blocks != "auto":
            raise InputError(f"blocks are 'auto' or a list of patterns, got {self.blocks!r}")
        if self.what not in ("blocks", "channels"):
            raise InputError(f"gates are of 'blocks' or of 'channels', got {self.what!r}")
        if self.heads not in ("each", "one") or (self.heads, self.what) == ("one", "channels"):
            raise InputError(f"heads are 'each', or 'one' for all blocks, got {self.heads!r} for {self.what}")
        if not self.start > 0:
            raise InputError(f"start must be over 0, so that gates begin open, got {self.start}")

    @in_eval_mode
    def __call__(self, graph: Graph) -> list[Change]:
        if quantizers(graph):
            raise InputError(
                "the graph is quantized; add gates to the float graph, train them, and quantize afterwards"
            )
        if gates_of(graph):
            raise InputError("the graph has gates already; RemoveGates() takes them out")
        chosen = self._chosen(blocks(graph))
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            if self.heads == "one":
                _check_alike(chosen)
            values = Executor(graph).run([block.entry for block in chosen], graph.example.tensors())
            changes = self._gated(graph, chosen, values)
        graph.refresh()
        return changes

    def _chosen(self, known: list[Block]) -> list[Block]:
        if not known:
            raise InputError(
                "the graph has no residual block that could be passed by, so there is nothing to gate; blocks are sums of "
                "floats whose first dimension counts samples"
            )
        return matching(known, self.blocks, lambda block: block.name, "no residual block is added at", "blocks")

    def _gated(self, graph: Graph, chosen: list[Block], values: dict[Node, Any]) -> list[Change]:
        changes = []
        if self.what == "channels":
            for number, block in enumerate(chosen):
                for layer in _inner(graph, block):
                    channels = int(layer.meta["val"].shape[1])
                    test = self._test(graph, block.entry, values[block.entry], channels, f"{NAME}_{number}", layer)
                    _gate_channels(graph, layer, test)
                    changes.append(Change(graph.site(layer), f"each of {channels} channels may be left out"))
            if not changes:
                raise InputError("no residual block makes channels that only its next layer reads")
            return changes
        shared = None
        if self.heads == "one":
            first = chosen[0].entry
            shared = self._test(graph, first, values[first], len(chosen), NAME, graph.after(first))
        for number, block in reversed([*enumerate(chosen)]):  # what is behind a block reads what it was from here on
            if shared is None:
                behind = graph.after(block.entry)
                test = self._test(graph, block.entry, values[block.entry], 1, f"{NAME}_{number}", behind)
            else:
                test = graph.call(aten.slice.Tensor, shared, 1, number, number + 1, before=graph.after(block.total))
            gate_block(graph, block, test)
            changes.append(Change(block.name, "may be left out"))
        return changes[::-1]

    def _test(self, graph: Graph, entry: Node, example: Tensor, count: int, name: str, before: Node) -> Node:
        """Whether the logits of a new head are over 0, [N, count]."""
        module = decision(example, count, self.hidden, self.start, graph.site(entry), last=channels_last(entry))
        module = module.eval().to(example.dtype)
        part = Graph.capture(module, torch.cat([example] * 2)[:2], dynamic_batch=graph.dynamic_batch)
        logits = inline(graph, part, entry, name, before=before)
        return graph.call(aten.gt.Scalar, logits, 0.0, before=before, like=logits)


def _check_alike(chosen: list[Block]) -> None:
    """One head is for blocks of as many samples."""
    first = chosen[0]
    for block in chosen[1:]:
        if str(value(block.entry).shape[0]) != str(value(first.entry).shape[0]):
            raise InputError(
                f"one head cannot decide about {first.name} and {block.name}, which compute other numbers of parts of samples, "
                "such as windows; give each block a head, or name blocks of one kind"
            )


def _inner(graph: Graph, block: Block) -> list[Node]:
    """The convolutions of a block whose channels go to its next layer alone, norms and activations in between."""
    inside = leading(block.branch) - leading(block.entry)
    found = []
    for node in sorted(inside):
        layer = Layer.of(node)
        if layer is None or layer.kind != "conv" or layer.groups != 1:
            continue
        end = node
        while len(end.users) == 1 and (reader := next(iter(end.users))) in inside and _pointwise(reader):
            end = reader
        nexts = [Layer.of(user) for user in end.users]
        if nexts and all(each is not None and each.kind == "conv" for each in nexts) and end.users.keys() <= inside:
            found.append(end)
    return found


def _pointwise(node: Node) -> bool:
    return node.target in (aten.batch_norm.default, aten.relu.default, aten.hardtanh.default, aten.silu.default,
                           aten.hardswish.default, aten.gelu.default)  # fmt: skip


def _gate_channels(graph: Graph, made: Node, test: Node) -> None:
    behind = graph.after(max(made, test))
    zero = graph.add_constant(f"{NAME}.zero", torch.zeros((), dtype=value(made).dtype), before=behind)
    choose(graph, test, made, zero, behind=behind, like=made)
