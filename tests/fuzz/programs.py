"""A small network as data: inputs, parts and steps, each one line of Python; its text is what runs.

    network = Network({"x0": "torch.randn(2, 3, 7, 9)"}, {"p0": "nn.Conv2d(3, 4, 3)"}, {"v0": "self.p0(x0)"}, "v0")
    print(network.text())          a few lines that make `model` and `inputs` again
    model, inputs = network.build()

Every random number hangs on the line it is drawn in, so that lines can be removed without moving those of the others.
"""

from __future__ import annotations

import ast
import linecache
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

HEAD = """import torch
import torch.nn.functional as F
from torch import nn

from rewriting import randomised"""


class Built(NamedTuple):
    model: nn.Module
    inputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class Network:
    """Attributes:
    inputs: name -> the expression that makes the example.
    parts: name of a module -> the expression that makes it.
    steps: name of a value -> the expression that computes it of inputs, of earlier values and of `self`'s parts.
    returned: the expression of the result.
    free_batch: whether the batch is to stay free.
    """

    inputs: Mapping[str, str]
    parts: Mapping[str, str]
    steps: Mapping[str, str]
    returned: str
    free_batch: bool = True

    def text(self) -> str:
        """Plain Python that makes `model` and `inputs`."""
        parts = [f"        {seed(n)}; self.{n} = randomised({made})" for n, made in self.parts.items()]
        steps = [f"        {name} = {expression}" for name, expression in self.steps.items()]
        inputs = [f"{seed(n)}; {n} = {made}" for n, made in self.inputs.items()]
        return "\n".join(
            [
                HEAD, "", "", "class Network(nn.Module):", "    def __init__(self):", "        super().__init__()", *parts,
                "", f"    def forward({', '.join(['self', *self.inputs])}):", *steps, f"        return {self.returned}",
                "", "", *inputs, f"model, inputs = Network().eval(), ({''.join(f'{n}, ' for n in self.inputs).rstrip()})",
            ]
        )  # fmt: skip

    def build(self) -> Built:
        """Run the text.

        Raises:
            Exception: whatever torch says where the lines do not fit each other.
        """
        text = self.text()
        file = f"<network {zlib.crc32(text.encode()):08x}>"
        linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)  # messages quote the lines
        scope: dict[str, Any] = {"__name__": "network"}
        with torch.random.fork_rng(devices=[]):
            exec(compile(text, file, "exec"), scope)
        return Built(scope["model"], scope["inputs"])

    @cached_property
    def operators(self) -> set[str]:
        """What is called: names of functions, methods and modules, `+` and the like by the names of their nodes."""
        expressions = [*self.steps.values(), *self.parts.values()]
        nodes = [node for expression in expressions for node in ast.walk(ast.parse(expression))]
        called = {_name(node.func) for node in nodes if isinstance(node, ast.Call)}
        called |= {type(node.op).__name__ for node in nodes if isinstance(node, (ast.BinOp, ast.UnaryOp))}
        called |= {type(op).__name__ for node in nodes if isinstance(node, ast.Compare) for op in node.ops}
        called |= {"Subscript" for node in nodes if isinstance(node, ast.Subscript)}
        return called - set(self.parts)


def reads(expression: str) -> set[str]:
    """The values and inputs that an expression reads, and the parts that it calls."""
    nodes = list(ast.walk(ast.parse(expression)))
    parts = {
        n.attr for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == "self"
    }
    return parts | {node.id for node in nodes if isinstance(node, ast.Name)}


def pruned(network: Network) -> Network:
    """Without what the result does not depend on."""
    needed = reads(network.returned)
    steps = {}
    for name, expression in reversed(network.steps.items()):
        if name in needed:
            steps[name] = expression
            needed |= reads(expression)
    return Network(
        {name: made for name, made in network.inputs.items() if name in needed} or dict([*network.inputs.items()][:1]),
        {name: made for name, made in network.parts.items() if name in needed},
        dict(reversed(steps.items())),
        network.returned,
        network.free_batch,
    )


def seed(name: str) -> str:
    return f"torch.manual_seed({zlib.crc32(name.encode()) % 1000})"


class Noisy:
    """The network, every float that an operator answers moved by a little: what that moves in the answer, rounding may, too.

    That is of the operators which torch makes of a step: `tanhshrink` is x - tanh(x), and what rounding moves in tanh is far more
    of their difference.
    """

    def __init__(self, noise: float, seed: int = 0) -> None:
        self.noise, self.generator = noise, torch.Generator().manual_seed(seed)

    def __call__(self, network: Network, model: nn.Module, inputs: Sequence[Tensor]) -> Any:
        scope: dict[str, Any] = {"torch": torch, "F": F, "nn": nn, "self": model}
        scope |= {name: self.moved(x) for name, x in zip(network.inputs, inputs, strict=True)}
        with torch.no_grad(), NoisyCalls(self):
            for name, expression in network.steps.items():
                scope[name] = eval(expression, scope)
            return eval(network.returned, scope)

    def moved(self, value: Any) -> Any:
        """Tuples of tensors likewise; integers and truths as they are."""
        return pytree.tree_map_only(Tensor, self._moved, value)

    def _moved(self, x: Tensor) -> Tensor:
        if not x.is_floating_point() or not x.numel():
            return x
        finite = torch.where(x.isfinite(), x, 0)  # a mask of minus infinity stays one
        reach = float(finite.abs().max())
        return x + self.noise * (finite.abs() + 0.1 * reach) * torch.randn(x.shape, generator=self.generator).to(x)


class NoisyCalls(TorchDispatchMode):
    def __init__(self, noisy: Noisy) -> None:
        super().__init__()
        self.noisy = noisy

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        computes = not any(value.alias_info for value in func._schema.returns)  # neither a view nor in place
        given = any(isinstance(value, Tensor) for value in pytree.tree_leaves((args, kwargs)))
        return self.noisy.moved(found) if computes and given else found


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
