"""The base of heads: small classifiers on a message."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ..core import ShapeError, Site

__all__ = ["Head", "HeadFactory"]


class Head(nn.Module):
    """A classifier on ``h``.

    Args:
        layers: take ``h``, return scores ``(B, classes)``, or ``(B, T, classes)`` where there are some for each token.
        shape: shape of a message without its batch dimension.
    """

    #: Whether there are scores for each token of ``(B, T, D)``, whose targets are ``(B, T)``.
    per_token: bool = False

    def __init__(self, layers: nn.Module, shape: Sequence[int]) -> None:
        super().__init__()
        self.layers = layers
        self.shape = tuple(shape)

    def check(self, h: Tensor, name: str) -> None:
        """Refuse a message that the head cannot take.

        Args:
            h: the message.
            name: of the interface, for the error.

        Raises:
            ShapeError: naming the interface.
        """

    def forward(self, h: Tensor) -> Tensor:
        """Return the scores, ``(B, classes)`` or ``(B, T, classes)``."""
        return self.layers(h)

    def shape_error(self, h: Tensor, expected: Sequence[int | str], name: str) -> ShapeError:
        """Return the error for a message of another shape.

        Args:
            h: the message.
            expected: its shape behind the batch.
            name: name of the interface.
        """
        return ShapeError(
            f"interface '{name}': got a message of shape {tuple(h.shape)}, and its head expects "
            f"(B, {', '.join(map(str, expected))}) as in the example that decouple was given"
        )


#: Makes a head of a site and a number of classes.
HeadFactory = Callable[[Site, int], Head]
