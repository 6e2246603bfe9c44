"""A small causal language model of transformers, from a configuration."""

from __future__ import annotations

from typing import Any

import pytest
import torch

__all__ = ["llama"]


def llama(layers: int, *, tied: bool = False) -> Any:
    """Return a model in training mode, the same at every call; skip the test without transformers."""
    transformers = pytest.importorskip("transformers", reason="needs transformers (extra: examples)")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=tied,
    )
    return transformers.LlamaForCausalLM(config).train()
