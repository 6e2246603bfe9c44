"""Layers by the number of dimensions in space: of sequences (1), images (2) and volumes (3)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..core import ConfigError, ShapeError, Site

__all__ = ["NORMS", "average", "check_norm", "convolution", "kernel_of", "norm_of", "num_space_dims"]

NORMS = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def num_space_dims(site: Site) -> int:
    """Return over how many dimensions a message is to be convolved and averaged: 1, 2 or 3; 0 for none.

    Images and volumes have two and three, wherever their features are. A sequence with the features in front,
    ``(B, C, L)``, has one; ``(B, T, H)`` is tokens, which are taken one by one.

    Raises:
        CutError: if the message has no features.
    """
    ndim, at = len(site.shape), site.features_at
    return ndim - 2 if ndim in (4, 5) or (ndim == 3 and at == 1) else 0


def kernel_of(kernel: int | None, dims: int) -> int:
    """Return the size of kernels: 5 where none is given, and 3 in volumes.

    27 taps in a volume are about the 25 in an image; 125 would be more than many volumes have places.

    Raises:
        ConfigError: if one is given that would not keep the resolution.
    """
    if kernel is None:
        return 3 if dims == 3 else 5
    if isinstance(kernel, bool) or not isinstance(kernel, int) or kernel < 1 or kernel % 2 == 0:
        raise ConfigError(f"kernel={kernel!r}: expected an odd number, such as 3 or 5")
    return kernel


def convolution(dims: int, channels: int, out: int, kernel: int, *, bias: bool = True) -> nn.Module:
    """Return a convolution over ``dims`` dimensions that keeps the resolution, for odd kernels."""
    kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
    return kind(channels, out, kernel, padding=kernel // 2, bias=bias)


def norm_of(dims: int, channels: int) -> nn.Module:
    """Return BatchNorm for ``channels`` with ``dims`` dimensions in space (0 for none)."""
    return {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims](channels)


def average(dims: int, size: int | Sequence[int]) -> nn.Module:
    """Return an adaptive average over ``dims`` dimensions, to so many places along each."""
    if dims == 1:
        return nn.AdaptiveAvgPool1d(size if isinstance(size, int) else size[0])
    if dims == 2:
        return nn.AdaptiveAvgPool2d(size if isinstance(size, int) else tuple(size))  # pyright: ignore[reportArgumentType]
    return nn.AdaptiveAvgPool3d(size if isinstance(size, int) else tuple(size))  # pyright: ignore[reportArgumentType]


def check_norm(module: nn.Module, num_values: int, h: Tensor, name: str) -> None:
    """Refuse a batch that leaves BatchNorm one value per channel, of which there is no variance.

    Args:
        module: a model or head whose BatchNorm layers see ``num_values`` values per channel.
        num_values: examples times places.
        h: the message, for the error.
        name: of the interface.

    Raises:
        ShapeError: if a layer would take its statistics from one value.
    """
    if num_values != 1:
        return
    for part in module.modules():
        if isinstance(part, NORMS) and (part.training or part.running_mean is None):
            raise ShapeError(
                f"interface '{name}': got a message of shape {tuple(h.shape)}, one value per channel for the BatchNorm "
                "of its rule, which has no variance; leave out a last batch of one example (drop_last=True in the "
                "loader), or build the rule with norm=False"
            )
