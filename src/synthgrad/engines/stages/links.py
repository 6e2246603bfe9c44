"""The two ends of a link as a stage sees them: activations and answers, in order.

::

    stage k                       link             stage k+1
    AboveLink.send             ── batch t ──────►  BelowLink.receive
                                                      │ forward, backward
    AboveLink.receive_answers  ◄─ message t ────── BelowLink.answer

Every batch is answered once, in order. An answer carries the message; or only a header, if nobody learns from
the message or it was not drawn to be sent. So answers show the progress of the stage above, whatever share of
the messages is sent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .inbox import Inbox
from .wire import Incoming, Outgoing, Parcel, ParcelKind

__all__ = ["AboveLink", "Activation", "Answer", "BelowLink"]


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a batch.

    Attributes:
        step: the step of the batch.
        gradient: ``(B, ...)``, in per-example units; None if none was sent.
        loss: ``(B,)``, the loss of each example, if the sender has it.
        output_error: ``(B, ...)``, in per-example units, if a rule needs it.
    """

    step: int
    gradient: Tensor | None
    loss: Tensor | None
    output_error: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Activation:
    """An activation, and what was sent along with it.

    Attributes:
        h: the activation, ``(B, ...)``.
        target: the target of the batch; None if targets are not sent along.
        inputs: the inputs of the network; empty if they are not sent along.
        checksum: the checksum of the examples that the stage below was given; 0 if it was given none.
    """

    h: Tensor
    target: Tensor | None
    inputs: list[Tensor]
    checksum: int


class AboveLink:
    """The link to the stage above.

    Args:
        outgoing, incoming: the two directions.
        inbox: receives from the stage above.
    """

    def __init__(self, outgoing: Outgoing, incoming: Incoming, inbox: Inbox) -> None:
        self.outgoing = outgoing
        self.incoming = incoming
        self.inbox = inbox
        self._answered = -1
        self._skipped: deque[tuple[int, int]] = deque()

    @property
    def waited_s(self) -> float:
        """The time spent waiting for answers, and for a link that is full, so far, in seconds."""
        return self.inbox.waited_s + self.outgoing.waited_s

    def send(
        self,
        kind: ParcelKind,
        step: int,
        h: Tensor,
        target: Tensor | None,
        window: int = 0,
        *,
        inputs: Sequence[Tensor] = (),
        checksum: int = 0,
    ) -> None:
        """Send an activation, ``(B, ...)``, and what is sent along with it. Does not wait.

        Args:
            kind: whether the stage above learns from it, or predicts.
            step: the number of the batch.
            h: the activation.
            target: the target of the batch, or None.
            window: how far this stage may be ahead, which is the number of parcels in flight in each direction.
            inputs: the inputs of the network, if parts above need them.
            checksum: the checksum of the examples.
        """
        self.incoming.receiver.make_room(window + 1)
        self.outgoing.sender.make_room(window)
        # A scalar is sent as a tensor with one row.
        rows = [t if t.ndim else t.reshape(1) for t in inputs]
        self.outgoing.send(kind, step, (h, target, *rows), window=window, checksum=checksum)

    def receive_answers(
        self, until: int, upto: int, *, deterministic: bool, on_step_time: Callable[[int], None]
    ) -> list[Answer]:
        """Return the answers that have arrived, in order.

        Waits until the answer for the batch ``until`` has arrived.

        Args:
            until: the number of a batch.
            upto: the number of the newest batch that was sent. With synthetic inputs the stage above may
                answer batches that were not sent yet; these answers are left for later.
            deterministic: whether to leave all answers after ``until`` for later, even if they are here.
            on_step_time: called with the step time of the stage above, in microseconds.

        Raises:
            StageError: if the next parcel is not the next answer.
        """
        found: list[Answer] = []
        doing = f"has sent {upto + 1}"
        while self._answered < until:
            parcel = self.inbox.next(doing)
            found.append(self._read(parcel, on_step_time))
        while not deterministic and self._answered < upto:
            parcel = self.inbox.poll(doing)
            if parcel is None:
                break
            found.append(self._read(parcel, on_step_time))
        return found

    def _read(self, parcel: Parcel, on_step_time: Callable[[int], None]) -> Answer:
        expected = self._answered + 1
        if parcel.kind is not ParcelKind.MESSAGE or parcel.step != expected:
            raise self.inbox.unexpected_error(parcel, f"the message for batch {expected}")
        self._answered = expected
        self._pass_skipped()
        self.outgoing.sender.arrived(expected)
        on_step_time(parcel.busy_us)
        return Answer(parcel.step, *parcel.tensors)

    def begin_at(self, step: int) -> None:
        """Expect the first answer for the batch of this number."""
        self._answered = step - 1

    def skip(self, first: int, to: int) -> None:
        """Expect no answers for the batches from ``first`` up to, but without, ``to``: they were not sent."""
        self._skipped.append((first, to))
        self._pass_skipped()

    def _pass_skipped(self) -> None:
        while self._skipped and self._skipped[0][0] == self._answered + 1:
            self._answered = self._skipped.popleft()[1] - 1

    def state_dict(self) -> dict[str, Any]:
        """Return the parcels that were not used yet, and the number of the last answer.

        To be called after `Inbox.drain`.
        """
        return {
            "parcels": self.inbox.state_dict(),
            "answered": self._answered,
            "codecs": self.outgoing.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Load the state that `state_dict` returned, before anything has been sent."""
        self.inbox.load_state_dict(state["parcels"], device)
        self._answered = state["answered"]
        self.outgoing.load_state_dict(state.get("codecs", {}))


class BelowLink:
    """The link to the stage below.

    Args:
        outgoing, incoming: the two directions.
        inbox: receives from the stage below.
        wanted: whether a rule below learns from messages at all.
        observe_prob: the share of the messages that are sent.
        seed: the seed of the draws.
        sends_output_error: whether the output error is sent down with the messages.

    Attributes:
        window: the window of the stage below, as it was last sent; 0 before.
        is_there: True: without its neighbours such a stage stops.
    """

    is_there = True

    def __init__(
        self,
        outgoing: Outgoing,
        incoming: Incoming,
        inbox: Inbox,
        *,
        wanted: bool,
        observe_prob: float = 1.0,
        seed: int = 0,
        sends_output_error: bool = False,
    ) -> None:
        self.outgoing = outgoing
        self.sends_output_error = sends_output_error
        self.incoming = incoming
        self.inbox = inbox
        self.window = 0
        self._wanted = wanted
        self._observe_prob = observe_prob
        self._generator = torch.Generator().manual_seed(seed)

    @property
    def waited_s(self) -> float:
        """The time spent waiting for activations, and for a link that is full, so far, in seconds."""
        return self.inbox.waited_s + self.outgoing.waited_s

    def receive(self, kind: ParcelKind, step: int) -> Activation:
        """Return the next activation and what was sent along with it. Waits for it.

        Raises:
            StageError: if something else comes.
        """
        what = "activation" if kind is ParcelKind.BATCH else "activation to predict from"
        doing = f"has begun batch {step + 1}" if kind is ParcelKind.BATCH else "is about to predict"
        parcel = self.inbox.next(doing)
        if parcel.kind is not kind or parcel.step != step or not parcel.tensors or parcel.tensors[0] is None:
            raise self.inbox.unexpected_error(parcel, f"{what} {step}")
        self._note(parcel)
        h, target, *inputs = parcel.tensors
        assert h is not None
        return Activation(h, target, [t for t in inputs if t is not None], parcel.checksum)

    def receive_next(self, *, wait: bool) -> tuple[int, Tensor, int] | None:
        """Return number, activation and checksum of the next batch.

        If it is not here, wait for it or return None.

        Raises:
            StageError: if something else comes.
        """
        doing = "goes on"
        parcel = self.inbox.next(doing) if wait else self.inbox.poll(doing)
        if parcel is None:
            return None
        if parcel.kind is not ParcelKind.BATCH or not parcel.tensors or parcel.tensors[0] is None:
            raise self.inbox.unexpected_error(parcel, "an activation")
        self._note(parcel)
        return parcel.step, parcel.tensors[0], parcel.checksum

    def _note(self, parcel: Parcel) -> None:
        """Record how far the stage below may be ahead, and make room for as many answers."""
        self.window = parcel.window
        self.outgoing.sender.make_room(parcel.window)

    def draw(self) -> bool:
        """Return whether the message of the next batch will be sent.

        To be called once a batch, before its forward pass.
        """
        if self._observe_prob == 1 or not self._wanted:
            return self._wanted
        return bool(torch.rand((), generator=self._generator) < self._observe_prob)

    def answer(
        self,
        step: int,
        gradient: Tensor | None = None,
        loss: Tensor | None = None,
        output_error: Tensor | None = None,
        busy_s: float = 0.0,
    ) -> None:
        """Answer a batch; without a gradient, by a header alone. Does not wait."""
        tensors = (None, None) if gradient is None else (gradient, loss)
        if gradient is not None and self.sends_output_error:
            tensors = (*tensors, output_error)
        self.outgoing.send(ParcelKind.MESSAGE, step, tensors, busy_us=int(busy_s * 1e6))

    def state_dict(self) -> dict[str, Any]:
        """Return the parcels that were not used yet, the window of the stage below, and the random state."""
        return {
            "parcels": self.inbox.state_dict(),
            "window": self.window,
            "draws": self._generator.get_state(),
            "codecs": self.outgoing.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Load the state that `state_dict` returned, before anything has been received."""
        self.inbox.load_state_dict(state["parcels"], device)
        self.window = state["window"]
        self.outgoing.sender.make_room(self.window)
        self._generator.set_state(state["draws"].cpu())
        self.outgoing.load_state_dict(state.get("codecs", {}))
