"""All passes, by name.

from graphopt.passes import FoldBatchNorm, Quantize     imported when they are first named
graphopt.passes.find("fold-batch-norm")                 by the name a text or a command line has for them
graphopt.passes.names()                                 ours, and those of installed packages (entry points `graphopt.passes`)
graphopt.passes.described()                             ours, read from their sources: nothing is imported

A package of someone else adds a pass by an entry point whose value is the class:

    [project.entry-points."graphopt.passes"]
    my-pass = "mypackage.passes:MyPass"
"""

from __future__ import annotations

import ast
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphopt.utils import plugins
from graphopt.utils.errors import InputError, alternatives
from graphopt.utils.pass_text import text_name

GROUP = "graphopt.passes"
_ROOMS = {
    "attention": ("ReplaceAttention",),
    "binary": ("Binarize", "BlockShortcuts"),
    "cleanup": (
        "DecomposeActivations", "FoldBatchNorm", "FoldConstantChannels", "FoldInputNormalization", "ReestimateBatchNorm",
        "Simplify",
    ),
    "elastic": ("Elastic",),
    "embeddings": ("ReplaceEmbedding",),
    "equalization": ("AbsorbHighBias", "EqualizeChannels"),
    "exits": ("AddExits",),
    "experts": ("AddExperts", "CondConv", "MakeExperts", "MixKernels"),
    "factorization": (
        "CP", "SVD", "BlockDiagonal", "BlockTerm", "ChannelWise", "DepthwiseSeparable", "Factorize", "Separable",
        "StackedKernels", "TensorTrain", "Tucker",
    ),
    "gates": ("AddGates", "AddHalting", "RemoveGates"),
    "hashing": ("BinaryCodes",),
    "pruning": ("Prune", "RemoveBlocks"),
    "quantization": ("MixedPrecision", "Quantize", "QuantizeWeights", "RefineRanges"),
    "rounding": ("CorrectBias", "LearnRounding", "MinimizeBits"),
    "sharing": ("ProductQuantize", "ShareWeights", "TieLayers"),
    "sparsity": ("BakeMasks", "Sparsify"),
}  # fmt: skip
_HOME = {name: room for room, passes in _ROOMS.items() for name in passes}

__all__ = ["Described", "described", "find", "names", *_HOME]


def __getattr__(name: str) -> Any:
    """A pass is imported when it is first named."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def names() -> list[str]:
    """The names that `find` knows, sorted."""
    return sorted({*map(text_name, _HOME), *plugins.names(GROUP)})


def find(name: str) -> type:
    """The pass of this name.

    Raises:
        InputError: there is none (the message suggests the nearest), or that of a package cannot be imported.
    """
    own: type | None = next((__getattr__(known) for known in _HOME if text_name(known) == name), None)
    found: type | None = own or plugins.find(GROUP, name, type)
    if found is None:
        raise InputError(f"unknown pass {name!r}; {alternatives(name, names(), 'passes')}")
    return found


@dataclass(frozen=True)
class Described:
    """What a pass says of itself.

    Attributes:
        options: the names of its options, in order.
        texts: what its file and its class say.
    """

    options: list[str]
    texts: list[str]


def described() -> dict[str, Described]:
    """Each pass of ours, by its name in texts. Importing the passes would import PyTorch, which takes seconds."""
    classes: dict[str, ast.ClassDef] = {}
    heads: dict[str, str | None] = {}
    for path in Path(__file__).parent.rglob("*.py"):
        module = ast.parse(path.read_text(encoding="utf-8"))
        for node in module.body:
            if isinstance(node, ast.ClassDef):
                classes[node.name], heads[node.name] = node, ast.get_docstring(module)
    return {
        text_name(name): Described(
            list(_fields(name, classes)),
            [text for text in (heads[name], ast.get_docstring(classes[name])) if text],
        )
        for name in _HOME
    }


def _fields(name: str, classes: dict[str, ast.ClassDef]) -> dict[str, None]:
    """The fields of a dataclass, those that it inherits first."""
    found: dict[str, None] = {}
    if name not in classes:
        return found
    for base in classes[name].bases:
        found |= _fields(ast.unparse(base), classes)
    for line in classes[name].body:
        if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name):
            continue
        if not any(word in ast.unparse(line) for word in ("ClassVar[", "init=False")):
            found[line.target.id] = None
    return found
