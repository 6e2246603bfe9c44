"""The input rule protocol, mirror image of `Rule`: what is a module fed with while the one below has not run?"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .rule import Info
from .site import AtInterface

__all__ = ["InputRule", "Supply"]


@dataclass(slots=True)
class Supply:
    """What the module above an interface is fed with now.

    Attributes:
        h: ``ĥ``, of the shape of ``h``, detached.
        pending: what ``observe`` can use again: the prediction, still attached to the rule's parameters.
            Valid until these parameters change.
    """

    h: Tensor
    pending: tuple[Tensor, ...] = ()


class InputRule(AtInterface):
    """Base of the rules that stand in for activations (DNI §2, "synthetic inputs"; complete unlock).

    ``supply`` may be called long before ``observe``, in another process, and ``observe`` may never be
    called. An input rule never runs ``backward`` and never steps an optimizer. It sees the network's input,
    never the label.
    """

    def check(self, x: Tensor | None, info: Info) -> None:
        """Raise a clear error if nothing can be supplied for this batch."""

    def supply(self, x: Tensor, info: Info) -> Supply:
        """Answer: what is the module above fed with?

        Args:
            x: the network's input, ``(B, ...)``.
            info: what is known; the context is not to be used.
        """
        raise NotImplementedError(f"{type(self).__name__} must answer supply(x, info)")

    def observe(self, x: Tensor, info: Info, h: Tensor, pending: tuple[Tensor, ...] = ()) -> Tensor | None:
        """Answer: what is learned, now that the real activation has arrived?

        Args:
            x: the network's input that it belongs to.
            info: what was known of that batch.
            h: ``(B, ...)``, the activation, detached.
            pending: what `supply` left, or ``()`` where it is no longer valid: compute it again.

        Returns:
            The loss to learn from, a scalar, mean per example; None if there is nothing to learn.
        """
        return None
