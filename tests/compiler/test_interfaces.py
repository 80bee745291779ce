"""What models take and return, through the whole of `optimize`: any nesting, flags, sizes, other types, other callers."""

from __future__ import annotations

import random
import warnings
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

import graphopt
from graphopt.data import Calibration
from graphopt.ir.graph import Graph
from graphopt.ir.passes import Change
from graphopt.passes.cleanup import Simplify
from graphopt.passmanager.runner import outputs, run
from graphopt.utils.errors import InputError, PassError

IMAGES = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@dataclass
class Detection:
    boxes: Tensor
    scores: Tensor | None
    count: int = 7


class Pair(NamedTuple):
    first: Tensor
    second: Any


class Returns(nn.Module):
    """A convolution, and whatever a function makes of it."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.function = nn.Conv2d(3, 4, 3, padding=1), function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.layer(x))


OUTPUTS: dict[str, Callable[[Tensor], Any]] = {
    "a dataclass in a list": lambda y: [Detection(y.mean((2, 3)), None), y],
    "a named tuple in a dictionary": lambda y: OrderedDict(a=Pair(y.mean((2, 3)), {"b": y.sum(1)})),
    "flags first": lambda y: (y > 0, y.mean((2, 3))),
    "integers": lambda y: y.argmax(1),
    "one flag for each": lambda y: (y.mean((1, 2, 3)) > 0, None, "text"),
    "nothing": lambda y: (y[:, :0], y),
    "one number for all": lambda y: y.mean(),
    "sizes": lambda y: {
        "y": y.flatten(1),
        "batch": y.shape[0],
        "elements": [2 * y.shape[0] * y.shape[1] + 1, y.shape[2]],
    },
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_of_any_kind_come_back_as_the_model_returns_them(name: str, tmp_path: Path) -> None:
    model = Returns(OUTPUTS[name]).eval()
    result = graphopt.optimize(model, IMAGES, target="arm", calibration=[IMAGES, IMAGES[:3]], measure=False)
    result.artifact.save(tmp_path / "deployed")
    for artifact in (result.artifact, graphopt.load(tmp_path / "deployed")):
        for images in (IMAGES[:5], IMAGES[:1]):
            wanted, got = model(images), artifact(images)
            leaves = [pytree.tree_leaves(structure) for structure in (wanted, got)]
            if name == "a dataclass in a list":  # which comes back as a class with the same fields, None in their order
                assert (got[0].boxes.shape, got[0].scores, got[0].count) == (wanted[0].boxes.shape, None, 7)
                leaves[1] = [leaf for leaf in leaves[1] if leaf is not None]
            for ours, theirs in zip(*leaves, strict=True):
                if isinstance(ours, Tensor):
                    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
                    if ours.is_floating_point() and ours.numel():
                        assert (ours - theirs).abs().max() < 0.05 * ours.abs().max()
                else:
                    assert ours == theirs


def test_what_is_no_ordinary_number_is_compared_when_passes_are_verified() -> None:
    model = Returns(lambda y: (torch.complex(y, -y), y > 0, y[:, :0], y.permute(0, 1, 2, 3) / 0, y.long())).eval()
    graph = Graph.capture(model, IMAGES)
    before = outputs(graph)
    (step,) = run([Simplify()], graph, verify=True)  # NaN and infinities are the model's, not the pass's
    assert step.changes
    for old, new in zip(before, outputs(graph), strict=True):
        torch.testing.assert_close(new, old, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert not all(bool(torch.isfinite(tensor).all()) for tensor in before)
    with pytest.raises(PassError, match=r"Finite\(\) says it is exact but moved the output"):
        run([Finite()], graph, verify=True)


class Finite:
    """A pass that puts numbers where there were none."""

    exact = True

    def __call__(self, graph: Graph) -> list[Change]:
        (node,) = graph.calls(torch.ops.aten.div.Tensor)
        with graph.module.graph.inserting_after(node):
            made = graph.module.graph.call_function(torch.ops.aten.nan_to_num.default, (node,))
        node.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)
        return [Change("div", "numbers")]

    def __repr__(self) -> str:
        return "Finite()"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("where", ["weight", "input", "layer"])
def test_other_floats_are_refused_by_name_before_any_work(dtype: torch.dtype, where: str) -> None:
    class Casts(Returns):
        def forward(self, x: Tensor) -> Any:
            layer = self.layer
            if where == "layer":
                return nn.functional.conv2d(x.to(dtype), layer.weight.to(dtype)).float()
            return layer(x.to(layer.weight.dtype))

    model = Casts(lambda y: y).to(dtype if where == "weight" else torch.float32).eval()
    images = IMAGES.to(dtype if where == "input" else torch.float32)
    with pytest.raises(
        InputError, match=f"{where} '.*' is in {str(dtype)[6:]}: give the model and its inputs in float32"
    ):
        graphopt.optimize(model, images, target="x86", calibration=images, measure=False)


SQUEEZES: dict[str, Callable[[Tensor], Tensor]] = {
    "all": lambda y: y.mean((2, 3)).squeeze(),
    "the first": lambda y: y.squeeze(0),
    "several": lambda y: y.mean((2, 3), keepdim=True).squeeze((0, 2, 3)),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", SQUEEZES)
def test_a_squeezed_batch_is_kept_where_it_is_free_and_fixed_where_the_example_is_one(name: str) -> None:
    model = Returns(SQUEEZES[name]).eval()
    several = graphopt.optimize(model, IMAGES, target="arm", calibration=IMAGES, measure=False)
    assert several.artifact(IMAGES[:5]).shape == model(IMAGES[:5]).shape
    assert several.artifact(IMAGES[:1]).shape == (1, *model(IMAGES[:1]).shape)
    assert any("drops a batch of one" in note for note in several.report.notes)
    one = graphopt.optimize(model, IMAGES[:1], target="arm", calibration=IMAGES, measure=False)
    assert one.artifact(IMAGES[:1]).shape == model(IMAGES[:1]).shape
    assert any("the batch is fixed at 1" in note for note in one.report.notes)


@pytest.mark.thorough
@pytest.mark.parametrize("batch", [4, 8, 2])
def test_the_batch_stays_free_whatever_other_size_it_equals(batch: int) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.first = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Any:
            x = self.first(x)
            return self.inner(x, x, x, need_weights=False)[0]

    x = torch.randn(batch, 4, 8)
    result = graphopt.optimize(Attention().eval(), x, target="arm", calibration=x, measure=False)
    assert result.artifact(torch.randn(5, 4, 8)).shape == (5, 4, 8)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.layer(values if mask is None else values * mask)


class Whole(Named):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        return self.layer(batch["values"] * batch["mask"])


@pytest.mark.thorough
@pytest.mark.parametrize("model, keys", [(Named, ["values"]), (Named, ["mask", "values"]), (Whole, ["values", "mask"])])
def test_a_dictionary_is_what_forward_takes_by_name_or_takes_as_a_whole(
    model: type[nn.Module], keys: list[str]
) -> None:
    batch = {key: torch.rand(8, 6) for key in keys}
    result = graphopt.optimize(model().eval(), batch, target="arm", calibration=[batch], measure=False)
    answer = result.artifact(batch) if model is Whole else result.artifact(**batch)
    assert answer.shape == (8, 4)


def test_photos_are_turned_as_viewers_turn_them_and_broken_ones_left_out(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    graph = Graph.capture(nn.Conv2d(3, 4, 3).eval(), torch.randn(1, 3, 32, 32))
    for orientation in range(1, 9):
        picture = image.new("RGB", (32, 32))
        picture.paste((255, 255, 255), (0, 0, 16, 16))  # the white corner goes all round
        exif = picture.getexif()
        exif[0x0112] = orientation
        picture.save(tmp_path / f"{orientation}.png", exif=exif)
    pixels = torch.cat([batch for (batch,) in Calibration(str(tmp_path), graph)])
    corners = [pixels[..., a, b].mean(1) for a in (4, 28) for b in (4, 28)]
    assert torch.stack(corners).argmax(0).tolist() == [0, 1, 3, 2, 0, 1, 3, 2]

    (tmp_path / "0.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match=r"0\.png cannot be read .*; it is left out"):
        assert sum(len(batch) for (batch,) in Calibration(str(tmp_path), graph)) == 8
    for orientation in range(1, 9):
        (tmp_path / f"{orientation}.png").write_bytes(b"no picture")
    with warnings.catch_warnings(), pytest.raises(InputError, match="none of the 9 images"):
        warnings.simplefilter("ignore")
        list(Calibration(str(tmp_path), graph))


@pytest.mark.thorough
def test_threads_optimize_at_once() -> None:
    def work(channels: int) -> Any:
        model = nn.Sequential(nn.Conv2d(3, channels, 3), nn.ReLU(), nn.Conv2d(channels, 4, 3)).eval()
        return graphopt.optimize(model, IMAGES, target="arm", calibration=IMAGES, measure=False).artifact(IMAGES).shape

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(work, range(4, 10))) == [(8, 4, 8, 8)] * 6


def test_the_callers_random_numbers_do_not_move() -> None:
    model = Returns(lambda y: y).eval()
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index,union-attr]
    graphopt.optimize(model, IMAGES, target="arm", measure=False)
    Graph.capture(model, IMAGES)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # type: ignore[index]
    assert before[2] == random.getstate()


def test_a_checkpoint_loads_as_into_the_model() -> None:
    graph = Graph.capture(Returns(lambda y: y).eval(), IMAGES)
    found = graph.load_state_dict({"layer.bias": torch.ones(4), "other": torch.ones(1)}, strict=False)
    assert (found.missing_keys, found.unexpected_keys) == (["layer.weight"], ["other"])
    with pytest.raises(RuntimeError, match="Missing key"):
        graph.load_state_dict({"layer.bias": torch.ones(4)})
