"""Timetables against tables that were written by hand: each says what the engine's documentation says, for a small case.

A line is a module's part of a step: the step, and what happens, with the batch that it is about.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

import pytest

from synthgrad.core import ConfigError, Event, Module, timetable
from synthgrad.core.timetable import ALWAYS, ClockedEdge, ClockedNode, Schedule, Terms, chain

DELAYED = Terms(observe=1, credits=False, listens=False, waits=ALWAYS)


def assert_says(events: Iterable[Event], table: str) -> None:
    lines = [line.split() for line in table.strip().splitlines()]
    assert [str(e) for e in events] == [f"{step}:{what}" for step, *parts in lines for what in parts]


def branches(**terms: Terms) -> Schedule:
    """Return a trunk that feeds two heads, of which one is cut inside."""
    modules = (
        Module(("trunk",), (), ()),
        Module(("inner",), ("trunk",), ()),
        Module(("output",), ("trunk", "inner"), ()),
    )
    return Schedule(modules, {name: terms.get(name, Terms()) for name in ("trunk", "inner")}, 1)


# In process


def test_a_trunks_message_waits_for_both_heads() -> None:
    assert_says(
        timetable.in_process(branches()),
        """
        0 forward(trunk)@0 credit(trunk)@0 backward(trunk)@0 update(trunk)@0
        0 forward(inner)@0 credit(inner)@0 backward(inner)@0 update(inner)@0
        0 forward(output)@0 backward(output)@0 message(trunk)@0 message(inner)@0
        0 observe(trunk)@0 observe(inner)@0 update(output)@0
        """,
    )


def test_a_rule_that_hears_late_is_updated_once_more_with_the_last_module_that_it_serves() -> None:
    waits = Terms(credits=False, listens=False, waits=ALWAYS)
    assert_says(
        timetable.in_process(branches(inner=waits)),
        """
        0 forward(trunk)@0 credit(trunk)@0 backward(trunk)@0 update(trunk)@0
        0 forward(inner)@0 credit(inner)@0
        0 forward(output)@0 backward(output)@0 message(inner)@0 update(output)@0
        0 backward(inner)@0 message(trunk)@0 observe(trunk)@0 update(inner)@0 update(output)@0
        """,
    )


def test_a_module_with_two_ends_learns_from_both() -> None:
    modules = (Module(("left", "right"), (), ()), Module(("output",), ("left", "right"), ()))
    assert_says(
        timetable.in_process(Schedule(modules, {"left": Terms(), "right": Terms()}, 1)),
        """
        0 credit(left)@0 forward(left+right)@0 credit(right)@0 backward(left+right)@0 update(left+right)@0
        0 forward(output)@0 backward(output)@0 message(left)@0 message(right)@0
        0 observe(left)@0 observe(right)@0 update(output)@0
        """,
    )


def test_delayed_gradients_add_their_lags_up() -> None:
    assert_says(
        timetable.in_process(chain("a", "b", steps=3, terms=DELAYED)),
        """
        0 forward(a)@0 credit(a)@0 forward(b)@0 credit(b)@0
        0 forward(output)@0 backward(output)@0 message(b)@0 update(output)@0
        1 forward(a)@1 credit(a)@1 forward(b)@1 credit(b)@1
        1 forward(output)@1 backward(output)@1 message(b)@1 update(output)@1
        1 backward(b)@0 message(a)@0 update(b)@0
        2 forward(a)@2 credit(a)@2 forward(b)@2 credit(b)@2 backward(a)@0 update(a)@0
        2 forward(output)@2 backward(output)@2 message(b)@2 update(output)@2
        2 backward(b)@1 message(a)@1 update(b)@1
        """,
    )


def test_lags_forward_and_back() -> None:
    assert_says(
        timetable.in_process(chain("a", steps=4, terms=Terms(forward=1, observe=2))),
        """
        0 forward(a)@0 credit(a)@0 backward(a)@0 update(a)@0
        1 forward(a)@1 credit(a)@1 backward(a)@1 update(a)@1
        1 forward(output)@0 backward(output)@0 message(a)@0 update(output)@0
        2 forward(a)@2 credit(a)@2 backward(a)@2 update(a)@2
        2 forward(output)@1 backward(output)@1 message(a)@1 update(output)@1
        3 forward(a)@3 credit(a)@3 backward(a)@3 update(a)@3
        3 forward(output)@2 backward(output)@2 message(a)@2 observe(a)@0 update(output)@2
        """,
    )


def test_with_synthetic_inputs_the_top_is_ahead() -> None:
    assert_says(
        timetable.in_process(chain("a", steps=3, terms=Terms(forward=-1, supplied=True))),
        """
        1 forward(a)@0 credit(a)@0 supply(a)@1 backward(a)@0 update(a)@0
        1 forward(output)@1 backward(output)@1 message(a)@1 observe(a)@1 update(output)@1
        2 forward(a)@1 credit(a)@1 supply(a)@2 backward(a)@1 update(a)@1
        2 forward(output)@2 backward(output)@2 message(a)@2 observe(a)@2 update(output)@2
        """,
    )


def test_a_module_waits_for_the_first_batches_and_then_no_more() -> None:
    assert_says(
        timetable.in_process(chain("a", steps=2, terms=Terms(waits=1))),
        """
        0 forward(a)@0 credit(a)@0
        0 forward(output)@0 backward(output)@0 message(a)@0 observe(a)@0 update(output)@0
        0 backward(a)@0 update(a)@0
        1 forward(a)@1 credit(a)@1 backward(a)@1 update(a)@1
        1 forward(output)@1 backward(output)@1 message(a)@1 observe(a)@1 update(output)@1
        """,
    )


# The others


def test_locked() -> None:
    assert_says(
        timetable.locked(branches(inner=Terms(listens=False))),
        """
        0 forward(trunk)@0 credit(trunk)@0 forward(inner)@0 credit(inner)@0 forward(output)@0
        0 backward(output)@0 message(inner)@0
        0 backward(inner)@0 message(trunk)@0 observe(trunk)@0
        0 backward(trunk)@0 update(all)@0
        """,
    )


def test_layer_parallel() -> None:
    assert_says(
        timetable.layer_parallel(chain("a", "b", steps=4, terms=Terms(observe=1))),
        """
        0 forward(a)@0 credit(a)@0 backward(a)@0 update(a)@0
        1 forward(a)@1 forward(b)@0 credit(a)@1 credit(b)@0 backward(a)@1 backward(b)@0
        1 message(a)@0 update(a)@1 update(b)@0
        2 forward(a)@2 forward(b)@1 forward(output)@0 credit(a)@2 credit(b)@1
        2 backward(a)@2 backward(b)@1 backward(output)@0
        2 message(a)@1 message(b)@0 observe(a)@0 update(a)@2 update(b)@1 update(output)@0
        3 forward(a)@3 forward(b)@2 forward(output)@1 credit(a)@3 credit(b)@2
        3 backward(a)@3 backward(b)@2 backward(output)@1
        3 message(a)@2 message(b)@1 observe(a)@1 observe(b)@0 update(a)@3 update(b)@2 update(output)@1
        """,
    )


@pytest.mark.parametrize("terms", [Terms(), Terms(observe=2), Terms(credits=False, listens=False)])
def test_layer_parallel_is_in_process_with_forward_lags_in_another_order(terms: Terms) -> None:
    def by_step(events: Iterable[Event]) -> dict[int, list[str]]:
        return {step: sorted(map(str, group)) for step, group in groupby(events, lambda e: e.step)}

    lagging = Terms(1, terms.observe, terms.credits, terms.listens)
    at = ("a", "b", "c")
    ours = by_step(timetable.layer_parallel(chain(*at, steps=9, terms=terms)))
    assert ours == by_step(timetable.in_process(chain(*at, steps=9, terms=lagging)))


def test_a_stage_learns_at_once_and_its_rule_when_the_answer_comes() -> None:
    schedule = chain("a", "b", steps=3, terms=Terms(observe=1))
    assert_says(
        timetable.stage(schedule, 0),
        """
        0 forward(a)@0 credit(a)@0 backward(a)@0 update(a)@0
        1 forward(a)@1 credit(a)@1 backward(a)@1 message(a)@0 observe(a)@0 update(a)@1
        2 forward(a)@2 credit(a)@2 backward(a)@2 message(a)@1 observe(a)@1 update(a)@2
        """,
    )
    assert_says(
        timetable.stage(schedule, 2),
        """
        0 forward(output)@0 backward(output)@0 update(output)@0
        1 forward(output)@1 backward(output)@1 update(output)@1
        2 forward(output)@2 backward(output)@2 update(output)@2
        """,
    )


def test_a_stage_that_waits_learns_later_the_lower_it_is() -> None:
    schedule = chain("a", "b", steps=4, terms=DELAYED)
    assert_says(
        timetable.stage(schedule, 0),
        """
        0 forward(a)@0 credit(a)@0
        1 forward(a)@1 credit(a)@1
        2 forward(a)@2 credit(a)@2 message(a)@0 backward(a)@0 update(a)@2
        3 forward(a)@3 credit(a)@3 message(a)@1 backward(a)@1 update(a)@3
        """,
    )


def test_when_a_stage_stops_waiting_it_has_two_updates_in_a_step() -> None:
    assert_says(
        timetable.stage(chain("a", steps=3, terms=Terms(observe=1, waits=1)), 0),
        """
        0 forward(a)@0 credit(a)@0
        1 forward(a)@1 credit(a)@1 backward(a)@1 update(a)@1 message(a)@0 observe(a)@0 backward(a)@0 update(a)@1
        2 forward(a)@2 credit(a)@2 backward(a)@2 message(a)@1 observe(a)@1 update(a)@2
        """,
    )


def test_recurrent() -> None:
    assert_says(
        timetable.recurrent(2),
        """
        0 forward(net)@0 credit(state)@0 backward(net)@0 update(all)@0
        1 forward(net)@1 credit(state)@1 backward(net)@1 message(state)@0 observe(state)@0 update(all)@1
        """,
    )
    assert_says(
        timetable.recurrent(5, window=2),
        """
        0 forward(net)@0 credit(state)@0
        1 forward(net)@1 credit(state)@1 message(state)@0 observe(state)@0
        1 backward(net)@0 backward(net)@1 update(all)@1
        2 forward(net)@2 credit(state)@2
        3 forward(net)@3 credit(state)@3 message(state)@2 observe(state)@2 message(state)@1 observe(state)@1
        3 backward(net)@2 backward(net)@3 update(all)@3
        4 forward(net)@4 credit(state)@4
        """,
    )


def test_clocked() -> None:
    nodes = [ClockedNode("A", 1, 2, 2), ClockedNode("B", 2, 2, 4)]
    assert_says(
        timetable.clocked(nodes, [ClockedEdge("A", "B")], 4),
        """
        0 forward(A)@0
        1 forward(A)@1 credit(A->B)@1 backward(A)@1 update(A)@1
        1 forward(B)@1
        2 forward(A)@2
        3 forward(A)@3 credit(A->B)@3 backward(A)@3 update(A)@3
        3 forward(B)@3 backward(B)@3
        3 message(A->B)@1 observe(A->B)@1 message(A->B)@3 observe(A->B)@3 update(B)@3
        """,
    )
    locked = Terms(credits=False, listens=False, waits=ALWAYS)
    assert_says(
        timetable.clocked(nodes, [ClockedEdge("A", "B", locked)], 4),
        """
        0 forward(A)@0
        1 forward(A)@1 forward(B)@1
        2 forward(A)@2
        3 forward(A)@3 forward(B)@3 backward(A)@3 backward(B)@3 update(A)@3 update(B)@3
        """,
    )


def test_a_clocked_state_and_a_message_that_is_read_twice() -> None:
    nodes = [ClockedNode("A", 2, 1, 2), ClockedNode("B", 1, 2, 1, Terms())]
    assert_says(
        timetable.clocked(nodes, [ClockedEdge("A", "B")], 4),
        """
        0 forward(B)@0
        1 forward(A)@1 credit(A->B)@1 backward(A)@1 update(A)@1
        1 forward(B)@1 credit(B:state)@1 backward(B)@1 update(B)@1
        2 forward(B)@2
        3 forward(A)@3 credit(A->B)@3 backward(A)@3 update(A)@3
        3 forward(B)@3 credit(B:state)@3 backward(B)@3
        3 message(B:state)@1 observe(B:state)@1 message(A->B)@1 observe(A->B)@1 update(B)@3
        """,
    )


# What no engine offers


@pytest.mark.parametrize(
    ("terms", "match"),
    [
        (Terms(observe=-1), "expected numbers of steps from 0"),
        (Terms(forward=-1), "only synthetic inputs"),
        (Terms(forward=1, supplied=True), "nobody waits"),
        (Terms(waits=1, supplied=True), "nobody waits"),
    ],
)
def test_terms_that_cannot_be(terms: Terms, match: str) -> None:
    with pytest.raises(ConfigError, match=f"interface 'a' has .*{match}"):
        chain("a", terms=terms)


def test_networks_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="'trunk' has a forward lag, expected none"):
        branches(trunk=Terms(forward=1))
    with pytest.raises(
        ConfigError, match=r"modules end at \['a', 'output'\], expected the interfaces \['b'\]"
    ):
        Schedule(chain("a").modules, {"b": Terms()}, 1)
    for engine in (timetable.layer_parallel, lambda s: timetable.stage(s, 0)):
        for schedule in (branches(), chain("a", terms=Terms(supplied=True))):
            with pytest.raises(ConfigError, match="branches or synthetic inputs"):
                list(engine(schedule))
    with pytest.raises(ConfigError, match="differ in their terms, or modules wait"):
        list(timetable.layer_parallel(chain("a", "b", terms=DELAYED)))
