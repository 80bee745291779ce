from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graphopt.frontend.infer_inputs import infer
from graphopt.utils.errors import InputError


class Wants(nn.Module):
    """A network that runs with images of one size only."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * size * size, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(self.conv(x)).flatten(1))
        return out


@pytest.mark.parametrize("size", [224, 32, 28, 8])
def test_the_size_that_runs_is_found(size: int) -> None:
    guess = infer(Wants(size).eval())
    assert guess.args[0].shape == (1, 3, size, size)
    assert f"the first layer, conv (Conv2d): input [N, 3, {size}, {size}]" in guess.note


@pytest.mark.parametrize(
    "model, shape",
    [
        (nn.Conv2d(3, 4, 3), (1, 3, 32, 32)),
        (nn.Linear(7, 3), (1, 7)),
        (nn.Sequential(nn.Flatten(2), nn.Linear(7, 3)), (1, 128, 7)),
        (nn.Conv1d(5, 4, 3), (1, 5, 128)),
        (nn.Conv3d(1, 2, 3), (1, 1, 32, 32, 32)),
        (nn.Sequential(nn.Embedding(50, 4), nn.Linear(4, 2)), (1, 128)),
        (nn.Sequential(nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)), None),
    ],
)
def test_the_first_layer_tells(model: nn.Module, shape: tuple[int, ...] | None) -> None:
    if shape is None:
        with pytest.raises(InputError, match="does not run with"):
            infer(model.eval())
    else:
        assert infer(model.eval()).args[0].shape == shape


class Strided(nn.Module):
    """A classifier of any size whose convolutions halve so many times; the last one works on pooled pixels."""

    def __init__(self, halvings: int) -> None:
        super().__init__()
        self.stages = nn.Sequential(*[nn.Conv2d(3, 3, 3, 2, padding=1) for _ in range(halvings)])
        self.gate = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.gate(self.stages(x).mean((2, 3), keepdim=True)).flatten(1)
        return out


@pytest.mark.parametrize("halvings, size", [(1, 32), (2, 32), (3, 64), (4, 128), (5, 224), (6, 224)])
def test_strides_tell_the_size_of_a_network_that_runs_at_any(halvings: int, size: int) -> None:
    model = Strided(halvings).eval()
    guess = infer(model)
    assert guess.args[0].shape == (1, 3, size, size)
    assert ("total stride" in guess.note) == (size < 224)
    assert not any(m._forward_hooks for m in model.modules())


def test_models_that_say_their_size_are_believed() -> None:
    timm_like = Wants(30)
    timm_like.default_cfg = {"input_size": (3, 30, 30)}  # type: ignore[assignment]
    assert infer(timm_like.eval()).args[0].shape == (1, 3, 30, 30)


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config: Any = SimpleNamespace(vocab_size=20, max_position_embeddings=16)
        self.embedding = nn.Embedding(20, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        out: Tensor = self.embedding(input_ids) * attention_mask[..., None]
        return out


def test_a_hugging_face_config_gives_keyword_inputs() -> None:
    guess = infer(Transformer().eval())
    assert guess.args == ()
    assert {k: tuple(v.shape) for k, v in guess.kwargs.items()} == {"input_ids": (1, 16), "attention_mask": (1, 16)}
    assert guess.kwargs["input_ids"].max() < 20
    assert "vocab_size" in guess.note


def test_the_model_and_the_random_state_are_left_as_they_were() -> None:
    model = Wants(8).train()
    model.norm.eval()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    before = torch.get_rng_state()
    infer(model)
    assert torch.equal(before, torch.get_rng_state())
    assert (model.training, model.norm.training) == (True, False)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_a_model_that_tells_nothing_is_refused_with_the_remedy() -> None:
    with pytest.raises(InputError, match=r"cannot guess example inputs for ReLU: .*pass example_inputs"):
        infer(nn.ReLU())
    with pytest.raises(InputError, match=r"it does not run with \[N, 3, 224, 224\], "):
        infer(Wants(11).eval())
