"""What runs a step of all layers, whatever they are made of, and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from .rules import Credits, InterfaceRows, StackedRules
from .storage import GradientTable, StackedParameter

__all__ = ["StepBackend", "FullStep", "StepOutput", "BackendOutput", "Observation", "LossValues", "full_step"]

#: The losses that come with messages, ``(B,)`` for each row, where they are known.
LossValues = Sequence[Tensor | None]


class BackendOutput(NamedTuple):
    """What a step has computed, beside the gradients that it has left.

    Attributes:
        h: what crosses the interfaces now, ``(n, B, ...)``, detached, interface by interface and run by run.
        credits: what the rules gave for it.
        losses: of the last module, ``(runs,)``, detached; None while no batch has reached it.
        messages: what comes back for what crossed one step before, ``(n, B, ...)``, per-example units; None if
            nobody listens.
        values: the losses that come with the messages, ``(B,)`` for each row.
    """

    h: Tensor
    credits: Credits
    losses: Tensor | None
    messages: Tensor | None
    values: LossValues


class StepBackend(Protocol):
    """What runs all layers.

    Attributes:
        rules: of all interfaces.
        buffers, rule_buffers: of blocks and rules, ``(rows, ...)`` each: rows that no batch has reached are put
            back by the engine.
        bounds: all parameters, where the graph of a step may update them; else empty.
        offset: the row of an interface, less this, is that of the buffers of the block below it.
    """

    rules: StackedRules
    buffers: list[Tensor]
    rule_buffers: list[Tensor]
    stacked: list[StackedParameter]
    offset: int

    def register(self, gradients: GradientTable, depth: int, observe: int) -> None:
        """Say where the gradients of all parameters will be, and from which step on.

        Args:
            ledger: where to say it.
            depth: number of modules.
            observe: steps that a message waits for its rule.
        """
        ...

    def check(self, x: Tensor) -> None:
        """Refuse a batch, ``(runs, B, ...)``, or a state of things, with which `run` would not be right."""
        ...

    def run(
        self, x: Tensor, below: Tensor, rows: InterfaceRows, target: Any, *, at_top: bool
    ) -> BackendOutput:
        """Run forward and backward of every module, each on its batch.

        Args:
            x: ``(runs, B, ...)``, the newest batch.
            below: what crossed the interfaces one step before, ``(n, B, ...)``.
            rows: what is known of what crosses now; its ``h`` is of that shape only.
            target: of the batch that the last module works on.
            at_top: has a batch reached it?
        """
        ...


class StepOutput(NamedTuple):
    """What a whole step has computed.

    Attributes:
        ran: forward and backward.
        total: a sum over losses, activations, messages and credits, finite if all of them are.
    """

    output: BackendOutput
    total: Tensor


Observation = tuple[InterfaceRows, Tensor, LossValues] | None

#: `learn` of some body.
FullStep = Callable[[Tensor, InterfaceRows, InterfaceRows, Any, Observation], StepOutput]


def full_step(
    backend: StepBackend,
    x: Tensor,
    below: InterfaceRows,
    rows: InterfaceRows,
    target: Any,
    observation: Observation,
) -> StepOutput:
    """Run a whole step but for the updates, once a batch has reached every layer.

    Args:
        body: what runs it.
        x: see `StepBackend.run`.
        below: what crossed the interfaces one step before.
        rows: see `StepBackend.run`.
        target: see `StepBackend.run`.
        seen: what the rules observe, with its messages; None for what has come back for ``below`` just now.
    """
    output = backend.run(x, below.h, rows, target, at_top=True)
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
