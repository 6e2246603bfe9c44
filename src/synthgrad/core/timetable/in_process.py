"""The in-process engine's timetable: a module learns when its own forward is done, or when what it waits for has come."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

from ..events import Event, Kind
from ..pieces import OUTPUT, Module
from .schedule import Schedule

__all__ = ["in_process"]


def in_process(schedule: Schedule) -> Iterator[Event]:
    """Yield the events of `InProcess`, in order, for any graph, lags and waiting rules, with an update of all modules.

    In a step the forward pass goes up from interface to interface. A module that has reached its last end has its turn::

        forward ─ credit ─► 1. backward; each message that is complete by that is sent down, to be observed in `observe` steps
                            2. the rules at its inputs observe the messages that are due
                            3. one update, of the module and of these rules
                            4. modules below that have waited for one of these messages have their turn

    A module whose rule has it wait leaves out 1. When the message comes, it has another turn, as another's step 4.
    Where a rule serves several modules above, it is updated with the last of them: once more, if that one has had its
    turn before the message was complete.
    """
    run = _Run(schedule)
    for step in range(schedule.steps):
        yield from run.step(step)


@dataclass(slots=True, eq=False)
class _Flight:
    """A message on its way up, and later what has come back for it.

    Attributes:
        name: of the interface.
        batch: that it is of.
        wanted: does anybody want what comes back?
        missing: modules above that have yet to have their turn.
        has_part: has one of them run backward?
        waiting: the turn of the module below that waits for what comes back.
        due: the step in which it is observed.
    """

    name: str
    batch: int
    wanted: bool
    missing: int = 0
    has_part: bool = False
    waiting: _Turn | None = None
    due: int = 0


@dataclass(slots=True, eq=False)
class _Turn:
    """A module's part of a step.

    Attributes:
        module: which.
        batch: that it works on.
        reached: ends that the forward pass has reached.
        given: ends that have a gradient.
        missing: ends whose gradient it waits for.
        fed: what it was fed with.
        learned: has an input rule that is updated with it learned?
        done: has it had its turn?
    """

    module: Module
    batch: int = 0
    reached: int = 0
    given: int = 0
    missing: int = 0
    fed: list[_Flight] = field(default_factory=list[_Flight])
    learned: bool = False
    done: bool = False


class _Run:
    """What is under way between the steps."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._ahead = sum(-min(terms.forward, 0) for terms in schedule.interfaces.values())
        self._up = {name: deque[_Flight]() for name in schedule.interfaces}
        self._down = {name: deque[_Flight]() for name in schedule.interfaces}
        self._asked = Counter[str]()
        self._turns: list[_Turn] = []
        self._step = 0

    def step(self, step: int) -> Iterator[Event]:
        schedule, self._step = self._schedule, step
        batch = step - self._ahead  # where modules above are ahead, the lowest works on an older batch
        if batch < 0:
            return
        self._turns = [_Turn(module) for module in schedule.modules]
        for name in schedule.interfaces:
            turn = self._turns[schedule.ends_at(name)]
            yield from self._reach(turn, batch)
            flight = yield from self._cross(name, turn)
            yield from self._end(turn)
            self._up[name].append(flight)
            if len(self._up[name]) <= schedule.interfaces[name].forward:
                return  # nothing has come through yet
            flight = self._up[name].popleft()
            batch = flight.batch
            above = schedule.consumers(name)
            flight.missing = len(above)
            for k in above:
                self._turns[k].fed.append(flight)
        turn = self._turns[schedule.ends_at(OUTPUT)]
        yield from self._reach(turn, batch)
        turn.given += 1
        yield from self._end(turn)

    def _reach(self, turn: _Turn, batch: int) -> Iterator[Event]:
        """The forward pass has reached another end of a module."""
        turn.batch = batch
        turn.reached += 1
        if turn.reached == len(turn.module.ends):
            yield self._event("forward", turn.module.name, batch)

    def _cross(self, name: str, turn: _Turn) -> Generator[Event, None, _Flight]:
        """The rule is asked; return what goes up."""
        terms, batch = self._schedule.interfaces[name], turn.batch
        flight = _Flight(name, batch, terms.listens)
        yield self._event("credit", name, batch)
        if self._asked[name] < terms.waits:
            flight.wanted, flight.waiting = True, turn
            turn.missing += 1
        elif terms.credits:
            turn.given += 1
        self._asked[name] += 1
        if terms.supplied:
            flight = _Flight(name, batch - terms.forward, terms.listens)
            yield self._event("supply", name, flight.batch)
            turn.learned = True
        return flight

    def _end(self, turn: _Turn) -> Iterator[Event]:
        """A module has its turn, if the forward pass has reached all its ends."""
        if turn.reached < len(turn.module.ends):
            return
        name, schedule = turn.module.name, self._schedule
        learned, turn.learned = turn.learned, False
        if not turn.missing:
            yield from self._backward(turn)
            learned |= turn.given > 0
        due = [flight for i in turn.module.inputs for flight in self._take_due(i)]
        heard = [flight for flight in due if schedule.interfaces[flight.name].listens]
        for flight in heard:
            yield self._event("observe", flight.name, flight.batch)
        turn.done = True
        if learned or heard:
            yield self._event("update", name, turn.batch)
        for flight in heard:
            owner = self._turns[schedule.consumers(flight.name)[-1]]
            if owner.done and owner.module is not turn.module:
                yield self._event("update", owner.module.name, owner.batch)
        for flight in due:
            waiting, flight.waiting = flight.waiting, None
            if waiting is not None:
                waiting.missing -= 1
                waiting.given += 1
                yield from self._end(waiting)

    def _backward(self, turn: _Turn) -> Iterator[Event]:
        if turn.given:
            yield self._event("backward", turn.module.name, turn.batch)
        for flight in turn.fed:
            flight.missing -= 1
            flight.has_part |= turn.given > 0
            if flight.wanted and flight.has_part and not flight.missing:
                yield self._event("message", flight.name, flight.batch)
                flight.due = self._step + self._schedule.interfaces[flight.name].observe
                self._down[flight.name].append(flight)

    def _take_due(self, name: str) -> Iterator[_Flight]:
        while self._down[name] and self._down[name][0].due <= self._step:
            yield self._down[name].popleft()

    def _event(self, kind: Kind, where: str, batch: int) -> Event:
        return Event(kind, where, self._step, batch)
