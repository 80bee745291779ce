"""Which layers are fitted together, and how codes are split into digits."""

from __future__ import annotations

import torch
from learned_rounding import FOUR, simulated
from rewriting import Model, capture
from torch import Tensor, nn

from graphopt.fitting import rounding as q
from graphopt.fitting.region import Region
from graphopt.ir.graph import Graph
from graphopt.passes.quantization import Quantize
from graphopt.passes.rounding import LearnRounding, bit_split
from graphopt.passes.rounding.units import block_units, find_cuts, layer_units, rounded_nodes
from graphopt.targets import find

# ---- Units ----------------------------------------------------------------------------------------------------------


def layers(graph: Graph) -> list[list[str]]:
    return [sites(graph, unit) for unit in block_units(graph)]


def sites(graph: Graph, unit: Region) -> list[str]:
    return [graph.site(n) for n in unit.nodes if n in rounded_nodes(graph)]


def test_blocks_of_a_residual_network():
    assert layers(simulated()) == [["stem"], ["a", "b"], ["c", "d"], ["head"]]


def test_a_plain_chain_is_joined_in_pairs():
    model = nn.Sequential(*[nn.Conv2d(3, 3, 1) for _ in range(5)])
    assert layers(simulated(model)) == [["0", "1"], ["2", "3"], ["4"]]


def test_branches_that_are_concatenated_are_one_block():
    body = lambda m, x: m.d(torch.relu(torch.cat([m.b(m.a(x)), m.c(m.a(x))], 1)))  # noqa: E731
    conv = lambda i, o: nn.Conv2d(i, o, 1)  # noqa: E731
    model = Model(body, a=conv(3, 4), b=conv(4, 4), c=conv(4, 4), d=conv(8, 2))
    found = layers(simulated(model))
    assert ["b", "c"] in found or ["a", "b", "a", "c"] in found
    assert found[-1] == ["d"]


def test_where_something_leads_around_everything_layers_stand_alone():
    def body(m: Model, x: Tensor) -> Tensor:
        y = x
        for i in range(14):
            y = torch.relu(getattr(m, f"c{i}")(y))
        return x + y

    graph = simulated(Model(body, **{f"c{i}": nn.Conv2d(3, 3, 1) for i in range(14)}))
    assert [len(sites(graph, unit)) for unit in block_units(graph)] == [1] * 14
    assert len(layer_units(graph)) == 14


def test_two_inputs_have_no_value_in_common():
    model = Model(lambda m, x, y: (m.a(x), m.b(y)), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 4, 1))
    graph = capture(model, torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8))
    data = [[torch.randn(16, 3, 8, 8), torch.randn(16, 3, 8, 8)]]
    Quantize(find("x86"), data, weights=FOUR)(graph)
    assert find_cuts(graph) == []
    assert layers(graph) == [["a"], ["b"]]
    assert len(LearnRounding(data, method="adaround", batch=8, iterations=3)(graph)) == 2


# ---- Digits ---------------------------------------------------------------------------------------------------------


def test_digits_add_up_to_codes_and_stay_so_when_they_are_optimized():
    torch.manual_seed(0)
    weight, half = torch.randn(2, 3, 9).double(), torch.randn(2, 9, 12).double()
    metric = half @ half.transpose(1, 2) + 0.1 * torch.eye(9).double()
    lattice = q.Lattice(weight.abs().amax(-1, keepdim=True) / 7, torch.zeros(2, 3, 1).double(), -7, 7)
    codes = lattice.codes(weight)
    parts = bit_split.digits(codes, 7)
    assert [place for _, place in parts] == [4, 2, 1]
    assert torch.equal(sum(digit * place for digit, place in parts), codes)
    costs = [q.cost(weight, metric, lattice.weight(codes))]
    for digit, place in parts:
        better = bit_split.optimize_digit(weight, metric, lattice, codes, digit, place)
        costs.append(q.cost(weight, metric, lattice.weight(better)))
        assert (better - codes).abs().max() <= 2 * place
        assert better.abs().max() <= 7
    assert all((cost <= costs[0] + 1e-12).all() for cost in costs)
    assert costs[-1].sum() < costs[0].sum()


def test_splitting_into_digits_finds_about_what_descent_finds():
    torch.manual_seed(0)
    weight, half = torch.randn(1, 8, 24).double(), torch.randn(1, 24, 60).double()
    metric = half @ half.transpose(1, 2) / 60
    lattice = q.Lattice(weight.abs().amax(-1, keepdim=True) / 3, torch.zeros(1, 8, 1).double(), -3, 3)
    shrunk = q.shrink(weight, metric, lattice)
    nearest = float(q.cost(weight, metric, shrunk.weight(shrunk.codes(weight))).sum())
    costs = {}
    for way in (q.fit, bit_split.fit):
        codes, scaled = way(weight, metric, lattice, scales=True)
        costs[way] = float(q.cost(weight, metric, scaled.weight(codes)).sum())
    assert costs[q.fit] <= costs[bit_split.fit] * 1.05
    assert costs[bit_split.fit] < nearest
