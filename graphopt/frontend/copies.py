"""What keeps the caller's model as it was: copies to work on, and weights of the graph's own."""

from __future__ import annotations

import contextlib
import copy
import logging
import operator
import warnings
from collections.abc import Collection, Iterator, Mapping

import torch
from torch import fx, nn

from graphopt.ir.editing import register


@contextlib.contextmanager
def working_copy(model: nn.Module, *, share_parameters: bool = False) -> Iterator[nn.Module]:
    """A deep copy of the model; the model itself where it cannot be copied, restored afterwards.

    Args:
        share_parameters: those of the model instead of copies, for what does not compute with them (export does not).
    """
    try:
        duplicate = copy.deepcopy(model, {id(p): p for p in model.parameters()} if share_parameters else {})
    except Exception:  # a module may hold locks, files, tensors with a gradient history
        with _restored(model):
            yield model
    else:
        yield duplicate


@contextlib.contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    tensors = [(t, t.detach().clone()) for t in [*model.parameters(), *model.buffers()]]
    tables = [(table, dict(table)) for m in model.modules() for table in (m.__dict__, m._parameters, m._buffers)]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, saved in tensors:
                if not torch.equal(tensor, saved):
                    tensor.copy_(saved)
        for table, was in tables:
            table.clear()
            table.update(was)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without torch's log of failed attempts, and without the fused attention of inference mode, which has no graph."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        torch.backends.mha.set_fastpath_enabled(fast)


def first_names(model: nn.Module) -> dict[str, str]:
    """For each name of a tied weight, the one that `named_parameters` lists it under (export may use another)."""
    first: dict[int, str] = {}
    weights = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(value), name) for name, value in weights}


def own_weights(module: fx.GraphModule, names: Mapping[str, str], ours: Collection[nn.Parameter] = ()) -> None:
    """Give the module its own copy of every weight (the export shares the caller's), under its first name.

    Args:
        names: see `first_names`.
        ours: parameters of a working copy, which need no further copy.

    Tensors that export keeps as plain attributes become buffers, so that they are saved and listed like the rest.
    """
    nodes = [n for n in module.graph.nodes if n.op == "get_attr"]
    values = {n: operator.attrgetter(str(n.target))(module) for n in nodes}
    for child in list(module._modules):
        delattr(module, child)
    for table in (module._parameters, module._buffers):
        table.clear()
    taken = {id(parameter) for parameter in ours if parameter.untyped_storage().nbytes() == parameter.nbytes}
    for node in nodes:
        value = values[node]
        node.target = names.get(str(node.target), str(node.target))
        module.__dict__.pop(str(node.target), None)
        own = value.detach() if id(value) in taken else value.detach().clone()
        own = nn.Parameter(own, value.requires_grad) if isinstance(value, nn.Parameter) else own
        register(module, str(node.target), own)
