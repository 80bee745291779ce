"""Hugging Face models as their users have them: what a tokenizer returns goes in, what the model returns comes out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import small_transformers
import torch
import zoo
from small_transformers import lively
from torch import Tensor, nn

import graphopt
from graphopt.artifacts.artifact import Artifact
from graphopt.ir.graph import Graph
from graphopt.ir.structure import tensors
from graphopt.targets import machine_here
from graphopt.utils.errors import InputError

SHORT, LONG = "the cat sat", "a dog ran away from the house under rain"
ENCODERS = ["vit", "bert", "distilbert", "roberta", "deit", "swin", "whisper", "wav2vec2", "segformer", "detr"]


@pytest.fixture
def tokenizer() -> Any:
    return small_transformers.tokenizer()


@pytest.fixture
def bert() -> nn.Module:
    return small_transformers.bert()


def optimized(model: nn.Module, batch: Any, **options: Any) -> Any:
    return graphopt.optimize(model, batch, target="x86-avx2", measure=False, **options)


def free(batch: Any) -> dict[str, dict[int, str]]:
    return {name: {1: "length"} for name in batch}


def quality(found: Any, expected: Any) -> float:
    """The least ratio of signal to noise of any output, in dB."""
    pairs = zip(tensors(found), tensors(expected), strict=True)
    return min(float(10 * torch.log10(b.square().sum() / (a - b).square().sum())) for a, b in pairs)


@pytest.mark.thorough
def test_what_a_tokenizer_returns_is_what_every_form_of_a_model_takes(
    bert: nn.Module, tokenizer: Any, tmp_path: Path
) -> None:
    batch = tokenizer([SHORT, LONG], padding=True, return_tensors="pt")
    done = optimized(bert, batch, passes=[], dynamic_shapes=free(batch))
    expected = bert(**batch)
    loaded = graphopt.load(done.artifact.save(tmp_path / "bert"))
    for answer in (done.artifact, loaded, done.graph):
        for found in (answer(batch), answer(**batch), answer(dict(batch))):
            torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, rtol=0, atol=1e-5)
            torch.testing.assert_close(found[1], expected.pooler_output, rtol=0, atol=1e-5)
    integers = optimized(bert, batch, calibration=[batch], dynamic_shapes=free(batch))
    simulation = graphopt.simulate(integers.graph, "x86-avx2", machine=machine_here())
    for found in (simulation(batch), simulation(**batch), simulation(dict(batch))):
        torch.testing.assert_close(found.pooler_output, integers.artifact(batch).pooler_output, rtol=0, atol=1e-4)
    in_numpy = tokenizer([SHORT, LONG], padding=True, return_tensors="np")
    assert torch.equal(loaded(in_numpy).pooler_output, loaded(batch).pooler_output)
    incomplete = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with pytest.raises(InputError, match=r"must have the entries .*token_type_ids, got input_ids, attention_mask"):
        loaded(incomplete)
    with pytest.raises(InputError, match="the model takes 0 positional inputs and keywords"):
        done.graph(incomplete)


class ByOrder(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left - right


class OneDictionary(nn.Module):
    def forward(self, both: dict[str, Tensor]) -> Tensor:
        return both["left"] - both["right"]


@pytest.mark.parametrize("model", [ByOrder(), OneDictionary()])
def test_a_dictionary_stands_for_all_inputs_or_is_the_one_that_is_taken(model: nn.Module) -> None:
    pair = {"left": torch.randn(2, 3), "right": torch.randn(2, 3)}
    example = (pair,) if isinstance(model, OneDictionary) else tuple(pair.values())
    done = optimized(model.eval(), example, passes=[])
    for answer in (done.artifact, done.graph):
        assert torch.equal(answer(pair), pair["left"] - pair["right"])
        with pytest.raises(InputError):
            answer({"left": pair["left"]})


@pytest.mark.thorough
def test_tokens_that_pad_change_no_other_answer_at_any_length(bert: nn.Module, tokenizer: Any) -> None:
    batch = tokenizer([SHORT, LONG], padding=True, return_tensors="pt")
    for passes in ([], None):
        done = optimized(bert, batch, passes=passes, calibration=[batch], dynamic_shapes=free(batch))
        alone = tokenizer([SHORT], return_tensors="pt")
        count = alone["input_ids"].shape[1]
        expected = done.artifact(alone).last_hidden_state[0]
        for length in (count + 1, 17, 32):
            padded = tokenizer([SHORT], padding="max_length", max_length=length, return_tensors="pt")
            assert padded["input_ids"].shape == (1, length)
            found = done.artifact(padded).last_hidden_state[0, :count]
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
            unmasked = {**padded, "attention_mask": torch.ones_like(padded["attention_mask"])}
            assert (done.artifact(unmasked).last_hidden_state[0, :count] - expected).abs().max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "t5_encoder", "gpt2", "llama"])
def test_sequences_of_any_length_and_number_are_answered_as_by_torch(kind: str) -> None:
    small_transformers.imported()
    model, _, example = zoo.make(f"transformers/{kind}", batch=2)
    lively(model)
    artifact = optimized(model, example, passes=[], dynamic_shapes=free(example)).artifact
    for count, length in ((1, 1), (3, 7), (2, 31)):
        batch = {
            k: torch.randint(0, 2, (count, length)) if "mask" in k else torch.zeros(count, length).long()
            for k in example
        }
        batch["attention_mask"][:, 0] = 1
        batch["input_ids"] = torch.randint(2, 90, (count, length))
        with torch.no_grad():
            assert quality(artifact(batch), model(**batch)) > 90


def calibration(example: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    def other(name: str, value: Tensor) -> Tensor:
        if value.is_floating_point():
            return torch.randn_like(value)
        return torch.randint(2, 90, value.shape) if name == "input_ids" else value

    return [example, *({k: other(k, v) for k, v in example.items()} for _ in range(3))]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["x86-avx2", "arm"])
@pytest.mark.parametrize("kind", ENCODERS)
def test_encoders_run_in_integer_as_simulated_and_near_the_original(kind: str, target: str) -> None:
    small_transformers.imported()
    model, _, example = zoo.make(f"transformers/{kind}", batch=2)
    done = graphopt.optimize(lively(model, 3), example, target=target, calibration=calibration(example), measure=False)
    simulation = graphopt.simulate(done.graph, target, machine=machine_here())
    assert done.graph.dynamic_batch
    for batch in (example, {k: v[:1] for k, v in example.items()}):
        with torch.no_grad():
            found, expected = done.artifact(batch), model(**batch)
        assert list(found) == list(expected)
        assert quality(found, expected) > 20
        assert quality(simulation(batch), found) > 40
        assert_as_simulated(simulation, done.artifact, batch)


def assert_as_simulated(simulation: Any, artifact: Artifact, batch: Any) -> None:
    """Integer kernels compute the same codes; a value that comes from a float kernel may round to the next one."""
    for found in simulation.mismatches(artifact, **batch):
        if found.differing:
            assert found.kernel == "quantize", found
            assert found.largest == 1, found
            assert found.differing <= max(1, found.total / 1000), found


def test_importing_graphopt_imports_no_transformers() -> None:
    import subprocess

    code = "import graphopt, sys; assert 'transformers' not in sys.modules and 'tokenizers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.thorough
def test_a_captured_graph_is_called_with_a_dictionary(bert: nn.Module, tokenizer: Any) -> None:
    batch = tokenizer([LONG], return_tensors="pt")
    graph = Graph.capture(bert, batch)
    torch.testing.assert_close(graph(batch)[0], bert(**batch)[0], rtol=0, atol=1e-6)
