"""Sets up a stage's links once all processes agree: formats, threads, windows."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store

from ...core import ConfigError, Rule
from .agree import agree, round_trips
from .alarm import Alarm
from .layout import Groups, Layout, make_groups
from .links import AboveLink, BelowLink
from .window import Window
from .wire import Incoming, Kind, Outgoing, Slot

__all__ = ["Connected", "Settings", "alarm_of", "connect", "default_store"]

_instances = 0

#: Between the first stage that fails and the last that has noticed, in seconds.
_PARTING_S = 10.0


@dataclass(frozen=True, slots=True)
class Settings:
    """How stages talk.

    Attributes:
        window: steps that an answer may be late; None to follow the link.
        exact: lags are counted in steps: the answer of step ``t − window`` is taken in step ``t``.
        observe_prob: share of the true messages that are sent.
        wire_dtype: of activations and messages on the wire; None for that of the network.
        target: a batch of targets, where these travel with the activations; None where each process gives its own.
        timeout_s: how long a stage waits for another, in seconds.
        seed: of the draws for ``observe_prob``.
    """

    window: int | None = None
    exact: bool = False
    observe_prob: float = 1.0
    wire_dtype: torch.dtype | None = None
    target: Tensor | None = None
    timeout_s: float = 300.0
    seed: int = 0

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
        if not self.timeout_s > 0:
            raise ConfigError(f"timeout_s={self.timeout_s}: expected seconds over 0")


@dataclass(slots=True)
class Connected:
    """A stage's links, and what came out of setting them up.

    Attributes:
        layout: the place of this process.
        groups: over which it talks.
        alarm: rung when a process fails.
        below, above: the links.
        window: of the answers from above.
        round_trip_s: to the stage above, in seconds.
    """

    layout: Layout
    groups: Groups
    alarm: Alarm
    below: BelowLink | None
    above: AboveLink | None
    window: Window
    round_trip_s: float

    def end(self) -> None:
        """Part in order: tell both neighbours that nothing will follow, and wait until they have told the same."""
        ways = [link for link in (self.above, self.below) if link is not None]
        for link in ways:
            link.outgoing.send(Kind.END, 0)
        for link in ways:
            link.outgoing.flush()
            link.end()
            link.incoming.join(_PARTING_S)
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
        self.alarm.ring(error)
        self.abort()

    def abort(self) -> None:
        """Part after a failure: tell the neighbours that nothing will follow, so that no thread is left waiting.

        A receive that gloo has begun ends with its message or with its peer, whatever is destroyed here: so all
        stages say goodbye, and each thread ends when its neighbour has said it, or is gone.
        """
        atexit.unregister(self.leave)
        ways = [link for link in (self.above, self.below) if link is not None]
        for link in ways:
            with suppress(RuntimeError):  # the neighbour may be gone
                link.outgoing.send(Kind.END, 0)
        for link in ways:
            link.incoming.join(_PARTING_S)

    @property
    def waited_s(self) -> float:
        """Time spent waiting for others so far, in seconds."""
        return sum(link.waited_s for link in (self.above, self.below) if link is not None)

    @property
    def sent_bytes(self) -> int:
        """What this process has sent so far, in bytes."""
        return sum(link.outgoing.sent_bytes for link in (self.above, self.below) if link is not None)


def default_store() -> Store:
    """Return a part of the group's own store for the next engine; the same for all processes."""
    global _instances
    _instances += 1
    whole = dist.distributed_c10d._get_default_store()  # pyright: ignore[reportPrivateUsage]
    return PrefixStore(f"synthgrad/{_instances}", whole)


def alarm_of(store: Store, layout: Layout) -> Alarm:
    """Return the alarm of this process."""
    return Alarm(store, f"stage {layout.stage} (rank {dist.get_rank()})")


def connect(
    layout: Layout,
    crossings: Sequence[Slot],
    rule: Rule | None,
    settings: Settings,
    same: Mapping[str, Any],
    device: torch.device,
    store: Store | None = None,
    inputs: Sequence[Slot] = (),
) -> Connected:
    """Agree with all others, make the groups, measure the links, start the threads. Blocks until all have called it.

    Args:
        layout: the place of this process.
        crossings: what crosses each cut.
        rule: at the end of this stage; None for the last.
        settings: how stages talk.
        same: what else must be equal everywhere, as JSON values.
        device: of this stage.
        store: to meet in; None for the group's own.
        inputs: of the network, where they travel along.
    """
    settings.check()
    store = default_store() if store is None else store
    alarm = alarm_of(store, layout)
    target = settings.target
    facts = {
        "same": {
            **same,
            "stages": layout.num_stages,
            "replicas": layout.num_replicas,
            "what crosses": [str(slot) for slot in crossings],
            "inputs that travel": [str(slot) for slot in inputs],
            "wire_dtype": str(settings.wire_dtype),
            "observe_prob": settings.observe_prob,
            "deterministic": settings.exact,
            "seed": settings.seed,
            "targets that travel": None if target is None else f"{tuple(target.shape[1:])} {target.dtype}",
        },
        "listens": rule is not None and (rule.listens or rule.waits),
        "waits": rule is not None and rule.waits,
        "window": settings.window,
    }
    all_facts = agree(store, alarm, facts, settings.timeout_s)
    stages = [all_facts[k * layout.num_replicas + layout.replica] for k in range(layout.num_stages)]
    groups = make_groups(layout, device.type)
    round_trip_s = round_trips(layout, groups, device)
    below, above = _links(layout, groups, (crossings, inputs), settings, stages, device, alarm)
    window = Window(_window(layout.stage, stages), round_trip_s)
    for link in (below, above):
        if link is not None:
            link.incoming.start()
    connected = Connected(layout, groups, alarm, below, above, window, round_trip_s)
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
    layout: Layout,
    groups: Groups,
    travels: tuple[Sequence[Slot], Sequence[Slot]],
    settings: Settings,
    stages: Sequence[Mapping[str, Any]],
    device: torch.device,
    alarm: Alarm,
) -> tuple[BelowLink | None, AboveLink | None]:
    k, below, above = layout.stage, None, None
    if groups.up_below is not None and groups.down_below is not None:
        up, down = _slots(travels[0][k - 1], travels[1], settings)
        peer, name = layout.rank(k - 1), f"the link from stage {k - 1} to stage {k}"
        below = BelowLink(
            Outgoing(groups.down_below, peer, down, device),
            Incoming(groups.up_below, peer, up, device, name),
            alarm,
            settings.timeout_s,
            wanted=stages[k - 1]["listens"],
            observe_prob=settings.observe_prob,
            seed=settings.seed * 1_000_003 + dist.get_rank(),
        )
    if groups.up_above is not None and groups.down_above is not None:
        up, down = _slots(travels[0][k], travels[1], settings)
        peer, name = layout.rank(k + 1), f"the link from stage {k + 1} back to stage {k}"
        above = AboveLink(
            Outgoing(groups.up_above, peer, up, device),
            Incoming(groups.down_above, peer, down, device, name),
            alarm,
            settings.timeout_s,
        )
    return below, above


def _slots(crossing: Slot, inputs: Sequence[Slot], settings: Settings) -> tuple[list[Slot], list[Slot]]:
    """Return what may cross a link upwards, and downwards."""
    message = Slot(crossing.shape, settings.wire_dtype or crossing.dtype, crossing.dtype)
    target = settings.target
    labels = Slot(
        () if target is None else (None,) * (target.ndim - 1), torch.int64 if target is None else target.dtype
    )
    return [message, labels, *inputs], [message, Slot((), crossing.dtype)]
