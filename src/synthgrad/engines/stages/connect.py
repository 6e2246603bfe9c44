"""Sets up a stage's links once all processes agree: formats, lines, windows."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...core import ConfigError, Rule
from .agree import agree
from .codecs import Codec, cast
from .inbox import Inbox
from .layout import Layout
from .links import AboveLink, BelowLink
from .meeting import Meeting
from .transport import Line, Lines
from .window import Window
from .wire import Incoming, Kind, Outgoing, Slot

__all__ = ["Connected", "Settings", "connect"]

#: Between the first stage that fails and the last that has noticed, in seconds.
_PARTING_S = 10.0


@dataclass(frozen=True, slots=True)
class Settings:
    """How stages talk.

    Attributes:
        window: steps that an answer may be late; None to follow the link.
        exact: lags are counted in steps: the answer of step ``t − window`` is taken in step ``t``.
        observe_prob: share of the true messages that are sent.
        wire_dtype: of activations and messages on the wire; None for that of the network, or where a codec is given.
        target: a batch of targets, where these travel with the activations; None where each process gives its own.
        timeout_s: how long a stage waits for another, in seconds.
        seed: of the draws for ``observe_prob``.
        codec: what activations and messages are on the wire; None for what ``wire_dtype`` says.
    """

    window: int | None = None
    exact: bool = False
    observe_prob: float = 1.0
    wire_dtype: torch.dtype | None = None
    target: Tensor | None = None
    timeout_s: float = 300.0
    seed: int = 0
    codec: Codec | None = None

    @property
    def wire(self) -> Codec | None:
        """What activations and messages are on the wire; None for as they are."""
        return self.codec if self.wire_dtype is None else cast(self.wire_dtype)

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            ConfigError: naming the setting.
        """
        if self.window is not None and self.window < 0:
            raise ConfigError(
                f"window={self.window}: expected a number of steps from 0, or None to follow the link"
            )
        if self.exact and self.window is None:
            raise ConfigError(
                "deterministic=True needs a window: lags are counted in steps then, so say how many, as in window=2"
            )
        if not 0 <= self.observe_prob <= 1:
            raise ConfigError(f"observe_prob={self.observe_prob}: expected a probability from 0 to 1")
        if self.wire_dtype not in (None, torch.float32, torch.bfloat16, torch.float64):
            raise ConfigError(
                f"wire_dtype={self.wire_dtype}: expected torch.float32, torch.bfloat16, or None for that of the network"
            )
        if self.codec is not None and self.wire_dtype is not None:
            raise ConfigError(
                f"wire_dtype={self.wire_dtype} is the short form of a codec, and codec='{self.codec.name}' was given too: "
                "give one of them"
            )
        if not self.timeout_s > 0:
            raise ConfigError(f"timeout_s={self.timeout_s}: expected seconds over 0")


@dataclass(slots=True)
class Connected:
    """A stage's links, and what came out of setting them up.

    Attributes:
        layout: the place of this process.
        lines: to its neighbours.
        meeting: of all.
        device: of this stage.
        below, above: the links.
        window: of the answers from above.
        round_trip_s: to the stage above, in seconds.
    """

    layout: Layout
    lines: Lines
    meeting: Meeting
    device: torch.device
    below: BelowLink | None
    above: AboveLink | None
    window: Window
    round_trip_s: float

    @property
    def links(self) -> list[AboveLink | BelowLink]:
        """The links that there are."""
        return [link for link in (self.above, self.below) if link is not None]

    def end(self) -> None:
        """Part in order: tell both neighbours that nothing will follow, and wait until they have told the same."""
        for link in self.links:
            link.outgoing.send(Kind.END, 0)
        for link in self.links:
            link.outgoing.sender.flush()
            link.inbox.end()
            link.incoming.receiver.join(_PARTING_S)
        atexit.unregister(self.leave)

    def leave(self) -> None:
        """At the end of a program that has not closed its engine: tell the others, if it ends by an error."""
        error = getattr(sys, "last_value", None)
        if error is None:
            self.abort()
        else:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Tell the others why this process stops, and part."""
        self.meeting.alarm.ring(error)
        self.abort()

    def abort(self) -> None:
        """Part after a failure: tell the neighbours that nothing will follow, so that no thread is left waiting.

        A receive that gloo has begun ends with its message or with its peer, whatever is destroyed here: so all
        stages say goodbye, and each thread ends when its neighbour has said it, or is gone.
        """
        atexit.unregister(self.leave)
        for link in self.links:
            with suppress(RuntimeError):  # the neighbour may be gone
                link.outgoing.send(Kind.END, 0)
        for link in self.links:
            link.incoming.receiver.join(_PARTING_S)

    def settle(self) -> None:
        """Empty the wires into this process, so that a state can be saved. Blocks; all must call it between two steps.

        What was under way is kept, and taken by the next steps before anything that comes later.

        Raises:
            StageError: if another process has stopped, or does something else.
        """
        for link in self.links:
            link.outgoing.send(Kind.MARK, 0)
        for link in self.links:
            link.inbox.settle()

    def state_dict(self) -> dict[str, Any]:
        """Return what was under way to this process, and how far its links have come. To be called after `settle`."""
        return {
            "stage": (self.layout.stage, self.layout.num_stages),
            "above": None if self.above is None else self.above.state_dict(),
            "below": None if self.below is None else self.below.state_dict(),
            "window": self.window.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; to be called before the first step.

        Raises:
            ConfigError: if it is that of another stage.
        """
        theirs, of = state["stage"]
        if (theirs, of) != (self.layout.stage, self.layout.num_stages):
            raise ConfigError(
                f"stage {self.layout.stage} of {self.layout.num_stages} was given the state of stage {theirs} of {of}: "
                "every process must load what it has saved"
            )
        for name, link in (("above", self.above), ("below", self.below)):
            if link is not None:
                link.load_state_dict(state[name], self.device)
        self.window.load_state_dict(state["window"])

    @property
    def waited_s(self) -> float:
        """Time spent waiting for others so far, in seconds."""
        return sum(link.waited_s for link in self.links)

    @property
    def sent_bytes(self) -> int:
        """What this process has sent so far, in bytes."""
        return sum(link.outgoing.sent_bytes for link in self.links)


def connect(
    meeting: Meeting,
    layout: Layout,
    crossings: Sequence[Slot],
    rule: Rule | None,
    settings: Settings,
    same: Mapping[str, Any],
    device: torch.device,
    inputs: Sequence[Slot] = (),
    *,
    monitored: bool = False,
) -> Connected:
    """Agree with all others, make the lines, measure them, begin to receive. Blocks until all have called it.

    Args:
        meeting: of all.
        layout: the place of this process.
        crossings: what crosses each cut.
        rule: at the end of this stage; None for the last.
        settings: how stages talk.
        same: what else must be equal everywhere, as JSON values.
        device: of this stage.
        inputs: of the network, where they travel along.
        monitored: are the credits at the end of this stage measured, so that answers are wanted whatever the rule?
    """
    settings.check()
    target = settings.target
    facts = {
        "same": {
            **same,
            "stages": layout.num_stages,
            "replicas": layout.num_replicas,
            "what crosses": [str(slot) for slot in crossings],
            "inputs that travel": [str(slot) for slot in inputs],
            "wire_dtype": str(settings.wire_dtype),
            "codec": None if settings.codec is None else settings.codec.name,
            "observe_prob": settings.observe_prob,
            "deterministic": settings.exact,
            "seed": settings.seed,
            "targets that travel": None if target is None else f"{tuple(target.shape[1:])} {target.dtype}",
        },
        "listens": rule is not None and (rule.listens or rule.waits or monitored),
        "waits": rule is not None and rule.waits,
        "window": settings.window,
    }
    all_facts = agree(meeting, facts, settings.timeout_s)
    stages = [all_facts[k * layout.num_replicas + layout.replica] for k in range(layout.num_stages)]
    lines = meeting.transport.lines(layout, device)
    round_trip_s = lines.round_trip_s()
    below, above = _links(meeting, layout, lines, (crossings, inputs), settings, stages, device)
    window = Window(_window(layout.stage, stages), round_trip_s)
    for link in (below, above):
        if link is not None:
            link.incoming.receiver.start()
    connected = Connected(layout, lines, meeting, device, below, above, window, round_trip_s)
    # A thread that still waits when the interpreter goes would take the process down with it.
    atexit.register(connected.leave)
    return connected


def _window(stage: int, stages: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the window of a stage. Where those above wait for their answers, theirs come on top."""
    if stages[stage]["window"] is None:
        return None
    total = int(stages[stage]["window"])
    for above in stages[stage + 1 :]:
        if not above["waits"]:
            break
        total += int(above["window"])
    return total


def _links(
    meeting: Meeting,
    layout: Layout,
    lines: Lines,
    travels: tuple[Sequence[Slot], Sequence[Slot]],
    settings: Settings,
    stages: Sequence[Mapping[str, Any]],
    device: torch.device,
) -> tuple[BelowLink | None, AboveLink | None]:
    def ends(
        line: Line, out: Sequence[Slot], back: Sequence[Slot], name: str
    ) -> tuple[Outgoing, Incoming, Inbox]:
        incoming = Incoming(line, back, device, name)
        inbox = Inbox(incoming, meeting.alarm, meeting.transport.clock, settings.timeout_s)
        return Outgoing(line.sender(), out), incoming, inbox

    k, below, above = layout.stage, None, None
    if lines.below is not None:
        up, down = _slots(travels[0][k - 1], travels[1], settings)
        below = BelowLink(
            *ends(lines.below, down, up, f"the link from stage {k - 1} to stage {k}"),
            wanted=stages[k - 1]["listens"],
            observe_prob=settings.observe_prob,
            seed=settings.seed * 1_000_003 + meeting.transport.rank,
        )
    if lines.above is not None:
        up, down = _slots(travels[0][k], travels[1], settings)
        above = AboveLink(*ends(lines.above, up, down, f"the link from stage {k + 1} back to stage {k}"))
    return below, above


def _slots(crossing: Slot, inputs: Sequence[Slot], settings: Settings) -> tuple[list[Slot], list[Slot]]:
    """Return what may cross a link upwards, and downwards."""
    message = Slot(crossing.shape, crossing.dtype, settings.wire)
    target = settings.target
    labels = Slot(
        () if target is None else (None,) * (target.ndim - 1), torch.int64 if target is None else target.dtype
    )
    return [message, labels, *inputs], [message, Slot((), crossing.dtype)]
