"""Shapes of every value, derived with fake tensors: no data moves, and an operator that no longer fits raises.

The free batch size is one symbol that the placeholders carry in `meta["val"]` since capture; it travels through the
graph unchanged, so a graph that passes here fits for every batch size.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.fx.node import Node

from graphopt.ir import operators
from graphopt.ir.structure import Size
from graphopt.utils.alone import ALONE
from graphopt.utils.errors import InputError

UNUSUAL = 23  # no number of heads, no size of a kernel or a feature map that is in use

ROOM = 2**28  # bytes of inputs to be traced with so many samples


class _Shapes(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, mode: FakeTensorMode) -> None:
        super().__init__(module)
        self.mode = mode
        self.constants: dict[str, Any] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.op != "output":
            n.meta["val"] = value
        return value

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        operators.check_arithmetic(target, args)
        return super().call_function(target, args, kwargs)

    def fetch_attr(self, target: str) -> Any:
        if target not in self.constants:
            value = super().fetch_attr(target)
            fake = isinstance(value, Tensor)
            self.constants[target] = self.mode.from_tensor(value, static_shapes=True) if fake else value
        return self.constants[target]


def propagate(module: fx.GraphModule) -> None:
    """Set `meta["val"]` of every node to its fake value. Raises what the operator raises where shapes do not fit."""
    inputs = [n.meta["val"] for n in module.graph.nodes if n.op == "placeholder"]
    mode = next((v.fake_mode for v in inputs if isinstance(v, FakeTensor)), None) or FakeTensorMode()
    inputs = [mode.from_tensor(v) if isinstance(v, Tensor) and not isinstance(v, FakeTensor) else v for v in inputs]
    interpreter = _Shapes(module, mode)
    # Without the Python dispatcher, some composite operators (pad) ask for the batch as a number and thereby fix it.
    with ALONE, mode, torch.no_grad(), enable_python_dispatcher():
        interpreter.run(*inputs, enable_io_processing=False)


def fake_inputs(values: Sequence[Any], batched: Sequence[bool]) -> list[Any]:
    """Fake twins of example values; the first dimension of each `batched` one is the same free symbol.

    Args:
        values: tensors, and anything else, which is returned as it is.
        batched: for each value whether its first dimension is the batch.
    """
    environment = ShapeEnv()
    mode = FakeTensorMode(shape_env=environment)
    # The hint stands in for the size where an operator must choose a path; two or more is the general case.
    hint = stand_in(values, batched)
    source = ConstantSource("batch")
    symbol = environment.create_symbol(hint, source=source, dynamic_dim=DimDynamic.DYNAMIC, constraint_dim=None)
    batch = environment.create_symintnode(symbol, hint=hint, source=source)

    def twin(value: Any, free: bool) -> Any:
        if not isinstance(value, Tensor):
            return value
        if not free:
            return mode.from_tensor(value.detach(), static_shapes=True)
        # The order of the dimensions in memory decides which views are possible (channels last, transposed examples).
        dims = range(value.dim())
        strides: list[int] = list(value.stride())
        order = sorted(dims, key=lambda d: (-strides[d], d)) if 0 not in strides else list(dims)
        sizes = [batch, *value.shape[1:]]
        with mode:
            dense = torch.empty([sizes[d] for d in order], dtype=value.dtype, device=value.device)
            return dense.permute([order.index(d) for d in dims])

    return [twin(v, free) for v, free in zip(values, batched, strict=True)]


def resized(value: Any, size: int) -> Any:
    """The same samples, repeated or cut to another batch size; the memory layout stays."""
    copies = -(-size // value.shape[0])
    return torch.cat([value] * copies)[:size] if copies > 1 else value[:size].clone(memory_format=torch.preserve_format)


def stand_in(values: Sequence[Any], batched: Sequence[bool], others: Iterable[Tensor] = ()) -> int:
    """The number that stands for the free batch size while it is traced: two or more, and unlike all other sizes, because an
    operator that compares two equal numbers fixes the batch.

    Args:
        values, batched: as for `fake_inputs`. others: tensors whose sizes it must not have either.
    """
    tensors = [(v, free) for v, free in zip(values, batched, strict=True) if isinstance(v, Tensor)]
    taken = {
        int(size) for shape in [*(v.shape[int(f) :] for v, f in tensors), *(t.shape for t in others)] for size in shape
    }
    size = max([2, *(int(v.shape[0]) for v, free in tensors if free)])
    sample = sum(v[:1].numel() * v.element_size() for v, free in tensors if free)
    least = size if sample * UNUSUAL > ROOM else max(size, UNUSUAL)
    return next(number for number in itertools.count(least) if number not in taken)


def is_free(size: Any) -> bool:
    """Whether a size still is the free symbol, not a number that some operator fixed it to."""
    return isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None


def size_of(value: torch.SymInt) -> Size:
    """A size as a polynomial of the batch.

    Raises:
        InputError: it is another function of it.
    """
    expression = value.node.expr
    polynomial = expression.as_poly(*expression.free_symbols)
    if (
        polynomial is None
        or len(expression.free_symbols) != 1
        or not all(c.is_Integer for c in polynomial.all_coeffs())
    ):
        raise InputError(f"the model returns the number {expression}, which an artifact cannot compute; return tensors")
    return Size(tuple(int(c) for c in reversed(polynomial.all_coeffs())))


def batched(values: Sequence[Any]) -> list[bool]:
    """For each value: is it a tensor whose first dimension is free?"""
    return [isinstance(v, Tensor) and v.dim() > 0 and is_free(v.shape[0]) for v in values]
