"""Connects a stage to neighbours that may die and come back; the counterpart of ``connect.py``."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...core import Rule, StageError
from .connect import agreed_facts, travelling_slots
from .coordinator import greeting
from .copies import COPY_SLOT, KeptCopy
from .elastic_links import POLL_S, Copies, ElasticAbove, ElasticBelow, PatientInbox
from .layout import RankLayout
from .links import AboveLink, BelowLink
from .settings import StageSettings
from .transport import Clock, Line
from .transport.elastic import Crossing, ElasticTransport, MadeLine, Membership
from .window import Window
from .wire import Incoming, Outgoing, ParcelSlot

__all__ = ["ElasticLinks", "connect_elastic"]

#: How far a stage that has lost time goes beyond what it knows of the one above, which goes on meanwhile, in batches.
_AHEAD = 8


@dataclass(frozen=True, slots=True)
class _NoLines:
    """What an engine asks of lines that concern more than two neighbours: there are none."""

    replicas: None = None
    around: None = None


@dataclass(slots=True)
class ElasticLinks:
    """The links of a stage to neighbours that may be gone; see `StageLinks`, which has the same methods.

    Attributes:
        layout: the place of this process.
        membership: what is known of the other stages.
        crossings: where the lines are made.
        below, above: the links; None if there is no such neighbour.
        window: the window for answers from above.
        clock: the clock of this process.
        patience_s: how long to wait for a neighbour that was there before, in seconds.
        timeout_s: how long to wait for one that has never come, in seconds.
        lines: none that concern others than neighbours.
        is_closed: whether this process is disconnected from the others.
        has_begun: whether it has looked for its neighbours.
    """

    layout: RankLayout
    membership: Membership
    crossings: Sequence[Crossing]
    below: ElasticBelow | None
    above: ElasticAbove | None
    window: Window
    clock: Clock
    patience_s: float
    timeout_s: float
    lines: _NoLines = _NoLines()
    is_closed: bool = False
    has_begun: bool = False

    @contextmanager
    def guarded(self, forget: Callable[[], None] = lambda: None) -> Generator[None]:
        """Return a context that disconnects this stage if something fails; the others go on without it."""
        try:
            if self.membership.is_replaced:
                raise StageError(
                    f"another process has taken the place of stage {self.layout.stage} while this one was frozen or cut off; end "
                    "this one: the other goes on"
                )
            yield
        except BaseException as error:
            forget()
            self.fail(error)
            raise

    def advanced(self, step: int) -> None:
        """Tell the others how many steps this stage has made."""
        self.membership.announce(step)

    def next_number(self, step: int, *, synthetic: bool) -> int | None:
        """Return the number of the next batch; None if the stage below has ended.

        Args:
            step: the number that follows the last one.
            synthetic: whether this stage has synthetic inputs, and waits for nobody.

        Raises:
            StageError: if the stage below is gone for too long.
        """
        first, self.has_begun = not self.has_begun, True
        if first:
            self._await_neighbours()
        if self.below is None or synthetic:
            return self._not_behind(max(step, self._step_of_others()) if first else step)
        return self.below.next_number()

    def _not_behind(self, step: int) -> int:
        """Return the number itself, or a later one if the stage above has passed it: this stage has lost time.

        Whoever is above and in touch, has trained on what this stage has sent. It will find this stage a little ahead, and
        follow.
        """
        if self.above is None:
            return step
        passed = self.membership.member(self.layout.stage + 1).step
        return step if passed <= step else passed + _AHEAD

    def _await_neighbours(self) -> None:
        """Wait for the neighbours for the first time: who goes on alone, has been with them before.

        And until each says that all stages on its side are there: so a pipeline begins with batch 0 everywhere.
        """
        start, k = self.clock.now(), self.layout.stage

        def has_met(link: ElasticAbove | ElasticBelow | None, stage: int) -> bool:
            if link is None:
                return True
            them, is_above = self.membership.member(stage), stage > k
            if link.comes() and them.met[0 if is_above else 1]:
                return True
            # At the beginning of a run all come at about the same time. Later a neighbour may be dead.
            is_later = max(them.life, self.membership.life) > 1 or them.silent_s > self.patience_s
            patience_s = self.patience_s if them.life and is_later else self.timeout_s
            return self.clock.now() - start > patience_s

        met = False, False
        while not all(met):
            met = has_met(self.above, k + 1), has_met(self.below, k - 1)
            self.membership.meet(*met)
            if not all(met):
                self.clock.sleep(POLL_S)

    def _step_of_others(self) -> int:
        """Return the number of the batch that follows those of the neighbours, where a process comes late."""
        near = [k for k in (self.layout.stage - 1, self.layout.stage + 1) if 0 <= k < self.layout.num_stages]
        return max((self.membership.member(k).step for k in near), default=0)

    @property
    def keeper(self) -> ElasticAbove | ElasticBelow:
        """The link to the neighbour that keeps a copy of this stage: the one above, or of the last stage the one below."""
        found = self.below if self.above is None else self.above
        assert found is not None, "there are two stages or more"
        return found

    def fetched(self, timeout_s: float) -> KeptCopy | None:
        """Return the copy of this stage that a neighbour keeps; None if there is none, or nobody comes in time."""
        start = self.clock.now()
        while self.clock.now() - start < timeout_s:
            found = self.keeper.fetch()
            if found is not None and found.data is not None:
                return found
            if found is not None and found.nothing_came:
                return None
            self.clock.sleep(POLL_S)
        return None

    def weights_of_neighbours(self, timeout_s: float) -> list[KeptCopy]:
        """Ask the neighbours for their weights; return what has come in time."""
        start, near = self.clock.now(), [link for link in (self.below, self.above) if link is not None]
        while any(not link.copies.weights.has_ended for link in near):
            if self.clock.now() - start > timeout_s:
                break
            for link in near:
                link.ask()
            self.clock.sleep(POLL_S)
        return [link.copies.weights for link in near if link.copies.weights.data is not None]

    def offer(self, own_weights: Callable[[], tuple[int, Tensor]]) -> None:
        """Say what is sent to a neighbour that asks for the weights of this stage."""
        for link in (self.below, self.above):
            if link is not None:
                link.copies.own_weights = own_weights

    def close(self, num_batches: int) -> None:
        """Tell the neighbours that nothing will follow, and disconnect.

        Waits until the stage above has trained on what it was sent, as long as it is there.
        """
        for link in (self.above, self.below):
            if link is not None:
                link.end(num_batches)
        self._let_read(num_batches)
        self.membership.leave()
        self._disconnect()

    def _let_read(self, num_batches: int) -> None:
        start = self.clock.now()
        while self.above is not None and self.above.is_there and self.clock.now() - start < self.timeout_s:
            member = self.membership.member(self.layout.stage + 1)
            if member.has_ended or member.step >= num_batches or member.silent_s > self.patience_s:
                return
            self.clock.sleep(POLL_S)
            self.above.look()

    def fail(self, error: BaseException) -> None:
        """Disconnect; the neighbours find out that this process is gone. May be called twice."""
        if not self.is_closed:
            self._disconnect()

    def fail_at_exit(self) -> None:
        """Disconnect at the end of a program that has not closed its engine."""
        self.fail(RuntimeError())

    def drain(self) -> None:
        """Do nothing: what is under way is no part of the state."""

    def begin_at(self, step: int) -> None:
        """Do nothing: every line begins with the batch that is sent first."""

    def state_dict(self) -> dict[str, Any]:
        """Return which stage this is, and what its window has found."""
        return {
            "stage": (self.layout.stage, self.layout.num_stages),
            "window": self.window.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state that `state_dict` returned.

        Raises:
            ConfigError: if it is the state of another stage.
        """
        self.layout.check_saved(*state["stage"])
        self.window.load_state_dict(state["window"])

    def _disconnect(self) -> None:
        self.is_closed = True
        atexit.unregister(self.fail_at_exit)
        for crossing in self.crossings:
            crossing.close()
        self.membership.stop()

    @property
    def waited_s(self) -> float:
        """The time spent waiting for others so far, in seconds."""
        return sum(link.waited_s for link in (self.above, self.below) if link is not None)

    @property
    def sent_bytes(self) -> int:
        """The number of bytes that this process has sent so far."""
        return self.sent_up_bytes + self.sent_down_bytes

    @property
    def sent_up_bytes(self) -> int:
        """The number of bytes that this process has sent to the stage above so far."""
        return 0 if self.above is None else self.above.sent_bytes

    @property
    def sent_down_bytes(self) -> int:
        """The number of bytes that this process has sent to the stage below so far."""
        return 0 if self.below is None else self.below.sent_bytes

    @property
    def round_trip_s(self) -> float:
        """The round trip to the stage above as it was measured last, in seconds; 0 for the last stage."""
        return self.window.round_trip_s


def connect_elastic(
    transport: ElasticTransport,
    layout: RankLayout,
    crossings: Sequence[ParcelSlot],
    rules: Sequence[Rule],
    settings: StageSettings,
    same: Mapping[str, Any],
    device: torch.device,
    inputs: Sequence[ParcelSlot] = (),
    *,
    output: ParcelSlot | None = None,
    synthetic: bool = False,
) -> ElasticLinks:
    """Take the place of a stage, and begin to make lines to its neighbours. Waits for none of them.

    Args:
        transport: how the neighbours are reached.
        layout: the place of this process.
        crossings: the slot of the message at each cut.
        rules: the rule at each cut.
        settings: how stages communicate.
        same: what else must be equal everywhere, as JSON values.
        device: the device of this stage.
        inputs: the slots of the network's inputs, if these are sent along.
        output: the slot of the output error, if it is sent down with the messages.
        synthetic: whether this stage has synthetic inputs for the time in which there is no stage below.
    """
    settings.check()
    patience_s, clock = settings.patience_s, transport.clock
    membership = transport.join(greeting(), agreed_facts(layout, crossings, settings, same, inputs, output))
    window = Window(settings.window)
    made_at: list[Crossing] = []
    below: ElasticBelow | None = None
    above: ElasticAbove | None = None

    def ends(
        line: Line,
        crossing: Crossing,
        out: Sequence[ParcelSlot],
        back: Sequence[ParcelSlot],
        name: str,
        patience_s: float | None,
        copies: Copies,
    ) -> tuple[Outgoing, Incoming, PatientInbox]:
        incoming = Incoming(line, [*back, COPY_SLOT], device, name)
        inbox = PatientInbox(incoming, crossing, clock, patience_s, copies)
        return Outgoing(line.sender(), [*out, COPY_SLOT]), incoming, inbox

    def copies_of(link: ElasticAbove | ElasticBelow | None) -> Copies:
        assert link is not None, "a line is made for a link that there is"
        return link.copies

    k = layout.stage
    # A neighbour that keeps this stage waiting may wait for another itself: who is further from that, has more patience. One
    # that gives no sign of life at all is gone after the patience alone.
    if not layout.is_first:
        from_below = transport.crossing(k - 1, device, patience_s)
        made_at.append(from_below)
        up, down = travelling_slots(crossings[k - 1], inputs, output, settings)

        def make_below(made: MadeLine) -> BelowLink:
            name = f"the link from stage {k - 1} to stage {k}"
            link = BelowLink(
                # Without synthetic inputs there is nothing to do but to wait.
                *ends(
                    made.line,
                    from_below,
                    down,
                    up,
                    name,
                    patience_s * k if synthetic else None,
                    copies_of(below),
                ),
                wanted=rules[k - 1].listens or rules[k - 1].corrects,
                observe_prob=settings.observe_prob,
                seed=settings.seed * 1_000_003 + k,
                sends_output_error=output is not None,
            )
            link.incoming.receiver.start()
            return link

        below = ElasticBelow(
            from_below,
            make_below,
            lambda: membership.member(k - 1).has_ended,
            lambda: membership.problem,
            clock,
            settings.timeout_s,
            f"stage {k - 1}",
            lambda: membership.member(k - 1).life,
            settings.copy_share if layout.is_last else 0.0,
            sends_output_error=output is not None,
        )
    if not layout.is_last:
        to_above = transport.crossing(k + 1, device, patience_s)
        made_at.append(to_above)
        up_above, down_above = travelling_slots(crossings[k], inputs, output, settings)

        def make_above(made: MadeLine) -> AboveLink:
            name = f"the link from stage {k + 1} back to stage {k}"
            up_to_s = patience_s * (layout.num_stages - 1 - k)
            inbox_of = ends(made.line, to_above, up_above, down_above, name, up_to_s, copies_of(above))
            link = AboveLink(*inbox_of)
            link.incoming.receiver.start()
            return link

        above = ElasticAbove(
            to_above,
            make_above,
            window,
            settings.settle_steps,
            lambda: membership.member(k + 1).life,
            settings.copy_share,
        )
    links = ElasticLinks(
        layout, membership, made_at, below, above, window, clock, patience_s, settings.timeout_s
    )
    atexit.register(links.fail_at_exit)
    return links
