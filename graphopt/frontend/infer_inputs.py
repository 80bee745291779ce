"""Example inputs guessed from the model, for when the user gives none.

Looked at in turn: what timm and Hugging Face models say about themselves, then the first layer with a weight. Sizes
that nothing states are tried out by running the model, the most usual first. Of image networks that run at any size the
strides tell: feature maps end at 7 x 7 or 8 x 8 as a rule, so a network for 224 x 224 divides by 32, one for 32 x 32 by
4. The guess is told in a sentence, because other sizes may be what the model was trained with.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from graphopt.utils.errors import InputError

IMAGE_SIZES = (224, 32, 28, 64, 256, 16, 8, 384, 512)
LAST_MAP = 8  # pixels: height and width of the feature maps of a classifier's last stage
SMALLEST = 32  # pixels: no image is guessed smaller from strides
LENGTHS = (128, 1024, 16, 16000)  # of sequences and signals
BATCH = 1  # one image, one sentence: what is measured is the time of one answer


class Guess(NamedTuple):
    """Positional example inputs, keyword ones, and what was assumed, in one sentence."""

    args: tuple[Tensor, ...]
    kwargs: dict[str, Tensor]
    note: str


def infer(model: nn.Module, *, seed: int = 0) -> Guess:
    """Example inputs that `model` runs with.

    Raises:
        InputError: nothing the model says and no usual size runs.
    """
    tried = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for guess in _candidates(model):
            if _runs(model, guess):
                return guess
            tried.append(_shown(guess))
    what = f"it does not run with {', '.join(tried[:6])}" if tried else "its first layer does not tell"
    remedy = "pass example_inputs (or --input-shape 1,3,224,224)"
    raise InputError(f"cannot guess example inputs for {type(model).__name__}: {what}; {remedy}")


def _candidates(model: nn.Module) -> Iterator[Guess]:
    yield from _timm(model)
    yield from _hugging_face(model)
    yield from _first_layer(model)


def _timm(model: nn.Module) -> Iterator[Guess]:
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    size = config.get("input_size") if isinstance(config, dict) else getattr(config, "input_size", None)
    if size:
        yield _image(size, "the size in the model's pretrained_cfg")


def _hugging_face(model: nn.Module) -> Iterator[Guess]:
    config = getattr(model, "config", None)
    size, vocabulary = getattr(config, "image_size", None), getattr(config, "vocab_size", None)
    if isinstance(size, (int, list, tuple)):
        height, width = (size, size) if isinstance(size, int) else size
        image = torch.randn(BATCH, getattr(config, "num_channels", 3), height, width)
        yield Guess((), {"pixel_values": image}, _note({"pixel_values": image}, "the image_size in the model's config"))
    if isinstance(vocabulary, int):
        length = min(128, getattr(config, "max_position_embeddings", 128))
        ids = torch.randint(vocabulary, (BATCH, length))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        yield Guess((), inputs, _note(inputs, "the vocab_size in the model's config"))


def _first_layer(model: nn.Module) -> Iterator[Guess]:
    """Guesses from the first layer with a weight, then the second: modules need not stand in the order they run."""
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Embedding, *_CONVS))]
    for name, layer in layers[:2]:
        origin = f"the first layer, {name or type(layer).__name__} ({type(layer).__name__})"
        if isinstance(layer, nn.Embedding):
            for length in LENGTHS:
                ids = torch.randint(layer.num_embeddings, (BATCH, length))
                yield Guess((ids,), {}, _note({"input": ids}, origin))
        elif isinstance(layer, nn.Linear):
            for shape in ((layer.in_features,), (LENGTHS[0], layer.in_features)):
                yield _image(shape, origin)
        elif isinstance(layer, nn.Conv1d):
            for length in LENGTHS:
                yield _image((layer.in_channels, length), origin)
        elif isinstance(layer, nn.Conv2d):
            yield from _by_strides(model, layer, origin)
            for size in IMAGE_SIZES:
                yield _image((layer.in_channels, size, size), origin)
        else:
            for size in (32, 64, 16):
                yield _image((layer.in_channels, size, size, size), origin)


def _by_strides(model: nn.Module, first: nn.Conv2d, origin: str) -> Iterator[Guess]:
    """The size at which the last feature map has `LAST_MAP` pixels, for networks that run at the most usual size, too."""
    size = IMAGE_SIZES[0]
    heights: list[int] = []

    def note_height(module: nn.Module, args: Any, output: Any) -> None:
        heights.append(output.shape[-2])

    hooks = [m.register_forward_hook(note_height) for m in model.modules() if isinstance(m, nn.Conv2d)]
    try:
        runs = _runs(model, _image((first.in_channels, size, size), origin))
    finally:
        for hook in hooks:
            hook.remove()
    maps = [height for height in heights if height > 1]  # one pixel: behind a global pool
    if runs and maps:
        stride = max(1, size // min(maps))
        fits = max(SMALLEST, LAST_MAP * stride)
        if fits < size:
            yield _image((first.in_channels, fits, fits), f"{origin}, and a total stride of {stride}")


_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _image(sizes: Any, origin: str) -> Guess:
    value = torch.randn(BATCH, *sizes)
    return Guess((value,), {}, _note({"input": value}, origin))


def _runs(model: nn.Module, guess: Guess) -> bool:
    training = {m: m.training for m in model.modules()}
    model.eval()  # otherwise a trial would move the batch-norm statistics
    try:
        with torch.no_grad():
            model(*guess.args, **guess.kwargs)
    except Exception:  # a wrong guess may raise anything
        return False
    finally:
        for module, mode in training.items():
            module.training = mode
    return True


def _note(inputs: dict[str, Tensor], origin: str) -> str:
    shapes = ", ".join(f"{name} {_shape(t)}" for name, t in inputs.items())
    return f"example inputs were guessed from {origin}: {shapes}; pass example_inputs where others are right"


def _shape(value: Tensor) -> str:
    return f"[N, {', '.join(map(str, value.shape[1:]))}]"


def _shown(guess: Guess) -> str:
    return " and ".join(_shape(t) for t in [*guess.args, *guess.kwargs.values()])
