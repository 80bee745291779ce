"""Exported programs as modules that can be captured: nothing in training mode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.fx.node import Node

from graphopt.ir.calls import argument
from graphopt.ir.module import LazyModule
from graphopt.utils.errors import InputError

aten = torch.ops.aten


def of_program(program: ExportedProgram, args: Any, kwargs: Mapping[str, Any] | None) -> tuple[nn.Module, Any, Any]:
    if isinstance(args, tuple) and not args and not kwargs:
        if program.example_inputs is None:
            raise InputError("the exported program carries no example inputs; pass them as args")
        args, kwargs = program.example_inputs
    return of_export(program.module(check_guards=False)), args, kwargs


def of_export(module: nn.Module) -> fx.GraphModule:
    """The module of a program; its mode says nothing (such modules refuse eval()), its batch norm nodes do."""
    found = bare(module)
    if any(_trains(n) for n in found.graph.nodes):
        raise InputError(
            "the program was exported in training mode, so batch norm would keep doing so; export model.eval()"
        )
    return found


def _trains(node: Node) -> bool:
    if node.target is aten.batch_norm.default:
        return argument(node, "training") is True and argument(node, "running_mean") is not None
    return node.target is aten._native_batch_norm_legit_functional.default


def bare(module: nn.Module) -> fx.GraphModule:
    """The module without the hooks that export adds, in eval mode."""
    assert isinstance(module, fx.GraphModule)
    module = LazyModule(module, module.graph)
    nn.Module.train(module, False)
    return module
