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

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core import StageError
from .alarm import Alarm
from .wire import Incoming, Kind, Outgoing, Parcel

__all__ = ["AboveLink", "Answer", "Arrived", "BelowLink"]

#: How often a stage that waits asks whether another has stopped.
_POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for a batch.

    Attributes:
        step: of the batch.
        gradient: ``(B, ...)``, per-example units; None if none was sent.
        loss: ``(B,)``, of each example, where the sender has it.
    """

    step: int
    gradient: Tensor | None
    loss: Tensor | None


@dataclass(frozen=True, slots=True)
class Arrived:
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


class _Waiting:
    """Waits for parcels, and notices when nothing will ever come."""

    def __init__(self, incoming: Incoming, alarm: Alarm, timeout_s: float) -> None:
        self._incoming = incoming
        self._alarm = alarm
        self._timeout_s = timeout_s
        self.waited_s = 0.0

    def poll(self) -> Parcel | None:
        """Return the next parcel, if it is here."""
        parcel = self._get(None)
        return None if parcel is None else self._not_the_end(parcel)

    def next(self, what: str) -> Parcel:
        """Return the next parcel, which is not the end of the link."""
        return self._not_the_end(self.any(what))

    def _not_the_end(self, parcel: Parcel) -> Parcel:
        # A stage that fails says goodbye, so that no thread is left waiting for it.
        if parcel.kind is Kind.END:
            raise self._alarm.broken(self._incoming.name, StageError("that stage has ended"))
        return parcel

    def any(self, what: str) -> Parcel:
        """Return the next parcel, of any kind.

        Raises:
            StageError: if another process has stopped, the link is broken, or nothing comes in time.
        """
        start = time.monotonic()
        while True:
            parcel = self._get(_POLL_S)
            waited = time.monotonic() - start
            if parcel is not None:
                self.waited_s += waited
                return parcel
            self._alarm.check()
            if waited > self._timeout_s:
                raise StageError(
                    f"{self._incoming.name}: no {what} within {self._timeout_s:g} s; give a longer timeout_s if a step "
                    "of that stage takes so long"
                )

    def _get(self, timeout_s: float | None) -> Parcel | None:
        try:
            return self._incoming.get(timeout_s)
        except StageError:
            raise
        except Exception as error:
            raise self._alarm.broken(self._incoming.name, error) from error


def _unexpected(link: str, parcel: Parcel, wanted: str) -> StageError:
    return StageError(
        f"{link}: got {parcel.kind.name.lower()} {parcel.step}, expected {wanted}; all processes must call step, predict and close in the same order"
    )


def _unsent(window: int) -> int:
    """Return how many sends may be under way: a header and a tensor for each parcel, and some more."""
    return 2 * window + 8


class AboveLink:
    """The link to the stage above.

    Args:
        outgoing, incoming: of the two directions.
        alarm: tells whether another process has stopped.
        timeout_s: how long to wait for an answer, in seconds.
    """

    def __init__(self, outgoing: Outgoing, incoming: Incoming, alarm: Alarm, timeout_s: float) -> None:
        self.outgoing = outgoing
        self.incoming = incoming
        self._waiting = _Waiting(incoming, alarm, timeout_s)
        self._answered = -1

    @property
    def waited_s(self) -> float:
        """Time spent waiting for answers, and for a link that is full, so far, in seconds."""
        return self._waiting.waited_s + self.outgoing.waited_s

    def send(
        self,
        kind: Kind,
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
        self.incoming.ahead = max(self.incoming.ahead, window + 1)
        self.outgoing.unsent = max(self.outgoing.unsent, _unsent(window))
        # A number crosses as a row.
        rows = [t if t.ndim else t.reshape(1) for t in inputs]
        self.outgoing.send(kind, step, (h, target, *rows), window=window, checksum=checksum)

    def take(self, until: int, upto: int, *, exact: bool, took: Callable[[int], None]) -> list[Answer]:
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
        while self._answered < until:
            parcel = self._waiting.next(f"answer for batch {self._answered + 1}")
            found.append(self._read(parcel, took))
        while not exact and self._answered < upto:
            parcel = self._waiting.poll()
            if parcel is None:
                break
            found.append(self._read(parcel, took))
        return found

    def _read(self, parcel: Parcel, took: Callable[[int], None]) -> Answer:
        expected = self._answered + 1
        if parcel.kind is not Kind.MESSAGE or parcel.step != expected:
            raise _unexpected(self.incoming.name, parcel, f"the message for batch {expected}")
        self._answered = expected
        self.outgoing.arrived(expected)
        took(parcel.busy_us)
        return Answer(parcel.step, *parcel.tensors)

    def end(self) -> None:
        """Take what is still to come until the stage above has ended too."""
        while self._waiting.any("end").kind is not Kind.END:
            pass


class BelowLink:
    """The link to the stage below.

    Args:
        outgoing, incoming: of the two directions.
        alarm: tells whether another process has stopped.
        timeout_s: how long to wait for an activation, in seconds.
        wanted: does a rule below learn from messages at all?
        observe_prob: share of the messages that are sent.
        seed: of the draws.

    Attributes:
        window: of the stage below, as it told last; 0 before it has.
    """

    def __init__(
        self,
        outgoing: Outgoing,
        incoming: Incoming,
        alarm: Alarm,
        timeout_s: float,
        *,
        wanted: bool,
        observe_prob: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.outgoing = outgoing
        self.incoming = incoming
        self._waiting = _Waiting(incoming, alarm, timeout_s)
        self.window = 0
        self._wanted = wanted
        self._observe_prob = observe_prob
        self._generator = torch.Generator().manual_seed(seed)

    @property
    def waited_s(self) -> float:
        """Time spent waiting for activations, and for a link that is full, so far, in seconds."""
        return self._waiting.waited_s + self.outgoing.waited_s

    def take(self, kind: Kind, step: int) -> Arrived:
        """Return the next activation and what travels with it. Waits for it.

        Raises:
            StageError: if something else comes.
        """
        what = "activation" if kind is Kind.BATCH else "activation to predict from"
        parcel = self._waiting.next(what)
        if parcel.kind is not kind or parcel.step != step or not parcel.tensors or parcel.tensors[0] is None:
            raise _unexpected(self.incoming.name, parcel, f"{what} {step}")
        self._note(parcel)
        h, target, *inputs = parcel.tensors
        assert h is not None
        return Arrived(h, target, [t for t in inputs if t is not None], parcel.checksum)

    def come(self, *, wait: bool) -> tuple[int, Tensor, int] | None:
        """Return number, activation and checksum of the next batch, if it is here; wait for it if asked to.

        Raises:
            StageError: if something else comes.
        """
        parcel = self._waiting.next("activation") if wait else self._waiting.poll()
        if parcel is None:
            return None
        if parcel.kind is not Kind.BATCH or not parcel.tensors or parcel.tensors[0] is None:
            raise _unexpected(self.incoming.name, parcel, "an activation")
        self._note(parcel)
        return parcel.step, parcel.tensors[0], parcel.checksum

    def _note(self, parcel: Parcel) -> None:
        """Take note of how far the stage below may be ahead: so many answers may be under way."""
        self.window = parcel.window
        self.outgoing.unsent = max(self.outgoing.unsent, _unsent(parcel.window))

    def draw(self) -> bool:
        """Will the message of the next batch be sent? To be asked once a batch, before its forward pass."""
        if self._observe_prob == 1 or not self._wanted:
            return self._wanted
        return bool(torch.rand((), generator=self._generator) < self._observe_prob)

    def answer(
        self, step: int, gradient: Tensor | None = None, loss: Tensor | None = None, busy_s: float = 0.0
    ) -> None:
        """Answer a batch; without a gradient, by a header alone. Does not wait."""
        tensors = (None, None) if gradient is None else (gradient, loss)
        self.outgoing.send(Kind.MESSAGE, step, tensors, busy_us=int(busy_s * 1e6))

    def end(self) -> None:
        """Take what is still to come until the stage below has ended too."""
        while self._waiting.any("end").kind is not Kind.END:
            pass
