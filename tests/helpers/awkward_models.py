"""Small networks whose inputs and outputs are not one tensor each: flags, numbers and None among them, tables, shared weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.utils._pytree as pytree
from rewriting import Model, randomised
from torch import Tensor, nn

from graphopt.ir.graph import Graph


@dataclass
class Found:
    """What a detector may return."""

    logits: Tensor
    boxes: Tensor | None = None
    training: bool = False


pytree.register_dataclass(Found)


class Case(NamedTuple):
    """`inputs`: given a number of samples, what the model is called with; `keywords` come with every call."""

    model: nn.Module
    inputs: Callable[[int], tuple[Any, ...]]
    keywords: Mapping[str, Any] = MappingProxyType({})
    training: bool = False

    def capture(self) -> Graph:
        graph = Graph.capture(self.model.eval(), self.inputs(4), dict(self.keywords))
        return graph.train() if self.training else graph

    def batches(self, count: int, size: int) -> list[list[Tensor]]:
        """The input tensors among what the model is called with, in order."""
        leaves = [pytree.tree_leaves((self.inputs(size), dict(self.keywords))) for _ in range(count)]
        return [[leaf for leaf in found if isinstance(leaf, Tensor)] for found in leaves]


def images(samples: int) -> Tensor:
    return torch.randn(samples, 3, 8, 8)


def trunk() -> dict[str, nn.Module]:
    """Convolutions behind each other, `first`, `norm`, `second` and `head`."""
    return {
        "first": nn.Conv2d(3, 8, 3, padding=1),
        "norm": nn.BatchNorm2d(8),
        "second": nn.Conv2d(8, 8, 3, padding=1),
        "head": nn.Linear(8, 5),
    }


def features(m: Any, x: Tensor) -> Tensor:
    return m.second(m.norm(m.first(x)).relu()).relu().mean((2, 3))  # type: ignore[no-any-return]


class Switched(nn.Module):
    """A flag in front of the image, a number behind it, None and a mode by name."""

    def __init__(self) -> None:
        super().__init__()
        for name, part in trunk().items():
            setattr(self, name, part)

    def forward(self, scaled: bool, x: Tensor, factor: float, mask: Tensor | None = None, mode: str = "sum") -> Tensor:
        x = x * factor if scaled else x
        x = x if mask is None else x * mask
        return self.head(features(self, x)) if mode == "mean" else self.head(features(self, x) * 2)  # type: ignore[operator, no-any-return]


class Nested(nn.Module):
    """A dictionary in, with a number inside."""

    def __init__(self) -> None:
        super().__init__()
        for name, part in trunk().items():
            setattr(self, name, part)

    def forward(self, batch: dict[str, Any]) -> Tensor:
        return self.head(features(self, batch["image"] * batch["gain"]))  # type: ignore[operator, no-any-return]


class Shared(nn.Module):
    """One convolution that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        for name, part in trunk().items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.first(x)).relu()  # type: ignore[operator]
        y = self.second(self.second(y).relu()).relu()  # type: ignore[operator]
        return self.head(y.mean((2, 3)))  # type: ignore[operator, no-any-return]


def dictionary(m: Any, x: Tensor) -> object:
    y = features(m, x)
    return OrderedDict(aux=None, classes=m.head(y), nested={"features": y, "scaled": True}, count=3)


def several(m: Any, x: Tensor) -> object:
    y = m.head(features(m, x))
    return None, y.argmax(1), [y, False], y.softmax(1)


def dataclass_of(m: Any, x: Tensor) -> object:
    return Found(m.head(features(m, x)))


def against_table(m: Any, x: Tensor, table: Tensor) -> object:
    """The scores of `x` against every row of a table, which comes whole with every batch."""
    return m.head(features(m, x)) @ m.embed(table).relu().T


def shifted(m: Any, x: Tensor, table: Tensor) -> object:
    """A vector that is made of the table alone is added to all channels."""
    y = m.norm(m.first(x)).relu() + m.embed(table).sigmoid()[:, None, None]
    return m.head(m.second(y).relu().mean((2, 3)))


def with_dropout(m: Any, x: Tensor) -> object:
    return m.head(nn.functional.dropout(features(m, x), 0.5, m.training))


MODELS: dict[str, Callable[[], Case]] = {
    "flags and None": lambda: Case(Switched(), lambda n: (True, images(n), 0.5), {"mask": None, "mode": "mean"}),
    "dictionary in": lambda: Case(Nested(), lambda n: ({"gain": 2, "image": images(n)},)),
    "dictionary out": lambda: Case(Model(dictionary, **trunk()), lambda n: (images(n),)),
    "tuple out": lambda: Case(Model(several, **trunk()), lambda n: (images(n),)),
    "dataclass out": lambda: Case(Model(dataclass_of, **trunk()), lambda n: (images(n),)),
    "training mode": lambda: Case(Model(with_dropout, **trunk()), lambda n: (images(n),), training=True),
    "shared weights": lambda: Case(Shared(), lambda n: (images(n),)),
    "vector": lambda: Case(Model(shifted, embed=nn.Linear(6, 8), **trunk()), lambda n: (images(n), torch.randn(6))),
    "table": lambda: Case(
        Model(against_table, embed=nn.Linear(6, 5), **trunk()), lambda n: (images(n), torch.randn(7, 6))
    ),
}


def case(name: str) -> Case:
    torch.manual_seed(0)
    found = MODELS[name]()
    randomised(found.model)
    return found
