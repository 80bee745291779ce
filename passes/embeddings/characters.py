"""Rows computed from a token's characters, as by a small network that knows how words are written.

    x = characters of the token              uint8 [vocabulary, 16], zeros behind its end
    f = max over places of relu(conv_w(embedding(x)))       for kernels of 1 to 5 characters, [filters]
    E = W2 relu(W1 f + b1) + b2

The network is trained on the rows of the table, weighted by how often a token occurs (distillation; no other data). Tokens that
are written alike share what they have in common, rare ones with frequent ones.

Paper:  Kim et al. 2016, "Character-Aware Neural Language Models", section 2.2, with two dense layers in place of the highway.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.node import Node
from typing_extensions import Self

from graphopt.ir.build import Build
from graphopt.ir.calls import shape
from graphopt.ir.ops import aten
from graphopt.passes.embeddings.replacement import Replacement, Wanted
from graphopt.utils.errors import InputError
from graphopt.utils.progress import track

LENGTH = 16  # characters of a token that count
ALPHABET = 255  # the most frequent characters; the last stands for all others
CHANNELS = 16  # of a character
KERNELS = (1, 2, 3, 4, 5)
STEPS, BATCH, RATE = 1500, 512, 2e-3


@dataclass(frozen=True)
class Characters(Replacement):
    """`characters`. places: uint8 [vocabulary, LENGTH]. learned: the network's weights by name."""

    name: ClassVar[str] = "characters"

    places: Tensor
    learned: Mapping[str, Tensor]

    @classmethod
    def fit(cls, wanted: Wanted) -> Self:
        if wanted.tokens is None:
            raise InputError(
                "'characters' needs the text of each token: tokens=tokenizer.convert_ids_to_tokens(range(...))"
            )
        if len(wanted.tokens) != wanted.vocabulary:
            raise InputError(f"tokens has {len(wanted.tokens)} texts, the table has {wanted.vocabulary} rows")
        places = spelled(wanted.tokens)
        unit = _largest(wanted, int(places.max()) + 1, places.numel())
        with torch.random.fork_rng():
            torch.manual_seed(wanted.seed)
            learned = _started(wanted, int(places.max()) + 1, unit)
            _train(learned, places, wanted)
        return cls(places, {name: value.detach() for name, value in learned.items()})

    def parts(self) -> Mapping[str, Tensor]:
        return {"places": self.places, **self.learned}

    def emit(self, build: Build, ids: Node) -> Node:
        width, sizes = len(self.learned["bias2"]), [build.size(ids, dim) for dim in range(len(shape(ids)))]
        spelling = build.call(aten.to.dtype, build.call(aten.index.Tensor, "places", [ids]), torch.int64)
        letters = build.call(aten.embedding.default, "letters", spelling)
        flat = build.call(aten.view.default, letters, [-1, LENGTH, CHANNELS])
        along = build.call(aten.transpose.int, flat, 1, 2)
        found = []
        for kernel in KERNELS:
            places = build.call(aten.conv1d.default, along, f"kernel{kernel}", f"shift{kernel}", [1], [kernel // 2])
            found.append(build.call(aten.amax.default, build.call(aten.relu.default, places), [-1]))
        hidden = build.call(aten.linear.default, build.call(aten.cat.default, found, 1), "weight1", "bias1")
        rows = build.call(aten.linear.default, build.call(aten.relu.default, hidden), "weight2", "bias2")
        return build.call(aten.view.default, rows, [*sizes, width])


def spelled(tokens: Sequence[str]) -> Tensor:
    """The characters of each token by their place among the most frequent ones, from 1; uint8 [tokens, LENGTH]."""
    counted = Counter(letter for token in tokens for letter in token[:LENGTH])
    known = {letter: place for place, (letter, _) in enumerate(counted.most_common(ALPHABET - 1), 1)}
    found = torch.zeros(len(tokens), LENGTH, dtype=torch.uint8)
    for row, token in enumerate(tokens):
        text = token[:LENGTH]
        found[row, : len(text)] = torch.tensor([known.get(letter, ALPHABET) for letter in text], dtype=torch.uint8)
    return found


def _shapes(wanted: Wanted, letters: int, unit: int) -> dict[str, tuple[int, ...]]:
    """Filters are `unit` times the kernel's length, the hidden layer as many as all of them together."""
    filters = unit * sum(KERNELS)
    shapes: dict[str, tuple[int, ...]] = {"letters": (letters, CHANNELS)}
    for kernel in KERNELS:
        shapes |= {f"kernel{kernel}": (unit * kernel, CHANNELS, kernel), f"shift{kernel}": (unit * kernel,)}
    shapes |= {"weight1": (filters, filters), "bias1": (filters,)}
    return shapes | {"weight2": (wanted.width, filters), "bias2": (wanted.width,)}


def _largest(wanted: Wanted, letters: int, fixed: int) -> int:
    """The largest unit that keeps the bytes."""

    def size(unit: int) -> int:
        return fixed + 4 * sum(torch.Size(shape).numel() for shape in _shapes(wanted, letters, unit).values())

    unit = 0
    while size(unit + 1) <= wanted.bytes:
        unit += 1
    if not unit:
        raise wanted.refuse("characters", size(1))
    return unit


def _started(wanted: Wanted, letters: int, unit: int) -> dict[str, Tensor]:
    found = {}
    for name, sizes in _shapes(wanted, letters, unit).items():
        inputs = torch.Size(sizes[1:]).numel()
        found[name] = torch.randn(sizes) * (2 / inputs) ** 0.5 if len(sizes) > 1 else torch.zeros(sizes)
    found["letters"] = torch.randn(letters, CHANNELS)
    found["letters"][0] = 0
    found["weight2"] *= float(wanted.table.std())
    found["bias2"] = ((wanted.weights @ wanted.table) / wanted.weights.sum()).float()
    return {name: value.requires_grad_() for name, value in found.items()}


def _rows(learned: Mapping[str, Tensor], places: Tensor) -> Tensor:
    """What `emit` emits."""
    along = F.embedding(places.long(), learned["letters"]).transpose(1, 2)
    found = [
        F.conv1d(along, learned[f"kernel{kernel}"], learned[f"shift{kernel}"], padding=kernel // 2).relu().amax(-1)
        for kernel in KERNELS
    ]
    hidden = F.linear(torch.cat(found, 1), learned["weight1"], learned["bias1"]).relu()
    return F.linear(hidden, learned["weight2"], learned["bias2"])


def _train(learned: Mapping[str, Tensor], places: Tensor, wanted: Wanted) -> None:
    optimizer = torch.optim.Adam(learned.values(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    table, weights = wanted.table.float(), wanted.weights.float()
    power = float(table.var(0).mean().clamp(min=1e-30))
    with torch.enable_grad():
        for _ in track(range(STEPS), "learning rows from characters"):
            # half of the samples by weight, half of all tokens alike: rare ones would never be seen
            some = torch.cat([torch.multinomial(weights, BATCH // 2, True), torch.randint(len(table), (BATCH // 2,))])
            loss = (_rows(learned, places[some]) - table[some]).square().mean() / power
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
