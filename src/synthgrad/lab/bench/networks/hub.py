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


def _pixels(size: int, generator: torch.Generator) -> Inputs:
    return {"pixel_values": torch.randn(size, 3, 32, 32, generator=generator, dtype=torch.float64)}


def _images(size: int, generator: torch.Generator) -> Tensor:
    return torch.randn(size, 3, 32, 32, generator=generator, dtype=torch.float64)


def _sentences(size: int, generator: torch.Generator) -> Inputs:
    ids = padded_ids(size, generator)
    return {"input_ids": ids, "attention_mask": (ids != _PAD).long()}


def _transformers(model: str, config: str, **settings: Any) -> Callable[[float], nn.Module]:
    """Return the maker of a model of ``transformers``; settings that are callable take the dropout."""

    def make(dropout: float) -> nn.Module:
        library: Any = importlib.import_module("transformers")
        chosen = {k: v(dropout) if callable(v) else v for k, v in settings.items()}
        return getattr(library, model)(getattr(library, config)(**chosen))

    return make


def _timm(name: str, **settings: Any) -> Callable[[float], nn.Module]:
    def make(dropout: float) -> nn.Module:
        library: Any = importlib.import_module("timm")
        return library.create_model(name, num_classes=CLASSES, drop_rate=dropout, **settings)

    return make


def _same(dropout: float) -> float:
    return dropout


_HIDDEN = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
_DROPS = {"hidden_dropout_prob": _same, "attention_probs_dropout_prob": _same}
_GPT2 = {
    **{"vocab_size": _WORDS, "n_positions": 16, "n_embd": 16, "n_layer": 4, "n_head": 2, "use_cache": False},
    **{"resid_pdrop": _same, "embd_pdrop": _same, "attn_pdrop": _same, "bos_token_id": 1, "eos_token_id": 2},
}

_VISION: tuple[Entry, ...] = (
    Entry(
        "ResNet-18",
        "transformers",
        _transformers(
            *("ResNetForImageClassification", "ResNetConfig"),
            **{"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [2, 2, 2, 2]},
            **{"layer_type": "basic", "num_labels": CLASSES},
        ),
        _pixels,
        drops=False,
    ),
    Entry(
        "ViT",
        "transformers",
        _transformers(
            *("ViTForImageClassification", "ViTConfig"),
            **{**_HIDDEN, **_DROPS, "num_hidden_layers": 4, "image_size": 32, "patch_size": 8},
            num_labels=CLASSES,
        ),
        _pixels,
    ),
    Entry(
        "Swin",
        "transformers",
        _transformers(
            *("SwinForImageClassification", "SwinConfig"),
            **{"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2]},
            **{**_DROPS, "window_size": 4, "drop_path_rate": _same, "num_labels": CLASSES},
        ),
        _pixels,
    ),
    Entry(
        "ConvNeXt",
        "transformers",
        _transformers(
            *("ConvNextForImageClassification", "ConvNextConfig"),
            **{"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 2, 1], "patch_size": 2},
            **{"drop_path_rate": _same, "num_labels": CLASSES},
        ),
        _pixels,
    ),
    Entry(
        "EfficientNet",
        "transformers",
        _transformers(
            *("EfficientNetForImageClassification", "EfficientNetConfig"),
            **{"image_size": 32, "width_coefficient": 0.25, "depth_coefficient": 1.0, "hidden_dim": 320},
            **{"kernel_sizes": [3, 3, 5], "in_channels": [32, 16, 24], "out_channels": [16, 24, 40]},
            **{"depthwise_padding": [], "strides": [1, 2, 2], "num_block_repeats": [1, 2, 2]},
            **{"expand_ratios": [1, 6, 6], "dropout_rate": _same, "drop_connect_rate": _same},
            num_labels=CLASSES,
        ),
        _pixels,
    ),
)

_LANGUAGE: tuple[Entry, ...] = (
    Entry(
        "GPT-2",
        "transformers",
        _transformers("GPT2LMHeadModel", "GPT2Config", **_GPT2, tie_word_embeddings=False),
        _sentences,
        of_tokens=True,
    ),
    Entry(
        "GPT-2, tied embeddings",
        "transformers",
        _transformers("GPT2LMHeadModel", "GPT2Config", **_GPT2, tie_word_embeddings=True),
        _sentences,
        of_tokens=True,
    ),
    Entry(
        "Llama",
        "transformers",
        _transformers(
            *("LlamaForCausalLM", "LlamaConfig"),
            **{**_HIDDEN, "vocab_size": _WORDS, "num_hidden_layers": 4, "num_key_value_heads": 1},
            **{"max_position_embeddings": 16, "tie_word_embeddings": False, "use_cache": False},
            attention_dropout=_same,
        ),
        _sentences,
        of_tokens=True,
    ),
    Entry(
        "BERT",
        "transformers",
        _transformers(
            *("BertForSequenceClassification", "BertConfig"),
            **{**_HIDDEN, **_DROPS, "vocab_size": _WORDS, "num_hidden_layers": 4},
            **{"max_position_embeddings": 16, "num_labels": CLASSES},
        ),
        _sentences,
    ),
)

_TIMM: tuple[Entry, ...] = (
    Entry("ResNet-18 (timm)", "timm", _timm("resnet18"), _images),
    Entry(
        "ViT (timm)",
        "timm",
        _timm(
            "vit_tiny_patch16_224",
            **{"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 4},
            num_heads=2,
        ),
        _images,
    ),
)

HUB: tuple[Entry, ...] = (*_VISION, *_LANGUAGE, *_TIMM)
