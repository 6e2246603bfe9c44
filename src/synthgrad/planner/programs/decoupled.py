"""Decoupled stages, from the timetable of one process of `engines.Stages`: rules, windows, shares, codecs, accumulation."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter

from ...core import ConfigError
from ...core import timetable as tables
from ...core.events import Event
from ..actions import Action, Compute, Job, Mark, Observe, Send, Wait
from ..costs import StageCost
from ..links import Link, Network

__all__ = ["CODECS", "Codec", "backpropagation", "decoupled", "delayed", "window_for"]

#: Bytes of a message's header, which every answer has.
_HEADER_BYTES = 48.0
#: As `engines.stages.window`: steps beyond the round trip, and the most that are chosen.
_SLACK, _MOST = 2, 64
#: Steps to measure at least, and those to which bursts of several lengths are made to fit.
_MEASURED, _LONGEST_RHYTHM = 24, 256


@dataclass(frozen=True, slots=True)
class Codec:
    """What crosses in place of a tensor.

    Attributes:
        name: for tables.
        ratio: bytes of what crosses over those of the tensor.
        s_per_byte: seconds that sender and receiver each compute for each byte of the tensor.
    """

    name: str
    ratio: float = 1.0
    s_per_byte: float = 0.0


#: Of tensors in float32, without the time of the conversion, which memory bandwidth hides.
CODECS = {codec.name: codec for codec in (Codec("float32"), Codec("bfloat16", 0.5), Codec("int8", 0.25))}


def window_for(rtt_s: float, step_s: float, most: int | None = _MOST) -> int:
    """Return the window that stages choose: the round trip in steps, and two.

    Args:
        rtt_s: round trip, in seconds.
        step_s: seconds of a step of the slower of the two stages, without waiting.
        most: the largest window that is chosen; None for no bound.

    >>> window_for(0.05, 0.02)
    5
    """
    if step_s <= 0:
        return _SLACK
    found = math.ceil(rtt_s / step_s) + _SLACK
    return found if most is None else min(found, most)


def decoupled(
    costs: Sequence[StageCost],
    *,
    link: Link | Network | None = None,
    window: int | None = None,
    share: float = 1.0,
    listens: bool = True,
    codec: Codec | None = None,
    accumulate: int = 1,
    batch_size: int = 1,
    steps: int | None = None,
    seed: int = 0,
    name: str = "stages",
) -> Job:
    """Return the job of stages whose rules give credit at once.

    Args:
        costs: of each stage for a batch, with that of the rule at its end.
        link: between neighbours, for the window if none is given.
        window: steps that an answer may be late before a stage waits; None for what `engines.Stages` chooses.
        share: of the messages that are sent; the other answers are headers.
        listens: whether the rules learn from messages; a local loss does not, and no answer carries one.
        codec: of activations and messages; None to send them as they are.
        accumulate: batches to an update.
        batch_size: examples of a batch.
        steps: batches to simulate; None for enough of them that the pipe is full and the windows go round.
        seed: of the draws.
        name: for tables.

    Raises:
        ConfigError: if a setting is out of range, or there are fewer than two stages.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"share={share:g}: expected a share of the messages, from 0 to 1")
    windows = _windows(costs, link, window)
    terms = [tables.Terms(observe=w, listens=listens and share > 0) for w in windows]
    return _job(costs, terms, share, codec, accumulate, batch_size, steps, seed, name)


def delayed(
    costs: Sequence[StageCost],
    *,
    link: Link | Network | None = None,
    window: int | None = None,
    codec: Codec | None = None,
    accumulate: int = 1,
    batch_size: int = 1,
    steps: int | None = None,
    name: str = "delayed",
) -> Job:
    """Return the job of stages that learn from true gradients, late: each keeps the graphs of the batches under way.

    Args:
        window: batches for which the stage below the last one waits, and more for those below it, as each window adds to
            those above; None for as many as the link asks for. 0 is backpropagation, one stage at a time.
        costs: of each stage for a batch; those of rules are left out.
        link: as in `decoupled`.
        codec: as there.
        accumulate: as there.
        batch_size: as there.
        steps: as there.
        name: as there.

    Raises:
        ConfigError: as there.
    """
    windows = _windows(costs, link, window)
    terms = [tables.Terms(observe=w, listens=False, waits=tables.ALWAYS) for w in windows]
    plain = [_without_rule(cost) for cost in costs]
    return _job(plain, terms, 1.0, codec, accumulate, batch_size, steps, 0, name)


def backpropagation(cost: StageCost, *, batch_size: int = 1) -> Job:
    """Return the job of the whole network in one process."""

    def program() -> Iterator[Action]:
        for step in range(2):
            yield Compute("forward", step, cost.forward_s, 0, takes=cost.held_bytes)
            yield Compute("backward", step, cost.backward_s, 0, frees=cost.held_bytes)
            yield Compute("update", step, cost.optimizer_s, 0)
            yield Mark(step)

    return Job("backprop", lambda: [program()], 1, 2, batch_size=batch_size)


def _without_rule(cost: StageCost) -> StageCost:
    return replace(cost, credit_s=0.0, observe_s=0.0, local_s=0.0)


def _windows(costs: Sequence[StageCost], link: Link | Network | None, window: int | None) -> list[int]:
    if len(costs) < 2:
        raise ConfigError(f"{len(costs)} stages: expected 2 or more")
    if window is not None:
        if window < 0:
            raise ConfigError(f"window={window}: expected a number of steps from 0")
        return [window] * (len(costs) - 1)
    network = link if isinstance(link, Network) else Network.of(link or Link())
    return [
        window_for(network.link(k).rtt_s, max(costs[k].decoupled_s, costs[k + 1].decoupled_s))
        for k in range(len(costs) - 1)
    ]


def _job(
    costs: Sequence[StageCost],
    terms: Sequence[tables.Terms],
    share: float,
    codec: Codec | None,
    accumulate: int,
    batch_size: int,
    steps: int | None,
    seed: int,
    name: str,
) -> Job:
    if accumulate < 1:
        raise ConfigError(f"accumulate={accumulate}: expected 1 or more")
    codec = codec or CODECS["float32"]
    names = [f"stage{k}" for k in range(len(costs) - 1)]
    lates = _lates(terms)
    warm = 2 * max(lates) + len(costs) + 4
    if steps is None:
        steps = warm + 1 + _rhythm(lates)
    warm = min(warm, max(0, steps - 2))
    chain = tables.chain(*names, steps=steps)
    schedule = tables.Schedule(chain.modules, dict(zip(names, terms, strict=True)), steps)
    drawn = _drawn(len(costs), steps, share, seed)

    def programs() -> list[Iterator[Action]]:
        return [
            _Stage(k, costs, terms, codec, accumulate, drawn).actions(tables.stage(schedule, k), steps)
            for k in range(len(costs))
        ]

    return Job(name, programs, len(costs), steps, warm, batch_size=batch_size)


def _lates(terms: Sequence[tables.Terms]) -> list[int]:
    """Return how late the answers are for which each stage waits: where stages wait for every batch, windows add up."""
    own = [t.observe for t in terms]
    return [sum(own[k:]) if t.waits else own[k] for k, t in enumerate(terms)]


def _rhythm(lates: Sequence[int]) -> int:
    """Return how many steps to measure, 24 or more.

    A stage that its window stops does as many steps as that, and one, in a burst, and waits: only whole bursts have the
    mean of all.
    """
    own = {late + 1 for late in lates}
    common = math.lcm(*own)
    whole = common if common <= _LONGEST_RHYTHM else max(own)
    return whole * math.ceil(_MEASURED / whole)


def _drawn(stages: int, steps: int, share: float, seed: int) -> list[list[bool]]:
    """Return which messages each stage sends down."""
    if share in (0.0, 1.0):
        return [[share == 1.0] * steps] * stages
    chance = random.Random(seed)
    return [[chance.random() < share for _ in range(steps)] for _ in range(stages)]


class _Stage:
    """Makes the actions of one process from its timetable."""

    def __init__(
        self,
        number: int,
        costs: Sequence[StageCost],
        terms: Sequence[tables.Terms],
        codec: Codec,
        accumulate: int,
        drawn: Sequence[Sequence[bool]],
    ) -> None:
        self._number = number
        self._cost = costs[number]
        self._below = costs[number - 1] if number else None
        self._top = number == len(costs) - 1
        self._terms = None if self._top else terms[number]
        self._wanted = bool(number) and (terms[number - 1].listens or bool(terms[number - 1].waits))
        self._always = bool(number) and bool(terms[number - 1].waits)
        self._codec = codec
        self._accumulate = accumulate
        self._drawn = drawn[number]
        self._late = 0 if self._top else _lates(terms)[number]

    def actions(self, events: Iterator[Event], steps: int) -> Iterator[Action]:
        """Yield the actions: those of each step's events, in their order."""
        step = -1
        for step, group in groupby(events, attrgetter("step")):
            updates = False
            for event in group:
                updates |= event.kind == "update"
                yield from self._act(event, step)
            yield from self._end(step, updates)
        for rest in range(step + 1, steps):
            yield Mark(rest)

    def _act(self, event: Event, step: int) -> list[Action]:
        k, cost, batch = self._number, self._cost, event.batch
        found: list[Action] = []
        if event.kind == "forward":
            if self._below is not None:
                found += [Wait(("F", k, batch), k - 1), *self._convert(self._below.output_bytes, batch)]
            found.append(Compute("forward", batch, cost.forward_s, k, takes=cost.held_bytes))
            if not self._top:
                size = self._codec.ratio * cost.output_bytes + _HEADER_BYTES
                found += [
                    *self._convert(cost.output_bytes, batch),
                    Send(("F", k + 1, batch), k + 1, size),
                ]
        elif event.kind == "credit" and cost.credit_s:
            found.append(Compute("credit", batch, cost.credit_s, k))
        elif event.kind == "backward":
            found.append(Compute("backward", batch, cost.backward_s, k, frees=cost.held_bytes))
            if self._below is not None:
                found += self._answer(self._below.output_bytes, batch)
        elif event.kind == "message":
            seconds = cost.observe_s + self._codec.s_per_byte * cost.output_bytes
            found.append(Observe(k, step, batch, seconds))
        return found

    def _answer(self, num_bytes: float, batch: int) -> list[Action]:
        carries = self._wanted and (self._always or self._drawn[batch])
        size = _HEADER_BYTES + (self._codec.ratio * num_bytes if carries else 0.0)
        to = self._number - 1
        return [
            *(self._convert(num_bytes, batch) if carries else ()),
            Send(("B", to, batch), to, size, carries),
        ]

    def _convert(self, num_bytes: float, batch: int) -> list[Action]:
        seconds = self._codec.s_per_byte * num_bytes
        return [Compute("codec", batch, seconds, self._number)] if seconds else []

    def _end(self, step: int, updates: bool) -> list[Action]:
        cost, terms, k = self._cost, self._terms, self._number
        found: list[Action] = []
        if terms is not None and not terms.listens and not terms.waits:
            found.append(Observe(k, step, step - self._late))  # headers, which say how far the stage above is
        if cost.local_s and not self._top:
            found.append(Compute("local", step, cost.local_s, k))
        if updates and (step + 1) % self._accumulate == 0:
            found.append(Compute("update", step, cost.optimizer_s, k))
        found.append(Mark(step))
        return found
