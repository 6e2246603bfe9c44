"""Networks of five kinds to plan for, as `synthgrad plan --model` takes them: each a function without arguments.

>>> model, example, target, criterion = uneven()
>>> example.shape, target.shape
(torch.Size([256, 64]), torch.Size([256]))
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ....core.errors import DataError
from ....rules import LocalLoss
from ....rules.heads import token_head
from ...tasks import convolutional, fully_connected
from ...tasks.gpt import gpt as make_gpt

__all__ = ["MODELS", "Planned", "cnn", "gpt", "local_loss", "mlp", "uneven", "vit"]

#: A model, a batch, its target, and the criterion.
Planned = tuple[nn.Module, Any, Tensor, Callable[..., Tensor]]

_CLASSES, _VOCABULARY, _CONTEXT = 10, 65, 64


def mlp() -> Planned:
    """Nine layers of 512 units, a batch of 256 digits."""
    return _classifier(fully_connected((1, 28, 28), _CLASSES, 9, 512), (256, 1, 28, 28))


def cnn() -> Planned:
    """The network for CIFAR-10 of DNI §3.1, five layers of 128 filters, a batch of 16."""
    return _classifier(convolutional((3, 32, 32), _CLASSES, 5, 128), (16, 3, 32, 32))


def gpt() -> Planned:
    """A GPT of four blocks of width 128, 16 sequences of 64 characters."""
    model = make_gpt(_VOCABULARY, context=_CONTEXT)
    tokens = torch.randint(_VOCABULARY, (16, _CONTEXT + 1))
    return model, tokens[:, :-1], tokens[:, 1:].contiguous(), _token_loss


def vit() -> Planned:
    """A vision transformer of six layers of width 192, a batch of 16; needs ``transformers``."""
    try:
        library: Any = importlib.import_module("transformers")
    except ImportError:
        raise DataError("the network 'vit' needs transformers; pip install 'synthgrad[examples]'") from None
    config = library.ViTConfig(
        hidden_size=192,
        num_hidden_layers=6,
        num_attention_heads=3,
        intermediate_size=768,
        image_size=32,
        patch_size=4,
        num_labels=_CLASSES,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = library.ViTForImageClassification(config)
    target = torch.randint(_CLASSES, (16,))
    return model, torch.randn(16, 3, 32, 32), target, _logits_loss


def uneven() -> Planned:
    """Eight layers whose widths differ twentyfold, so that equal numbers of layers are no equal stages."""
    widths = (64, 1024, 1024, 256, 64, 640, 640, 128)
    layers: dict[str, nn.Module] = {}
    for k, (a, b) in enumerate(zip(widths, widths[1:], strict=False), 1):
        layers[f"layer{k}"] = nn.Sequential(nn.Linear(a, b), nn.LayerNorm(b), nn.GELU())
    layers["output"] = nn.Linear(widths[-1], _CLASSES)
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return _classifier(model, (256, widths[0]))


MODELS: dict[str, Callable[[], Planned]] = {"mlp": mlp, "cnn": cnn, "gpt": gpt, "vit": vit, "uneven": uneven}


def local_loss(network: str) -> LocalLoss:
    """Return the rule at the cuts of a network: a linear head, of tokens for the GPT."""
    return LocalLoss(_VOCABULARY, token_head()) if network == "gpt" else LocalLoss(_CLASSES)


def _classifier(model: nn.Module, shape: tuple[int, ...]) -> Planned:
    return model, torch.randn(shape), torch.randint(_CLASSES, shape[:1]), nn.functional.cross_entropy


def _token_loss(scores: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(scores.flatten(0, 1), targets.flatten())


def _logits_loss(output: Any, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output.logits, target)
