"""Discrete events: runs a schedule as data over a network, and says what took how long and why.

::

    heap of events ──► a computation ends (cores may be shared): its process goes on until the next one
                   ──► a question reaches a sender (rendezvous)
                   ──► an inbound wire is free
                   ──► a message arrives: its process goes on if it has waited for it

A wire that carries messages in the order in which they are ready needs no event: when one is ready, it is known when its
last byte leaves. Times are exact sums of what is given; nothing is measured here. Random delays come from one seeded
generator.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..core import ConfigError
from .actions import Action, Compute, Job, Mark, Observe, Post, Send, Tag, Wait, WaitSent
from .links import BBR_GAIN, Network, Wire
from .machines import Machine, Shared
from .run import CAUSES, Cause, Run, Span, StageUse, Transfer

__all__ = ["Machine", "simulate"]


def simulate(
    job: Job,
    network: Network,
    *,
    machines: Sequence[Machine] = (),
    trace: bool = False,
    seed: int = 0,
) -> Run:
    """Run a schedule.

    Args:
        job: what each process does.
        network: between the processes.
        machines: processes that share cores; others have a core of their own.
        trace: record every computation and message.
        seed: of jitter and losses.

    Raises:
        ConfigError: if processes wait for each other without end.
    """
    return _Simulation(job, network, machines, trace, seed).run()


@dataclass(slots=True, eq=False)
class _Message:
    tag: Tag
    source: int
    to: int
    num_bytes: float
    carries: bool
    sent: float
    ready: float = 0.0
    begins: float = 0.0
    leaves: float = -1.0  # under 0: not yet known
    arrives: float = 0.0
    here: bool = False


@dataclass(slots=True, eq=False)
class _Line:
    """A wire, and what waits for it."""

    free_at: float = 0.0
    last_arrival: float = 0.0
    recent: deque[tuple[float, float]] = field(
        default_factory=deque[tuple[float, float]]
    )  # with BBR: when, bytes
    burst: float = 0.0


@dataclass(slots=True, eq=False)
class _Inbound(_Line):
    """The one wire to a process: it carries what is needed next, and in gaps what the process can do without."""

    needs: Iterator[Tag] = iter(())
    waits: frozenset[Tag] = frozenset()  # for which the process stops
    expected: Tag | None = None
    waiting: dict[Tag, _Message] = field(default_factory=dict[Tag, _Message])
    early: set[Tag] = field(default_factory=set[Tag])  # carried in a gap

    def pop(self) -> _Message | None:
        """Return the message that is next, if it is ready."""
        while self.expected in self.early:
            self.early.remove(self.expected)
            self.expected = next(self.needs, None)
        if self.expected in self.waiting:
            tag, self.expected = self.expected, next(self.needs, None)
            return self.waiting.pop(tag)
        for tag in self.waiting:
            if self.expected is None or tag not in self.waits:
                self.early.add(tag)
                return self.waiting.pop(tag)
        return None


@dataclass(slots=True, eq=False)
class _Process:
    number: int
    program: Iterator[Action]
    current: Action | None = None
    put_off: Action | None = None
    handled: bool = False
    blocked: float = -1.0
    waits_for: Tag | None = None
    waits_sent: Tag | None = None
    answered: int = -1
    held: float = 0.0
    peak: float = 0.0
    busy: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    idle: defaultdict[Cause, float] = field(default_factory=lambda: defaultdict(float))
    idle_spans: list[tuple[float, float, Cause]] = field(default_factory=list[tuple[float, float, Cause]])
    sent_bytes: float = 0.0
    ages: Counter[int] = field(default_factory=Counter[int])
    marks: list[float] = field(default_factory=list[float])
    began: float = 0.0  # when the measured part began
    machine: Shared[_Process] | None = None


class _Simulation:
    def __init__(
        self, job: Job, network: Network, machines: Sequence[Machine], trace: bool, seed: int
    ) -> None:
        self._job = job
        self._network = network
        self._random = random.Random(seed)
        self._heap: list[tuple[float, int, Callable[[Any, float], object], object]] = []
        self._pushed = 0
        self._does: dict[type, Callable[[_Process, Any, float], bool]] = {
            Compute: self._compute,
            Send: self._send,
            Post: self._post,
            Wait: self._wait,
            WaitSent: self._wait_sent,
            Observe: self._observe,
            Mark: self._mark,
        }
        self._measured = job.steps - 1 > job.warm
        self._handles = network.startup_s > 0 or network.copy_s_per_byte > 0
        self._messages: dict[Tag, _Message] = {}
        self._asked: dict[Tag, float] = {}
        self._lines: dict[tuple[int, int], _Line] = {}
        self._wires: dict[tuple[int, int], Wire] = {}
        self._spans: list[Span] | None = [] if trace else None
        self._transfers: list[Transfer] | None = [] if trace else None
        programs = job.programs()
        if network.inbound:
            lists = [list(program) for program in programs]
            self._inbound = [_needed(actions) for actions in lists]
            programs = [iter(actions) for actions in lists]
        self._processes = [_Process(k, program) for k, program in enumerate(programs)]
        for machine in machines:
            shared = Shared[_Process](machine)
            for k in machine.processes:
                self._processes[k].machine = shared

    def run(self) -> Run:
        now = 0.0
        for process in self._processes:
            self._advance(process, now)
        heap, pop = self._heap, heapq.heappop
        while heap:
            now, _, happens, to = pop(heap)
            happens(to, now)
        stuck = [p for p in self._processes if p.current is not None]
        if stuck:
            first = stuck[0]
            raise ConfigError(
                f"the schedule '{self._job.name}' never ends: process {first.number} waits at {first.current}, as "
                f"{len(stuck) - 1} others do; each message needs one that sends it and one that takes it"
            )
        return self._result(now)

    # -- actions ----------------------------------------------------------------------------------------

    def _push(self, at: float, happens: Callable[[Any, float], object], to: object) -> None:
        self._pushed += 1  # of events at the same time, the first one first
        heapq.heappush(self._heap, (at, self._pushed, happens, to))

    def _advance(self, p: _Process, now: float) -> None:
        """Let a process go on until something takes time."""
        does, program = self._does, p.program
        while True:
            action = p.current
            if action is None:
                if p.put_off is not None:
                    action, p.put_off = p.put_off, None
                else:
                    action = next(program, None)
                    if action is None:
                        return
            if not does[type(action)](p, action, now):
                p.current = p.current or action
                return
            p.current = None

    def _compute(self, p: _Process, action: Compute, now: float) -> bool:
        p.current = action
        if action.takes:
            p.held += action.takes
            p.peak = max(p.peak, p.held)
        p.blocked = now
        if p.machine is None:
            self._push(now + action.seconds, self._end_compute, p)
        else:
            at = p.machine.begin(p, action.seconds, now)
            self._push(at, self._end_shared, (p.machine, p.machine.version))
        return False

    def _end_shared(self, which: tuple[Shared[_Process], int], now: float) -> None:
        shared, version = which
        if version != shared.version:
            return  # another computation began or ended in the meantime
        ended, following = shared.done(now)
        if following is not None:
            self._push(following, self._end_shared, (shared, shared.version))
        for p in ended:
            self._end_compute(p, now)

    def _end_compute(self, p: _Process, now: float) -> None:
        action = p.current
        assert type(action) is Compute
        if action.frees:
            p.held -= action.frees
        p.busy[action.kind] += now - p.blocked
        if self._spans is not None and now > p.blocked:
            stage = p.number if action.stage < 0 else action.stage
            self._spans.append(Span(p.number, action.kind, stage, action.batch, p.blocked, now))
        p.current, p.blocked = None, -1.0
        self._advance(p, now)

    def _handle(
        self, p: _Process, kind: str, tag: Tag, seconds: float, then: Action | None, now: float
    ) -> bool:
        """Let a process compute for a message, and go on with an action that it has put off."""
        p.put_off = then
        return self._compute(p, Compute(kind, tag[2], seconds), now)

    def _send(self, p: _Process, action: Send, now: float) -> bool:
        local = self._is_local(p.number, action.to)
        if self._handles and not local and not p.handled:
            p.handled = True
            return self._handle(
                p, "send", action.tag, self._network.handling_s(action.num_bytes), action, now
            )
        p.handled = False
        tag = action.tag
        message = _Message(tag, p.number, action.to, action.num_bytes, action.carries, now)
        if tag in self._messages:
            raise ConfigError(f"message {tag} is sent twice; expected a tag for each message")
        self._messages[tag] = message
        if local:
            message.ready = message.begins = message.leaves = message.arrives = now
            self._arrive(message, now)
            return True
        p.sent_bytes += action.num_bytes
        if not self._network.rendezvous:
            self._ready(message, now)
        elif tag in self._asked:
            self._push(max(now, self._asked[tag]), self._ready, message)
        return True

    def _is_local(self, source: int, to: int) -> bool:
        owners = self._job.owners
        return source == to or (bool(owners) and owners.get(source, source) == owners.get(to, to))

    def _post(self, p: _Process, action: Post, now: float) -> bool:
        self._ask(p.number, action.tag, action.source, now)
        return True

    def _ask(self, asking: int, tag: Tag, source: int, now: float) -> None:
        if not self._network.rendezvous or tag in self._asked or self._is_local(asking, source):
            return
        at = self._asked[tag] = now + self._wire(asking, source).delay_s
        message = self._messages.get(tag)
        if message is not None:
            self._push(at, self._ready, message)

    def _wait(self, p: _Process, action: Wait, now: float) -> bool:
        message = self._messages.get(action.tag)
        if message is None or not message.here:
            source = action.source if message is None else message.source
            if source >= 0:
                self._ask(p.number, action.tag, source, now)
            return self._block(p, action.tag, now)
        self._take(p, message)
        if self._handles and not self._is_local(message.source, p.number):
            seconds = self._network.handling_s(message.num_bytes)
            return self._handle(p, "receive", action.tag, seconds, None, now)
        return True

    def _observe(self, p: _Process, action: Observe, now: float) -> bool:
        stage, step = action.stage, action.step
        if self._network.rendezvous:
            for batch in range(p.answered + 1, step + 1):
                self._ask(p.number, ("B", stage, batch), p.number + 1, now)
        total = 0.0
        while p.answered < step:
            tag = ("B", stage, p.answered + 1)
            message = self._messages.get(tag)
            if message is None or not message.here:
                if p.answered >= action.until:
                    break
                if total:  # what is here takes its time first
                    return self._handle(p, "observe", tag, total, action, now)
                return self._block(p, tag, now)
            p.answered += 1
            self._take(p, message)
            if message.carries:
                total += action.seconds
                p.ages[step - p.answered] += 1
            if self._handles:
                total += self._network.handling_s(message.num_bytes)
        if total:
            return self._handle(p, "observe", ("B", stage, p.answered), total, None, now)
        return True

    def _wait_sent(self, p: _Process, action: WaitSent, now: float) -> bool:
        if not self._network.rendezvous:
            return True
        message = self._messages.get(action.tag)
        if message is None or 0 <= message.leaves <= now:  # taken by its receiver, or gone
            return True
        p.waits_sent = action.tag
        p.blocked = now
        p.current = action
        return False

    def _mark(self, p: _Process, action: Mark, now: float) -> bool:
        p.marks.append(now)
        if action.step == self._job.warm and self._measured:
            p.busy.clear()
            p.idle.clear()
            p.ages.clear()
            p.sent_bytes, p.began = 0.0, now
        return True

    def _block(self, p: _Process, tag: Tag, now: float) -> bool:
        p.blocked, p.waits_for = now, tag
        return False

    def _take(self, p: _Process, message: _Message) -> None:
        p.held -= message.num_bytes
        if self._asked:
            self._asked.pop(message.tag, None)
        del self._messages[message.tag]

    # -- messages ---------------------------------------------------------------------------------------

    def _wire(self, source: int, to: int) -> Wire:
        key = (source, to)
        found = self._wires.get(key)
        if found is None:
            owners = self._job.owners
            found = self._wires[key] = self._network.wire(owners.get(source, source), owners.get(to, to))
        return found

    def _back(self, message: _Message) -> Wire:
        return self._wire(message.to, message.source)

    def _line(self, message: _Message) -> _Line:
        to = message.to
        key = (-1, to) if self._network.inbound else (message.source, to)
        line = self._lines.get(key)
        if line is None:
            line = _Line()
            if self._network.inbound:
                needs, waits = self._inbound[to]
                line = _Inbound(needs=iter(needs), waits=waits)
                line.expected = next(line.needs, None)
            self._lines[key] = line
        return line

    def _ready(self, message: _Message, now: float) -> None:
        message.ready = now
        line = self._line(message)
        if isinstance(line, _Inbound):
            line.waiting[message.tag] = message
            self._serve(line, now)
        else:
            self._carry(line, message, max(now, line.free_at))

    def _serve(self, line: _Inbound, now: float) -> None:
        """Let an inbound wire that is free carry the next message."""
        if now >= line.free_at and (message := line.pop()) is not None:
            self._carry(line, message, now)
            self._push(line.free_at, self._serve, line)

    def _carry(self, line: _Line, message: _Message, begins: float) -> None:
        wire = self._wire(message.source, message.to)
        message.begins = begins
        leaves = begins + wire.serialise_s(message.num_bytes)
        if self._network.congestion is not None:
            leaves = max(leaves, begins + self._paced_s(line, wire, message, begins))
        arrives = leaves + wire.delay_s
        if wire.jitter_s or wire.loss:
            arrives += self._delayed(wire, message)
        message.leaves = line.free_at = leaves
        message.arrives = line.last_arrival = max(arrives, line.last_arrival)
        if self._network.rendezvous:
            self._push(leaves, self._left, message)
        self._push(message.arrives, self._arrive, message)

    def _paced_s(self, line: _Line, wire: Wire, message: _Message, now: float) -> float:
        """Return the seconds in which a connection with BBR sends a message, at the rate that it has learned so far."""
        rtt_s = wire.delay_s + self._back(message).delay_s
        line.recent.append((now, message.num_bytes))
        while line.recent[0][0] < now - rtt_s:
            line.recent.popleft()
        line.burst = max(line.burst, self._network.burst_bytes, sum(size for _, size in line.recent))
        return message.num_bytes * rtt_s / ((BBR_GAIN - 1) * line.burst) if line.burst else 0.0

    def _delayed(self, wire: Wire, message: _Message) -> float:
        """Return what chance adds: jitter, and a round trip for each time a packet must be sent again."""
        extra = self._random.expovariate(1 / wire.jitter_s) if wire.jitter_s else 0.0
        if wire.loss:
            # No packet of n is lost more than k times with probability (1 - loss^(k + 1))^n: the k for which this
            # first exceeds a number drawn from 0 to 1 is how often the unluckiest one is.
            share = -math.expm1(math.log1p(-self._random.random()) / wire.num_packets(message.num_bytes))
            times = max(0, math.ceil(math.log(share) / math.log(wire.loss)) - 1) if share > 0 else 0
            extra += times * (wire.delay_s + self._back(message).delay_s)
        return extra

    def _left(self, message: _Message, now: float) -> None:
        sender = self._processes[message.source]
        if sender.waits_sent == message.tag:
            sender.waits_sent = None
            self._account(sender, message, now)
            sender.current = None
            self._advance(sender, now)

    def _arrive(self, message: _Message, now: float) -> None:
        message.here = True
        p = self._processes[message.to]
        p.held += message.num_bytes
        p.peak = max(p.peak, p.held)
        if self._transfers is not None and message.leaves >= 0 and message.source != message.to:
            self._transfers.append(
                Transfer(
                    message.source, message.to, message.tag, message.num_bytes,
                    message.sent, message.begins, message.leaves, now,
                )
            )  # fmt: skip
        if p.waits_for == message.tag:
            p.waits_for = None
            self._account(p, message, now)
            self._advance(p, now)

    def _account(self, p: _Process, message: _Message, now: float) -> None:
        """Say what a process has waited for since it was blocked: for each second, what the message did in it.

        If it has stood in a queue, it is late for want of bandwidth for so long, even if the process came when it was
        on its way already.
        """
        since, p.blocked = p.blocked, -1.0
        if now <= since:
            return
        other = self._processes[message.source if message.source != p.number else message.to]
        # Of a message within a process, only its other thread knows; a sender waits for a peer until that has asked.
        asked = message.ready - self._back(message).delay_s if self._network.rendezvous else 0.0
        known = now if self._is_local(message.source, message.to) else min(now, max(message.sent, asked))
        if known > since:
            self._as_another(p, other, since, known)
        at = max(since, known)
        queued = max(0.0, min(at, message.begins) - message.ready)  # before the process came
        left = max(message.begins, message.leaves - self._wire(message.source, message.to).occupied_s)
        edges: tuple[tuple[float, Cause], ...] = (
            (message.ready, "latency"),
            (max(at, left) + queued, "bandwidth"),
            (now, "latency"),
        )
        for until, cause in edges:
            until = min(until, now)
            if until > at:
                self._idle(p, at, until, cause)
                at = until

    def _as_another(self, p: _Process, other: _Process, since: float, until: float) -> None:
        """Say that a process waited for another: for what that waited for, and else for its computing."""
        parts: list[tuple[float, float, Cause]] = []
        at = until
        for start, end, cause in reversed(other.idle_spans):
            if end <= since:
                break
            start, end = max(start, since), min(end, at)
            if end > start:
                parts.append((end, at, "peer"))
                parts.append((start, end, cause))
                at = start
        parts.append((since, at, "peer"))
        for start, end, cause in reversed(parts):
            if end > start:
                self._idle(p, start, end, cause)

    def _idle(self, p: _Process, start: float, end: float, cause: Cause) -> None:
        p.idle[cause] += end - start
        p.idle_spans.append((start, end, cause))

    # -- result -----------------------------------------------------------------------------------------

    def _result(self, now: float) -> Run:
        job = self._job
        ranks = self._processes[: job.num_stages]
        ends = [max(p.marks[step] for p in ranks) for step in range(job.steps)]
        steps = job.steps - 1 - job.warm if self._measured else job.steps
        step_s = (ends[-1] - (ends[job.warm] if self._measured else 0.0)) / steps
        sent: defaultdict[int, float] = defaultdict(float)
        for p in self._processes:
            sent[job.owners.get(p.number, p.number)] += p.sent_bytes
        uses = [
            StageUse(
                busy_s=dict(p.busy),
                idle_s={cause: p.idle[cause] for cause in CAUSES},
                seconds=p.marks[-1] - p.began,
                bytes_per_step=sent[p.number] / steps,
                peak_bytes=p.peak,
                ages=dict(sorted(p.ages.items())),
            )
            for p in ranks
        ]
        return Run(
            job.name, step_s, now, job.batch_size, uses, tuple(self._spans or ()), tuple(self._transfers or ())
        )  # fmt: skip


def _needed(actions: Sequence[Action]) -> tuple[list[Tag], frozenset[Tag]]:
    """Return the messages that a process cannot do without, in the order in which it needs them, and for which it waits."""
    found: list[Tag] = []
    waits: set[Tag] = set()
    answered = -1
    for action in actions:
        if isinstance(action, Wait):
            found.append(action.tag)
            waits.add(action.tag)
        elif isinstance(action, Observe):
            found += [("B", action.stage, b) for b in range(answered + 1, action.until + 1)]
            answered = max(answered, action.until)
    return found, frozenset(waits)
