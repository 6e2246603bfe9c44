"""Discrete events: runs a schedule as data over a network, and says what took how long and why.

::

    heap of events ──► a process goes on: next actions, until one takes time
                   ──► a computation ends (cores may be shared)
                   ──► a question reaches a sender (rendezvous)
                   ──► a wire is free, a message arrives

Times are exact sums of what is given; nothing is measured here. Random delays come from one seeded generator.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ..core import ConfigError
from .actions import Action, Compute, Job, Mark, Observe, Post, Send, Tag, Wait, WaitSent
from .links import BBR_GAIN, Network, Wire
from .run import CAUSES, Cause, Run, Span, StageUse, Transfer

__all__ = ["Machine", "simulate"]

_EPS = 1e-12


@dataclass(frozen=True, slots=True)
class Machine:
    """Processes that share cores.

    Attributes:
        processes: their numbers.
        cores: how many there are.
        slowdown: of a computation while so many compute at once, besides what sharing of cores costs: for one, for
            two, …; the last holds for more. Caches and memory are shared too.
    """

    processes: tuple[int, ...]
    cores: int = 1
    slowdown: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if self.cores < 1 or not self.processes or min(self.slowdown, default=0.0) <= 0:
            raise ConfigError(f"{self}: expected one process or more, one core or more, and slowdowns over 0")

    def speed(self, active: int) -> float:
        """Return the speed of each of ``active`` computations."""
        slower = self.slowdown[min(active, len(self.slowdown)) - 1]
        return min(1.0, self.cores / active) / slower


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

    busy: bool = False
    queue: deque[_Message] = field(default_factory=deque[_Message])
    last_arrival: float = 0.0
    order: Iterator[Tag] | None = None  # of an inbound wire: what is next
    expected: Tag | None = None
    waiting: dict[Tag, _Message] = field(default_factory=dict[Tag, _Message])
    recent: deque[tuple[float, float]] = field(
        default_factory=deque[tuple[float, float]]
    )  # with BBR: when, bytes
    burst: float = 0.0


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
    step: int = 0
    held: float = 0.0
    peak: float = 0.0
    busy: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    idle: defaultdict[Cause, float] = field(default_factory=lambda: defaultdict(float))
    idle_spans: list[tuple[float, float, Cause]] = field(default_factory=list[tuple[float, float, Cause]])
    sent_bytes: float = 0.0
    ages: Counter[int] = field(default_factory=Counter[int])
    marks: list[float] = field(default_factory=list[float])
    began: float = 0.0  # when the measured part began
    machine: _Shared | None = None


class _Shared:
    """The computations of processes that share cores: all go on at one speed, which changes when one begins or ends."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._left: dict[_Process, float] = {}
        self._at = 0.0
        self.version = 0

    def begin(self, process: _Process, seconds: float, now: float) -> float:
        """Let a process compute; return when the next of all is done."""
        self._go_on(now)
        self._left[process] = seconds
        return self._next()

    def done(self, now: float) -> tuple[list[_Process], float | None]:
        """Return those that are done, and when the next will be."""
        self._go_on(now)
        ended = [p for p, left in self._left.items() if left <= _EPS * max(1.0, now)]
        for p in ended:
            del self._left[p]
        return ended, self._next() if self._left else None

    def _go_on(self, now: float) -> None:
        if self._left:
            speed = self._machine.speed(len(self._left))
            gone = (now - self._at) * speed
            for p in self._left:
                self._left[p] -= gone
        self._at = now

    def _next(self) -> float:
        self.version += 1
        speed = self._machine.speed(len(self._left))
        return self._at + max(0.0, min(self._left.values())) / speed


class _Simulation:
    def __init__(
        self, job: Job, network: Network, machines: Sequence[Machine], trace: bool, seed: int
    ) -> None:
        self._job = job
        self._network = network
        self._random = random.Random(seed)
        self._heap: list[tuple[float, int, object, object]] = []
        self._order = itertools.count()
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
            shared = _Shared(machine)
            for k in machine.processes:
                self._processes[k].machine = shared

    def run(self) -> Run:
        now = 0.0
        for process in self._processes:
            self._advance(process, now)
        heap = self._heap
        while heap:
            now, _, what, which = heapq.heappop(heap)
            if isinstance(what, _Process):
                self._end_compute(what, now)
            elif isinstance(what, _Shared):
                if which == what.version:
                    self._end_shared(what, now)
            elif isinstance(what, _Line):
                what.busy = False
                self._start(what, now)
            else:
                assert isinstance(which, _Message)
                if what == "ready":
                    self._ready(which, now)
                elif what == "left":
                    self._left(which, now)
                else:
                    self._arrive(which, now)
        stuck = [p for p in self._processes if p.current is not None]
        if stuck:
            first = stuck[0]
            raise ConfigError(
                f"the schedule '{self._job.name}' never ends: process {first.number} waits at {first.current}, as "
                f"{len(stuck) - 1} others do; each message needs one that sends it and one that takes it"
            )
        return self._result(now)

    # -- actions ----------------------------------------------------------------------------------------

    def _push(self, at: float, what: object, which: object = None) -> None:
        heapq.heappush(self._heap, (at, next(self._order), what, which))

    def _advance(self, p: _Process, now: float) -> None:
        """Let a process go on until something takes time."""
        while True:
            action = p.current
            if action is None:
                action, p.put_off = p.put_off, None
            if action is None:
                action = next(p.program, None)
                if action is None:
                    return
            kind = type(action)
            if kind is Compute:
                p.current = action
                self._compute(p, action, now)  # type: ignore[arg-type]
                return
            if kind is Send:
                going_on = self._send(p, action, now)  # type: ignore[arg-type]
            elif kind is Wait:
                going_on = self._wait(p, action, now)  # type: ignore[arg-type]
            elif kind is Observe:
                going_on = self._observe(p, action, now)  # type: ignore[arg-type]
            elif kind is Post:
                going_on = self._ask(p.number, action.tag, action.source, now)  # type: ignore[union-attr]
            elif kind is WaitSent:
                going_on = self._wait_sent(p, action, now)  # type: ignore[arg-type]
            else:
                going_on = self._mark(p, action, now)  # type: ignore[arg-type]
            if not going_on:
                p.current = p.current or action
                return
            p.current = None

    def _compute(self, p: _Process, action: Compute, now: float) -> None:
        if action.takes:
            p.held += action.takes
            p.peak = max(p.peak, p.held)
        p.blocked = now
        if p.machine is None:
            self._push(now + action.seconds, p)
        else:
            at = p.machine.begin(p, action.seconds, now)
            self._push(at, p.machine, p.machine.version)

    def _end_shared(self, shared: _Shared, now: float) -> None:
        ended, following = shared.done(now)
        if following is not None:
            self._push(following, shared, shared.version)
        for p in ended:
            self._end_compute(p, now)

    def _end_compute(self, p: _Process, now: float) -> None:
        action = p.current
        assert isinstance(action, Compute)
        p.held -= action.frees
        p.busy[action.kind] += now - p.blocked
        if self._spans is not None and now > p.blocked:
            stage = p.number if action.stage < 0 else action.stage
            self._spans.append(Span(p.number, action.kind, stage, action.batch, p.blocked, now))
        p.current, p.blocked = None, -1.0
        self._advance(p, now)

    def _handle(
        self, p: _Process, kind: str, tag: Tag, seconds: float, then: Action | None, now: float
    ) -> None:
        """Let a process compute for a message, and go on with an action that it has put off."""
        p.put_off = then
        p.current = Compute(kind, tag[2], seconds)
        self._compute(p, p.current, now)

    def _send(self, p: _Process, action: Send, now: float) -> bool:
        local = action.to == p.number or self._is_local(p.number, action.to)
        seconds = 0.0 if local else self._network.handling_s(action.num_bytes)
        if seconds and not p.handled:
            p.handled = True
            self._handle(p, "send", action.tag, seconds, action, now)
            return False
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
            self._push(max(now, self._asked[tag]), "ready", message)
        return True

    def _is_local(self, source: int, to: int) -> bool:
        owners = self._job.owners
        return owners.get(source, source) == owners.get(to, to)

    def _ask(self, asking: int, tag: Tag, source: int, now: float) -> bool:
        if not self._network.rendezvous or tag in self._asked or self._is_local(asking, source):
            return True
        back = self._wire(asking, source)
        at = now + back.delay_s
        message = self._messages.get(tag)
        self._asked[tag] = at
        if message is not None:
            self._push(at, "ready", message)
        return True

    def _wait(self, p: _Process, action: Wait, now: float) -> bool:
        message = self._messages.get(action.tag)
        if message is None or not message.here:
            source = action.source if message is None else message.source
            if source >= 0:
                self._ask(p.number, action.tag, source, now)
            return self._block(p, action.tag, now)
        self._take(p, message, now)
        seconds = (
            0.0 if self._is_local(message.source, p.number) else self._network.handling_s(message.num_bytes)
        )
        if seconds:
            self._handle(p, "receive", action.tag, seconds, None, now)
            return False
        return True

    def _observe(self, p: _Process, action: Observe, now: float) -> bool:
        total = 0.0
        while p.answered < action.step:
            tag = ("B", action.stage, p.answered + 1)
            message = self._messages.get(tag)
            if message is None or not message.here:
                if p.answered >= action.until:
                    break
                if total:  # what is here takes its time first
                    self._handle(p, "observe", tag, total, action, now)
                    return False
                return self._block(p, tag, now)
            p.answered += 1
            self._take(p, message, now)
            if message.carries:
                total += action.seconds
                p.ages[action.step - p.answered] += 1
            total += self._network.handling_s(message.num_bytes)
        if total:
            self._handle(p, "observe", ("B", action.stage, p.answered), total, None, now)
            return False
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
        p.step = action.step + 1
        p.marks.append(now)
        if action.step == self._job.warm:
            p.busy.clear()
            p.idle.clear()
            p.ages.clear()
            p.sent_bytes, p.began = 0.0, now
        return True

    def _block(self, p: _Process, tag: Tag, now: float) -> bool:
        p.blocked, p.waits_for = now, tag
        return False

    def _take(self, p: _Process, message: _Message, now: float) -> None:
        p.held -= message.num_bytes
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

    def _line(self, message: _Message) -> _Line:
        key = (-1, message.to) if self._network.inbound else (message.source, message.to)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line()
            if self._network.inbound:
                line.order = iter(self._inbound[message.to])
                line.expected = next(line.order, None)
        return line

    def _ready(self, message: _Message, now: float) -> None:
        message.ready = now
        line = self._line(message)
        if line.order is None:
            line.queue.append(message)
        else:
            line.waiting[message.tag] = message
        self._start(line, now)

    def _start(self, line: _Line, now: float) -> None:
        if line.busy:
            return
        if line.order is None:
            if not line.queue:
                return
            message = line.queue.popleft()
        else:
            found = line.waiting.pop(line.expected, None) if line.expected is not None else None
            if found is None:
                if line.expected is not None or not line.waiting:
                    return
                found = line.waiting.pop(next(iter(line.waiting)))  # nobody takes what is left
            else:
                line.expected = next(line.order, None)
            message = found
        wire = self._wire(message.source, message.to)
        message.begins = now
        message.leaves = now + wire.serialise_s(message.num_bytes)
        if self._network.congestion is not None:
            message.leaves = max(message.leaves, now + self._paced_s(line, wire, message, now))
        arrives = message.leaves + wire.delay_s + self._delayed(wire, message)
        message.arrives = line.last_arrival = max(arrives, line.last_arrival)
        line.busy = True
        self._push(message.leaves, line)
        if self._network.rendezvous:
            self._push(message.leaves, "left", message)
        self._push(message.arrives, "arrives", message)

    def _paced_s(self, line: _Line, wire: Wire, message: _Message, now: float) -> float:
        """Return the seconds in which a connection with BBR sends a message, at the rate that it has learned so far."""
        rtt_s = wire.delay_s + self._wire(message.to, message.source).delay_s
        line.recent.append((now, message.num_bytes))
        while line.recent[0][0] < now - rtt_s:
            line.recent.popleft()
        line.burst = max(line.burst, self._network.burst_bytes, sum(size for _, size in line.recent))
        return message.num_bytes * rtt_s / ((BBR_GAIN - 1) * line.burst) if line.burst else 0.0

    def _delayed(self, wire: Wire, message: _Message) -> float:
        """Return what chance adds: jitter, and a round trip for each time a packet must be sent again."""
        extra = self._random.expovariate(1 / wire.jitter_s) if wire.jitter_s else 0.0
        if wire.loss:
            back = self._wire(message.to, message.source)
            left = wire.num_packets(message.num_bytes)
            while left:
                # How many of the packets are lost once more; one is enough to wait for.
                lost = sum(self._random.random() < wire.loss for _ in range(min(left, 4096)))
                left = lost
                extra += (wire.delay_s + back.delay_s) if lost else 0.0
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
        """Say what a process has waited for since it was blocked."""
        since, p.blocked = p.blocked, -1.0
        if now <= since:
            return
        owner = self._job.owners.get(message.source)
        if owner == p.number:
            spent = 0.0
            for start, end, cause in self._processes[message.source].idle_spans:
                part = min(end, now) - max(start, since)
                if part > 0:
                    p.idle[cause] += part
                    spent += part
            p.idle["peer"] += now - since - spent
            return
        occupied = self._wire(message.source, message.to).occupied_s if message.leaves >= 0 else 0.0
        edges: list[tuple[float, Cause]] = [
            (message.sent, "peer"),
            (message.ready, "latency"),
            (max(message.begins, message.leaves - occupied), "bandwidth"),
            (now, "latency"),
        ]
        at = since
        for until, cause in edges:
            until = min(until, now)
            if until > at:
                p.idle[cause] += until - at
                if p.number in self._job.owners:
                    p.idle_spans.append((at, until, cause))
                at = until

    # -- result -----------------------------------------------------------------------------------------

    def _result(self, now: float) -> Run:
        job = self._job
        ranks = self._processes[: job.num_stages]
        ends = [max(p.marks[step] for p in ranks) for step in range(job.steps)]
        steps = job.steps - 1 - job.warm
        step_s = (ends[-1] - ends[job.warm]) / steps if steps else ends[-1]
        sent: defaultdict[int, float] = defaultdict(float)
        for p in self._processes:
            sent[job.owners.get(p.number, p.number)] += p.sent_bytes
        uses = [
            StageUse(
                busy_s=dict(p.busy),
                idle_s={cause: p.idle[cause] for cause in CAUSES},
                seconds=p.marks[-1] - p.began,
                bytes_per_step=sent[p.number] / (steps or 1),
                peak_bytes=p.peak,
                ages=dict(sorted(p.ages.items())),
            )
            for p in ranks
        ]
        return Run(
            job.name, step_s, now, job.batch_size, uses, tuple(self._spans or ()), tuple(self._transfers or ())
        )  # fmt: skip


def _needed(actions: Sequence[Action]) -> list[Tag]:
    """Return the messages that a process takes, in the order in which it needs them."""
    found: list[Tag] = []
    answered = -1
    for action in actions:
        if isinstance(action, Wait):
            found.append(action.tag)
        elif isinstance(action, Observe):
            found += [("B", action.stage, b) for b in range(answered + 1, action.until + 1)]
            answered = max(answered, action.until)
    return found
