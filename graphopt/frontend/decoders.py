"""Causal language models of Hugging Face with their cache of keys and values as inputs and outputs, for generating text.

    decoder = CachedDecoder(model)                       an ordinary module
    past = decoder.empty(batch=2)
    out = decoder(input_ids, attention_mask, past)       out["logits"]: of the last token; out["present"]: past of the next call

A call takes the new tokens alone, one or many; what was computed for those before comes back in as `past`:

    mask                     [batch, past]               int64, 1 for the tokens that count
    key_0, value_0, ...      [batch, heads, past, size]  float, of every layer
                             with int8_cache: int8, and key_scale_0, value_scale_0, ... [batch, heads, past, 1]

`past` has one position that no token looks at where nothing came before, because sizes of zero are not free. Sentences of
several lengths stand right-aligned, zeros of `attention_mask` in front of the shorter ones, as tokenizers with
`padding_side="left"` write them; positions are counted from the first token that counts.

With `int8_cache` each token's keys and values are rounded once, when they are computed, one scale for each head and token:
code = round(x / s), s = max |x| / 127.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from graphopt.utils.errors import InputError

Past = dict[str, Tensor]
LARGEST = 127  # code, of either sign
SMALLEST = 1e-12  # scale, so that rows of zeros have one


class CachedDecoder(nn.Module):
    """See the head of this file.

    Attributes:
        model: the causal language model.
        int8_cache: whether keys and values are kept as 8-bit codes.
        name: what the model calls its cache.
        shapes: (heads, size of a head) of the keys and of the values of every layer.
        dtype: theirs, before they are rounded.
    """

    def __init__(self, model: nn.Module, *, int8_cache: bool = False) -> None:
        """Run the model once, on one token, to see what it keeps.

        Raises:
            InputError: it keeps something other than keys and values of all tokens.
        """
        super().__init__()
        self.model, self.int8_cache = model, int8_cache
        self.training, self.name = model.training, cache_name(model)
        layers = kept_layers(model)
        self.shapes = [tuple((t.shape[1], t.shape[3]) for t in layer) for layer in layers]
        self.dtype = layers[0][0].dtype

    def forward(self, input_ids: Tensor, attention_mask: Tensor, past: Past) -> dict[str, Any]:
        """Logits [batch, 1, vocabulary] of the token behind the last, and the past of the next call.

        Args:
            input_ids, attention_mask: [batch, tokens], of the new tokens.
        """
        from transformers import DynamicCache

        mask = torch.cat([past["mask"], attention_mask], 1)
        tokens = input_ids.shape[1]
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -tokens:]
        out = self.model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            **{self.name: DynamicCache([self._layer(past, n) for n in range(len(self.shapes))])},
        )
        present = {"mask": mask}
        for number, layer in enumerate(getattr(out, self.name).layers):
            for kind, value in (("key", layer.keys), ("value", layer.values)):
                present |= self._kept(past, kind, number, value, tokens)
        return {"logits": out.logits, "present": present}

    def _layer(self, past: Past, number: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the tokens before."""
        found = []
        for kind in ("key", "value"):
            value = past[f"{kind}_{number}"]
            found.append(value.to(self.dtype) * past[f"{kind}_scale_{number}"] if self.int8_cache else value)
        return found[0], found[1]

    def _kept(self, past: Past, kind: str, number: int, value: Tensor, tokens: int) -> Past:
        """What is kept of a layer's keys or values [batch, heads, past + tokens, size]."""
        name, scale_name = f"{kind}_{number}", f"{kind}_scale_{number}"
        if not self.int8_cache:
            return {name: value}
        new = value[:, :, -tokens:]
        scale = (new.abs().amax(-1, keepdim=True) / LARGEST).clamp(min=SMALLEST)
        codes = (new / scale).round().clamp(-LARGEST, LARGEST).to(torch.int8)
        return {name: torch.cat([past[name], codes], 2), scale_name: torch.cat([past[scale_name], scale], 2)}

    def empty(self, batch: int = 1) -> Past:
        """The past of a first call."""
        past = {"mask": torch.zeros(batch, 1, dtype=torch.int64)}
        for number, layer in enumerate(self.shapes):
            for kind, (heads, size) in zip(("key", "value"), layer, strict=True):
                kept = torch.int8 if self.int8_cache else self.dtype
                past[f"{kind}_{number}"] = torch.zeros(batch, heads, 1, size, dtype=kept)
                if self.int8_cache:
                    past[f"{kind}_scale_{number}"] = torch.zeros(batch, heads, 1, 1, dtype=self.dtype)
        return past

    def example(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor, Past]:
        """A call in the middle of these tokens [batch, 4 or more]: the second half, with the past of the first.

        Raises:
            InputError: fewer tokens.
        """
        if input_ids.dim() != 2 or input_ids.shape[1] < 4:
            raise InputError(f"an example takes tokens [batch, 4 or more], got {list(input_ids.shape)}")
        mask, half = torch.ones_like(input_ids) if attention_mask is None else attention_mask, input_ids.shape[1] // 2
        with torch.no_grad():
            first = self(input_ids[:, :half], mask[:, :half], self.empty(len(input_ids)))
        return input_ids[:, half:], mask[:, half:], first["present"]

    @property
    def dynamic_shapes(self) -> tuple[Any, ...]:
        """Free numbers of new tokens and of tokens before, as `optimize` and `Graph.capture` take them."""
        past = {name: {1 if name == "mask" else 2: "past"} for name in self.empty()}
        return {1: "tokens"}, {1: "tokens"}, past


def cache_name(model: nn.Module) -> str:
    """What the model calls its cache, as an argument and in what it returns: newer releases of transformers have another name."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def kept_layers(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of every layer, each [1, heads, 1, size], for one token.

    Raises:
        InputError: the model keeps something else.
    """
    who, token = type(model).__name__, torch.zeros(1, 1, dtype=torch.int64)
    try:
        with torch.no_grad():
            kept = getattr(model(input_ids=token, attention_mask=token + 1, use_cache=True), cache_name(model))
    except (TypeError, AttributeError) as error:
        raise InputError(
            f"{who} is no causal language model of transformers, which takes input_ids, attention_mask and use_cache and returns "
            f"past_key_values: {error}"
        ) from error
    layers = [
        (layer, getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in getattr(kept, "layers", ())
    ]
    if not layers:
        raise InputError(f"{who} returns {type(kept).__name__}, which holds no layers of keys and values")
    for number, (layer, *tensors) in enumerate(layers):
        if getattr(layer, "is_sliding", False) or any(not isinstance(t, Tensor) or t.dim() != 4 for t in tensors):
            raise InputError(
                f"{who}: layer {number} keeps {type(layer).__name__}; only keys and values of all tokens, without a window, "
                "can be inputs and outputs"
            )
    return [(keys, values) for _, keys, values in layers]  # type: ignore[misc]


def generate(
    step: Callable[..., Mapping[str, Any]],
    input_ids: Tensor,
    attention_mask: Tensor,
    past: Past,
    new_tokens: int,
    *,
    end: int | None = None,
) -> Tensor:
    """Tokens [batch, new_tokens or fewer] that follow, the likeliest each time, as `model.generate(do_sample=False)` chooses.

    Args:
        step: a `CachedDecoder`, or what was made of one: a graph, an artifact.
        past: `CachedDecoder.empty(batch)`, or the present of an earlier call.
        end: the token that ends a sentence; what follows it is `end`, too. Generation stops where all sentences have ended.
    """
    found: list[Tensor] = []
    running = torch.ones(len(input_ids), 1, dtype=torch.bool)
    for _ in range(new_tokens):
        with torch.no_grad():
            out = step(input_ids, attention_mask, past)
        input_ids, past = out["logits"][:, -1:].argmax(-1), dict(out["present"])
        if end is not None:
            input_ids = torch.where(running, input_ids, torch.full_like(input_ids, end))
            running &= input_ids != end
        attention_mask = torch.ones_like(input_ids)
        found.append(input_ids)
        if not bool(running.any()):
            break
    return torch.cat(found, 1)
