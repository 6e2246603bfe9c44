"""The part of one module in a step: from its inputs to its update."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ...core import Message
from ...core.in_flight import Batch, InFlight
from ...core.interface import Interface
from ..replay import ForwardReplay

__all__ = ["ModuleStep", "PendingEnd"]


class ModuleStep:
    """The part of one module in a step: its inputs, and the outputs that it has reached so far.

    An *end* of a module is an interface that it feeds, or the network's output.

    Attributes:
        position: the position of the module in the forward pass.
        batch: the batch that the module works on; None until it has reached an end.
        updates: whether the module has drawn an update.
        fed: the messages that feed the module, by interface.
        ends, grads: the tensor at each end that has been reached, and the gradient that it learns from.
        missing: the number of ends whose gradient has not arrived yet. While there are any, the module keeps
            its graph.
        learned: whether anything that the module's optimizer updates has learned already.
        value: ``(B,)``, the loss of each example as far as it is known at the end of the module.
        output: the network's output, if the module ends in it and a rule needs its gradient.
        output_error: ``(B, ...)``, the gradient of the output in per-example units, if a rule needs it and it
            is known.
        penalty: a scalar that is added to what the module learns from; None for no penalty.
        done: whether the module has done its part of this step.
        replay: the conditions of the forward pass, if modules wait over steps.
        step: the step of the module's forward pass.
        sends: what the module's message is made from at once, by number of the end, where a rule sends ahead.
        has_sent: whether the module has sent its message ahead.
        corrections: the number of ends whose credit has still to be corrected. While there are any, the module keeps its
            graph and sends no message.
        keeps_graph: whether a correction will go back through the module's own graph, and not through one made anew.
        differences: by number of the end, a correction of its gradient, and the factor with which the module learns from it.
    """

    def __init__(
        self, position: int, replay: ForwardReplay | None = None, *, updates: bool = True, step: int = 0
    ) -> None:
        self.position = position
        self.step = step
        self.sends: dict[int, Tensor] = {}
        self.has_sent = False
        self.corrections = 0
        self.keeps_graph = False
        self.differences: dict[int, tuple[Tensor, float]] = {}
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
        """Add an end and the gradient that it learns from."""
        self.ends.append(h)
        self.grads.append(grad)

    def wait(self) -> int:
        """Mark the last end as waiting for its message, and return the number of the end, for `release`."""
        self.missing += 1
        return len(self.ends) - 1

    def release(self, end: int, grad: Tensor | None, message: Message) -> None:
        """Set the gradient that an end has waited for, and what else the message carries."""
        self.missing -= 1
        self.grads[end] = grad
        self.value = self.value if message.loss is None else message.loss
        self.output_error = message.output_error

    def drop(self) -> None:
        """Drop every tensor, so that a step does not hold more memory the deeper the network is."""
        self.fed.clear()
        self.ends.clear()
        self.grads.clear()
        self.sends.clear()
        self.differences.clear()
        self.penalty = self.output = self.output_error = None
        self.replay = None


class PendingEnd:
    """An end that waits for its message: the callback that an `InFlight` calls when the message has arrived.

    Where the module has learned from a credit that is to be corrected, the message brings the correction.

    Args:
        module_step: that of the module below the interface.
        end: the number of the end in ``module_step.ends``.
        interface: the interface where the message arrives.
        turn: lets a module go on that waits for no other message.
    """

    def __init__(
        self,
        module_step: ModuleStep,
        end: int,
        interface: Interface,
        turn: Callable[[ModuleStep], None],
    ) -> None:
        self.module_step = module_step
        self.end = end
        self.interface = interface
        self._turn = turn

    def __call__(self, gradient: Tensor | None, message: Message) -> None:
        grad = None if gradient is None else self.interface.as_made(gradient)
        self.module_step.release(self.end, grad, message)
        self._turn(self.module_step)
