"""Distilling step by step: answers and the reasons for them in one batch, on a small random T5."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
import torch
import zoo
from torch import Tensor, nn

from graphopt.ir.graph import Graph
from graphopt.training import train
from graphopt.training.distillation import Rationales, with_rationales
from graphopt.utils.errors import InputError


def cross_entropy(logits: Tensor, tokens: Tensor) -> float:
    """Averaged over tokens that count, number by number."""
    found = []
    for row, wanted in zip(logits.tolist(), tokens.tolist(), strict=True):
        for scores, token in zip(row, wanted, strict=True):
            if token != -100:
                found.append(math.log(sum(math.exp(s) for s in scores)) - scores[token])
    return sum(found) / len(found)


def test_the_loss_is_that_of_answers_and_reasons_each_over_its_own_tokens() -> None:
    logits, tokens = torch.randn(4, 3, 5).double(), torch.randint(5, (4, 3))
    tokens[0, 2] = tokens[1, 1] = tokens[3, 0] = -100
    expected = cross_entropy(logits[:2], tokens[:2]) + 0.5 * cross_entropy(logits[2:], tokens[2:])
    assert float(Rationales(0.5)(logits, tokens)) == pytest.approx(expected)
    assert float(Rationales(0.0)(logits, tokens)) == pytest.approx(cross_entropy(logits[:2], tokens[:2]))


def test_shorter_tokens_are_padded_by_what_does_not_count() -> None:
    one = {"input_ids": torch.ones(2, 3), "attention_mask": torch.ones(2, 3), "labels": torch.ones(2, 1)}
    other = {"input_ids": torch.ones(2, 2), "attention_mask": torch.ones(2, 2), "labels": torch.ones(2, 4)}
    found = with_rationales(one, other, padding=7)
    assert found["input_ids"].tolist() == [[1, 1, 1]] * 2 + [[1, 1, 7]] * 2
    assert found["attention_mask"].tolist() == [[1, 1, 1]] * 2 + [[1, 1, 0]] * 2
    assert found["labels"].tolist() == [[1, -100, -100, -100]] * 2 + [[1] * 4] * 2


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="answers have labels, reasons input_ids"):
        with_rationales({"labels": torch.ones(2, 1)}, {"input_ids": torch.ones(2, 1)})
    with pytest.raises(InputError, match="2 answers and 3 reasons"):
        with_rationales({"labels": torch.ones(2, 1)}, {"labels": torch.ones(3, 1)})
    with pytest.raises(InputError, match=r"logits \[2N, tokens, vocabulary\]"):
        Rationales()(torch.randn(3, 2, 5), torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(InputError, match="weight must be at least 0"):
        Rationales(-1.0)


def small_t5() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    with contextlib.suppress(ImportError):
        zoo.torchvision()  # transformers imports it where it is installed
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=20, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, dropout_rate=0.0, use_cache=False
    )
    model: nn.Module = transformers.T5ForConditionalGeneration(config)
    return model.eval()


def question(prefix: int, tokens: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """As a tokenizer and T5 have it: the prefix in front, targets moved by one behind the beginning."""
    ids = torch.cat([torch.full((len(tokens), 1), prefix), tokens], 1)
    begun = torch.cat([torch.zeros(len(wanted), 1, dtype=torch.int64), wanted[:, :-1]], 1)
    return {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": begun, "labels": wanted
    }  # fmt: skip


def test_a_small_t5_learns_answers_and_reasons() -> None:
    tokens = torch.randint(2, 10, (16, 4), generator=torch.Generator().manual_seed(0))
    largest = tokens.max(1, keepdim=True).values  # the answer; the reason: the tokens in order
    batches = [
        with_rationales(question(10, part, best), question(11, part, part.sort(1).values))
        for part, best in zip(tokens.split(8), largest.split(8), strict=True)
    ]
    inputs: dict[str, Any] = {name: value for name, value in batches[0].items() if name != "labels"}
    graph = Graph.capture(small_t5(), kwargs=inputs)
    report = train(graph, batches, loss=Rationales(), epochs=12, rate=1e-2)
    first, last = report.epochs[1].loss, report.epochs[-1].loss
    assert first is not None
    assert last is not None
    assert last < 0.4 * first
    with torch.no_grad():
        found = graph.eval()(**inputs)
    answers = (found["logits"] if isinstance(found, dict) else found.logits)[:8, 0].argmax(-1)
    assert float((answers == largest[:8, 0]).double().mean()) > 0.5
