"""The timetables of engines in which every step is like the other: locked, layer-parallel, stages, recurrent."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from ..errors import ConfigError
from ..events import Event, Kind
from ..pieces import OUTPUT
from .schedule import Schedule, Terms

__all__ = ["layer_parallel", "locked", "recurrent", "stage"]


def locked(schedule: Schedule) -> Iterator[Event]:
    """Yield the events of `Locked` with a decoupled network: up through all modules, down again, and one update of all.

    On the way down a rule hears of its message when all modules above it have run backward. Lags are none, and whether
    a module waits makes no difference: all do.
    """
    modules = schedule.modules
    for step in range(schedule.steps):
        reached: set[str] = set()
        for end in (*schedule.interfaces, OUTPUT):
            reached.add(end)
            module = modules[schedule.ends_at(end)]
            if reached.issuperset(module.ends):
                yield Event("forward", module.name, step, step)
            if end != OUTPUT:
                yield Event("credit", end, step, step)
        learned: set[str] = set()
        for name in reversed(list(schedule.interfaces)):
            for k in schedule.consumers(name):
                if modules[k].name not in learned:
                    learned.add(modules[k].name)
                    yield Event("backward", modules[k].name, step, step)
            yield Event("message", name, step, step)
            if schedule.interfaces[name].listens:
                yield Event("observe", name, step, step)
        for module in modules:
            if not module.inputs:
                yield Event("backward", module.name, step, step)
        yield Event("update", "all", step, step)


def layer_parallel(schedule: Schedule) -> Iterator[Event]:
    """Yield the events of `LayerParallel`, in which all modules that a batch has reached act at once, each on its own.

    What happens at once stands in the order in which a step computes it, from the bottom: all forwards, then all credits,
    backwards, messages, observations and updates. In each step these are the events of `in_process` with a forward lag of
    1 at every interface, in another order.

    Args:
        schedule: a chain whose interfaces have equal terms; their forward lag is not read.

    Raises:
        ConfigError: if it is no such chain, or somebody waits.
    """
    terms = _equal_terms(schedule)
    names, top = [module.name for module in schedule.modules], len(schedule.modules) - 1
    for step in range(schedule.steps):
        reached = range(min(step, top) + 1)
        learn = [k for k in reached if terms.credits or k == top]
        # Module k sends a message for what crossed interface k - 1 one step before.
        heard = [k - 1 for k in learn if k and terms.listens]
        # A rule learns from a message that was sent `observe` steps ago.
        seen = [k for k in range(top) if terms.listens and step >= k + 1 + terms.observe]
        acts: list[tuple[Kind, Sequence[int], int]] = [
            ("forward", reached, 0),
            ("credit", reached[:top], 0),
            ("backward", learn, 0),
            ("message", heard, 1),
            ("observe", seen, 1 + terms.observe),
            ("update", sorted({*learn, *(k + 1 for k in seen)}), 0),
        ]
        for kind, rows, late in acts:
            for k in rows:
                yield Event(kind, names[k], step, step - k - late)


def stage(schedule: Schedule, number: int) -> Iterator[Event]:
    """Yield the events of one process of `Stages`, with windows that are counted in steps.

    A stage learns at once, and its rule when an answer comes: that of the batch of `observe` steps before, its window. To
    that are added the windows of the stages above as long as these wait for their own answers. A module that has waited
    learns from the answer too, after the batch at hand has learned, if that has not waited.

    Args:
        schedule: a chain; forward lags are not read, and interfaces have no synthetic inputs.
        number: of the stage, from 0.

    Raises:
        ConfigError: if it is no such chain.
    """
    _check_chain(schedule)
    name = schedule.modules[number].name
    terms, above, late = (
        schedule.interfaces.get(name),
        _terms(schedule, number + 1),
        _window(schedule, number),
    )
    for step in range(schedule.steps):
        yield Event("forward", name, step, step)
        learned = terms is None or (terms.credits and step >= terms.waits)
        if terms is not None:
            yield Event("credit", name, step, step)
        if learned:
            yield Event("backward", name, step, step)
        batch = step - late
        if terms is not None and batch >= 0:
            waited = batch < terms.waits
            if waited and learned:
                yield Event("update", name, step, step)
                learned = False
            # The stage above makes a message from its own backward pass, which it runs if it has something to learn from.
            if (terms.listens or terms.waits) and (above.credits or batch < above.waits):
                yield Event("message", name, step, batch)
                if terms.listens:
                    yield Event("observe", name, step, batch)
                if waited:
                    yield Event("backward", name, step, batch)
                learned |= terms.listens or waited
        if learned:
            yield Event("update", name, step, step)


def _terms(schedule: Schedule, number: int) -> Terms:
    """Return the terms at the end of a stage; of the last, which has the true gradient, those of one that is credited."""
    own = list(schedule.interfaces.values())
    return own[number] if number < len(own) else Terms()


def _window(schedule: Schedule, number: int) -> int:
    """Return how many steps late the answers of a stage are."""
    above = list(schedule.interfaces.values())[number + 1 :]
    waiting = itertools.takewhile(lambda terms: terms.waits, above)
    return _terms(schedule, number).observe + sum(terms.observe for terms in waiting)


def recurrent(
    steps: int, terms: Terms | None = None, *, window: int = 1, observe_every: int = 1
) -> Iterator[Event]:
    """Yield the events of `Recurrent`: one network, ``net``, unrolled again and again, and the ``state`` that it hands on.

    The state that unroll ``t`` hands on has credit at its end, and its message comes from the backward pass of unroll
    ``t + 1``. With a window the backward passes of its unrolls come after its last one, and before them the rule learns,
    from the returns of the last unroll first.

    Args:
        steps: unrolls of sequences that begin with the first and do not end.
        terms: of the boundary; only `listens` is read. None for a rule that does.
        window: unrolls to an update.
        observe_every: the rule learns at the start of one unroll in so many.
    """
    listens = (terms or Terms()).listens
    for step in range(steps):
        yield Event("forward", "net", step, step)
        yield Event("credit", "state", step, step)
        if (step + 1) % window:
            continue
        unrolls = range(step + 1 - window, step + 1)
        answered = [u for u in reversed(unrolls) if listens and u and u % observe_every == 0]
        answers = [Event(kind, "state", step, u - 1) for u in answered for kind in ("message", "observe")]
        backward = [Event("backward", "net", step, u) for u in unrolls]
        # With one unroll the message is made by the very backward pass from which the network learns.
        yield from [*backward, *answers] if window == 1 else [*answers, *backward]
        yield Event("update", "all", step, step)


def _check_chain(schedule: Schedule) -> None:
    supplied = [name for name, terms in schedule.interfaces.items() if terms.supplied]
    if not schedule.is_chain or supplied:
        raise ConfigError("the schedule has branches or synthetic inputs, expected a chain without these")


def _equal_terms(schedule: Schedule) -> Terms:
    _check_chain(schedule)
    terms = next(iter(schedule.interfaces.values()), Terms())
    if any(own != terms for own in schedule.interfaces.values()) or terms.waits:
        raise ConfigError(
            "the interfaces differ in their terms, or modules wait: layers that run as one batch do neither"
        )
    return terms
