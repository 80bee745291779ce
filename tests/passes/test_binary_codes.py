"""Binary codes behind features: which bits, packed how, refused when."""

from __future__ import annotations

from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import torch
from rewriting import apply, capture
from scipy.linalg import orthogonal_procrustes
from torch import Tensor, nn

from graphopt.ir.graph import Graph
from graphopt.ir.packed_bits import packed_outputs
from graphopt.passes import BinaryCodes
from graphopt.passes.hashing.projections import METHODS, Projection, itq, rotate
from graphopt.passmanager import run
from graphopt.utils.errors import InputError, NonFiniteError

WIDTH = 24


def features(count: int = 400, seed: int = 0) -> Tensor:
    """Correlated, off zero, of falling variance."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(7)) * torch.linspace(3, 0.5, WIDTH)[:, None]
    return torch.randn(count, WIDTH, generator=generator) @ mix + 2.0


def coded(data: Tensor, bits: int = 16, **options: Any) -> Graph:
    graph = capture(nn.Identity(), data[:2])
    apply(BinaryCodes(bits, [[part] for part in data.split(100)], **options), graph)
    return graph


def bits_of(graph: Graph, x: Tensor) -> Any:
    with torch.no_grad():
        found: Tensor = graph(x)
    assert found.dtype == torch.uint8
    return np.unpackbits(found.numpy(), axis=1).astype(bool)


def centred(data: Tensor) -> Any:
    return data.double().numpy() - data.double().numpy().mean(0)


def principal(data: Tensor, bits: int) -> Any:
    """By singular values of the data, not by their covariance."""
    return np.linalg.svd(centred(data), full_matrices=False)[2][:bits].T


def test_the_graph_gives_packed_bytes() -> None:
    graph = coded(features())
    assert str(graph) == dedent("""\
        graph(input_1: f32[N, 24])
          %0 = linear(input_1, f32[16, 24], f32[16]) : f32[N, 16]  # linear_default
          %1 = gt(%0, other=0) : bool[N, 16]
          %2 = to(%1, dtype=f32) : f32[N, 16]
          %3 = view(%2, size=[-1, 2, 8]) : f32[N, 2, 8]  # view_default
          %4 = mul(%3, f32[8]) : f32[N, 2, 8]  # mul_tensor
          %5 = sum(%4, dim=[-1]) : f32[N, 2]
          %6 = to(%5, dtype=u8) : u8[N, 2]
          return %6""")
    (found,) = packed_outputs(graph)
    assert found.scores.target is torch.ops.aten.linear.default


@pytest.mark.parametrize("method", ["mean", "median"])
def test_thresholds_are_of_the_features_that_vary_most(method: Any) -> None:
    data = features()
    array = data.double().numpy()
    columns = np.sort(np.argsort(-array.var(0))[:16])
    thresholds = {"mean": np.mean, "median": np.median}[method](array[:, columns], axis=0)
    found = bits_of(coded(data, method=method), data)
    assert (found == (array[:, columns] - thresholds > 0)).mean() > 0.9999  # the median of an odd number is one of them
    if method == "median":
        assert np.abs(found.mean(0) - 0.5).max() < 0.01


def test_pca_gives_the_signs_of_principal_components() -> None:
    data = features()
    found, wanted = bits_of(coded(data, method="pca"), data), centred(data) @ principal(data, 16) > 0
    same = (found == wanted).mean(0)
    assert (np.maximum(same, 1 - same) > 0.999).all()  # a direction and its opposite are one


def test_itq_is_the_alternation_of_the_paper() -> None:
    """SciPy's Procrustes solver, from the same first rotation."""
    projected = centred(features()) @ principal(features(), 16)
    start = torch.randn(16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    rotation = np.linalg.qr(start.numpy())[0]
    losses = []
    for _ in range(50):
        signs = np.where(projected @ rotation > 0, 1.0, -1.0)
        rotation = orthogonal_procrustes(projected, signs)[0]
        losses.append(np.square(signs - projected @ rotation).sum())
    found = rotate(torch.from_numpy(projected), torch.Generator().manual_seed(3)).numpy()
    np.testing.assert_allclose(found, rotation, atol=1e-8)
    np.testing.assert_allclose(found @ found.T, np.eye(16), atol=1e-10)
    assert losses == sorted(losses, reverse=True)


def test_itq_rotates_the_principal_directions_and_no_others() -> None:
    data = features().double()
    found = itq(data, 16, torch.Generator().manual_seed(0))
    basis = principal(features(), 16)
    np.testing.assert_allclose(found.weight.numpy() @ basis @ basis.T, found.weight.numpy(), atol=1e-9)
    np.testing.assert_allclose((found.weight @ found.weight.T).numpy(), np.eye(16), atol=1e-9)
    np.testing.assert_allclose((found.weight @ data.mean(0) + found.bias).numpy(), 0, atol=1e-9)


def test_whole_whitening_makes_all_directions_alike() -> None:
    data = features().double()
    found = itq(data, 16, torch.Generator().manual_seed(0), whitening=1.0)
    scores = data @ found.weight.T + found.bias
    np.testing.assert_allclose(torch.cov(scores.T).numpy(), np.eye(16), atol=1e-8)


def test_random_projections_count_angles() -> None:
    """The share of bits that differ is the angle's share of a half turn, in expectation (Goemans and Williamson)."""
    x = features(500)
    found = bits_of(coded(x, 8 * 512, method="random"), x)
    unit = centred(x) / np.linalg.norm(centred(x), axis=1, keepdims=True)
    angles = np.arccos(np.clip(unit[:20] @ unit[20:40].T, -1, 1)) / np.pi
    apart = (found[:20, None] != found[None, 20:40]).mean(2)
    assert np.abs(apart - angles).max() < 5 * 0.5 / 4096**0.5  # five deviations of a share of 4,096


def test_seeds_count_and_repeat() -> None:
    data = features()
    one, same, other = (bits_of(coded(data, seed=seed), data) for seed in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()


def test_a_second_run_finds_nothing_to_do() -> None:
    data = features()
    graph = coded(data)
    text = str(graph)
    assert apply(BinaryCodes(8, [[data]]), graph) == []
    assert str(graph) == text


def test_a_saved_graph_gives_the_same_codes(tmp_path: Any) -> None:
    data = features()
    graph = coded(data, method="mean")
    graph.save(tmp_path / "codes.pt2")
    loaded = Graph.load(tmp_path / "codes.pt2")
    assert torch.equal(loaded(data), graph(data))
    assert len(packed_outputs(loaded)) == 1


class Several(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"classes": x[:, :3] * 2, "features": x * 1}


def test_of_several_outputs_one_is_named() -> None:
    data = features()
    graph = capture(Several(), data[:2])
    with pytest.raises(InputError, match="several outputs; say which holds features"):
        BinaryCodes(16, [[data]])(graph)
    with pytest.raises(InputError, match="no output is called 'feature'; did you mean 'features'"):
        BinaryCodes(16, [[data]], output="feature")(graph)
    run([BinaryCodes(16, [[data]], output="features")], graph)
    found = graph(data)
    assert torch.equal(found["classes"], data[:, :3] * 2)
    assert torch.equal(found["features"], coded(data)(data))


def test_constant_features_are_left_out() -> None:
    data = features()
    data[:, 3:9] = 1.5
    for method in ("mean", "median", "pca", "itq"):
        found = bits_of(coded(data, 16, method=method), data)
        assert ((found.mean(0) > 0.01) & (found.mean(0) < 0.99)).all(), method


@pytest.mark.parametrize("method", ["mean", "median", "pca", "itq"])
def test_more_bits_than_features_vary_are_refused(method: Any) -> None:
    with pytest.raises(
        InputError, match=f"'{method}' cannot give 32 bits: of 24 features there are 24 .*method='random'"
    ):
        coded(features(), 32, method=method)
    data = features()
    data[:, 4:] = data[:1, 4:]
    with pytest.raises(InputError, match="of 24 features there are 4 "):
        coded(data, 8, method=method)
    assert bits_of(coded(data, 8, method="random"), data).shape == (400, 8)


def test_features_that_are_all_constant_are_refused() -> None:
    for method in METHODS:
        with pytest.raises(InputError, match=r"constant on the data|there are 0 "):
            coded(torch.ones(50, WIDTH), 8, method=method)


@pytest.mark.parametrize("method", ["pca", "itq"])
def test_too_few_samples_are_refused(method: Any) -> None:
    with pytest.raises(InputError, match=f"16 bits of '{method}' need more than 16 samples, the data have 16"):
        coded(features(16), 16, method=method)
    coded(features(17), 16, method=method)
    with pytest.raises(InputError, match="at least 2 samples of typical inputs, the data have 1"):
        coded(features(1), 8, method=method)


def test_what_is_no_features_is_refused() -> None:
    images = torch.randn(4, 3, 8, 8)
    graph = capture(nn.Conv2d(3, 8, 3), images)
    with pytest.raises(InputError, match=r"floats \[samples, width\]; it has 4 dimensions of torch.float32: pool or"):
        BinaryCodes(8, [[images]])(graph)
    data = features()
    data[17, 3] = torch.nan
    with pytest.raises(NonFiniteError, match="NaN"):
        coded(data)


def test_options_are_checked() -> None:
    for options, said in (
        ({"bits": 12}, "multiple of 8"),
        ({"bits": 0}, "at least 8"),
        ({"bits": 16, "method": "lsh"}, "unknown method 'lsh'"),
        ({"bits": 16, "whitening": 1.5}, "from 0 to 1"),
        ({"bits": 16, "whitening": 0.5, "method": "pca"}, "'itq' alone"),
    ):
        with pytest.raises(InputError, match=said):
            BinaryCodes(data=[], **options)  # type: ignore[arg-type]


def test_methods_keep_more_neighbours_the_more_bits_they_have() -> None:
    from graphopt.retrieval import compare

    data, asked = features(2000), features(50, 9)
    found = {}
    for bits in (8, 24):
        graph = coded(data, bits)
        found[bits] = compare(data, graph(data), asked, graph(asked), timed=False).recall[100]
    assert found[8] < found[24]


def test_projections_are_what_the_graph_holds() -> None:
    signs = METHODS["itq"](features().double(), 16, torch.Generator().manual_seed(0))
    assert isinstance(signs, Projection)
    graph = coded(features())
    (linear,) = graph.calls(torch.ops.aten.linear.default)
    assert torch.equal(graph.tensor(linear.args[1]), signs.weight.float())
