"""Connects the stages: after the handshake it creates lines, links and windows."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ...core import ConfigError, Rule, StageError
from .coordinator import Coordinator
from .handshake import handshake
from .inbox import Inbox
from .layout import RankLayout
from .links import AboveLink, BelowLink
from .settings import StageSettings
from .transport import Line, Lines
from .window import Window
from .wire import Incoming, Outgoing, ParcelKind, ParcelSlot

__all__ = ["StageLinks", "agreed_facts", "connect", "travelling_slots"]


@dataclass(slots=True)
class StageLinks:
    """The links of a stage to its neighbours.

    Attributes:
        layout: the place of this process.
        lines: the lines to its neighbours.
        coordinator: the coordinator of all ranks.
        device: the device of this stage.
        below, above: the links; None if there is no neighbour.
        window: the window for answers from above.
        round_trip_s: the round trip to the stage above, in seconds.
        timeout_s: how long to wait for another stage, in seconds.
        is_closed: whether this process is disconnected from the others.
    """

    layout: RankLayout
    lines: Lines
    coordinator: Coordinator
    device: torch.device
    below: BelowLink | None
    above: AboveLink | None
    window: Window
    round_trip_s: float
    timeout_s: float
    is_closed: bool = False

    @property
    def links(self) -> list[AboveLink | BelowLink]:
        """The links that exist."""
        return [link for link in (self.above, self.below) if link is not None]

    @contextmanager
    def guarded(self, forget: Callable[[], None] = lambda: None) -> Generator[None]:
        """Return a context that stops all stages if something fails, and raises the cause.

        Args:
            forget: called if something has failed.

        Raises:
            StageError: for a failure of another process, or of the network.
        """
        try:
            self.coordinator.alarm.check()
            yield
        except BaseException as error:
            cause = self.coordinator.alarm.explain(error, self.timeout_s)
            forget()
            self.fail(cause)
            if cause is error:
                raise
            raise cause from None  # the error of the transport is about its internals, and a page long

    def close(self, num_batches: int) -> None:
        """Disconnect in order: tell both neighbours that nothing will follow, and wait for the same from
        them.

        Args:
            num_batches: the number of batches that this stage has processed; the neighbours must have
                processed as many.
        """
        for link in self.links:
            link.outgoing.send(ParcelKind.END, num_batches)
        for link in self.links:
            link.outgoing.sender.flush()
            link.inbox.wait_for_end(num_batches)
            link.incoming.receiver.join(self.timeout_s)
        # A connection must not be closed before the neighbour has read what was sent last.
        layout, peers = self.layout, self.coordinator
        peers.publish(f"ended/{peers.transport.rank}", True)
        for stage in (layout.stage - 1, layout.stage + 1):
            if 0 <= stage < layout.num_stages:
                peers.wait_for(f"ended/{layout.rank(stage)}", layout.rank(stage), self.timeout_s)
        self._disconnect()

    def fail_at_exit(self) -> None:
        """Tell the others, at the end of a program that has not closed its engine, why it ends."""
        error = getattr(sys, "last_value", None)
        self.fail(StageError("its program has ended without close()") if error is None else error)

    def fail(self, error: BaseException) -> None:
        """Tell the others why this process stops, and disconnect. May be called twice."""
        if not self.is_closed:
            self.coordinator.alarm.ring(error)
            self._disconnect()

    def _disconnect(self) -> None:
        """Release everything that connects this process: threads, groups, connections."""
        self.is_closed = True
        atexit.unregister(self.fail_at_exit)
        self.lines.close()
        self.coordinator.peers.leave()

    def drain(self) -> None:
        """Receive everything that is on its way to this process, so that a state can be saved.

        Blocks; all must call it between the same two steps. What was received is kept, and the next steps use
        it before anything that comes later.

        Raises:
            StageError: if another process has stopped, or does something else.
        """
        for link in self.links:
            link.outgoing.send(ParcelKind.MARK, 0)
        for link in self.links:
            link.inbox.drain()

    def advanced(self, step: int) -> None:
        """Do nothing: the neighbours see by what they receive how far this stage is."""

    def next_number(self, step: int, *, synthetic: bool) -> int | None:
        """Return the number of the next batch, which is the one that follows the last."""
        return step

    def begin_at(self, step: int) -> None:
        """Set the number of the first batch, before anything has been sent."""
        if self.above is not None:
            self.above.begin_at(step)

    def state_dict(self) -> dict[str, Any]:
        """Return what was on its way to this process, and the progress of its links.

        To be called after `drain`.
        """
        return {
            "stage": (self.layout.stage, self.layout.num_stages),
            "above": None if self.above is None else self.above.state_dict(),
            "below": None if self.below is None else self.below.state_dict(),
            "window": self.window.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state that `state_dict` returned; to be called before the first step.

        Raises:
            ConfigError: if it is the state of another stage.
        """
        self.layout.check_saved(*state["stage"])
        for name, link in (("above", self.above), ("below", self.below)):
            if link is not None:
                link.load_state_dict(state[name], self.device)
        self.window.load_state_dict(state["window"])

    @property
    def waited_s(self) -> float:
        """The time spent waiting for others so far, in seconds."""
        return sum(link.waited_s for link in self.links)

    @property
    def sent_bytes(self) -> int:
        """The number of bytes that this process has sent so far."""
        return self.sent_up_bytes + self.sent_down_bytes

    @property
    def sent_up_bytes(self) -> int:
        """The number of bytes that this process has sent to the stage above so far."""
        return 0 if self.above is None else self.above.outgoing.sent_bytes

    @property
    def sent_down_bytes(self) -> int:
        """The number of bytes that this process has sent to the stage below so far."""
        return 0 if self.below is None else self.below.outgoing.sent_bytes


def connect(
    coordinator: Coordinator,
    layout: RankLayout,
    crossings: Sequence[ParcelSlot],
    rule: Rule | None,
    settings: StageSettings,
    same: Mapping[str, Any],
    device: torch.device,
    inputs: Sequence[ParcelSlot] = (),
    *,
    monitored: bool = False,
    output: ParcelSlot | None = None,
    around: bool = False,
) -> StageLinks:
    """Run the handshake, create the lines, measure them, and start to receive.

    Blocks until all have called it.

    Args:
        coordinator: the coordinator of all ranks.
        layout: the place of this process.
        crossings: the slot of the message at each cut.
        rule: the rule at the end of this stage; None for the last.
        settings: how stages communicate.
        same: what else must be equal everywhere, as JSON values.
        device: the device of this stage.
        inputs: the slots of the network's inputs, if these are sent along.
        monitored: whether the credits at the end of this stage are measured; then answers are needed whatever
            the rule.
        output: the slot of the output error, if it is sent down with the messages.
        around: whether the first stage and the last one have a line of their own.
    """
    settings.check()
    facts = {
        "same": agreed_facts(layout, crossings, settings, same, inputs, output),
        "listens": rule is not None and (rule.listens or rule.waits or rule.corrects or monitored),
        "holds": rule is not None and ((rule.waits and not rule.sends_ahead) or rule.corrects),
        "window": settings.window,
    }
    lines: Lines | None = None
    alarm = coordinator.alarm
    try:
        all_facts = handshake(coordinator, facts, settings.timeout_s)
        stages = [all_facts[k * layout.num_replicas + layout.replica] for k in range(layout.num_stages)]
        limit = coordinator.wait_limit(settings.timeout_s, layout.rank(layout.stage))
        lines = coordinator.transport.lines(layout, device, limit, around=around)
        round_trip_s = lines.round_trip_s()
        travels = crossings, inputs, output
        below, above = _links(coordinator, layout, lines, travels, settings, stages, device)
        for link in (below, above):
            if link is not None:
                link.incoming.receiver.start()
    except BaseException as error:
        cause = alarm.explain(error, settings.timeout_s)
        if not isinstance(cause, ConfigError):  # all processes find a ConfigError by themselves
            alarm.ring(cause)
        if lines is not None:
            lines.close()
        coordinator.peers.leave()
        if cause is error:
            raise
        raise cause from None
    window = Window(_window(layout.stage, stages), round_trip_s)
    links = StageLinks(
        layout, lines, coordinator, device, below, above, window, round_trip_s, settings.timeout_s
    )
    # A thread that is still waiting when the interpreter shuts down would crash the process.
    atexit.register(links.fail_at_exit)
    return links


def agreed_facts(
    layout: RankLayout,
    crossings: Sequence[ParcelSlot],
    settings: StageSettings,
    same: Mapping[str, Any],
    inputs: Sequence[ParcelSlot],
    output: ParcelSlot | None,
) -> dict[str, Any]:
    """Return what must be equal in all processes, as JSON values; see `connect` for the arguments."""
    target = settings.target
    return {
        **same,
        "stages": layout.num_stages,
        "replicas": layout.num_replicas,
        "what crosses": [str(slot) for slot in crossings],
        "inputs that travel": [str(slot) for slot in inputs],
        "output error": None if output is None else str(output),
        "wire_dtype": str(settings.wire_dtype),
        "codec": None if settings.codec is None else settings.codec.name,
        "message_codec": None if settings.message_codec is None else settings.message_codec.name,
        "observe_prob": settings.observe_prob,
        "observe_rows": settings.observe_rows,
        "deterministic": settings.deterministic,
        "seed": settings.seed,
        "targets that travel": None if target is None else f"{tuple(target.shape[1:])} {target.dtype}",
        "window": settings.window,
        "timeout_s": settings.timeout_s,
        "on_loss": settings.on_loss,
    }


def _window(stage: int, stages: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the window of a stage.

    If the stages above hold back their answers until their own have come, their windows are added.
    """
    if stages[stage]["window"] is None:
        return None
    total = int(stages[stage]["window"])
    for above in stages[stage + 1 :]:
        if not above["holds"]:
            break
        total += int(above["window"])
    return total


def _links(
    coordinator: Coordinator,
    layout: RankLayout,
    lines: Lines,
    travels: tuple[Sequence[ParcelSlot], Sequence[ParcelSlot], ParcelSlot | None],
    settings: StageSettings,
    stages: Sequence[Mapping[str, Any]],
    device: torch.device,
) -> tuple[BelowLink | None, AboveLink | None]:
    """Create the links to the stages below and above; None where there is none."""

    def ends(
        line: Line, out: Sequence[ParcelSlot], back: Sequence[ParcelSlot], stage: int, name: str
    ) -> tuple[Outgoing, Incoming, Inbox]:
        incoming = Incoming(line, back, device, name)
        inbox = Inbox(incoming, layout.rank(stage), coordinator, settings.timeout_s)
        return Outgoing(line.sender(), out), incoming, inbox

    k, below, above = layout.stage, None, None
    if lines.below is not None:
        up, down = travelling_slots(travels[0][k - 1], *travels[1:], settings)
        below = BelowLink(
            *ends(lines.below, down, up, k - 1, f"the link from stage {k - 1} to stage {k}"),
            wanted=stages[k - 1]["listens"],
            observe_prob=settings.observe_prob,
            seed=settings.seed * 1_000_003 + coordinator.transport.rank,
            sends_output_error=travels[2] is not None,
        )
    if lines.above is not None:
        up, down = travelling_slots(travels[0][k], *travels[1:], settings)
        name = f"the link from stage {k + 1} back to stage {k}"
        above = AboveLink(*ends(lines.above, up, down, k + 1, name))
    return below, above


def travelling_slots(
    crossing: ParcelSlot, inputs: Sequence[ParcelSlot], output: ParcelSlot | None, settings: StageSettings
) -> tuple[list[ParcelSlot], list[ParcelSlot]]:
    """Return the slots of parcels upwards, and of parcels downwards."""
    activation = ParcelSlot(crossing.shape, crossing.dtype, settings.wire)
    message = ParcelSlot(crossing.shape, crossing.dtype, settings.message_wire)
    target = settings.target
    labels = ParcelSlot(
        () if target is None else (None,) * (target.ndim - 1), torch.int64 if target is None else target.dtype
    )
    errors = [] if output is None else [output]
    return [activation, labels, *inputs], [message, ParcelSlot((), crossing.dtype), *errors]
