"""A module's turn: its part of a step, from what it is fed with to its update."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ...core import Message
from ...core.in_flight import Batch, InFlight
from ...core.interface import Interface
from ..replay import ForwardReplay

__all__ = ["ModuleStep", "PendingEnd"]


class ModuleStep:
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
        output: what the network has returned, where the module ends in that and a rule needs its gradient.
        output_error: ``(B, ...)``, per-example units: the gradient of the output, where a rule needs it and it is known.
        penalty: a scalar that the module learns from besides; None for none.
        done: has it had its turn in this step?
        held: what the forward pass of its step was made of, where modules wait over steps.
    """

    def __init__(self, position: int, replay: ForwardReplay | None = None, *, updates: bool = True) -> None:
        self.position = position
        self.replay = replay
        self.updates = updates
        self.batch: Batch | None = None
        self.fed: dict[str, InFlight] = {}
        self.ends: list[Tensor] = []
        self.grads: list[Tensor | None] = []
        self.missing = 0
        self.learned = False
        self.value: Tensor | None = None
        self.output: Tensor | None = None
        self.output_error: Tensor | None = None
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

    def release(self, end: int, grad: Tensor | None, message: Message) -> None:
        """Take up the gradient that an end has waited for, and the message that it was made of."""
        self.missing -= 1
        self.grads[end] = grad
        self.value = self.value if message.loss is None else message.loss
        self.output_error = message.output_error

    def drop(self) -> None:
        """Let go of every tensor: a step must not hold more the deeper the network is."""
        self.fed.clear()
        self.ends.clear()
        self.grads.clear()
        self.penalty = self.output = self.output_error = None
        self.replay = None


class PendingEnd:
    """Hands a turn what one of its ends has waited for: `InFlight.release` in one process.

    Args:
        turn: of the module below the interface.
        end: its number among the turn's ends.
        interface: where the message comes back.
        finish: lets the module learn, if it waits for nothing more.
    """

    def __init__(
        self,
        module_step: ModuleStep,
        end: int,
        interface: Interface,
        update_if_ready: Callable[[ModuleStep], None],
    ) -> None:
        self.module_step = module_step
        self.end = end
        self._interface = interface
        self._update_if_ready = update_if_ready

    def __call__(self, gradient: Tensor | None, message: Message) -> None:
        grad = None if gradient is None else self._interface.as_made(gradient)
        self.module_step.release(self.end, grad, message)
        self._update_if_ready(self.module_step)
