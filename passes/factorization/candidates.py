"""What could take the place of each layer, and what it would cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from graphopt.ir.calls import shape
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.passes import Timer
from graphopt.passes.factorization.chain import Chain
from graphopt.passes.factorization.method import Method, Ranks
from graphopt.passes.factorization.site import Site
from graphopt.utils.checks import names_weight
from graphopt.utils.errors import InputError
from graphopt.utils.progress import track

SHARES = (0.85, 0.75, 0.65, 0.55, 0.45, 0.375, 0.3, 0.25, 0.2, 0.15, 0.1, 0.06)  # of a layer's multiply-accumulates
TIMED_SHARES = SHARES[1::2]  # where each has to be lowered and timed
FASTER = 0.95  # of a layer's time: what takes longer than that is not measurably faster


@dataclass
class Candidate:
    """A chain that could take a layer's place.

    Attributes:
        macs, parameters: of the chain; shared weights count their multiply-accumulates for every layer.
        ms: measured alone, NaN where it was not.
        error: the share of the layer's responses (without data, of its weight's energy) that is lost.
        damage: what that does to the network's output, or the error where there are no data.
    """

    method: Method
    ranks: Ranks
    chain: Chain
    macs: int
    parameters: int
    ms: float = math.nan
    error: float = math.nan
    damage: float = math.nan


@dataclass
class Choice:
    """A layer, what could take its place, and what does.

    Attributes:
        macs, parameters, ms: of the layer as it is.
        why: it is left alone, for this reason.
        fixed: it is replaced in any case.
    """

    site: Site
    macs: int
    parameters: int
    ms: float = math.nan
    candidates: list[Candidate] = field(default_factory=list)
    chosen: Candidate | None = None
    why: str = ""
    fixed: bool = False


def choices(
    graph: Graph,
    found: Sequence[Site],
    methods: Sequence[Method],
    layers: Mapping[str, Method | None],
    round_to: int,
    shares: Sequence[float] = SHARES,
) -> list[Choice]:
    """Every site with the chains of all methods at several ranks that save multiply-accumulates."""
    result = []
    for site in found:
        whole = Chain.whole(site.layer)
        choice = Choice(site, site.macs(whole), site.layer.canonical(graph.tensor(site.layer.weight)).numel())
        match = next((p for p in layers if names_weight(p, f"{site.name}.weight")), None)
        if match is not None:
            named = layers[match]
            if named is None:
                choice.why = "by name"
            else:
                _fix(graph, choice, named)
        else:
            _fill(choice, methods, round_to, shares)
        result.append(choice)
    return result


def _fix(graph: Graph, choice: Choice, method: Method) -> None:
    site = choice.site
    if reason := method.refuses(site.layer):
        raise InputError(f"{type(method).__name__} does not apply to {site.name}: {reason}")
    ranks = method.choose(site.name, site.layer, site.weight(graph), method.rank)
    if ranks is None:
        choice.why = f"{type(method).__name__} finds no rank that saves anything"
        return
    choice.candidates, choice.fixed = [_candidate(site, method, ranks)], True


def _fill(choice: Choice, methods: Sequence[Method], round_to: int, shares: Sequence[float]) -> None:
    site, reasons, seen = choice.site, list[str](), set[tuple[int, Ranks]]()
    for method in methods:
        if reason := next((why for layer in site.layers if (why := method.refuses(layer))), None):
            reasons.append(reason)
            continue
        for share in shares:
            ranks = method.at_share(site.layer, share, round_to)
            if ranks is None or (id(method), ranks) in seen:
                continue
            seen.add((id(method), ranks))
            candidate = _candidate(site, method, ranks)
            if candidate.macs < choice.macs and candidate.parameters < choice.parameters:
                choice.candidates.append(candidate)
    if not choice.candidates:
        choice.why = "no rank saves anything" if len(reasons) < len(methods) else f"no method applies: {reasons[0]}"


def _candidate(site: Site, method: Method, ranks: Ranks) -> Candidate:
    chain = method.skeleton(site.layer, ranks)
    return Candidate(method, ranks, chain, site.macs(chain), sum(w.numel() for w in chain.weights))


# ---- Time -----------------------------------------------------------------------------------------------------------


def time_candidates(found: Sequence[Choice], timer: Timer) -> None:
    """Measure every layer and all that could take its place, alone, in turn; drop what is not measurably faster."""
    for choice in track(found, "timing candidates"):
        if not choice.candidates:
            continue
        layer = choice.site.layer
        chains = [Chain.whole(layer), *(c.chain for c in choice.candidates)]
        choice.ms, *times = (ms * len(choice.site.layers) for ms in timer([alone(layer, c) for c in chains]))
        for candidate, ms in zip(choice.candidates, times, strict=True):
            candidate.ms = ms
        if not choice.fixed:
            fastest = min(choice.candidates, key=lambda c: c.ms)
            choice.candidates = [c for c in choice.candidates if c.ms < FASTER * choice.ms]
            if not choice.candidates:
                what = f"{type(fastest.method).__name__} {fastest.chain}"
                choice.why = f"nothing is faster than its {choice.ms:.3g} ms (best: {what}, {fastest.ms:.3g} ms)"


def made_up(chain: Chain) -> Chain:
    """The chain with random numbers that keep values in size."""
    return chain.with_weights([torch.randn(w.shape) / max(1, w[0].numel()) ** 0.5 for w in chain.weights])


class _Alone(nn.Module):
    """A chain as a model of its own, with made-up numbers."""

    def __init__(self, chain: Chain, bias: bool) -> None:
        super().__init__()
        self.chain = made_up(chain)
        self.weights = nn.ParameterList(stage.native for stage in self.chain.stages)
        self.bias = nn.Parameter(torch.zeros(chain.width[1])) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return self.chain.run(x, list(self.weights), self.bias)


def alone(layer: Layer, chain: Chain) -> Graph:
    """A chain in the place of a layer as a network of its own, with made-up numbers: for measuring time."""
    sizes = [s if isinstance(s, int) else 1 for s in shape(layer.input)]
    return Graph.capture(_Alone(chain, layer.bias is not None).eval(), torch.randn(sizes), dynamic_batch=False)
