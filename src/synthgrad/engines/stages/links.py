"""The two ends of a link as a stage sees them: activations and answers, in order.

::

    stage k            link             stage k+1
    AboveLink.send  ── batch t ──────►  BelowLink.take
                                           │ forward, backward
    AboveLink.take  ◄─ message t ────── BelowLink.answer

Every batch is answered once, in order: with its message, or, where nobody learns from it or the draw says so, with a
header alone. So the answers tell how far the stage above has come, whatever share of the messages is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .inbox import Inbox
from .wire import Incoming, Outgoing, Parcel, ParcelKind

__all__ = ["AboveLink", "Answer", "Activation", "BelowLink"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for a batch.

    Attributes:
        step: of the batch.
        gradient: ``(B, ...)``, per-example units; None if none was sent.
        loss: ``(B,)``, of each example, where the sender has it.
        output_error: ``(B, ...)``, per-example units, where a rule needs it.
    """

    step: int
    gradient: Tensor | None
    loss: Tensor | None
    output_error: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Activation:
    """An activation, and what has travelled with it.

    Attributes:
        h: ``(B, ...)``.
        target: of the batch; None where targets do not travel.
        inputs: of the network; empty where they do not travel.
        checksum: of the examples, as the stage below was given them; 0 if it was not.
    """

    h: Tensor
    target: Tensor | None
    inputs: list[Tensor]
    checksum: int


class AboveLink:
    """The link to the stage above.

    Args:
        outgoing, incoming: of the two directions.
        inbox: for what comes.
    """

    def __init__(self, outgoing: Outgoing, incoming: Incoming, inbox: Inbox) -> None:
        self.outgoing = outgoing
        self.incoming = incoming
        self.inbox = inbox
        self._answered = -1

    @property
    def waited_s(self) -> float:
        """Time spent waiting for answers, and for a link that is full, so far, in seconds."""
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
        """Send an activation, ``(B, ...)``, and what travels with it. Does not wait.

        Args:
            kind: to learn from, or to predict from.
            step: number of the batch.
            h: the activation.
            target: of the batch, or None.
            window: how far this stage may be ahead: so many parcels may be under way both ways.
            inputs: of the network, where parts above need them.
            checksum: of the examples.
        """
        self.incoming.receiver.make_room(window + 1)
        self.outgoing.sender.make_room(window)
        # A number crosses as a row.
        rows = [t if t.ndim else t.reshape(1) for t in inputs]
        self.outgoing.send(kind, step, (h, target, *rows), window=window, checksum=checksum)

    def receive_answers(
        self, until: int, upto: int, *, deterministic: bool, on_step_time: Callable[[int], None]
    ) -> list[Answer]:
        """Return the answers that have come, in order. Waits until that of the batch ``until`` has.

        Args:
            until: number of a batch.
            upto: number of the newest batch that was sent: with synthetic inputs a stage above answers batches that
                it has not seen yet, and these answers wait.
            exact: leave later ones for later, even if they are here.
            took: is told how long a step of the stage above takes.

        Raises:
            StageError: if what comes is not the next answer.
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
        self.outgoing.sender.arrived(expected)
        on_step_time(parcel.busy_us)
        return Answer(parcel.step, *parcel.tensors)

    def begin_at(self, step: int) -> None:
        """Expect the first answer for the batch of this number."""
        self._answered = step - 1

    def state_dict(self) -> dict[str, Any]:
        """Return what has come and was not taken, and how far the stage above has answered, after `Inbox.settle`."""
        return {"parcels": self.inbox.state_dict(), "answered": self._answered}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from a state, before anything has crossed."""
        self.inbox.load_state_dict(state["parcels"], device)
        self._answered = state["answered"]


class BelowLink:
    """The link to the stage below.

    Args:
        outgoing, incoming: of the two directions.
        inbox: for what comes.
        wanted: does a rule below learn from messages at all?
        observe_prob: share of the messages that are sent.
        seed: of the draws.
        sends_output_error: does the output error travel down with the messages?

    Attributes:
        window: of the stage below, as it told last; 0 before it has.
    """

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
        """Time spent waiting for activations, and for a link that is full, so far, in seconds."""
        return self.inbox.waited_s + self.outgoing.waited_s

    def receive(self, kind: ParcelKind, step: int) -> Activation:
        """Return the next activation and what travels with it. Waits for it.

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
        """Return number, activation and checksum of the next batch, if it is here; wait for it if asked to.

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
        """Take note of how far the stage below may be ahead: so many answers may be under way."""
        self.window = parcel.window
        self.outgoing.sender.make_room(parcel.window)

    def draw(self) -> bool:
        """Will the message of the next batch be sent? To be asked once a batch, before its forward pass."""
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
        """Return what has come and was not taken, the window of the stage below, and the state of the draws."""
        return {
            "parcels": self.inbox.state_dict(),
            "window": self.window,
            "draws": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from a state, before anything has crossed."""
        self.inbox.load_state_dict(state["parcels"], device)
        self.window = state["window"]
        self.outgoing.sender.make_room(self.window)
        self._generator.set_state(state["draws"].cpu())
