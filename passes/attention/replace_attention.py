"""Put attention whose cost grows with the number of tokens in the place of softmax attention.

    linear       products of features (elu, relu, or exp of random or learned directions)     causal, cross
    efficient    softmax over features, and over tokens                                       cross
    linformer    keys and values projected over tokens                                        cross
    blocks       blocks of neighbours, and tokens that all see                                causal
    sinkhorn     blocks of neighbours, and blocks sorted to them
    star         neighbours and relays

    [ReplaceAttention("linear", data=texts)]        or ReplaceAttention(Linear("exp", count=64), data=texts)

1. Softmax attention is found, as one call or spelled out (`find.py`). Masks of keys are known to all methods, causal ones to
   those named above; `cross` says that there may be other keys than queries. A mask or bias that is another one for each query is
   known to none.
2. The method's calls take its place, with constants as they are without any data.
3. With data, these are fitted layer by layer to what softmax attention gave, and the linear layer behind each attention is fitted
   by least squares to what it gave (`graphopt.fitting`). A layer that gains nothing on samples held out keeps what it had.

Then train it: `graphopt.train(graph, data, compress=[Response(model)])`. Dropout of shares is gone.

Needs:  a float graph, in which each head's width and the number of heads are known.
Papers: see the methods' files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.fitting.fit import Fit, Parametrization, fit
from graphopt.fitting.gradient import Search
from graphopt.fitting.least_squares import LayerWeights
from graphopt.fitting.region import Region
from graphopt.ir.build import Build, Number
from graphopt.ir.calls import operand, same_sizes, shape, value
from graphopt.ir.facts import ATTENTION_PART
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.ops import aten
from graphopt.ir.passes import Change, in_eval_mode
from graphopt.ir.shapes import is_free
from graphopt.passes.attention.blocks import Blocks
from graphopt.passes.attention.efficient import Efficient
from graphopt.passes.attention.features import Linear
from graphopt.passes.attention.find import SDPA, Attention, attentions, called
from graphopt.passes.attention.fitted import Parts
from graphopt.passes.attention.linformer import Linformer
from graphopt.passes.attention.masks import QueryMask, Rows
from graphopt.passes.attention.method import Heads, Method, Sizes
from graphopt.passes.attention.sinkhorn import Sinkhorn
from graphopt.passes.attention.star import Star
from graphopt.utils.checks import check_repeatable
from graphopt.utils.errors import InputError, alternatives

METHODS: Mapping[str, type[Method]] = MappingProxyType(
    {each.name: each for each in (Linear, Efficient, Linformer, Blocks, Sinkhorn, Star)}
)
MOVES = {
    aten.transpose.int, aten.reshape.default, aten.view.default, aten.flatten.using_ints, aten.contiguous.default,
    aten.clone.default, aten.permute.default, aten.to.dtype, aten.dropout.default, aten._unsafe_view.default,
}  # fmt: skip


@dataclass(frozen=True)
class ReplaceAttention:
    """Replace softmax attention.

    Attributes:
        method: a name (see the head of this file), or a method with its options.
        layers: a pattern of names of the modules that attention is in; None: all.
        data: batches of inputs to fit on; None: nothing is fitted.
        iterations: gradient steps for each layer.
        batch: samples of each, where samples can be told apart; else each step takes a batch of the data.
        rate: of gradient steps.
        seed: of random starts.

    Raises:
        InputError: an option does not fit, a pattern matches no attention, or an attention has a mask, sizes or an order that the
            method cannot do; names both.
    """

    exact: ClassVar[bool] = False

    method: str | Method = "linear"
    layers: str | None = None
    data: Iterable[list[Tensor]] | None = field(default=None, repr=False)
    iterations: int = 300
    batch: int = 32
    rate: float = 1e-2
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.method, str) and self.method not in METHODS:
            raise InputError(f"unknown method {self.method!r}; {alternatives(self.method, METHODS, 'methods')}")
        if not isinstance(self.method, (str, Method)):
            raise InputError(f"method is a name or a method such as Linear(), got {self.method!r}")
        for name, given in (("iterations", self.iterations), ("batch", self.batch), ("rate", self.rate)):
            if given <= 0:
                raise InputError(f"{name} must be over 0, got {given}")
        check_repeatable(self.data)

    @in_eval_mode
    def __call__(self, graph: Graph) -> list[Change]:
        method = METHODS[self.method]() if isinstance(self.method, str) else self.method
        if any(each.node.target is not SDPA for each in self._chosen(graph)):
            self._planned(graph.clone(share_weights=True), method)  # one that refuses leaves the graph as it is
        planned = self._planned(graph, method)
        original = graph.clone(share_weights=True)
        placed = [plan.place(graph) for plan in planned]
        graph.refresh()
        fits = self._fit(original, graph, placed) if placed and self.data is not None else {}
        return [_change(each, method, fits.get(each.result)) for each in placed]

    def _planned(self, graph: Graph, method: Method) -> list[_Plan]:
        """Each attention, written as one call, with what takes its place."""
        found = self._chosen(graph)
        calls = [each.written(graph) for each in reversed(found)][::-1]  # the last first: it may read the others
        if calls != [each.node for each in found]:
            graph.refresh()
        chosen = [called(node) for node in calls]
        rows = Rows(graph)
        return [_Plan.of(graph, each, method, rows, self.seed) for each in chosen]

    def _chosen(self, graph: Graph) -> list[Attention]:
        every = attentions(graph)
        if self.layers is None:
            return every
        chosen = [each for each in every if fnmatchcase(graph.site(each.node), self.layers)]
        parts = any(graph.fact(node, ATTENTION_PART) for node in graph.calls())
        if not chosen and not parts:
            known = ", ".join(graph.site(each.node) for each in every) or "none"
            raise InputError(f"the pattern {self.layers!r} matches no softmax attention; there is: {known}")
        return chosen

    def _fit(self, original: Graph, graph: Graph, placed: Sequence[_Placed]) -> dict[Node, Fit]:
        """Each attention, and the linear layer behind it."""
        assert self.data is not None
        sources = {node.name: node for node in original.nodes}
        search = Search(self.iterations, self.batch, self.rate, self.seed)
        tasks: list[Parametrization] = []
        for each in placed:
            source = sources[each.name]
            if each.parts:
                wanted = Region.between([sources[name] for name in each.read], source)
                region = Region.between(each.inputs, each.result)
                tasks.append(Parts(region=region, source=wanted, parts=each.parts, search=search))
            behind = [node.name for node in _linear_behind(each.result)]
            tasks += LayerWeights.all_of(graph, sources, only=behind)
        tasks.sort(key=lambda task: task.region.first)
        found = fit(original, graph, self.data, tasks, "fitting attention")
        return {task.region.output: each for task, each in zip(tasks, found, strict=True)}


@dataclass(frozen=True)
class _Placed:
    """One replacement. `name`, `read`: of the call that it stands for, and of what that read. `inputs`: what it reads itself."""

    site: str
    name: str
    read: tuple[str, ...]
    result: Node
    inputs: tuple[Node, ...]
    parts: tuple[Node, ...]


@dataclass(frozen=True)
class _Plan:
    """One attention, and that the method can do it. `learned`, `fixed`: the method's constants."""

    attention: Attention
    method: Method
    sizes: Sizes
    row: Any
    booleans: bool
    learned: Mapping[str, Tensor]
    fixed: Mapping[str, Tensor]

    @classmethod
    def of(cls, graph: Graph, attention: Attention, method: Method, rows: Rows, seed: int) -> _Plan:
        site = graph.site(attention.node)

        def refuse(why: str) -> InputError:
            return InputError(
                f"{site}: {method.name!r} cannot replace it, {why}; name other layers, or take another method"
            )

        row, causal = None, attention.causal
        if attention.mask is not None:
            try:
                row, masked = rows.rows(attention.mask)
            except QueryMask:
                raise refuse("whose mask or bias is another one for each query") from None
            causal = causal or masked
        if attention.dropout:
            raise refuse("which drops shares in eval mode, too")
        if causal and "causal" not in method.can:
            raise refuse(f"which is causal: tokens would see later ones (causal: {_able('causal')})")
        query, key = shape(attention.query), shape(attention.key)
        if len(query) not in (3, 4) or any(is_free(n) for n in query[1:-2]) or is_free(query[-1]):
            raise refuse(
                f"whose queries of {len(query)} dimensions are not [N, heads, tokens, width] of known heads and width"
            )
        same = same_sizes(query[-2:-1], key[-2:-1])
        if not same and (causal or "cross" not in method.can):
            raise refuse(f"which has other keys than queries (cross: {_able('cross')})")
        booleans = attention.mask is not None and value(attention.mask).dtype == torch.bool
        sizes = _sizes(graph, attention, key, causal, seed)
        return cls(attention, method, sizes, row, booleans, method.start(sizes), method.fixed(sizes))

    def place(self, graph: Graph) -> _Placed:
        """Emit the method's calls, and remove the attention."""
        attention, node = self.attention, self.attention.node
        now = replace(self, attention=called(node))  # it may read what took the place of another
        site, name = graph.site(node), node.name
        constants = {
            part: graph.add_constant(f"{site}.{part}", tensor.to(self.sizes.dtype), before=node)
            for part, tensor in {**self.learned, **self.fixed}.items()
        }
        for part in self.learned:
            graph.make_parameter(constants[part])
        build = Build(graph, node, constants)
        result = now._emit(build)
        result.meta.setdefault("val", node.meta["val"])
        for call in build.calls:
            graph.set_fact(call, ATTENTION_PART, True)
        mask = [] if attention.mask is None or attention.mask.op == "get_attr" else [attention.mask.name]
        read = (attention.query.name, attention.key.name, attention.value.name, *mask)
        inputs, parts = _read_by(build.calls), tuple(constants[part] for part in self.learned)
        graph.replace(node, result)
        return _Placed(site, name, tuple(dict.fromkeys(read)), result, inputs, parts)

    def _emit(self, build: Build) -> Node:
        attention, flat = self.attention, len(shape(self.attention.query)) == 3
        values = [attention.query, attention.key, attention.value]
        tokens = build.size(values[0], -2), build.size(values[1], -2)
        mask = None if self.row is None else self._for_each_key(build, self.row(build), tokens[1])
        if flat:
            values = [build.call(aten.unsqueeze.default, x, 1) for x in values]
            if mask is not None and len(shape(attention.mask)) == 3:  # type: ignore[arg-type]
                mask = build.call(aten.unsqueeze.default, mask, 1)
        else:
            values[1:] = [self._for_each_head(build, x) for x in values[1:]]
        result = self.method.emit(Heads(build, self.sizes, values, tokens, mask, self.booleans))
        return build.call(aten.squeeze.dim, result, 1) if flat else result

    def _for_each_key(self, build: Build, row: Node, keys: Number) -> Node:
        """A mask [.., 1] as [.., keys]."""
        sizes = shape(self.attention.mask)  # type: ignore[arg-type]
        if is_free(sizes[-1]) or sizes[-1] != 1 or keys == 1:
            return row
        return build.call(aten.expand.default, row, [-1] * (len(sizes) - 1) + [keys])

    def _for_each_head(self, build: Build, x: Node) -> Node:
        """Keys or values that several heads share, for each of them."""
        times = self.sizes.heads // int(shape(x)[1])
        return x if times == 1 else build.call(aten.repeat_interleave.self_int, x, times, 1)


def _read_by(calls: Sequence[Node]) -> tuple[Node, ...]:
    """The values that calls read from outside; constants are none."""
    inside = set(calls)
    read = [n for call in calls for n in call.all_input_nodes if n not in inside and n.op != "get_attr"]
    return tuple(dict.fromkeys(n for n in read if isinstance(value(n), Tensor)))


def _able(what: str) -> str:
    return ", ".join(name for name, each in METHODS.items() if what in each.can)


def _sizes(graph: Graph, attention: Attention, key: tuple[Any, ...], causal: bool, seed: int) -> Sizes:
    query, tokens = shape(attention.query), key[-2]
    heads = int(query[1]) if len(query) == 4 else 1
    most = int(tokens) if not is_free(tokens) else _most(graph, tokens)
    dtype = value(attention.query).dtype
    width, values = int(query[-1]), int(shape(attention.value)[-1])
    return Sizes(heads, width, values, attention.scale, most, causal, dtype, seed)


def _most(graph: Graph, tokens: Any) -> int | None:
    """The largest number of tokens that a graph with this free size takes."""
    names = graph.size_names
    sizes = {size.name: size for size in graph.free_sizes}
    size = sizes.get(names.get(tokens.node.expr, ""))
    return None if size is None else size.max


def _linear_behind(result: Node) -> list[Node]:
    """The linear layer that reads a result, with nothing but moves between."""
    node = result
    while len(node.users) == 1:
        (reader,) = node.users
        if (layer := Layer.of(reader)) is not None:
            return [reader] if layer.kind == "linear" and layer.input is node else []
        if reader.target not in MOVES or operand(reader) is not node:
            return []
        node = reader
    return []


def _change(placed: _Placed, method: Method, found: Fit | None) -> Change:
    fitted = "" if found is None else f", error {found.before:.3g} -> {found.error:.3g}"
    return Change(placed.site, f"softmax attention became {method}{fitted}")
