"""A reference language model: a GPT as a chain of blocks, which every engine can cut."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core import ConfigError, ShapeError

__all__ = ["UNEMBEDDING", "Block", "gpt", "gpt_cuts"]

#: Name of the submodule that makes the scores.
UNEMBEDDING = "output.scores"

#: Standard deviation of the first weights (GPT-2).
_STD = 0.02
#: Base of the wavelengths of rotary positions (Su et al. 2021).
_BASE = 10_000.0


class _Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    cosines: Tensor
    sines: Tensor

    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        half = width // heads // 2
        frequencies = _BASE ** (-torch.arange(half) / half)
        angles = torch.arange(context).unsqueeze(1) * frequencies  # (T, D / heads / 2)
        self.register_buffer("cosines", angles.cos(), persistent=False)
        self.register_buffer("sines", angles.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        joined = self.query_key_value(x)
        if joined.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            # The backward pass of PyTorch's fused attention on CPUs takes longer in bfloat16 than in float32.
            with torch.autocast("cpu", enabled=False):
                read = self._read(joined.float())
        else:
            read = self._read(joined)
        return self.output(read)

    def _read(self, joined: Tensor) -> Tensor:
        """Return what queries read of values, ``(B, T, D)``, from queries, keys and values, ``(B, T, 3 D)``."""
        parts = joined.chunk(3, -1)
        query, key, value = (p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in parts)
        read = F.scaled_dot_product_attention(self._rotated(query), self._rotated(key), value, is_causal=True)
        return read.transpose(1, 2).flatten(2)

    def _rotated(self, z: Tensor) -> Tensor:
        """Return ``(B, heads, T, D / heads)`` with each pair of features turned by the angle of its position."""
        steps, context = z.shape[2], self.cosines.shape[0]
        if steps > context:
            raise ShapeError(
                f"got sequences of {steps} tokens, and the model was made for {context}; give shorter ones, or make it "
                f"with context={steps}"
            )
        cosines, sines = self.cosines[:steps].to(z.dtype), self.sines[:steps].to(z.dtype)
        a, b = z.chunk(2, -1)
        return torch.cat([a * cosines - b * sines, a * sines + b * cosines], -1)


class Block(nn.Module):
    """Attention, then two layers at every position; both behind a normalisation and on a residual path (pre-norm).

    Args:
        width: features ``D``.
        heads: attention heads; ``D`` is a multiple of twice their number.
        context: longest sequence.
    """

    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = _Attention(width, heads, context)
        self.norm_layers = nn.LayerNorm(width)
        self.layers = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, ``(B, T, D)``."""
        x = x + self.attention(self.norm_attention(x))
        return x + self.layers(self.norm_layers(x))


def gpt(
    vocabulary: int,
    *,
    width: int = 128,
    blocks: int = 4,
    heads: int = 4,
    context: int = 64,
    tied: bool = False,
) -> nn.Sequential:
    """Return a GPT: token embedding, pre-norm blocks with rotary positions, and scores for the next token.

    After GPT-2 (Radford et al. 2019), with rotary positions (Su et al. 2021) in place of learned ones, and without
    dropout and biases of attention.

    Args:
        vocabulary: number of tokens ``V``.
        width: features ``D``.
        blocks: number of blocks.
        heads: attention heads of a block.
        context: longest sequence.
        tied: whether the scores are made with the weights of the embedding.

    Returns:
        A Sequential of ``embedding``, ``block1`` … and ``output``, from token ids ``(B, T)`` to scores ``(B, T, V)``.

    Raises:
        ConfigError: if a size is under 1, or the width is no multiple of twice the heads.
    """
    sizes = {"vocabulary": vocabulary, "width": width, "blocks": blocks, "heads": heads, "context": context}
    for name, value in sizes.items():
        if value < 1:
            raise ConfigError(f"{name} {value}: expected at least 1")
    if width % (2 * heads):
        raise ConfigError(f"width {width} with {heads} heads: expected a multiple of {2 * heads}")
    scores = nn.Linear(width, vocabulary, bias=False)
    parts: list[tuple[str, nn.Module]] = [("embedding", nn.Embedding(vocabulary, width))]
    parts += [(f"block{k + 1}", Block(width, heads, context)) for k in range(blocks)]
    parts += [("output", nn.Sequential(OrderedDict(norm=nn.LayerNorm(width), scores=scores)))]
    model = nn.Sequential(OrderedDict(parts))
    for name, p in model.named_parameters():
        if p.ndim == 2:
            # What is added to the residual path shrinks with the depth (GPT-2, §2.3).
            on_path = name.endswith(("attention.output.weight", "layers.2.weight"))
            nn.init.normal_(p, std=_STD / (2 * blocks) ** 0.5 if on_path else _STD)
    if tied:
        scores.weight = model.get_submodule("embedding").weight  # pyright: ignore[reportAttributeAccessIssue]
    return model


def gpt_cuts(blocks: int, modules: int) -> list[str]:
    """Return the cuts that divide a GPT into modules of equal numbers of blocks, about.

    The embedding belongs to the first module, the scores to the last.

    Raises:
        ConfigError: if there are fewer blocks than modules.
    """
    if not 1 <= modules <= blocks:
        raise ConfigError(
            f"{modules} modules of {blocks} blocks: expected 1 to {blocks}, a block at least in each"
        )
    return [f"block{k * blocks // modules}" for k in range(1, modules)]
