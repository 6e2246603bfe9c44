"""Links to neighbours that may die, freeze or be cut off: a stage goes on without them, and with them when they are back.

::

    above is there:     send ── batch t ──►            ◄── message t ──   learn from it
    above is gone:      send  (dropped)                nothing is under way, and nothing is waited for
    above is back:      send ── batch u ──►            ◄── message u ──   the first answers are not learned from

    below is there:     the batch that comes says which one is next
    below is gone:      wait for it, or train on synthetic inputs
    below is back:      its first batch says which one is next

A neighbour is gone if its line is broken, if it has given the line up, or if it keeps this stage waiting for longer than a
patience. From then on nobody waits for it: another line is made in the background, as soon as it is there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from ...core import StageError
from .copies import KeptCopy, SentCopy, send_whole
from .inbox import Inbox
from .links import AboveLink, Activation, Answer, BelowLink
from .transport import BrokenLine, Clock
from .transport.elastic import Crossing, MadeLine
from .window import Window
from .wire import Incoming, Outgoing, Parcel, ParcelKind

__all__ = ["POLL_S", "Copies", "ElasticAbove", "ElasticBelow", "PatientInbox"]

#: The time between two looks for a parcel or a line, in seconds. A power of two, so that virtual times stay exact.
POLL_S = 1 / 64

#: Answers that are kept until their batches have come.
_MOST_HELD = 256


class LinkLost(Exception):
    """The neighbour is gone, or has ended."""


#: What says that a neighbour is gone.
_LOST = (LinkLost, BrokenLine)


class Copies:
    """Copies of states between this stage and one neighbour.

    Args:
        life: returns which process the neighbour is.
        share: of the bytes of what is sent to it that go to copies of this stage's state; 0 for none.

    Attributes:
        sent: of this stage.
        kept: of the neighbour.
        returned: of this stage, as the neighbour has kept it for the process that was here before.
        weights: of the neighbour, once it was asked for them.
        own_weights: returns the steps that this stage has made, and its weights as bytes.
    """

    def __init__(self, life: Callable[[], int], share: float) -> None:
        self._life = life
        self._given_to = 1
        self.sent = SentCopy(share)
        self.kept = KeptCopy()
        self.returned = KeptCopy()
        self.weights = KeptCopy()
        self.own_weights: Callable[[], tuple[int, Tensor]] | None = None
        self._outgoing: Outgoing | None = None
        self._has_asked = False

    def take(self, parcel: Parcel) -> bool:
        """Take a part of a state or of weights, or send one's own; return whether the parcel was about these."""
        parts = {
            ParcelKind.STATE: self.kept,
            ParcelKind.RETURNED: self.returned,
            ParcelKind.WEIGHTS: self.weights,
        }
        if parcel.kind in parts:
            parts[parcel.kind].add(parcel)
        elif parcel.kind is ParcelKind.ASKED:
            self._give_weights()
        else:
            return False
        return True

    def _give_weights(self) -> None:
        """Send the neighbour the weights of this stage; or that they are as fresh as its own."""
        if self.own_weights is None or self._outgoing is None:
            return
        step, data = self.own_weights()
        if step:
            send_whole(self._outgoing, ParcelKind.WEIGHTS, step, data)
        else:
            self._outgoing.send(ParcelKind.WEIGHTS, 0)

    def ask(self) -> None:
        """Ask the neighbour for its weights, once for each line."""
        if self._outgoing is not None and not self._has_asked:
            self._has_asked = True
            self._outgoing.send(ParcelKind.ASKED, 0)

    def begin(self, outgoing: Outgoing) -> None:
        """Give the neighbour its copy, if it is another process than before; there is a new line to it."""
        self.sent.forget()
        self._outgoing, self._has_asked = outgoing, False
        if (life := self._life()) > self._given_to:
            self._given_to = life
            self.kept.give(outgoing)


class PatientInbox(Inbox):
    """Receives parcels from a neighbour, as long as it is there.

    Args:
        incoming: the receiving end of the line.
        crossing: where the line was made.
        clock: the clock of this process.
        patience_s: how long to wait for a parcel; None for as long as the line stands.
        copies: takes the parts of states that come between other parcels.
    """

    def __init__(
        self,
        incoming: Incoming,
        crossing: Crossing,
        clock: Clock,
        patience_s: float | None,
        copies: Copies,
    ) -> None:
        self._incoming = incoming
        self._crossing = crossing
        self._clock = clock
        self._patience_s = patience_s
        self._copies = copies
        self._kept: deque[Parcel] = deque()
        self.waited_s = 0.0

    def peek(self) -> Parcel | None:
        """Return the next parcel without taking it, or None if there is none at once.

        Raises:
            LinkLost: if the neighbour is gone.
        """
        if not self._kept:
            parcel = self._get(None)
            if parcel is None:
                return None
            self._kept.append(self._refuse_end(parcel, ""))
        return self._kept[0]

    def look_behind(self) -> None:
        """Receive all that has come, and keep it for later: there may be a part of a state behind an activation.

        Raises:
            LinkLost: if the neighbour is gone.
        """
        while (parcel := self._get(None)) is not None:
            self._kept.append(self._refuse_end(parcel, ""))

    def _wait(self) -> Parcel:
        start = self._clock.now()
        try:
            while True:
                parcel = self._get(POLL_S)
                if parcel is not None:
                    return parcel
                if self._crossing.is_void():
                    raise LinkLost
                if self._patience_s is not None and self._clock.now() - start > self._patience_s:
                    raise LinkLost
        finally:
            self.waited_s += self._clock.now() - start

    def _refuse_end(self, parcel: Parcel, doing: str) -> Parcel:
        if parcel.kind is ParcelKind.END:
            raise LinkLost
        return parcel

    def unexpected_error(self, parcel: Parcel, wanted: str) -> StageError:
        return StageError(
            f"{self._incoming.name}: got {parcel.kind.name.lower()} {parcel.step}, expected {wanted}; take the numbers of "
            "batches from turns(), in every process"
        )

    def _get(self, timeout_s: float | None) -> Parcel | None:
        try:
            while (parcel := self._incoming.get(timeout_s)) is not None and self._copies.take(parcel):
                pass
            return parcel
        except StageError:
            raise
        except Exception as error:
            raise LinkLost from error


class _ElasticLink:
    """What the links to both neighbours have in common.

    Args:
        crossing: where the lines to the neighbour are made.
        copies: of states.
    """

    def __init__(self, crossing: Crossing, copies: Copies) -> None:
        self.copies = copies
        self._crossing = crossing
        self._next: MadeLine | None = None
        self._past_waited_s = 0.0
        self._past_sent_bytes = 0

    @property
    def _present(self) -> AboveLink | BelowLink | None:
        """The link of the line that there is; None if there is none."""
        raise NotImplementedError

    @property
    def is_there(self) -> bool:
        """Whether the neighbour is there at present."""
        return self._present is not None

    @property
    def waited_s(self) -> float:
        """The time spent waiting over all lines so far, in seconds."""
        return self._past_waited_s + (0.0 if self._present is None else self._present.waited_s)

    @property
    def sent_bytes(self) -> int:
        """The number of bytes that were sent so far."""
        return self._past_sent_bytes + (0 if self._present is None else self._present.outgoing.sent_bytes)

    def comes(self) -> bool:
        """Return whether there is a line to the neighbour by now."""
        if self._present is None:
            self._next = self._next or self._crossing.made()
        return self._present is not None or self._next is not None

    def ask(self) -> None:
        """Ask the neighbour for its weights, if it is there, and receive them as far as they have come."""
        if self.fetch() is None or self._present is None:
            return
        try:
            self.copies.ask()
            assert isinstance(self._present.inbox, PatientInbox)
            self._present.inbox.look_behind()
        except _LOST:
            self._lose()

    def fetch(self) -> KeptCopy | None:
        """Return what the neighbour keeps of this stage, as far as it has come; None as long as nobody is there."""
        raise NotImplementedError

    def end(self, num_batches: int) -> None:
        """Tell the neighbour that nothing will follow."""
        if self._present is not None:
            try:
                self._present.outgoing.send(ParcelKind.END, num_batches)
                self._present.outgoing.sender.flush()
            except _LOST:
                self._lose()

    def _lose(self) -> None:
        """Find that the neighbour is gone."""
        raise NotImplementedError

    def _remember(self, link: AboveLink | BelowLink) -> None:
        """Count what a link that is gone has waited and sent."""
        self._past_waited_s += link.waited_s
        self._past_sent_bytes += link.outgoing.sent_bytes


class ElasticAbove(_ElasticLink):
    """The link to the stage above, which may be gone.

    Args:
        crossing: where its lines are made.
        make: makes the link of a line.
        window: the window for its answers.
        settle: answers after its return that are not learned from.
        life: returns which process the stage above is.
        share: see `SentCopy`.

    Attributes:
        copies: of states.
        on_loss: called whenever there is nobody who would answer; gives up what is under way, and returns how many batches
            that is.
        num_given_up: batches that it had been sent, and did not answer.
        num_alone: batches that nobody above has received.
    """

    def __init__(
        self,
        crossing: Crossing,
        make: Callable[[MadeLine], AboveLink],
        window: Window,
        settle: int,
        life: Callable[[], int],
        share: float = 0.0,
    ) -> None:
        super().__init__(crossing, Copies(life, share))
        self._make = make
        self._window = window
        self._settle = settle
        self._link: AboveLink | None = None
        self._sent = -1
        self._settled_at = 0
        self._has_begun = False
        self.on_loss: Callable[[], int] = lambda: 0
        self.num_alone = self.num_given_up = 0

    @property
    def _present(self) -> AboveLink | None:
        return self._link

    def send(
        self, kind: ParcelKind, step: int, h: Tensor, target: Tensor | None, *args: Any, **more: Any
    ) -> None:
        """Send an activation, if there is somebody to receive it; see `AboveLink.send`."""
        try:
            self._renew(step)
        except _LOST:
            self._lose()
        if self._link is not None:
            try:
                if step > self._sent + 1:
                    self._link.skip(self._sent + 1, step)
                self._sent = step
                self._link.send(kind, step, h, target, *args, **more)
                self.copies.sent.send_part(self._link.outgoing, h.numel() * h.element_size())
            except _LOST:
                self._lose()
        if self._link is None:
            self.num_alone += 1

    def receive_answers(
        self, until: int, upto: int, *, deterministic: bool, on_step_time: Callable[[int], None]
    ) -> list[Answer]:
        """Return the answers that have arrived; none if there is nobody. See `AboveLink.receive_answers`."""
        if self._link is not None:
            try:
                if self._crossing.is_void():
                    raise LinkLost
                found = self._link.receive_answers(
                    until, upto, deterministic=deterministic, on_step_time=on_step_time
                )
            except _LOST:
                self._lose()
            else:
                return [self._settled(answer) for answer in found]
        self.on_loss()
        return []

    def fetch(self) -> KeptCopy | None:
        """Return what the stage above keeps of this one, as far as it has come; None as long as nobody is there."""
        try:
            self._renew(0)
            if self._link is None:
                return None
            assert isinstance(self._link.inbox, PatientInbox)
            self._link.inbox.peek()
        except _LOST:
            self._lose()
            return None
        return self.copies.returned

    def look(self) -> None:
        """Find out whether the stage above is still there."""
        if self._link is not None and self._crossing.is_void():
            self._lose()

    def _settled(self, answer: Answer) -> Answer:
        if answer.step >= self._settled_at:
            return answer
        return replace(answer, gradient=None, loss=None, output_error=None)

    def _renew(self, step: int) -> None:
        if self._link is not None or not self.comes():
            return
        made, self._next = self._next, None
        assert made is not None
        self._link = self._make(made)
        self._link.begin_at(step)
        self.copies.begin(self._link.outgoing)
        self._sent = step - 1
        self._window.round_trip_s = made.round_trip_s
        if self._has_begun:  # the one above has come back, and is not what it was
            self._settled_at = step + self._settle
        self._has_begun = True

    def _lose(self) -> None:
        assert self._link is not None
        self._remember(self._link)
        self._link = None
        self._crossing.give_up()
        self.num_given_up += self.on_loss()


class ElasticBelow(_ElasticLink):
    """The link to the stage below, which may be gone.

    Args:
        crossing: where its lines are made.
        make: makes the link of a line.
        has_ended: returns whether the stage below has ended in order.
        problem: returns why nothing is known of it, or None.
        clock: the clock of this process.
        timeout_s: how long to wait until it is back, in seconds.
        name: of the stage below, for errors.
        life: returns which process it is.
        share: see `SentCopy`.
        sends_output_error: whether the output error is sent down with the messages.

    Attributes:
        copies: of states.
        on_loss: called when it was found to be gone; gives up what it has not sent.
    """

    def __init__(
        self,
        crossing: Crossing,
        make: Callable[[MadeLine], BelowLink],
        has_ended: Callable[[], bool],
        problem: Callable[[], str | None],
        clock: Clock,
        timeout_s: float,
        name: str,
        life: Callable[[], int],
        share: float = 0.0,
        *,
        sends_output_error: bool = False,
    ) -> None:
        super().__init__(crossing, Copies(life, share))
        self._make = make
        self._has_ended = has_ended
        self._problem = problem
        self._clock = clock
        self._timeout_s = timeout_s
        self._name = name
        self.sends_output_error = sends_output_error
        self._link: BelowLink | None = None
        # What has come over this line and waits for its answer; and answers to what has not come yet.
        self._due: deque[int] = deque()
        self._held: dict[int, tuple[tuple[Any, ...], float]] = {}
        self._answered = -1
        self.on_loss: Callable[[], None] = lambda: None

    @property
    def _present(self) -> BelowLink | None:
        return self._link

    @property
    def window(self) -> int:
        """The window of the stage below, as it was last sent."""
        return 0 if self._link is None else self._link.window

    def next_number(self) -> int | None:
        """Return the number of the next batch that comes; None if none will. Waits for it.

        Raises:
            StageError: if the stage below is not back in time.
        """
        start = self._clock.now()
        try:
            while True:
                parcel = self._peeked()
                if parcel is not None:
                    return parcel.step
                if self._link is None and self._has_ended():
                    return None
                if self._link is None and self._clock.now() - start > self._timeout_s:
                    why = self._problem()
                    raise StageError(
                        f"{self._name} has been gone for {self._timeout_s:g} s{'' if why is None else f' ({why})'}; start it "
                        "again with the same place, or give a longer timeout_s"
                    )
                self._clock.sleep(POLL_S)
        finally:
            self._past_waited_s += self._clock.now() - start

    def receive(self, kind: ParcelKind, step: int) -> Activation:
        """Return the activation of a batch; see `BelowLink.receive`. Older ones are answered, and dropped."""
        while (number := self.next_number()) is not None:
            assert self._link is not None
            if number > step:
                return self._link.receive(kind, step)  # says that the number is another
            found = self._link.receive(kind, number)
            self._due.append(number)
            if number == step:
                return found
            self._send_answers()
        raise StageError(
            f"{self._name} has ended, and this stage was to begin batch {step + 1}; take the numbers from turns()"
        )

    def receive_next(self, *, wait: bool) -> tuple[int, Tensor, int] | None:
        """Return number, activation and checksum of the next batch; None if there is nobody.

        Who is there is waited for: synthetic inputs are for the time in which nobody is.
        """
        del wait
        try:
            self._renew()
            if self._link is None:
                return None
            come = self._link.receive_next(wait=True)
        except _LOST:
            self._lose()
            return None
        if come is not None:
            self._due.append(come[0])
            self._send_answers()
        return come

    def draw(self) -> bool:
        """Return whether the message of the next batch will be sent."""
        return self._link is not None and self._link.draw()

    def answer(
        self,
        step: int,
        gradient: Tensor | None = None,
        loss: Tensor | None = None,
        output_error: Tensor | None = None,
        busy_s: float = 0.0,
    ) -> None:
        """Answer a batch, if there is somebody who waits for it; see `BelowLink.answer`."""
        self._answered = max(self._answered, step)
        if self._link is None:
            return
        self._held[step] = (gradient, loss, output_error), busy_s
        while len(self._held) > _MOST_HELD:
            del self._held[min(self._held)]
        self._send_answers()

    def _send_answers(self) -> None:
        """Answer what has come, up to the newest batch of this stage: what it has not trained on by a header alone."""
        if self._link is None:
            return
        try:
            while self._due and self._due[0] <= self._answered:
                step = self._due.popleft()
                tensors, busy_s = self._held.pop(step, ((None, None, None), 0.0))
                self._link.answer(step, *tensors, busy_s=busy_s)
                gradient = tensors[0]
                size = 0 if gradient is None else gradient.numel() * gradient.element_size()
                self.copies.sent.send_part(self._link.outgoing, size)
        except _LOST:
            self._lose()

    def fetch(self) -> KeptCopy | None:
        """Return what the stage below keeps of this one, as far as it has come; None as long as nobody is there."""
        self._peeked()
        return None if self._link is None else self.copies.returned

    def _peeked(self) -> Parcel | None:
        try:
            self._renew()
            if self._link is None:
                return None
            inbox = self._link.inbox
            assert isinstance(inbox, PatientInbox)
            parcel = inbox.peek()
            if parcel is None and self._crossing.is_void():
                raise LinkLost
        except _LOST:
            self._lose()
            return None
        return parcel

    def _renew(self) -> None:
        if self._link is None and self.comes():
            made, self._next = self._next, None
            assert made is not None
            self._link = self._make(made)
            try:
                self.copies.begin(self._link.outgoing)
            except _LOST:
                self._lose()

    def _lose(self) -> None:
        assert self._link is not None
        self._remember(self._link)
        self._link = None
        self._due.clear()
        self._held.clear()
        self._crossing.give_up()
        self.on_loss()
