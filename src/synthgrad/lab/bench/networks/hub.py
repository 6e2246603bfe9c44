"""Networks of the zoo that libraries define, made from configurations: nothing is downloaded."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .entry import CLASSES, Entry, Inputs
from .own import padded_ids

__all__ = ["HUB"]

_WORDS, _PAD = 50, 0

Inputting = Callable[[int, torch.Generator], Inputs]


def _pixels(size: int, generator: torch.Generator) -> Inputs:
    return {"pixel_values": torch.randn(size, 3, 32, 32, generator=generator, dtype=torch.float64)}


def _images(size: int, generator: torch.Generator) -> Tensor:
    return torch.randn(size, 3, 32, 32, generator=generator, dtype=torch.float64)


def _sentences(size: int, generator: torch.Generator) -> Inputs:
    ids = padded_ids(size, generator)
    return {"input_ids": ids, "attention_mask": (ids != _PAD).long()}


def _transformers(name: str, model: str, config: str, inputs: Inputting, **settings: Any) -> Entry:
    """Return a model of ``transformers`` as an entry; settings that are callable take the dropout."""

    def make(dropout: float) -> nn.Module:
        library: Any = importlib.import_module("transformers")
        chosen = {k: v(dropout) if callable(v) else v for k, v in settings.items()}
        return getattr(library, model)(getattr(library, config)(**chosen))

    drops = any(map(callable, settings.values()))
    return Entry(name, "transformers", make, inputs, drops=drops, of_tokens="LM" in model)


def _timm(name: str, model: str, **settings: Any) -> Entry:
    """Return a model of ``timm`` as an entry."""

    def make(dropout: float) -> nn.Module:
        library: Any = importlib.import_module("timm")
        return library.create_model(model, num_classes=CLASSES, drop_rate=dropout, **settings)

    return Entry(name, "timm", make, _images)


def _same(dropout: float) -> float:
    return dropout


_HIDDEN = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
_DROPS = {"hidden_dropout_prob": _same, "attention_probs_dropout_prob": _same}
_GPT2 = {
    **{"vocab_size": _WORDS, "n_positions": 16, "n_embd": 16, "n_layer": 4, "n_head": 2, "use_cache": False},
    **{"resid_pdrop": _same, "embd_pdrop": _same, "attn_pdrop": _same, "bos_token_id": 1, "eos_token_id": 2},
}

HUB: tuple[Entry, ...] = (
    _transformers(
        *("ResNet-18", "ResNetForImageClassification", "ResNetConfig", _pixels),
        **{"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [2, 2, 2, 2]},
        **{"layer_type": "basic", "num_labels": CLASSES},
    ),
    _transformers(
        *("ViT", "ViTForImageClassification", "ViTConfig", _pixels),
        **{**_HIDDEN, **_DROPS, "num_hidden_layers": 4, "image_size": 32, "patch_size": 8},
        num_labels=CLASSES,
    ),
    _transformers(
        *("Swin", "SwinForImageClassification", "SwinConfig", _pixels),
        **{"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2]},
        **{**_DROPS, "window_size": 4, "drop_path_rate": _same, "num_labels": CLASSES},
    ),
    _transformers(
        *("ConvNeXt", "ConvNextForImageClassification", "ConvNextConfig", _pixels),
        **{"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 2, 1], "patch_size": 2},
        **{"drop_path_rate": _same, "num_labels": CLASSES},
    ),
    _transformers(
        *("EfficientNet", "EfficientNetForImageClassification", "EfficientNetConfig", _pixels),
        **{"image_size": 32, "width_coefficient": 0.25, "depth_coefficient": 1.0, "hidden_dim": 320},
        **{"kernel_sizes": [3, 3, 5], "in_channels": [32, 16, 24], "out_channels": [16, 24, 40]},
        **{"depthwise_padding": [], "strides": [1, 2, 2], "num_block_repeats": [1, 2, 2]},
        **{"expand_ratios": [1, 6, 6], "dropout_rate": _same, "drop_connect_rate": _same},
        num_labels=CLASSES,
    ),
    _transformers(
        *("GPT-2", "GPT2LMHeadModel", "GPT2Config", _sentences), **_GPT2, tie_word_embeddings=False
    ),
    _transformers(
        *("GPT-2, tied embeddings", "GPT2LMHeadModel", "GPT2Config", _sentences),
        **{**_GPT2, "tie_word_embeddings": True},
    ),
    _transformers(
        *("Llama", "LlamaForCausalLM", "LlamaConfig", _sentences),
        **{**_HIDDEN, "vocab_size": _WORDS, "num_hidden_layers": 4, "num_key_value_heads": 1},
        **{"max_position_embeddings": 16, "tie_word_embeddings": False, "use_cache": False},
        attention_dropout=_same,
    ),
    _transformers(
        *("BERT", "BertForSequenceClassification", "BertConfig", _sentences),
        **{**_HIDDEN, **_DROPS, "vocab_size": _WORDS, "num_hidden_layers": 4},
        **{"max_position_embeddings": 16, "num_labels": CLASSES},
    ),
    _timm("ResNet-18 (timm)", "resnet18"),
    _timm(
        *("ViT (timm)", "vit_tiny_patch16_224"),
        **{"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 4, "num_heads": 2},
    ),
)
