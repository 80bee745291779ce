"""Softmax attention replaced: each method beside its formula, what is found, what is refused, what follows."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rewriting import apply, assert_close, capture
from torch import Tensor, nn

import graphopt
from graphopt.backends.onnxruntime import lower
from graphopt.fitting.samples import Samples
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.passes import ReplaceAttention
from graphopt.passes.attention import Blocks, Efficient, Linear, Linformer, Sinkhorn, Star
from graphopt.passes.attention.replace_attention import METHODS
from graphopt.passmanager import run
from graphopt.targets import find
from graphopt.utils.errors import InputError

N, HEADS, TOKENS, SIZE = 3, 2, 21, 5
SMALL: dict[str, Any] = {
    "elu": Linear(), "relu": Linear("relu", 7), "exp": Linear("exp", 24), "efficient": Efficient(), "linformer": Linformer(8),
    "blocks": Blocks(4), "strided": Blocks(4, beside=0, every=6), "sinkhorn": Sinkhorn(4), "star": Star(2, relays=2),
}  # fmt: skip


def drawn(*sizes: int, seed: int = 0) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


def padding(count: int = N, tokens: int = TOKENS) -> Tensor:
    """Tokens that count, int64 [N, tokens]."""
    kept = torch.ones(count, tokens, dtype=torch.long)
    kept[0, tokens // 2 :] = 0
    return kept


class Core(nn.Module):
    """Attention alone, of values given head by head."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None] > 0, **self.options)


class Layer(nn.Module):
    """Self-attention with layers in front and behind, and a residual stream."""

    def __init__(self, causal: bool = False, width: int = HEADS * SIZE) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.causal = causal
        self.ins = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = (layer(x).view(n, tokens, HEADS, -1).transpose(1, 2) for layer in self.ins)
        given = {"is_causal": True} if self.causal else {"attn_mask": mask[:, None, None] > 0}
        found = F.scaled_dot_product_attention(3 * q, k, v, **given)  # type: ignore[arg-type]
        return x + self.out(found.transpose(1, 2).reshape(n, tokens, width))


def inputs(count: int = N, tokens: int = TOKENS, seed: int = 0) -> list[Tensor]:
    return [drawn(count, tokens, HEADS * SIZE, seed=seed), padding(count, tokens)]


def replaced(model: nn.Module, given: list[Tensor], method: Any, **options: Any) -> Graph:
    graph = capture(model, *given)
    (step,) = run([ReplaceAttention(method, **options)], graph)
    assert step.changes
    return graph


def core(method: Any, **options: Any) -> tuple[Graph, list[Tensor]]:
    """The graph, and inputs for it."""
    given = [drawn(N, HEADS, TOKENS, SIZE, seed=s) for s in range(3)]
    given = [*given, padding()]
    return replaced(Core(**options), given, method), given


def part(graph: Graph, name: str) -> Tensor:
    return graph.state_dict()[f"scaled_dot_product_attention.{name}"]


# ---- Each method beside its formula ---------------------------------------------------------------------------------


def dense(scores: Tensor, values: Tensor) -> Tensor:
    return scores.softmax(-1) @ values


def allowed(scores: Tensor, seen: Tensor) -> Tensor:
    return scores.masked_fill(~seen, -math.inf)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("features", ["elu", "relu", "exp"])
def test_linear_attention_is_a_product_of_features(features: Any, causal: bool) -> None:
    count = {"elu": None, "relu": 7, "exp": 9}[features]
    model = Core(is_causal=True) if causal else Core()
    if causal:
        model.forward = lambda q, k, v, mask: F.scaled_dot_product_attention(q, k, v, is_causal=True)  # type: ignore[method-assign]
    given = [*(drawn(N, HEADS, TOKENS, SIZE, seed=s) for s in range(3)), padding()]
    graph = replaced(model, given, Linear(features, count, block=4))
    q, k, v, mask = given
    x, y = q @ part(graph, "query_map"), k @ part(graph, "key_map")
    if features == "exp":
        x, y = x.exp(), (y - k.square().sum(-1, keepdim=True) / SIZE**0.5 / 2).exp()
    else:
        x, y = (x.relu(), y.relu()) if features == "relu" else (F.elu(x) + 1, F.elu(y) + 1)
    shares = x @ y.transpose(2, 3)
    shares = shares.tril() if causal else shares * (mask[:, None, None] > 0)
    assert_close(graph(*given), shares / (shares.sum(-1, keepdim=True) + 1e-9) @ v, 1e-4)


def test_many_random_directions_come_near_softmax() -> None:
    given = [0.35 * drawn(N, HEADS, TOKENS, SIZE, seed=s) for s in range(3)]
    exact = Core()(*given, padding())
    errors = []
    for count in (8, 512):
        found = replaced(Core(), [*given, padding()], Linear("exp", count))(*given, padding())
        errors.append(float(((found - exact).norm() / exact.norm()).detach()))
    assert errors[1] < 0.3 * errors[0]
    assert errors[1] < 0.1


def test_efficient_attention_is_two_softmaxes() -> None:
    graph, (q, k, v, mask) = core("efficient")
    rows = (q / SIZE**0.25).softmax(-1)
    columns = allowed(k.transpose(2, 3) / SIZE**0.25, mask[:, None, None] > 0).softmax(-1)
    assert_close(graph(q, k, v, mask), rows @ (columns @ v), 1e-5)


def test_slots_are_means_that_count_as_their_weights() -> None:
    graph, (q, k, v, mask) = core(Linformer(6))
    weights = part(graph, "logits").exp() * (mask[:, None, None] > 0)
    mass = weights.sum(-1, keepdim=True)
    scores = q @ (weights / mass @ k).transpose(2, 3) / SIZE**0.5 + mass.log().transpose(2, 3)
    assert_close(graph(q, k, v, mask), dense(scores, weights / mass @ v), 1e-4)


def test_slots_lose_nothing_where_their_tokens_are_alike() -> None:
    q, k, v = (drawn(1, HEADS, 7, SIZE, seed=s).repeat_interleave(3, 2) for s in range(3))
    mask = torch.ones(1, 21, dtype=torch.long)
    mask[0, -1] = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("graphopt.passes.attention.linformer.OUTSIDE", -40.0)
        graph = replaced(Core(), [q, k, v, mask], Linformer(7))
    assert_close(graph(q, k, v, mask), Core()(q, k, v, mask), 1e-4)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "method", [Blocks(4), Blocks(4, beside=0, first=0), Blocks(3, beside=2, first=2), Blocks(4, 0, every=6), Blocks(5, every=4)]
)  # fmt: skip
def test_blocks_are_softmax_attention_with_a_mask(method: Blocks, causal: bool) -> None:
    model = Core()
    if causal:
        model.forward = lambda q, k, v, mask: F.scaled_dot_product_attention(q, k, v, is_causal=True)  # type: ignore[method-assign]
    q, k, v = (drawn(N, HEADS, TOKENS, SIZE, seed=s) for s in range(3))
    graph = replaced(model, [q, k, v, padding()], method)
    seen = torch.zeros(TOKENS, TOKENS, dtype=torch.bool)
    for i in range(TOKENS):
        for j in range(TOKENS):
            apart = i // method.block - j // method.block
            far = j % method.every == 0 if method.every else j < method.first
            seen[i, j] = abs(apart) <= method.beside or far
            seen[i, j] |= not method.every and not causal and i < method.first
            seen[i, j] &= not causal or j <= i
    seen = seen if causal else seen & (padding()[:, None, None] > 0)
    exact = dense(allowed(q @ k.transpose(2, 3) / SIZE**0.5, seen), v)
    rows = (seen.any(-1) if causal else seen.any(-1).expand(N, HEADS, -1))[
        ..., None
    ]  # one that sees nothing gives anything
    found = graph(q, k, v, padding())
    assert_close(torch.where(rows, found, 0), torch.where(rows, exact, 0), 1e-5)
    assert bool(torch.isfinite(found).all())


def test_sorted_blocks_are_beside_their_own() -> None:
    graph, (q, k, v, mask) = core(Sinkhorn(4, turns=3))
    kept = F.pad((mask > 0).float(), (0, 3))
    x, y, z = (F.pad(t, (0, 0, 0, 3)).reshape(N, HEADS, 6, 4, SIZE) for t in (q, k, v))
    kept = kept.reshape(N, 1, 6, 4, 1)
    counted = kept.sum(3).clamp(min=1)
    logs = 4 * ((x * kept).sum(3) / counted) @ ((y * kept).sum(3) / counted).transpose(2, 3) / SIZE**0.5
    order = logs.exp()
    for _ in range(3):
        order = order / order.sum(2, keepdim=True)
        order = order / order.sum(3, keepdim=True)
    wanted = torch.zeros(N, HEADS, 6, 4, SIZE)
    for n in range(N):
        for head in range(HEADS):
            for i in range(6):
                weights = [(float(j == i), float(order[n, head, i, j])) for j in range(6)]
                kinds = []
                for which in (0, 1):
                    w = sum(weights[j][which] * kept[n, 0, j] for j in range(6)).clamp(min=1e-9)
                    pair = [
                        sum(weights[j][which] * (t[n, head, j] * kept[n, 0, j]) for j in range(6)) / w for t in (y, z)
                    ]
                    kinds.append((*pair, w))
                keys, values, mass = (torch.cat(each) for each in zip(*kinds, strict=True))
                wanted[n, head, i] = dense(x[n, head, i] @ keys.T / SIZE**0.5 + mass.log()[:, 0], values)
    assert_close(graph(q, k, v, mask), wanted.flatten(2, 3)[:, :, :TOKENS], 1e-4)


def test_satellites_see_neighbours_and_relays() -> None:
    graph, (q, k, v, mask) = core(Star(2, relays=3))
    reads = allowed(part(graph, "relay") @ k.transpose(2, 3) / SIZE**0.5, mask[:, None, None] > 0).softmax(-1)
    keys, values = reads @ k, reads @ v
    for n in range(N):
        count = int(mask[n].sum())
        for i in range(count):
            near = [j for j in range(i - 2, i + 3) if 0 <= j < count]
            scores = torch.cat([q[n, :, i, None] @ k[n, :, near].transpose(1, 2) / SIZE**0.5,
                                q[n, :, i, None] @ keys[n].transpose(1, 2) / SIZE**0.5 + math.log(count)], -1)  # fmt: skip
            wanted = dense(scores, torch.cat([v[n, :, near], values[n]], 1))[:, 0]
            assert_close(graph(q, k, v, mask)[n, :, i], wanted, 1e-5)


# ---- What is found --------------------------------------------------------------------------------------------------


def _bias(mask: Tensor) -> Tensor:
    return (1.0 - mask[:, None, None].float()) * torch.finfo(torch.float32).min


FORMS: dict[str, Any] = {
    "one call": lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m[:, None, None] > 0, scale=0.7),
    "an added mask": lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, _bias(m)),
    "a mask of all queries": lambda q, k, v, m: F.scaled_dot_product_attention(
        q, k, v, (m[:, None, None] > 0).expand(-1, 1, q.shape[2], -1)
    ),
    "products": lambda q, k, v, m: torch.softmax(q @ k.transpose(2, 3) / 3 + _bias(m), -1) @ v,
    "scaled queries": lambda q, k, v, m: torch.softmax(_bias(m) + torch.matmul(q * 0.3, k.mT), -1).matmul(v),
    "filled": lambda q, k, v, m: (0.5 * (q @ k.mT)).masked_fill(m[:, None, None] == 0, -1e9).softmax(-1) @ v,
    "where": lambda q, k, v, m: torch.where(m[:, None, None] > 0, q @ k.mT, -1e9).softmax(dim=-1) @ v,
    "dropped": lambda q, k, v, m: F.dropout((q @ k.mT).softmax(-1), 0.1, training=False) @ v,
    "einsum": lambda q, k, v, m: torch.einsum(
        "bhij,bhjd->bhid", (torch.einsum("bhid,bhjd->bhij", q, k) * 0.4).softmax(-1), v
    ),
    "three dimensions": lambda q, k, v, m: torch.bmm(
        torch.baddbmm(_bias(m)[:, 0], q[:, 0], k[:, 0].mT, alpha=0.5).softmax(-1), v[:, 0]
    ),
    "causal": lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    "causal and padded": lambda q, k, v, m: F.scaled_dot_product_attention(
        q, k, v, torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril() & (m.flip(1).flip(1)[:, None, None] >= 0)
    ),
    "causal by an added mask": lambda q, k, v, m: (
        q @ k.mT + torch.full((TOKENS, TOKENS), -1e9).triu(1)
    ).softmax(-1) @ v,
    "causal by places": lambda q, k, v, m: F.scaled_dot_product_attention(
        q, k, v, torch.where(torch.arange(TOKENS) <= torch.arange(TOKENS)[:, None], 0.0, -1e9)[None, None] + 0 * _bias(m * 0 + 1)
    ),
    "a mask of no queries": lambda q, k, v, m: (q @ k.mT).masked_fill(m[0] == 0, -1e9).softmax(-1) @ v,
    "one number for all keys": lambda q, k, v, m: (q @ k.mT + m[:, None, None, :1]).softmax(-1) @ v,
    "shared heads": lambda q, k, v, m: F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], enable_gqa=True),
}  # fmt: skip


class Form(nn.Module):
    def __init__(self, form: Any) -> None:
        super().__init__()
        self.form = form

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return self.form(q, k, v, mask)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_found_with_its_mask(form: str) -> None:
    """One block of all tokens is softmax attention."""
    given = [*(drawn(N, HEADS, TOKENS, SIZE, seed=s) for s in range(3)), padding()]
    model = Form(FORMS[form]).eval()
    graph = replaced(model, given, Blocks(32))
    assert_close(graph(*given), model(*given), 1e-5)
    assert not [n for n in graph.calls(torch.ops.aten.scaled_dot_product_attention.default) if len(n.args) < 6]


def test_torch_s_own_layer_is_found() -> None:
    layer = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True)
    x = drawn(2, 9, 12)
    graph = replaced(layer.eval(), [x], Blocks(16))
    assert_close(graph(x), layer(x), 1e-5)


def test_shares_that_are_returned_are_kept() -> None:
    class Shares(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            shares = (q @ k.mT).softmax(-1)
            return shares @ v, shares

    graph = capture(Shares(), *(drawn(N, HEADS, TOKENS, SIZE, seed=s) for s in range(3)))
    assert apply(ReplaceAttention(), graph) == []


def test_other_products_and_softmaxes_are_none() -> None:
    class Gates(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(drawn(SIZE, 4))

        def forward(self, q: Tensor) -> Tensor:
            return (q @ self.table).softmax(-1) @ self.table.T

    assert apply(ReplaceAttention(), capture(Gates(), drawn(N, TOKENS, SIZE))) == []


# ---- In a network ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_what_is_put_in_is_fitted_lowered_and_known_again(name: str, tmp_path: Any) -> None:
    model, data = Layer().eval(), inputs(64, seed=1)
    graph = replaced(model, inputs(), SMALL[name])
    fitted = replaced(model, inputs(), SMALL[name], data=[data], iterations=60)
    other = inputs(32, seed=2)
    with torch.no_grad():
        near = [cost.sqnr(model(*other) - other[0], g(*other) - other[0]) for g in (graph, fitted)]
    assert near[1] > near[0]
    assert apply(ReplaceAttention(SMALL[name]), fitted) == []
    assert_close(torch.as_tensor(lower(fitted, find("x86"))(*other)), fitted(*other), 1e-5)
    fitted.save(tmp_path / "small.pt2")
    loaded = Graph.load(tmp_path / "small.pt2")
    assert torch.equal(loaded(*other), fitted(*other))
    assert apply(ReplaceAttention(SMALL[name]), loaded) == []


@pytest.mark.many
@pytest.mark.parametrize("name", SMALL)
def test_free_lengths_stay_free(name: str) -> None:
    length = torch.export.Dim("length", max=40)
    model = Layer().eval()
    graph = Graph.capture(model, tuple(inputs()), dynamic_shapes={n: {0: "batch", 1: length} for n in ("x", "mask")})
    run([ReplaceAttention(SMALL[name])], graph)
    artifact = lower(graph, find("x86"))
    for tokens in (3, 21, 40):
        given = inputs(2, tokens, seed=tokens)
        fixed = replaced(model, given, SMALL[name]) if name != "linformer" else graph
        assert_close(graph(*given), fixed(*given), 1e-5)
        assert_close(torch.as_tensor(artifact(*given)), graph(*given), 1e-5)


@pytest.mark.many
@pytest.mark.thorough
@pytest.mark.skipif(importlib.util.find_spec("tvm") is None, reason="the TVM backend needs graphopt[tvm]")
@pytest.mark.parametrize("name", SMALL)
def test_tvm_answers_what_the_graph_answers(name: str) -> None:
    from tvm_lowering import lower_through_tvm

    given = inputs(1)
    graph = replaced(Layer(), given, SMALL[name])
    assert_close(torch.as_tensor(lower_through_tvm(graph, find("tvm-x86"))(*given)), graph(*given), 1e-5)


@pytest.mark.many
@pytest.mark.parametrize("name", SMALL)
def test_it_computes_in_the_type_of_the_network(name: str) -> None:
    model, (x, mask) = Layer().eval(), inputs()
    wanted = replaced(model, [x, mask], SMALL[name])(x, mask)
    for dtype, tolerance in ((torch.float16, 1e-2), (torch.bfloat16, 8e-2)):
        half = replaced(Layer().eval().to(dtype), [x.to(dtype), mask], SMALL[name])
        found = half(x.to(dtype), mask)
        assert found.dtype == dtype
        assert_close(found.float(), wanted, tolerance)


def test_networks_of_half_types_are_fitted() -> None:
    model, (x, mask) = Layer().eval().to(torch.float16), inputs(16)
    data = [[x.half(), mask]]
    graph = replaced(model, [t[:2] for t in data[0]], "linear", data=data, iterations=20)
    assert {t.dtype for n, t in graph.state_dict().items() if n.startswith("scaled")} == {torch.float16}
    assert bool(torch.isfinite(graph(*data[0])).all())


@pytest.mark.many
@pytest.mark.parametrize("name", [n for n in SMALL if n not in ("blocks", "strided")])
def test_what_is_put_in_trains(name: str) -> None:
    model, given = Layer().eval(), inputs(64, seed=3)
    graph = replaced(model, inputs(), SMALL[name])
    answers = model(*given).detach()
    for parameter, tensor in graph.named_parameters():
        tensor.requires_grad_(parameter.startswith("scaled"))
    assert any(p.requires_grad for p in graph.parameters())
    before = float((graph(*given) - answers).square().mean().detach())
    graphopt.train(graph, [(given, answers)], loss="mse", epochs=40, rate=1e-2)
    assert float((graph(*given) - answers).square().mean().detach()) < 0.985 * before


def test_a_graph_in_training_mode_comes_back_in_it() -> None:
    model, given = Layer(), inputs()
    graph = capture(model, *given).train()
    apply(ReplaceAttention("star", data=[given], iterations=2), graph)
    assert graph.training
    assert graph(*given).shape == given[0].shape


def test_samples_held_out_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that gains nothing keeps what it had."""
    monkeypatch.setattr(Samples, "error", lambda self, result, seen: 1.0)
    graph = replaced(Layer(), inputs(), "linear", data=[inputs(16)], iterations=5)
    assert torch.equal(part(graph, "key_shift"), torch.zeros(HEADS, 1, SIZE))


def test_masks_that_nothing_reads_any_more_are_no_hindrance() -> None:
    """As models of Hugging Face compute them: of places, and for all queries."""

    class Spread(Layer):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            samples, places = torch.arange(x.shape[0])[:, None, None, None], torch.arange(x.shape[1])
            seen = (places[None, None, :, None] >= 0) & (mask > 0)[samples, places[None, None, None]]
            n, tokens, width = x.shape
            q, k, v = (layer(x).view(n, tokens, HEADS, -1).transpose(1, 2) for layer in self.ins)
            found = F.scaled_dot_product_attention(3 * q, k, v, attn_mask=seen)
            return x + self.out(found.transpose(1, 2).reshape(n, tokens, width))

    length = {n: {0: "batch", 1: "length"} for n in ("x", "mask")}
    graphs = [Graph.capture(kind().eval(), tuple(inputs()), dynamic_shapes=length) for kind in (Spread, Layer)]
    for graph in graphs:
        run([ReplaceAttention("linear", data=[inputs(8, 9), inputs(8, 13)], iterations=5)], graph)
    assert_close(graphs[0](*inputs()), graphs[1](*inputs()), 1e-4)
    assert [n.meta["val"].shape[-2] for n in graphs[0].calls(torch.ops.aten.__and__.Tensor)] == [1]


def test_layers_are_chosen_by_name() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Layer(), Layer()

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.second(self.first(x, mask), mask)

    graph = capture(Two(), *inputs())
    (change,) = apply(ReplaceAttention("star", layers="second*"), graph)
    assert change.site == "second"
    assert [graph.site(n) for n in graph.calls(torch.ops.aten.scaled_dot_product_attention.default)] == ["first"]
    assert [n for n in graph.state_dict() if n.startswith("second.relay")]
    with pytest.raises(InputError, match=r"'third' matches no softmax attention; there is: first, second"):
        ReplaceAttention("star", layers="third")(capture(Two(), *inputs()))


def test_eight_times_the_tokens_take_eight_times_the_products() -> None:
    for name in ("elu", "efficient", "linformer", "blocks", "star"):
        macs = [cost.macs(replaced(Layer(), inputs(1, tokens), SMALL[name])) for tokens in (64, 512)]
        assert macs[1] < 8.5 * macs[0], name


# ---- What cannot be -------------------------------------------------------------------------------------------------


def bias_of_places(q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
    apart = (torch.arange(TOKENS) - torch.arange(TOKENS)[:, None]).abs()
    return F.scaled_dot_product_attention(q, k, v, -0.1 * apart[None, None].float())


@pytest.mark.parametrize("method", ["efficient", "linformer", "sinkhorn", "star"])
def test_what_looks_ahead_is_refused_for_causal_attention(method: str) -> None:
    for form in ("causal", "causal by an added mask", "causal by places"):
        given = [*(drawn(N, HEADS, TOKENS, SIZE, seed=s) for s in range(3)), padding()]
        with pytest.raises(InputError, match=f"'{method}' cannot replace it, which is causal.*causal: linear, blocks"):
            ReplaceAttention(method)(capture(Form(FORMS[form]), *given))


@pytest.mark.parametrize("method", METHODS)
def test_biases_of_single_queries_are_refused(method: str) -> None:
    given = [*(drawn(N, HEADS, TOKENS, SIZE, seed=s) for s in range(3)), padding()]
    dynamic = Form(
        lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, (m[:, None, :, None] * m[:, None, None]) > 0)
    )
    for model in (Form(bias_of_places), dynamic):
        with pytest.raises(
            InputError, match=f"'{method}' cannot replace it, whose mask or bias is another one for each query"
        ):
            ReplaceAttention(method)(capture(model, *given))


@pytest.mark.parametrize("method", METHODS)
def test_other_keys_than_queries(method: str) -> None:
    given = [
        drawn(N, HEADS, 6, SIZE),
        drawn(N, HEADS, TOKENS, SIZE, seed=1),
        drawn(N, HEADS, TOKENS, 3, seed=2),
        padding(),
    ]
    if "cross" in METHODS[method].can:
        assert replaced(Core(), given, method)(*given).shape == (N, HEADS, 6, 3)
    else:
        with pytest.raises(InputError, match=r"other keys than queries \(cross: linear, efficient, linformer"):
            ReplaceAttention(method)(capture(Core(), *given))


def test_options_that_cannot_be_are_refused() -> None:
    for make, said in (
        (lambda: ReplaceAttention("linaer"), "unknown method 'linaer'; did you mean 'linear'"),
        (lambda: ReplaceAttention(3), "a name or a method"),
        (lambda: ReplaceAttention(iterations=0), "iterations must be over 0"),
        (lambda: Linear("sigmoid"), "features must be one of elu, relu, exp"),
        (lambda: Linear(count=0), "count must be at least 1"),
        (lambda: Linformer(0), "slots must be at least 1"),
        (lambda: Blocks(4, first=5), "first from 0 to block"),
        (lambda: Sinkhorn(turns=0), "turns must be at least 1"),
        (lambda: Star(relays=0), "relays at least 1"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            make()  # type: ignore[no-untyped-call]


def test_a_length_without_an_end_is_refused() -> None:
    free = {n: {0: "batch", 1: "length"} for n in ("x", "mask")}
    graph = Graph.capture(Layer().eval(), tuple(inputs()), dynamic_shapes=free)
    with pytest.raises(InputError, match="capture it with an end"):
        ReplaceAttention("linformer")(graph)


class Stacked(nn.Module):
    """Two attentions, spelled out; the second adds a bias for each query."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        found: Tensor = (q @ k.mT).softmax(-1) @ v
        return (found @ k.mT + bias).softmax(-1) @ v


@pytest.mark.parametrize("method", ["linear", "linformer"])
def test_what_is_refused_leaves_the_graph_as_it_is(method: str) -> None:
    model: nn.Module
    if method == "linear":
        model, given, free = Stacked(), [drawn(N, HEADS, TOKENS, SIZE)] * 3 + [drawn(N, 1, TOKENS, TOKENS)], None
    else:
        model, given = Form(FORMS["products"]), [*[drawn(N, HEADS, TOKENS, SIZE)] * 3, padding()]
        free = {n: {0: "batch", 2: "length"} for n in "qkv"} | {"mask": {0: "batch", 1: "length"}}
    graph = Graph.capture(model.eval(), tuple(given), dynamic_shapes=free)
    before = str(graph)
    with pytest.raises(InputError):
        ReplaceAttention(method)(graph)
    assert str(graph) == before


class Twice(nn.Module):
    """The second attention asks with what the first answers."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        found: Tensor = (q @ k.mT).softmax(-1) @ v
        return (found @ k.mT).softmax(-1) @ v


def test_attentions_that_read_one_another_are_replaced_both() -> None:
    given = tuple(drawn(N, HEADS, TOKENS, SIZE) for _ in range(3))
    graph = Graph.capture(Twice().eval(), given)
    changes = ReplaceAttention("efficient")(graph)
    assert len(changes) == 2
    graph.refresh()
    q, k, v = given
    once = k.softmax(-2).mT @ v
    want = (q.softmax(-1) @ once).softmax(-1) @ once
    torch.testing.assert_close(graph(*given), want, rtol=1e-4, atol=1e-5)
