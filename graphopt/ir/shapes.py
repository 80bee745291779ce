"""Shapes of every value, derived with fake tensors: no data moves, and an operator that no longer fits raises.

A free size is one symbol that the placeholders carry in `meta["val"]` since capture; it travels through the graph unchanged, so
a graph that passes here fits for every size. An operator that ties it to a number is refused by name.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import sympy  # type: ignore[import-untyped]
import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.fx.node import Node

from graphopt.ir import operators
from graphopt.ir.derivation import DERIVATION, Derivation, derived, described, mutates
from graphopt.ir.shape_rules import like_its_input
from graphopt.ir.sizes import FreeSize, batch_of, stand_ins
from graphopt.ir.structure import Size
from graphopt.utils.alone import ALONE
from graphopt.utils.errors import InputError

UNUSUAL = 23  # no number of heads, no size of a kernel or a feature map that is in use
UNUSUAL_LENGTH = 101  # nor of channels

ROOM = 2**28  # bytes of inputs to be traced with so many samples


class TiedSize(InputError):
    """An operator ties a free size to a number or to another size.

    Attributes:
        name: of the size. node: the call. value: what it must be.
    """

    def __init__(self, name: str, node: Node, value: str) -> None:
        self.name, self.node, self.value = name, node, value
        super().__init__(f"the size {name!r} cannot be free: {self.reason()}; capture with that size fixed")

    def reason(self, place: object = None) -> str:
        """The operator, where it is, and what it needs."""
        where = f"{self.node.target}" + (f" at {place}" if place else "")
        return f"{where} {NO_FREE_STEPS if is_recurrent(self.node) else f'needs it to be {self.value}'}"


RECURRENT = {torch.ops.aten.lstm, torch.ops.aten.gru, torch.ops.aten.rnn_tanh, torch.ops.aten.rnn_relu}
NO_FREE_STEPS = "runs step by step, and takes one number of steps"


def is_recurrent(node: Node) -> bool:
    """Whether a call is unrolled where its shapes are derived, which asks for its number of steps."""
    return getattr(node.target, "overloadpacket", None) in RECURRENT


def _called(names: Mapping[Any, str]) -> dict[Any, Any]:
    return {symbol: sympy.Symbol(name) for symbol, name in names.items()}


class _Alike(NamedTuple):
    """A value, and what has its sizes, by type."""

    value: Tensor
    by_type: dict[torch.dtype, Tensor]


class _Shapes(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, mode: FakeTensorMode, rules: bool) -> None:
        super().__init__(module)
        self.mode, self.rules = mode, rules
        self.anew = any(map(mutates, module.graph.nodes))
        self.constants: dict[str, Any] = {}
        self.alike: dict[int, _Alike] = {}
        self.tied = len(mode.shape_env.replacements) if mode.shape_env is not None else 0

    def run_node(self, n: Node) -> Any:
        if n.op == "output":
            return super().run_node(n)
        source = None if n.op == "placeholder" or mutates(n) else self._source(n)
        if source is not None and not self.anew and derived(n, self.mode, source):
            return self.constants.setdefault(str(n.target), n.meta["val"]) if n.op == "get_attr" else n.meta["val"]
        value = n.meta["val"] = super().run_node(n)
        self._check_free(n)
        if source is not None:
            n.meta[DERIVATION.name] = Derivation(self.mode, source, value, described(value))
        return value

    def _source(self, n: Node) -> Any:
        """What the value of a node depends on."""
        if n.op == "get_attr":
            return described(super().fetch_attr(str(n.target)))
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        return self.rules, n.target, described(args), described(kwargs)

    def _check_free(self, n: Node) -> None:
        """Comparing sizes may tie two of them, or one to a number, for good: `torch.fx` would go on with that in silence."""
        environment = self.mode.shape_env
        if environment is None or len(environment.replacements) == self.tied:
            return
        symbol, value = list(environment.replacements.items())[-1]
        names = {symbol: name for name, symbol in environment.source_to_var.items()}
        raise TiedSize(str(names.get(symbol, symbol)), n, str(value.xreplace(_called(names))))

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        operators.check_arithmetic(target, args)
        dtype = like_its_input(target, args, kwargs)
        return super().call_function(target, args, kwargs) if dtype is None else self._like(target, args[0], dtype)

    def _like(self, target: Any, value: Tensor, dtype: torch.dtype) -> Tensor:
        """A value of the same sizes. Where no call writes into another's value, one will do for all that look alike."""
        if target._schema.is_mutable:
            return value
        if self.anew:
            return torch.empty_like(value, dtype=dtype)
        found = self.alike.get(id(value))
        if found is None:
            found = self.alike[id(value)] = _Alike(value, {})
        if dtype not in found.by_type:
            made = found.by_type[dtype] = torch.empty_like(value, dtype=dtype)
            self.alike[id(made)] = _Alike(made, found.by_type)
        return found.by_type[dtype]

    def fetch_attr(self, target: str) -> Any:
        if target not in self.constants:
            value = super().fetch_attr(target)
            fake = isinstance(value, Tensor)
            self.constants[target] = self.mode.from_tensor(value, static_shapes=True) if fake else value
        return self.constants[target]


def propagate(module: fx.GraphModule, *, rules: bool = True) -> None:
    """Set `meta["val"]` of every node to its fake value. Raises what the operator raises where shapes do not fit.

    Where neither a call nor what it reads has changed since the last time, the value stays.

    Args:
        rules: with torch's rules for composite operators; `torch.export` traces without them.
    """
    inputs = [n.meta["val"] for n in module.graph.nodes if n.op == "placeholder"]
    mode = next((v.fake_mode for v in inputs if isinstance(v, FakeTensor)), None) or FakeTensorMode()
    inputs = [mode.from_tensor(v) if isinstance(v, Tensor) and not isinstance(v, FakeTensor) else v for v in inputs]
    interpreter = _Shapes(module, mode, rules)
    # Without the Python dispatcher, some composite operators (pad) ask for the batch as a number and thereby fix it.
    dispatcher = enable_python_dispatcher() if rules else contextlib.nullcontext()
    with ALONE, mode, torch.no_grad(), dispatcher:
        interpreter.run(*inputs, enable_io_processing=False)


def fake_inputs(values: Sequence[Any], sizes: Sequence[FreeSize], hints: Sequence[int] | None = None) -> list[Any]:
    """Fake twins of example values, with a symbol for every free size.

    Args:
        values: tensors, and anything else, which is returned as it is.
        hints: numbers that stand for the sizes where an operator must choose a path; two or more is the general case.
    """
    environment = ShapeEnv()
    mode = FakeTensorMode(shape_env=environment)
    tensors = [v for v in values if isinstance(v, Tensor)]
    hints = numbers_for(sizes, tensors, least=UNUSUAL_LENGTH) if hints is None else hints
    symbols = _symbols(environment, sizes, hints)
    batch = batch_of(sizes)
    _COUNTED[environment] = {
        symbol.node.expr: 1 if size is batch else own
        for size, symbol, own in zip(sizes, symbols, sizes_of(sizes, tensors), strict=True)
    }
    free = {
        (place.input, place.dimension): place.length(symbol)  # type: ignore[arg-type]
        for size, symbol in zip(sizes, symbols, strict=True)
        for place in size.places
    }

    def twin(index: int, value: Tensor) -> Tensor:
        dims = range(value.dim())
        if not any((index, d) in free for d in dims):
            return mode.from_tensor(value.detach(), static_shapes=True)
        # The order of the dimensions in memory decides which views are possible (channels last, transposed examples).
        strides: list[int] = list(value.stride())
        order = sorted(dims, key=lambda d: (-strides[d], d)) if 0 not in strides else list(dims)
        sizes = [free.get((index, d), value.shape[d]) for d in dims]
        with mode:
            dense = torch.empty([sizes[d] for d in order], dtype=value.dtype, device=value.device)
            return dense.permute([order.index(d) for d in dims])

    index = itertools.count()
    return [twin(next(index), v) if isinstance(v, Tensor) else v for v in values]


def _symbols(environment: ShapeEnv, sizes: Sequence[FreeSize], hints: Sequence[int]) -> list[torch.SymInt]:
    from torch._dynamo.source import ConstantSource  # takes over a second, and few commands need it

    found = []
    for size, hint in zip(sizes, hints, strict=True):
        source = ConstantSource(size.name)
        symbol = environment.create_symbol(hint, source=source, dynamic_dim=DimDynamic.DYNAMIC, constraint_dim=None)
        found.append(environment.create_symintnode(symbol, hint=hint, source=source))
    return found  # type: ignore[return-value]


# What the free sizes of a graph count as in numbers of operations: one sample, and the example's sizes.
_COUNTED: WeakKeyDictionary[ShapeEnv, dict[Any, int]] = WeakKeyDictionary()


def counted(size: Any) -> int:
    """A size in numbers: one where it is the batch, the example's where it is another free one."""
    if not is_free(size):
        return int(size)
    expression, known = size.node.expr, _COUNTED.get(size.node.shape_env, {})
    if expression.is_Symbol:  # nearly always, and putting numbers into expressions is slow
        return int(known.get(expression, 1))
    return int(expression.subs({symbol: known.get(symbol, 1) for symbol in expression.free_symbols}))


def numbers_for(
    sizes: Sequence[FreeSize], example: Sequence[Tensor], others: Iterable[Tensor] = (), *, least: int = 2
) -> list[int]:
    """The numbers that stand for free sizes while they are traced; see `stand_ins`.

    Args:
        example: the input tensors. others: tensors whose sizes they must not have either. least: where to start looking. Whoever
            compares sizes of the graph later, such as the length with the number of heads, would tie those that are equal.
    """
    places = {(p.input, p.dimension) for size in sizes for p in size.places}
    fixed = {n for i, t in enumerate(example) for d, n in enumerate(t.shape) if (i, d) not in places}
    batch, own = batch_of(sizes), sizes_of(sizes, example)
    starts = [max(2, n, least if s.max is None or s.max > 2 * least else n) for s, n in zip(sizes, own, strict=True)]
    if batch is not None:
        counted = [example[p.input] for p in batch.places]
        position = list(sizes).index(batch)
        small = sum(t[:1].numel() * t.element_size() for t in counted) * UNUSUAL <= ROOM
        starts[position] = max(2, own[position], UNUSUAL if small else 2)
    return stand_ins(sizes, own, starts, fixed | {n for t in others for n in t.shape})


def sizes_of(sizes: Sequence[FreeSize], tensors: Sequence[Tensor]) -> list[int]:
    """The free sizes that input tensors have, which are known to fit."""
    return [s.places[0].size(tensors[s.places[0].input].shape[s.places[0].dimension]) or 0 for s in sizes]


def with_sizes(tensors: Sequence[Tensor], sizes: Sequence[FreeSize], values: Sequence[int]) -> list[Tensor]:
    """Input tensors of other sizes: their content repeated or cut; the memory layout stays."""
    out = list(tensors)
    for size, value in zip(sizes, values, strict=True):
        for place in size.places:
            out[place.input] = resized(out[place.input], place.length(value), place.dimension)
    return out


def resized(value: Tensor, length: int, dim: int = 0) -> Tensor:
    """The same content along a dimension, repeated or cut to another length; the memory layout stays."""
    copies = -(-length // value.shape[dim])
    if copies > 1:
        return torch.cat([value] * copies, dim).narrow(dim, 0, length)
    return value.narrow(dim, 0, length).clone(memory_format=torch.preserve_format)


def is_free(size: Any) -> bool:
    """Whether a size still is the free symbol, not a number that some operator fixed it to."""
    return isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None


def symbols(fakes: Sequence[Tensor], sizes: Sequence[FreeSize]) -> dict[Any, str]:
    """What the symbols in the shapes of fake input tensors are called."""
    found = {}
    for size in sizes:
        length: Any = fakes[size.places[0].input].shape[size.places[0].dimension]
        for symbol in length.node.expr.free_symbols if is_free(length) else ():
            found[symbol] = size.name
    return found


def label(size: Any, names: Mapping[Any, str]) -> str | None:
    """A size in terms of the free ones, as in `2*height + 1`; None for a number."""
    if not is_free(size):
        return None
    return str(size.node.expr.xreplace(_called(names)))


def size_of(value: torch.SymInt, fakes: Sequence[Tensor], sizes: Sequence[FreeSize]) -> Size:
    """A number as a polynomial of the free sizes.

    Raises:
        InputError: it is another function of them.
    """
    expression, names = value.node.expr, symbols(fakes, sizes)
    order = list(names)  # as `sizes`
    polynomial = expression.as_poly(*order)
    if polynomial is None or not all(c.is_Integer for c in polynomial.coeffs()):
        shown = label(value, names)
        raise InputError(f"the model returns the number {shown}, which an artifact cannot compute; return tensors")
    return Size(tuple((int(c), powers) for powers, c in polynomial.terms()))
