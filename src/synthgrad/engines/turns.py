"""A module's turn: its part of a step, from what it is fed with to its update."""

from __future__ import annotations

from torch import Tensor

from ..core.in_flight import Batch, InFlight

__all__ = ["Turn"]


class Turn:
    """One module's part of a step: what it has been fed with, and what it has ended in so far.

    Attributes:
        position: of the module in the forward pass.
        batch: what it works on, once it has reached an end.
        updates: has it drawn an update?
        fed: what crossed the interfaces that feed it, by name.
        ends, grads: what it has ended in, and the gradient that each end learns from.
        missing: ends whose gradient has yet to come back: the module waits for it and keeps its graph.
        learned: has something with the module's optimizer learned already?
        value: ``(B,)``, the loss of each example as far as is known where the module ends.
        penalty: a scalar that the module learns from besides; None for none.
        done: has it had its turn in this step?
    """

    def __init__(self, position: int, *, updates: bool) -> None:
        self.position = position
        self.updates = updates
        self.batch: Batch | None = None
        self.fed: dict[str, InFlight] = {}
        self.ends: list[Tensor] = []
        self.grads: list[Tensor | None] = []
        self.missing = 0
        self.learned = False
        self.value: Tensor | None = None
        self.penalty: Tensor | None = None
        self.done = False

    def end(self, h: Tensor, grad: Tensor | None) -> None:
        """Note an end and what it learns from."""
        self.ends.append(h)
        self.grads.append(grad)

    def wait(self) -> int:
        """Let the end that was noted last wait for its message; return its number, for `release`."""
        self.missing += 1
        return len(self.ends) - 1

    def release(self, end: int, grad: Tensor, value: Tensor | None) -> None:
        """Take up the gradient that an end has waited for."""
        self.missing -= 1
        self.grads[end] = grad
        self.value = self.value if value is None else value

    def drop(self) -> None:
        """Let go of every tensor: a step must not hold more the deeper the network is."""
        self.fed.clear()
        self.ends.clear()
        self.grads.clear()
        self.penalty = None
