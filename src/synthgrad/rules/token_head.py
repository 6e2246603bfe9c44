"""A head on sequences: scores of a vocabulary at every position, behind private blocks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..core import ConfigError, CutError, Site
from ..core.given import check_whole
from .head import Head

__all__ = ["BlockFactory", "TokenHead", "token_head"]

#: ``block(site)``: a module from ``(B, T, D)`` to ``(B, T, D)``.
BlockFactory = Callable[[Site], nn.Module]

#: Where nothing else is said, this share of the positions has its scores made at once.
_CHUNKS = 16


class TokenHead(Head):
    """Private blocks, a normalisation and an unembedding.

    Args:
        blocks: modules from ``(B, T, D)`` to ``(B, T, D)``.
        width: features ``D``.
        vocabulary: number of tokens ``V``.
        num_chunks: number of parts in which the scores are made, one after the other, where their losses are wanted.
        shape: shape of a message without its batch dimension.
    """

    per_token = True

    def __init__(
        self, blocks: nn.Module, width: int, vocabulary: int, num_chunks: int, shape: tuple[int, ...]
    ) -> None:
        unembedding = nn.Linear(width, vocabulary, bias=False)
        super().__init__(nn.Sequential(blocks, nn.LayerNorm(width), unembedding), shape)
        self.num_chunks = num_chunks

    def check(self, h: Tensor, name: str) -> None:
        if h.ndim != 3 or h.shape[2] != self.shape[1]:
            raise self.shape_error(h, ["T", self.shape[1]], name)

    def losses(self, h: Tensor, targets: Tensor, ignore_index: int) -> Tensor:
        """Return the cross entropy at every position, ``(B, T)``; zero where the target is ignored.

        The scores ``(B T, V)`` are never there as a whole: they are made in ``num_chunks`` parts, and once more in the
        backward pass, a part at a time.

        Args:
            h: ``(B, T, D)``.
            targets: ``(B, T)`` integers from 0 to ``V - 1``, or ``ignore_index``.
            ignore_index: the target that means none.
        """
        blocks, norm, unembedding = self.layers.children()
        features = norm(blocks(h)).flatten(0, 1)  # (B T, D)
        wanted = targets.flatten().long()  # (B T,)
        size = max(1, -(-len(wanted) // self.num_chunks))

        def part(z: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(unembedding(z), y, reduction="none", ignore_index=ignore_index)

        parts = zip(features.split(size), wanted.split(size), strict=True)
        # Recomputed: a part's scores are freed as soon as its losses are known.
        found: list[Any] = [checkpoint(part, z, y, use_reentrant=False) for z, y in parts]
        return torch.cat(found).view(targets.shape)


@dataclass(frozen=True)
class _Tokens:
    blocks: int
    block: BlockFactory | None
    num_chunks: int

    def __call__(self, site: Site, classes: int) -> Head:
        if len(site.shape) != 3:
            raise CutError(
                f"interface '{site.name}': a token head needs messages (B, T, D), the example has {site.shape}; use "
                "heads.linear_head"
            )
        made = nn.Sequential(*(self._block(site) for _ in range(self.blocks)))
        return TokenHead(made, site.shape[2], classes, self.num_chunks, site.shape[1:])

    def _block(self, site: Site) -> nn.Module:
        made = _like_below(site) if self.block is None else self.block(site)
        # What a block of the user's own takes and returns is tried out, because the first batch comes much later.
        example = torch.zeros(site.shape, dtype=site.dtype, device=site.device)
        what = "a copy of the block below the cut" if self.block is None else "block="
        try:
            with torch.no_grad():  # a copy, because a block may have statistics or a state
                found = copy.deepcopy(made).to(site.device, site.dtype)(example)
        except Exception as error:
            raise CutError(
                f"interface '{site.name}': {what} cannot be run on a message of shape {site.shape} "
                f"({type(error).__name__}: {error}); give token_head(block=factory), which makes a module from "
                "(B, T, D) to (B, T, D)"
            ) from error
        if not isinstance(found, Tensor) or found.shape != example.shape:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise CutError(
                f"interface '{site.name}': {what} returned {got} for a message of shape {site.shape}, expected the same "
                "shape; give token_head(block=factory), which makes a module from (B, T, D) to (B, T, D)"
            )
        return made


def _like_below(site: Site) -> nn.Module:
    """Return a block like the one after which the cut lies, with parameters drawn anew where it knows how to."""
    made = copy.deepcopy(site.module)
    for part in made.modules():
        reset = getattr(part, "reset_parameters", None)
        if callable(reset):
            reset()
    return made.requires_grad_()


def token_head(
    blocks: int = 1, *, block: BlockFactory | None = None, num_chunks: int = _CHUNKS
) -> Callable[[Site, int], Head]:
    """Return a factory of heads for language models: they score a vocabulary at every position of ``(B, T, D)``.

    A head has private blocks, a normalisation and an unembedding. It learns with its interface and is thrown away after
    training. Its targets are tokens ``(B, T)``; positions with the rule's ``ignore_index`` count for nothing.

    Args:
        blocks: number of private blocks; 0 for a linear head.
        block: ``block(site)`` makes one, a module from ``(B, T, D)`` to ``(B, T, D)``; None for one like the block below
            the cut, with parameters drawn anew by the ``reset_parameters`` of its parts.
        num_chunks: number of parts in which the scores are made: at most one part is held at a time.

    Raises:
        ConfigError: if a number is out of its range.
    """
    check_whole("blocks", blocks, 0, "number of private blocks")
    check_whole("num_chunks", num_chunks, 1, "number of parts")
    if block is not None and not callable(block):
        raise ConfigError(f"block={block!r}: expected a factory, block(site) -> module, or None")
    return _Tokens(blocks, block, num_chunks)
