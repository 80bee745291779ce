"""Small networks of Hugging Face with random weights, and a tokenizer of a few words: nothing is downloaded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import zoo
from torch import nn

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
ORDINARY = "a the cat dog sat ran slept on under from mat house rain away"
WORDS = [*SPECIAL, *ORDINARY.split()]
VOCABULARY = 90  # of language models


def imported() -> Any:
    """The package; skips the test where it is missing."""
    module = pytest.importorskip("transformers")
    zoo.make("transformers/gpt2")  # its imports in the right order
    module.logging.set_verbosity_error()
    return module


def lively(model: nn.Module, times: int = 5) -> nn.Module:
    """Weights as large as those of trained networks, so that attention chooses: otherwise masks would hardly matter."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(times)
    return model.eval()


def tokenizer(**options: Any) -> Any:
    tokenizers = pytest.importorskip("tokenizers")
    own = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: n for n, w in enumerate(WORDS)}, unk_token=WORDS[1]))
    own.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    own.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    given = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"], **options}
    return imported().PreTrainedTokenizerFast(tokenizer_object=own, pad_token="[PAD]", unk_token="[UNK]", **given)


def bert() -> nn.Module:
    """For `tokenizer`, sentences of up to 32 words."""
    transformers = imported()
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=32,
    )  # fmt: skip
    return lively(transformers.BertModel(config))


def language_model(kind: str) -> nn.Module:
    """A causal one: `gpt2`, `llama` or `qwen2`."""
    transformers = imported()
    torch.manual_seed(0)
    if kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2,
            pad_token_id=0,
        )  # fmt: skip
        return lively(transformers.GPT2LMHeadModel(config))
    shared = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0,
    }  # fmt: skip
    if kind == "qwen2":
        return lively(transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**shared)))
    return lively(transformers.LlamaForCausalLM(transformers.LlamaConfig(**shared)))
