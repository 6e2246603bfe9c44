"""The codec of a subspace: activations and messages in a few directions, which all stages know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from ...core import ConfigError
from ...core.given import check_whole
from .base import Codec
from .casting import Cast

__all__ = ["Subspace", "subspace"]


@lru_cache(maxsize=8)
def _basis(features: int, rank: int, seed: int) -> Tensor:
    """Return ``(features, rank)`` with orthonormal columns, float32, the same in every process."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(features, rank, generator=generator, dtype=torch.float64)
    basis, upper = torch.linalg.qr(drawn)
    return (basis * upper.diagonal().sign()).float()  # the sign of a column is the library's choice otherwise


@dataclass(frozen=True, slots=True)
class Subspace:
    """Sends ``h Q`` in place of ``h``, and the receiver takes ``h Q Qᵀ``; ``Q`` is drawn once, from a seed.

    Attributes:
        rank: number of columns of ``Q``.
        seed: of ``Q``.
        inner: the codec of ``h Q``.
    """

    rank: int
    seed: int
    inner: Codec = field(default=Cast(torch.float32))

    @property
    def name(self) -> str:
        """See `Codec.name`."""
        return f"subspace of {self.rank} features, seed {self.seed}, {self.inner.name}"

    def _within(self, shape: Sequence[int]) -> tuple[int, ...]:
        features = shape[-1]
        if features < self.rank:
            raise ConfigError(
                f"codec '{self.name}' was given messages of {features} features, the last dimension of {tuple(shape)}: "
                "expected as many as the subspace has, or more; take a smaller rank"
            )
        return (*shape[:-1], self.rank)

    def num_bytes(self, shape: Sequence[int]) -> int:
        """See `Codec.num_bytes`."""
        return self.inner.num_bytes(self._within(shape))

    def encode(self, tensor: Tensor) -> Tensor:
        """See `Codec.encode`."""
        basis = _basis(tensor.shape[-1], self.rank, self.seed).to(tensor.device)
        return self.inner.encode(tensor.float() @ basis)

    def decode(self, data: Tensor, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
        """See `Codec.decode`."""
        within = self.inner.decode(data, self._within(shape), device, torch.float32)
        return (within @ _basis(shape[-1], self.rank, self.seed).to(device).T).to(dtype)


def subspace(rank: int, *, seed: int = 0, inner: Codec | None = None) -> Codec:
    """Return the codec that sends a projection onto a subspace, fixed by a seed.

    The stage above computes with the projection ``h Q Qᵀ``, so that the gradient of ``h`` lies in the same subspace: of
    messages nothing is lost that the stage below could use. The network learns to say what matters in ``rank`` features.

    >>> codec = subspace(2, seed=1)
    >>> codec.num_bytes((5, 8))
    40
    >>> h = torch.randn(5, 8)
    >>> once = codec.decode(codec.encode(h), (5, 8), torch.device("cpu"), torch.float32)
    >>> twice = codec.decode(codec.encode(once), (5, 8), torch.device("cpu"), torch.float32)
    >>> torch.allclose(once, twice, atol=1e-6)
    True

    Args:
        rank: number of features that are sent, at most those of a message.
        seed: of the subspace; equal in all processes.
        inner: how these are sent, such as ``blocks(8)``; None for float32.

    Raises:
        ConfigError: if a number is out of its range.
    """
    check_whole("rank", rank, 1, "number of features that are sent")
    check_whole("seed", seed, 0, "seed of the subspace")
    if inner is not None and not hasattr(inner, "num_bytes"):
        raise ConfigError(f"inner={inner!r}: expected a codec, such as codecs.blocks(8)")
    return Subspace(rank, seed) if inner is None else Subspace(rank, seed, inner)
