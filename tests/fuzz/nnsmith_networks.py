"""Networks that NNSmith draws, as text like those of `generate.py`, so that they are checked and shrunken like those.

    network = generate(7)          needs the package `nnsmith` (0.1.0 was tried beside torch 2.13)

NNSmith solves for shapes that fit, and reaches operators and shapes that `kinds.py` does not draw. What it makes is traced by
`torch.fx` and written line by line; its constants become inputs. Networks whose answers rounding decides are drawn again.

Paper: Liu et al. 2023, "NNSmith: Generating Diverse and Valid Test Cases for Deep Learning Compilers".
"""

from __future__ import annotations

import ast
import importlib.util
import json
import random
import subprocess
import sys
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))  # for the process that draws
from generate import NOISE, sound, steady
from programs import Network, Noisy
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

NODES, MILLISECONDS, TRIES = 8, 4000, 200
DTYPES = ["f32", "i64", "bool"]


def missing() -> str:
    """Why there are no networks of NNSmith; empty where there are."""
    return "" if importlib.util.find_spec("nnsmith") else "the package nnsmith is not installed (pip install nnsmith)"


def generate(seed: int) -> Network:
    """A network of a few operators; a seed alone makes it again.

    In a process of its own: what NNSmith draws hangs on what its solver was asked before.
    """
    done = subprocess.run([sys.executable, __file__, str(seed)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"NNSmith drew no network from seed {seed}: {done.stderr.strip().splitlines()[-1]}")
    return Network(**json.loads(done.stdout.splitlines()[-1]))


def first_steady(seed: int) -> Network:
    """The first network drawn whose answers rounding does not decide."""
    for number in range(TRIES):
        network = _drawn(seed * TRIES + number)
        if network is not None and _is_steady(network):
            return network
    raise RuntimeError(f"NNSmith drew no network whose answers are steady, of {TRIES} from seed {seed}")


def _drawn(seed: int) -> Network | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nnsmith.graph_gen import model_gen
        from nnsmith.materialize import Model

        for draws in (random.seed, np.random.seed, torch.manual_seed):  # it draws from all of them
            draws(seed)
        kind = Model.init("torch", backend_target="cpu")
        drawn = model_gen(
            opset=kind.operators(), seed=seed, max_nodes=NODES, timeout_ms=MILLISECONDS, max_elem_per_tensor=3000,
            dtype_choices=DTYPES,
        )  # fmt: skip
        net = kind.from_gir(drawn.make_concrete()).native_model.eval()
        inputs = {name: _made(like.shape, like.dtype.torch()) for name, like in net.input_like.items()}
        try:
            return network_of(_Plain.of(net, list(inputs)), inputs)
        except (fx.proxy.TraceError, TypeError, RuntimeError):
            return None  # it looks at values while it runs


class _Plain(nn.Module):
    """The instructions of a network alone, without the checks that NNSmith runs between them."""

    def __init__(self, net: Any, names: list[str]) -> None:
        super().__init__()
        self.layers, self.instructions, self.results = net.mlist, net.instructions, list(net.output_map)
        self.names = names

    @classmethod
    def of(cls, net: Any, names: list[str]) -> nn.Module:
        arguments, scope = ", ".join(names), dict[str, Any]()
        exec(f"def forward(self, {arguments}):\n    return self.run([{arguments}])", scope)  # fx wants a name for each
        made: nn.Module = type("Traced", (cls,), {"forward": scope["forward"]})(net, names)
        return made

    def run(self, inputs: list[Any]) -> tuple[Any, ...]:
        values = dict(zip(self.names, inputs, strict=True))
        for call, read, made, _ in self.instructions:
            answer = call(*(values[name] for name in read))
            values |= dict(zip(made, answer if isinstance(answer, list) else [answer], strict=True))
        return tuple(values[name] for name in self.results)


def network_of(model: nn.Module, inputs: Mapping[str, str]) -> Network:
    """A module as lines: what `torch.fx` traces of it. `inputs`: what its arguments are made by, in order."""
    traced = fx.symbolic_trace(model)
    renamed = {old: f"x{number}" for number, old in enumerate(inputs)}
    made = {renamed[name]: text for name, text in inputs.items()}
    parts: dict[str, str] = {}
    called: dict[str, str] = {}
    for node in traced.graph.nodes:
        if node.op == "call_module":
            called[node.name] = f"p{len(parts)}"
            parts[called[node.name]] = f"nn.{traced.get_submodule(node.target)!r}"
        elif node.op == "get_attr":
            constant = pytree.tree_leaves(_attribute(traced, node.target))[0]
            renamed[node.name] = f"x{len(made)}"
            made[renamed[node.name]] = _made(constant.shape, constant.dtype)
    body = ast.parse(traced.graph.python_code("self").src).body[-1]
    assert isinstance(body, ast.FunctionDef)
    steps: dict[str, str] = {}
    returned = ""
    for line in body.body:
        if isinstance(line, ast.Return) and line.value is not None:
            returned = _renamed(line.value, renamed)
        elif isinstance(line, ast.Assign) and len(line.targets) == 1 and isinstance(line.targets[0], ast.Name):
            name = line.targets[0].id
            if name in renamed or (isinstance(line.value, ast.Constant) and line.value.value is None):
                continue  # a constant that is read, or a value that is let go
            if name in called:
                assert isinstance(line.value, ast.Call)
                line.value.func = ast.parse(f"self.{called[name]}", mode="eval").body
            text = _renamed(line.value, renamed)
            renamed[name] = f"v{len(steps)}"
            steps[renamed[name]] = text
    return Network(made, parts, steps, returned, free_batch=False)


def _attribute(module: nn.Module, name: str) -> Any:
    owner, _, last = name.rpartition(".")
    return getattr(module.get_submodule(owner), last)


def _renamed(expression: ast.expr, names: Mapping[str, str]) -> str:
    for node in ast.walk(expression):
        if isinstance(node, ast.Name) and node.id in names:
            node.id = names[node.id]
    return ast.unparse(expression)


def _made(shape: Any, dtype: torch.dtype) -> str:
    text = f"({', '.join(str(int(size)) for size in shape)}{',' if len(shape) == 1 else ''})"
    if dtype == torch.bool:
        return f"torch.rand({text}) > 0.5"
    return f"torch.randn({text})" if dtype.is_floating_point else f"torch.randint(1, 9, {text})"


def _is_steady(network: Network) -> bool:
    """Whether it runs, and rounding does not decide what it answers."""
    try:
        model, inputs = network.build()
        with torch.no_grad():
            found = pytree.tree_leaves(model(*inputs))
        moved = pytree.tree_leaves(Noisy(NOISE)(network, model, inputs))
    except Exception:  # of any kind: what NNSmith thinks fits, torch of today may refuse
        return False
    values = all(isinstance(leaf, Tensor) for leaf in found) and bool(network.steps)
    return values and all(map(sound, found)) and all(map(steady, found, moved))


if __name__ == "__main__":
    print(json.dumps(asdict(first_steady(int(sys.argv[1])))))
