"""The ONNX model under construction: what rules call to write operators, constants and sizes.

    writer.op("Conv", x, weight, bias, strides=[2, 2])      # one operator; its result
    writer.read(node, torch.float32)                         # a value of the graph, or a number, in this type
    writer.sizes([node, 3, -1])                              # a shape, as Reshape wants it

Values that the graph names keep their names, weights those of their parameters; what a rule needs besides is named after the
call that it is for.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import sympy  # type: ignore[import-untyped]
import torch
import torch.utils._sympy.functions as functions
from onnx_ir import Value
from torch import Tensor
from torch.fx.node import Node

from graphopt.ir.graph import Graph
from graphopt.ir.shapes import is_free
from graphopt.lowering.names import Names, value_names
from graphopt.utils.errors import GraphoptError

ENDLESS = 2**63 - 1  # the end of a slice that has none


def onnx_type(dtype: torch.dtype) -> ir.DataType:
    """ONNX's name of a type.

    Raises:
        GraphoptError: it has none.
    """
    found = TYPES.get(dtype)
    if found is None:
        raise GraphoptError(f"ONNX has no operators on {dtype}")
    return found


TYPES = {
    torch.float32: ir.DataType.FLOAT, torch.float64: ir.DataType.DOUBLE, torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16, torch.bool: ir.DataType.BOOL, torch.int8: ir.DataType.INT8,
    torch.uint8: ir.DataType.UINT8, torch.int16: ir.DataType.INT16, torch.uint16: ir.DataType.UINT16,
    torch.int32: ir.DataType.INT32, torch.int64: ir.DataType.INT64,
}  # fmt: skip
FUNCTIONS: dict[Any, str] = {  # of sizes, which are positive
    sympy.Add: "Add", sympy.Mul: "Mul", functions.FloorDiv: "Div", functions.Mod: "Mod", functions.PythonMod: "Mod",
    functions.Max: "Max", functions.Min: "Min",
}  # fmt: skip


class Writer:
    """See the head of this file.

    Attributes:
        graph: that is written. opset: of the operators. nodes: written so far, in order. weights: initializers by name.
        values: of nodes; a tuple where a call gives several. names: of nodes.
    """

    def __init__(self, graph: Graph, opset: int) -> None:
        self.graph, self.opset = graph, opset
        self.nodes: list[ir.Node] = []
        self.weights: dict[str, Value] = {}
        self.values: dict[Node, Value | tuple[Value, ...]] = {}
        self.names = value_names(graph)
        self.name = ""  # of the call that is being written
        self.known: dict[Node, Tensor] = {}  # calls of constants, computed
        self._names = Names([*self.names.values(), *graph.input_names, *graph.output_names])
        self._constants: dict[Any, Value] = {}
        self._derived: dict[tuple[str, str], Value] = {}
        self._dimensions: dict[Any, tuple[Value, int]] = {}  # where a free size can be read
        self._read: dict[tuple[Value, int], Value] = {}

    # ---- Operators -------------------------------------------------------------------------------------------------

    def op(self, kind: str, *inputs: Value | None, domain: str = "", **attributes: Any) -> Value:
        """Write an operator with one result. Attributes that are None are left out."""
        (result,) = self.ops(kind, 1, *inputs, domain=domain, **attributes)
        return result

    def ops(
        self, kind: str, results: int, *inputs: Value | None, domain: str = "", **attributes: Any
    ) -> tuple[Value, ...]:
        """Write an operator with this many results."""
        name = self.fresh(f"{self.name}/{kind}")
        given = {key: value for key, value in attributes.items() if value is not None}
        outputs = [Value(name=name if n == 0 else self.fresh(f"{name}.{n}")) for n in range(results)]
        made = ir.convenience.convert_attributes(given)
        self.nodes.append(ir.Node(domain, kind, list(inputs), made, outputs=outputs, name=name))
        return tuple(outputs)

    def fresh(self, name: str) -> str:
        """A name that nothing has yet."""
        return self._names.unused(name)

    # ---- Values ----------------------------------------------------------------------------------------------------

    def read(self, given: Any, dtype: torch.dtype | None = None) -> Value:
        """A value of the graph in this type, its own where none is named; a number becomes a constant."""
        if not isinstance(given, Node):
            return self.constant(given, dtype)
        value = self.values[given]
        assert isinstance(value, Value), f"{given} is several values"
        fake = given.meta["val"]
        if not isinstance(fake, Tensor):  # sizes have one dimension here, of one element
            value = self.op("Squeeze", value, self.integers([0]))
        return self.cast(value, type_of(given), dtype)

    def cast(self, value: Value, has: torch.dtype, wants: torch.dtype | None) -> Value:
        return value if wants in (None, has) else self.op("Cast", value, to=onnx_type(wants))

    def constant(self, number: Any, dtype: torch.dtype | None = None) -> Value:
        """A number or a list of them, stored once for all that read it."""
        wide = torch.float64 if dtype == torch.float64 else None  # in which as_tensor(0.1) is not
        tensor = torch.as_tensor(number, dtype=wide)
        tensor = tensor if dtype is None else tensor.to(dtype)
        array = as_numpy(tensor)
        key = (array.dtype, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.store(self.fresh("constant"), array)
        return self._constants[key]

    def integers(self, numbers: Iterable[int]) -> Value:
        return self.constant(list(numbers), torch.int64)

    def store(self, name: str, array: np.ndarray[Any, Any]) -> Value:
        """Keep an array as an initializer of this name."""
        tensor = ir.tensor(array, name=name)
        value = Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
        self.weights[name] = value
        return value

    def constant_value(self, node: Node) -> Tensor | None:
        """The tensor that a node is whatever the inputs are; None for any other."""
        return self.graph.tensor(node) if node.op == "get_attr" else self.known.get(node)

    def derived(self, node: Node, what: str, function: Callable[[Tensor], Tensor]) -> Value | None:
        """A function of a constant, stored once under the constant's name and this word; None for what is no constant."""
        constant, key = self.constant_value(node), (self.names.get(node, ""), what)
        if constant is None:
            return None
        if key not in self._derived:
            self._derived[key] = self.store(self.fresh("_".join(key)), as_numpy(function(constant)))
        return self._derived[key]

    def shaped(self, node: Node, sizes: Sequence[int]) -> Value:
        """A value in another shape of fixed sizes, stored so where it is constant."""
        stored = self.derived(node, "x".join(map(str, sizes)), lambda t: t.reshape(list(sizes)))
        return stored or self.op("Reshape", self.read(node), self.integers(sizes))

    # ---- Sizes -----------------------------------------------------------------------------------------------------

    def sizes(self, shape: Sequence[Any]) -> Value:
        """One dimension, of these sizes: numbers, nodes that are sizes, and symbols of free ones."""
        pieces: list[Value] = []
        for free, run in itertools.groupby(shape, key=self.is_free):
            numbers = list(run)
            pieces += [self.size(s) for s in numbers] if free else [self.integers(map(int, numbers))]
        if not pieces:
            return self.integers([])
        return pieces[0] if len(pieces) == 1 else self.op("Concat", *pieces, axis=0)

    def size(self, size: Any) -> Value:
        """A size as one dimension of one element."""
        if isinstance(size, Node):
            value = self.values[size]
            assert isinstance(value, Value)
            return value
        if not is_free(size):
            return self.integers([int(size)])
        return self._computed(size.node.expr)

    def _computed(self, expression: Any) -> Value:
        """A size from those of values that were written before."""
        if (place := self._dimensions.get(expression)) is not None:
            return self.dimension(*place)
        kind = FUNCTIONS.get(type(expression))
        if expression.is_Integer:
            return self.integers([int(expression)])
        if kind is None:
            raise GraphoptError(f"the size {expression} cannot be computed in ONNX; capture with these sizes fixed")
        first, *rest = (self._computed(part) for part in expression.args)
        for value in rest:
            first = self.op(kind, first, value)
        return first

    def place(self, size: Any) -> tuple[Value, int] | None:
        """The value, and its dimension, that a free size can be read from; None for a number, or before there is one."""
        return self._dimensions.get(size.node.expr) if is_free(size) else None

    def dimension(self, value: Value, axis: int) -> Value:
        """A size of a value, as one dimension of one element."""
        if (value, axis) not in self._read:
            self._read[value, axis] = self.op("Shape", value, start=axis, end=axis + 1)
        return self._read[value, axis]

    @staticmethod
    def is_free(size: Any) -> bool:
        """Whether a size is known only when the model runs."""
        return isinstance(size, Node) or is_free(size)

    # ---- What the graph has ----------------------------------------------------------------------------------------

    def keep(self, node: Node, value: Value | tuple[Value, ...]) -> None:
        """This is what a node is: with the node's name, type and shape, where the rule has made it."""
        self.values[node] = value
        if isinstance(value, tuple):
            for n, (part, fake) in enumerate(zip(value, node.meta["val"], strict=True)):
                self._describe(part, fake, self.fresh(f"{self.names[node]}.{n}"))
        else:
            self._describe(value, node.meta["val"], self.names[node])

    def _describe(self, value: Value, fake: Any, name: str) -> None:
        if not isinstance(fake, Tensor):
            return
        maker = value.producer()
        if maker is not None and value.type is None:
            value.name = maker.name = name
            value.type = ir.TensorType(onnx_type(fake.dtype))
            value.shape = ir.Shape([ir.SymbolicDim(str(s)) if is_free(s) else int(s) for s in fake.shape])
        for axis, size in enumerate[Any](fake.shape):
            if is_free(size):
                self._dimensions.setdefault(size.node.expr, (value, axis))


def type_of(node: Node) -> torch.dtype:
    """The type of a node's value; sizes are integers."""
    fake = node.meta["val"]
    if isinstance(fake, Tensor):
        return fake.dtype
    return torch.float32 if isinstance(fake, (float, torch.SymFloat)) else torch.int64


def as_numpy(tensor: Tensor) -> np.ndarray[Any, Any]:
    """A view: what is transposed is put in order when it is written, one weight at a time."""
    array: np.ndarray[Any, Any] = tensor.detach().numpy()
    return array
