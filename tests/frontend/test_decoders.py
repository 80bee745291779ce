"""Causal language models with their cache as inputs and outputs: they generate, token for token, what transformers does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from small_transformers import VOCABULARY, imported, language_model
from torch import Tensor, nn

import graphopt
from graphopt.backends.onnxruntime.artifact import MODEL
from graphopt.compiler.recipes import weight_only
from graphopt.frontend.decoders import CachedDecoder, generate
from graphopt.ir.graph import Graph
from graphopt.utils.errors import InputError

NEW = 12


def prompt() -> tuple[Tensor, Tensor]:
    """Three sentences of 7, 4 and 1 tokens, right-aligned."""
    ids = torch.randint(3, VOCABULARY, (3, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :3], mask[2, :6] = 0, 0
    return ids * mask, mask


def expected(model: nn.Module, end: int | None = None) -> Tensor:
    ids, mask = prompt()
    given = {"do_sample": False, "max_new_tokens": NEW, "eos_token_id": end, "pad_token_id": 0 if end is None else end}
    return model.generate(input_ids=ids, attention_mask=mask, **given)[:, ids.shape[1] :]  # type: ignore[no-any-return, operator]


def artifact_of(decoder: CachedDecoder, **options: Any) -> Any:
    return graphopt.optimize(
        decoder,
        decoder.example(*prompt()),
        target="x86",
        dynamic_shapes=decoder.dynamic_shapes,
        measure=False,
        **options,
    ).artifact


@pytest.mark.thorough
@pytest.mark.parametrize(
    "kind", ["gpt2", pytest.param("llama", marks=pytest.mark.slow), pytest.param("qwen2", marks=pytest.mark.slow)]
)
def test_an_artifact_generates_token_for_token_what_transformers_does(kind: str, tmp_path: Path) -> None:
    model = language_model(kind)
    decoder = CachedDecoder(model)
    artifact = graphopt.load(artifact_of(decoder, passes=[]).save(tmp_path / "decoder"))
    assert [str(i) for i in artifact.manifest.inputs][:3] == [
        "input_ids: int64[batch, tokens]", "attention_mask: int64[batch, tokens]", "past_mask: int64[batch, past]",
    ]  # fmt: skip
    reference = expected(model)
    assert len(set(reference.flatten().tolist())) > 5  # not one word again and again
    assert torch.equal(generate(artifact, *prompt(), decoder.empty(3), NEW), reference)
    for row in range(3):  # alone as among others
        alone = (t[row : row + 1] for t in prompt())
        assert torch.equal(generate(artifact, *alone, decoder.empty(), NEW), reference[row : row + 1])


@pytest.mark.slow
def test_plain_onnxruntime_generates_the_same() -> None:
    model = language_model("gpt2")
    decoder = CachedDecoder(model)
    artifact = artifact_of(decoder, passes=[])
    session = onnxruntime.InferenceSession(str(artifact.folder / MODEL), providers=["CPUExecutionProvider"])
    ids, mask = (t.numpy() for t in prompt())
    past = {f"past_{name}": value.numpy() for name, value in decoder.empty(3).items()}
    names, found = [o.name for o in session.get_outputs()], []
    for _ in range(NEW):
        logits, *present = session.run(None, {"input_ids": ids, "attention_mask": mask, **past})
        past = {name.replace("present", "past"): value for name, value in zip(names[1:], present, strict=True)}
        ids = logits[:, -1:].argmax(-1)
        mask = np.ones_like(ids)
        found.append(ids)
    assert np.array_equal(np.concatenate(found, 1), expected(model).numpy())


def first_logits(answer: Any, decoder: CachedDecoder) -> Tensor:
    with torch.no_grad():
        return answer(*prompt(), decoder.empty(3))["logits"]  # type: ignore[no-any-return]


def quality(found: Tensor, reference: Tensor) -> float:
    return float(10 * torch.log10(reference.square().sum() / (found - reference).square().sum()))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("int8_cache", [False, True])
def test_weights_of_few_bits_and_codes_in_the_cache_are_near(kind: str, int8_cache: bool) -> None:
    model = language_model(kind)
    decoder = CachedDecoder(model, int8_cache=int8_cache)
    reference = first_logits(CachedDecoder(model), decoder if not int8_cache else CachedDecoder(model))
    for bits, least in ((8, 28), (4, 10)):
        artifact = artifact_of(decoder, passes=lambda target, data, bits=bits: weight_only(target, bits=bits))
        assert quality(first_logits(artifact, decoder), reference) > least
        tokens = generate(artifact, *prompt(), decoder.empty(3), NEW)
        assert tokens.shape == (3, NEW)
        if bits == 8:
            assert (tokens == expected(model)).float().mean() > 0.5


@pytest.mark.thorough
def test_codes_in_the_cache_are_made_once_and_within_half_a_step() -> None:
    model = language_model("llama")
    exact, rounded = CachedDecoder(model), CachedDecoder(model, int8_cache=True)
    with torch.no_grad():
        reference = exact(*prompt(), exact.empty(3))["present"]
        first = rounded(*prompt(), rounded.empty(3))["present"]
        one = torch.ones(3, 1, dtype=torch.int64)
        second = rounded(one, one, first)["present"]
    for name in ("key_0", "value_0"):  # of the first layer, which reads nothing rounded
        scale = first[name.replace("_", "_scale_")]
        assert first[name].dtype == torch.int8
        assert ((first[name] * scale - reference[name]).abs() <= scale * 0.5001).all()
        assert torch.equal(second[name][:, :, :-1], first[name])
        assert second[name].shape[2] == first[name].shape[2] + 1
    assert (first["key_0"][:1, :, 1:].abs().amax(-1) == 127).all()


def test_a_prompt_may_come_in_parts() -> None:
    decoder = CachedDecoder(language_model("llama"))
    ids, mask = prompt()
    whole = first_logits(decoder, decoder)
    with torch.no_grad():
        past = decoder(ids[:, :3], mask[:, :3], decoder.empty(3))["present"]
        found = decoder(ids[:, 3:], mask[:, 3:], past)["logits"]
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-4)


def test_generation_ends_where_all_sentences_have_ended() -> None:
    model = language_model("llama")
    decoder = CachedDecoder(model)
    end = int(expected(model)[0, 2])
    found, reference = generate(decoder, *prompt(), decoder.empty(3), NEW, end=end), expected(model, end)
    assert torch.equal(found, reference[:, : found.shape[1]])
    assert (found[0, 2:] == end).all()
    assert found.shape == reference.shape
    alone = [t[:1] for t in prompt()]
    assert generate(decoder, *alone, decoder.empty(), NEW, end=end).shape == (1, 3)


@pytest.mark.thorough
def test_lengths_stay_free_where_they_equal_the_number_of_heads() -> None:
    decoder = CachedDecoder(language_model("llama"))
    ids, mask = prompt()
    example = decoder.example(ids[:, -8:], mask)  # 3 tokens before, 4 new ones, and 4 heads
    assert example[0].shape[1] == 4
    graph = Graph.capture(decoder, example, dynamic_shapes=decoder.dynamic_shapes)
    graphopt.passes.Simplify()(graph)
    graph.refresh()
    assert [size.name for size in graph.free_sizes] == ["batch", "tokens", "past"]
    torch.testing.assert_close(
        graph(ids, mask, decoder.empty(3))["logits"], first_logits(decoder, decoder), rtol=0, atol=1e-4
    )


@pytest.mark.thorough
def test_what_keeps_no_keys_and_values_is_refused() -> None:
    transformers = imported()
    with pytest.raises(InputError, match="Linear is no causal language model of transformers"):
        CachedDecoder(nn.Linear(2, 2))
    config = transformers.MambaConfig(vocab_size=VOCABULARY, hidden_size=16, state_size=4, num_hidden_layers=1)
    with pytest.raises(InputError, match="MambaForCausalLM"):
        CachedDecoder(transformers.MambaForCausalLM(config))
    windowed = transformers.MistralConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        sliding_window=4,
    )
    with pytest.raises(InputError, match=r"layer 0 keeps .*without a window"):
        CachedDecoder(transformers.MistralForCausalLM(windowed))
    decoder = CachedDecoder(language_model("llama"))
    with pytest.raises(InputError, match=r"tokens \[batch, 4 or more\], got \[1, 3\]"):
        decoder.example(torch.zeros(1, 3, dtype=torch.int64))


def test_the_model_stays_in_its_mode_and_one_in_training_is_refused_by_capture() -> None:
    model = language_model("llama").train()
    decoder = CachedDecoder(model)
    assert all(module.training for module in decoder.modules())
    with pytest.raises(InputError, match=r"training mode.*eval\(\)"):
        Graph.capture(decoder, decoder.example(*prompt()), dynamic_shapes=decoder.dynamic_shapes)


@pytest.mark.thorough
def test_transformers_is_imported_only_when_a_decoder_is_made() -> None:
    import subprocess

    code = "import graphopt.frontend.decoders, sys; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
