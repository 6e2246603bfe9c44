"""Networks of the zoo that are written with PyTorch alone, as people write them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .entry import CLASSES, Entry, Inputs

__all__ = ["OWN"]

_WIDTH, _HEADS, _WORDS, _TOKENS, _PAD = 16, 2, 50, 9, 0


def _vectors(size: int, generator: torch.Generator) -> Tensor:
    return torch.randn(size, 12, generator=generator, dtype=torch.float64)


def _images(size: int, generator: torch.Generator) -> Tensor:
    return torch.randn(size, 3, 16, 16, generator=generator, dtype=torch.float64)


def padded_ids(size: int, generator: torch.Generator) -> Tensor:
    """Return token ids, ``(B, T)``, of sentences of several lengths, padded at the end."""
    ids = torch.randint(_PAD + 1, _WORDS, (size, _TOKENS), generator=generator)
    lengths = torch.randint(3, _TOKENS + 1, (size, 1), generator=generator)
    return ids.masked_fill(torch.arange(_TOKENS) >= lengths, _PAD)


def _mlp(dropout: float) -> nn.Module:
    def block(a: int, b: int) -> nn.Module:
        return nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU(), nn.Dropout(dropout))

    return nn.Sequential(
        block(12, _WIDTH), block(_WIDTH, _WIDTH), block(_WIDTH, _WIDTH), nn.Linear(_WIDTH, CLASSES)
    )


class _Residual(nn.Module):
    """Two convolutions beside a skip connection."""

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.relu = nn.ReLU(inplace=True)  # one object at two places

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(h + x)


def _residual_cnn(dropout: float) -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
        *(_Residual(8) for _ in range(3)),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(8, CLASSES)),
    )


class _Dense(nn.Module):
    """A layer whose input is passed on beside its output."""

    def __init__(self, inputs: int, growth: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, growth, 3, 1, 1, bias=False)
        self.drop = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.drop(self.conv(torch.relu(self.norm(x))))], 1)


class _DenseNet(nn.Module):
    """Blocks of dense layers with transitions between them (Huang et al. 2017), a few filters each."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1)
        self.block1 = nn.Sequential(_Dense(8, 4, dropout), _Dense(12, 4, dropout))
        self.transition1 = nn.Sequential(nn.BatchNorm2d(16), nn.Conv2d(16, 8, 1), nn.AvgPool2d(2))
        self.block2 = nn.Sequential(_Dense(8, 4, dropout), _Dense(12, 4, dropout))
        self.transition2 = nn.Sequential(nn.BatchNorm2d(16), nn.Conv2d(16, 8, 1), nn.AvgPool2d(2))
        self.block3 = nn.Sequential(_Dense(8, 4, dropout), _Dense(12, 4, dropout))
        self.classifier = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.transition1(self.block1(self.stem(x)))
        x = self.block3(self.transition2(self.block2(x)))
        return self.classifier(x.mean((2, 3)))


class _MaskedEncoder(nn.Module):
    """A classifier of sentences on `nn.TransformerEncoder`; the padding mask comes from the ids."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(_WORDS, _WIDTH, padding_idx=_PAD)
        self.position = nn.Parameter(torch.zeros(_TOKENS, _WIDTH))
        layer = nn.TransformerEncoderLayer(_WIDTH, _HEADS, 2 * _WIDTH, dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(_WIDTH, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        padding = ids == _PAD  # (B, T)
        h = self.encoder(self.embed(ids) + self.position, src_key_padding_mask=padding)
        kept = (~padding).unsqueeze(-1)
        return self.head((h * kept).sum(1) / kept.sum(1))


class _Lstm(nn.Module):
    """A classifier of sentences on two layers of LSTM, each a module of its own."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(_WORDS, _WIDTH)
        self.lower = nn.LSTM(_WIDTH, _WIDTH, batch_first=True)
        self.norm = nn.LayerNorm(_WIDTH)
        self.drop = nn.Dropout(dropout)
        self.upper = nn.LSTM(_WIDTH, _WIDTH, batch_first=True)
        self.top = nn.Sequential(nn.Linear(_WIDTH, _WIDTH), nn.Tanh())
        self.head = nn.Linear(_WIDTH, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        h, _ = self.lower(self.embed(ids))
        h, _ = self.upper(self.drop(self.norm(h)))
        return self.head(self.top(h[:, -1]))


class _TwoInputs(nn.Module):
    """Images and vectors, each with a branch of its own, joined in the middle."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(512, _WIDTH))
        self.vector = nn.Sequential(nn.Linear(12, _WIDTH), nn.Tanh())
        self.join = nn.Sequential(nn.Linear(2 * _WIDTH, _WIDTH), nn.LayerNorm(_WIDTH), nn.GELU())
        self.body = nn.Sequential(nn.Linear(_WIDTH, _WIDTH), nn.Dropout(dropout), nn.GELU())
        self.head = nn.Linear(_WIDTH, CLASSES)

    def forward(self, image: Tensor, vector: Tensor) -> Tensor:
        h = self.join(torch.cat([self.image(image), self.vector(vector)], 1))
        return self.head(self.body(h))


class _DictOutput(nn.Module):
    """Returns its features beside the logits."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(12, _WIDTH), nn.LayerNorm(_WIDTH), nn.GELU())
        self.body = nn.Sequential(nn.Linear(_WIDTH, _WIDTH), nn.GELU(), nn.Dropout(dropout))
        self.head = nn.Linear(_WIDTH, CLASSES)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.body(self.stem(x))
        return {"logits": self.head(h), "features": h}


def _images_and_vectors(size: int, generator: torch.Generator) -> Inputs:
    return _images(size, generator), _vectors(size, generator)


OWN: tuple[Entry, ...] = (
    Entry("MLP", "torch", _mlp, _vectors),
    Entry("residual CNN", "torch", _residual_cnn, _images),
    Entry("DenseNet", "torch", _DenseNet, _images),
    Entry("TransformerEncoder, padding mask", "torch", _MaskedEncoder, padded_ids),
    Entry("LSTM classifier", "torch", _Lstm, padded_ids),
    # The middle of the cuts that are proposed would be inside a branch.
    Entry("two inputs", "torch", _TwoInputs, _images_and_vectors, ("join", "body")),
    Entry("dict output", "torch", _DictOutput, _vectors),
)
