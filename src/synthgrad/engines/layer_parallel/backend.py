"""The backend of the engine: it computes a step of all layers.

`StepBackend` is the protocol of the two backends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from .rules import Credits, InterfaceRows, StackedRules
from .storage import GradientTable, StackedParameter

__all__ = ["BackendOutput", "FullStep", "LossValues", "Observation", "StepBackend", "StepOutput", "full_step"]

#: The losses that come with messages, ``(B,)`` for each row; None if unknown.
LossValues = Sequence[Tensor | None]


class BackendOutput(NamedTuple):
    """What a backend computes in a step, besides the gradients that it writes.

    Attributes:
        h: the activations that cross the interfaces in this step, ``(n, B, ...)``, detached, interface by
            interface and run by run.
        credits: the credits of the rules for them.
        losses: the losses of the last module, ``(runs,)``, detached; None while no batch has reached it.
        messages: the messages for what crossed one step before, ``(n, B, ...)``, in per-example units; None
            if no rule listens.
        values: the losses that come with the messages, ``(B,)`` for each row.
    """

    h: Tensor
    credits: Credits
    losses: Tensor | None
    messages: Tensor | None
    values: LossValues


class StepBackend(Protocol):
    """Computes a step of all layers.

    Attributes:
        rules: the rules of all interfaces.
        buffers, rule_buffers: the buffers of blocks and rules, ``(rows, ...)`` each. The engine restores the
            rows that no batch has reached.
        stacked: all parameters, if the graph of a step may update them; otherwise empty.
        offset: the row of an interface, minus this number, is the row of the buffers of the block below it.
    """

    rules: StackedRules
    buffers: list[Tensor]
    rule_buffers: list[Tensor]
    stacked: list[StackedParameter]
    offset: int

    def register(self, gradients: GradientTable, depth: int, observe: int) -> None:
        """Register where the gradients of all parameters will be written, and from which step on.

        Args:
            gradients: the table to fill.
            depth: the number of modules.
            observe: the number of steps that a message waits before its rule observes it.
        """
        ...

    def check(self, x: Tensor) -> None:
        """Refuse a batch, ``(runs, B, ...)``, or a mode of the network, for which `run` would be wrong."""
        ...

    def run(
        self, x: Tensor, below: InterfaceRows, rows: InterfaceRows, target: Any, *, at_top: bool
    ) -> BackendOutput:
        """Run forward and backward through every module, each on its own batch.

        Args:
            x: the newest batch, ``(runs, B, ...)``.
            below: what crossed the interfaces one step before.
            rows: what is known of the activations that cross in this step; its ``h`` has their shape only.
            target: the target of the batch that the last module works on.
            at_top: whether a batch has reached the last module.
        """
        ...


class StepOutput(NamedTuple):
    """What a whole step computes.

    Attributes:
        output: the output of forward and backward.
        total: a sum over losses, activations, messages and credits, which is finite if all of them are.
    """

    output: BackendOutput
    total: Tensor


#: What rules observe: the rows, their messages, and the losses that came with them.
Observation = tuple[InterfaceRows, Tensor, LossValues] | None

#: `full_step` with a given backend.
FullStep = Callable[[Tensor, InterfaceRows, InterfaceRows, Any, Observation], StepOutput]


def full_step(
    backend: StepBackend,
    x: Tensor,
    below: InterfaceRows,
    rows: InterfaceRows,
    target: Any,
    observation: Observation,
) -> StepOutput:
    """Run a whole step except for the updates, once a batch has reached every layer.

    Args:
        backend: computes the step.
        x: see `StepBackend.run`.
        below: see `StepBackend.run`.
        rows: see `StepBackend.run`.
        target: see `StepBackend.run`.
        observation: what the rules observe; None for ``below`` and its messages, which this step computes.
    """
    output = backend.run(x, below, rows, target, at_top=True)
    if backend.rules.listens:
        if observation is None:
            assert output.messages is not None
            observation = below, output.messages, output.values
        backend.rules.observe(*observation)
    assert output.losses is not None
    total = output.losses.sum() + output.h.sum()
    for part in (output.messages, output.credits.delta):
        if part is not None:
            total = total + part.sum()
    return StepOutput(output, total)
