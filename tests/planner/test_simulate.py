"""Times, ages, causes and bytes of small schedules, worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import mean
from typing import Any

import pytest

from synthgrad.core import ConfigError
from synthgrad.planner import (
    Action,
    Compute,
    Job,
    Link,
    Machine,
    Mark,
    Network,
    Observe,
    Post,
    Run,
    Send,
    Transfer,
    Wait,
    WaitSent,
    Wire,
    simulate,
)
from synthgrad.planner.links import BBR_GAIN

UP, DOWN = ("F", 1, 0), ("B", 0, 0)


def run(*programs: Sequence[Action], network: Network | None = None, **settings: Any) -> Run:
    """Run one step of each process, with a trace."""
    job = Job(
        "toy", lambda: [iter([*program, Mark(0)]) for program in programs], num_stages=len(programs), steps=1
    )
    return simulate(job, network or Network(), trace=True, **settings)


def over(up: Wire, down: Wire | None = None, **settings: Any) -> Network:
    return Network.of(Link(up, down or up), **settings)


def works(seconds: float, *, takes: float = 0.0, frees: float = 0.0) -> Compute:
    return Compute("forward", 0, seconds, takes=takes, frees=frees)


def times(transfer: Transfer) -> list[float]:
    return [transfer.sent_s, transfer.begins_s, transfer.leaves_s, transfer.arrives_s]


# -- one wire -----------------------------------------------------------------------------------------------


def test_a_message_takes_its_bytes_what_it_occupies_besides_and_the_way() -> None:
    wire = Wire(delay_s=1.0, bytes_per_s=50.0, occupied_s=0.5)
    found = run([works(2), Send(UP, 1, 100.0)], [Wait(UP, 0), works(1)], network=over(wire))
    (message,) = found.transfers
    assert times(message) == [2.0, 2.0, 4.5, 5.5]
    assert (message.source, message.to, message.tag, message.num_bytes) == (0, 1, UP, 100.0)
    assert found.end_s == found.step_s == 6.5
    assert [(s.process, s.kind, s.start_s, s.end_s) for s in found.spans] == [
        (0, "forward", 0.0, 2.0),
        (1, "forward", 5.5, 6.5),
    ]


def test_the_next_message_waits_for_the_wire_and_not_for_the_way() -> None:
    second = ("F", 1, 1)
    wire = Wire(delay_s=10.0, bytes_per_s=50.0, occupied_s=0.5)
    found = run(
        [Send(UP, 1, 100.0), works(1), Send(second, 1, 50.0)], [Wait(UP), Wait(second)], network=over(wire)
    )
    assert [times(message) for message in found.transfers] == [[0, 0, 2.5, 12.5], [1, 2.5, 4, 14]]


def test_a_wire_that_was_idle_serves_at_once() -> None:
    second = ("F", 1, 1)
    found = run(
        [Send(UP, 1, 100.0), works(9), Send(second, 1, 100.0)],
        [Wait(UP), Wait(second)],
        network=over(Wire(bytes_per_s=100.0)),
    )
    assert [times(message) for message in found.transfers] == [[0, 0, 1, 1], [9, 9, 10, 10]]


def test_directions_have_their_own_wires() -> None:
    network = over(Wire(bytes_per_s=100.0), Wire(delay_s=3.0, bytes_per_s=10.0))
    found = run([Send(UP, 1, 100.0), Wait(DOWN)], [Send(DOWN, 0, 100.0), Wait(UP)], network=network)
    assert {m.tag: m.arrives_s for m in found.transfers} == {UP: 1.0, DOWN: 13.0}


def test_links_between_pairs_may_differ() -> None:
    network = Network.of([Link.of(rtt_ms=2000), Link.of(rtt_ms=8000)])
    found = run([Send(UP, 1, 1)], [Wait(UP), Send(("F", 2, 0), 2, 1)], [Wait(("F", 2, 0))], network=network)
    assert [m.arrives_s for m in found.transfers] == [1.0, 5.0]


def test_a_message_to_oneself_is_here_at_once_and_is_no_traffic() -> None:
    found = run([Send(UP, 0, 100.0), Wait(UP), works(1)], network=over(Wire(1.0), startup_s=1.0))
    assert found.end_s == 1.0
    assert not found.transfers
    assert found.bytes_per_step == 0


# -- rendezvous -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("computes", "begins"),
    [(0.0, 2.0), (1.5, 2.25), (5.0, 5.75)],  # asked before it was sent, on its way then, and after it
)
def test_with_a_rendezvous_a_message_starts_when_the_question_is_there(
    computes: float, begins: float
) -> None:
    network = over(Wire(delay_s=1.0), Wire(delay_s=0.75), rendezvous=True)
    found = run([works(2), Send(UP, 1, 1)], [works(computes), Wait(UP, 0)], network=network)
    assert times(found.transfers[0]) == [2.0, begins, begins, begins + 1.0]


def test_a_question_that_was_posted_need_not_be_asked_again() -> None:
    network = over(Wire(delay_s=1.0), rendezvous=True)
    found = run([works(2), Send(UP, 1, 1)], [Post(UP, 0), works(5), Wait(UP, 0)], network=network)
    assert found.transfers[0].begins_s == 2.0
    assert found.end_s == 5.0


def test_without_a_rendezvous_nobody_asks() -> None:
    found = run([works(2), Send(UP, 1, 1)], [works(5), Wait(UP, 0)], network=over(Wire(delay_s=1.0)))
    assert times(found.transfers[0]) == [2.0, 2.0, 2.0, 3.0]


def test_a_sender_waits_until_its_last_byte_has_left() -> None:
    network = over(Wire(delay_s=1.0, bytes_per_s=10.0), rendezvous=True)
    found = run([Send(UP, 1, 20.0), WaitSent(UP), works(1)], [works(3), Wait(UP, 0)], network=network)
    assert times(found.transfers[0]) == [0.0, 4.0, 6.0, 7.0]  # asked at 3, known at 4
    assert found.spans[-1].start_s == 6.0
    # For 3 s nobody had asked; then the question was on its way, then its own bytes left.
    assert found.stages[0].idle_s == {"peer": 3.0, "latency": 1.0, "bandwidth": 2.0}


def test_a_sender_does_not_wait_for_what_has_left() -> None:
    network = over(Wire(delay_s=4.0, bytes_per_s=10.0), Wire(), rendezvous=True)
    found = run([Send(UP, 1, 20.0), works(3), WaitSent(UP), works(1)], [Wait(UP, 0)], network=network)
    assert [s.start_s for s in found.spans] == [0.0, 3.0]
    taken = run(
        [Send(UP, 1, 20.0), works(30), WaitSent(UP), works(1)], [Wait(UP, 0), works(60)], network=network
    )
    assert [s.start_s for s in taken.spans if s.process == 0] == [0.0, 30.0]


def test_without_a_rendezvous_a_sender_does_not_wait() -> None:
    found = run([Send(UP, 1, 20.0), WaitSent(UP), works(1)], [Wait(UP)], network=over(Wire(bytes_per_s=1.0)))
    assert found.spans[0].start_s == 0.0


# -- answers ------------------------------------------------------------------------------------------------


def answers(
    steps: int, every_s: float, window: int, seconds: float = 0.0, network: Network | None = None
) -> Run:
    """A lower process with steps of a second; the upper one sends an answer every so many seconds."""
    lower = [
        action
        for step in range(steps)
        for action in (Compute("forward", step, 1.0), Observe(0, step, step - window, seconds), Mark(step))
    ]
    upper = [
        action
        for step in range(steps)
        for action in (
            Compute("forward", step, every_s),
            Send(("B", 0, step), 0, 8.0, step % 4 != 3),
            Mark(step),
        )
    ]
    job = Job("answers", lambda: [iter(lower), iter(upper)], num_stages=2, steps=steps, warm=steps - 1)
    return simulate(job, network or Network(), trace=True)


def test_answers_are_taken_in_order_when_they_are_here_and_count_in_steps() -> None:
    # Answers come at 1.6, 3.2, 4.8, 6.4, …; steps end at 1, 2, 3, 4, 5; the next two wait for 6.4 and 8.0.
    found = answers(7, 1.6, window=2)
    lower = found.stages[0]
    assert [s.end_s for s in found.spans if s.process == 0] == pytest.approx([1, 2, 3, 4, 5, 6, 7.4])
    # Answer 0 in step 1, 1 in 3, 2 in 4, 4 in 6; answer 3 is a header.
    assert lower.ages == {1: 1, 2: 3}
    assert lower.idle_s == pytest.approx({"peer": 0.4 + 0.6, "bandwidth": 0, "latency": 0})


def test_a_stage_never_waits_in_a_window_that_is_not_used_up() -> None:
    found = answers(7, 1.6, window=5)
    assert [s.end_s for s in found.spans if s.process == 0] == [1, 2, 3, 4, 5, 6, 7]
    assert found.stages[0].ages == {1: 1, 2: 2}  # answers 0, 1 and 2; 3 is a header


def test_each_message_among_the_answers_is_learned_from() -> None:
    # The answers come three at a time: 0 and 1 and 2 are here in step 3, of which 3 is a header that costs nothing.
    lower: list[Action] = [works(4), Observe(0, 3, -1, 0.5), works(1), Observe(0, 4, 4, 0.25)]
    upper = [Send(("B", 0, b), 0, 1.0, b != 3) for b in range(4)]
    found = run(lower, [*upper, works(8), Send(("B", 0, 4), 0, 1.0)])
    assert found.stages[0].busy_s == {"forward": 5.0, "observe": 3 * 0.5 + 0.25}
    assert found.stages[0].ages == {0: 1, 1: 1, 2: 1, 3: 1}
    assert found.end_s == 8.25  # the last answer is sent at 8, when the process has waited since 6.5
    assert found.stages[0].idle_s["peer"] == 1.5


def test_what_is_here_is_learned_from_before_the_process_waits() -> None:
    lower: list[Action] = [works(1), Observe(0, 1, 1, 0.5)]
    found = run(lower, [Send(("B", 0, 0), 0, 1.0), works(4), Send(("B", 0, 1), 0, 1.0)])
    observed = [(s.start_s, s.end_s) for s in found.spans if s.kind == "observe"]
    assert observed == [(1.0, 1.5), (4.0, 4.5)]


def test_later_answers_are_left() -> None:
    sends = [Send(("B", 0, b), 0, 1.0) for b in range(3)]
    found = run([works(1), Observe(0, 1, -1)], sends)
    assert found.stages[0].ages == {0: 1, 1: 1}


def test_answers_are_asked_for_in_a_rendezvous() -> None:
    network = over(Wire(delay_s=1.0), rendezvous=True)
    found = run([works(1), Observe(0, 0, 0)], [Send(("B", 0, 0), 0, 1.0), works(1)], network=network)
    assert times(found.transfers[0]) == [0.0, 2.0, 2.0, 3.0]


# -- cores ------------------------------------------------------------------------------------------------


def test_processes_share_a_core_evenly() -> None:
    found = run([works(1)], [works(3), works(1)], machines=[Machine((0, 1))])
    assert [(s.process, s.end_s) for s in found.spans] == [(0, 2.0), (1, 4.0), (1, 5.0)]
    assert found.stages[1].busy_s == {"forward": 5.0}


def test_who_begins_later_slows_the_others_from_then_on() -> None:
    start: list[Action] = [Wait(UP, 0), works(1)]
    found = run([works(1), Send(UP, 1, 1), works(1)], start, machines=[Machine((0, 1))], network=over(Wire()))
    assert [(s.process, s.end_s) for s in found.spans] == [(0, 1.0), (0, 3.0), (1, 3.0)]


def test_computations_slow_each_other_even_on_cores_of_their_own() -> None:
    machine = Machine((0, 1), cores=2, slowdown=(1.0, 1.5))
    found = run([works(1)], [works(3)], machines=[machine])
    assert [(s.process, s.end_s) for s in found.spans] == [(0, 1.5), (1, 3.5)]


@pytest.mark.parametrize(
    ("active", "speed"), [(1, 1.0), (2, 0.8), (3, 2 / 3 / 1.25), (4, 0.5 / 1.25)]
)  # the last slowdown holds for more
def test_speed_of_each_of_many(active: int, speed: float) -> None:
    assert Machine((0, 1, 2, 3), cores=2, slowdown=(1.0, 1.25)).speed(active) == pytest.approx(speed)


@pytest.mark.parametrize(
    "given", [dict(cores=0), dict(processes=()), dict(slowdown=()), dict(slowdown=(0.0,))]
)
def test_a_machine_has_processes_cores_and_slowdowns(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected one process or more"):
        Machine(**(dict[str, Any](processes=(0,)) | given))


# -- inbound ------------------------------------------------------------------------------------------------

BELOW, ABOVE = ("F", 1, 0), ("B", 1, 0)


def test_an_inbound_wire_serves_what_is_needed_next() -> None:
    network = over(Wire(bytes_per_s=1.0), inbound=True)
    found = run(
        [Send(BELOW, 1, 1.0)], [Wait(ABOVE), Wait(BELOW)], [works(2), Send(ABOVE, 1, 1.0)], network=network
    )
    assert {m.tag: m.begins_s for m in found.transfers} == {ABOVE: 2.0, BELOW: 3.0}


def test_an_inbound_wire_is_one_for_both_neighbours() -> None:
    programs: list[list[Action]] = [[Send(BELOW, 1, 1.0)], [Wait(BELOW), Wait(ABOVE)], [Send(ABOVE, 1, 1.0)]]
    wire = Wire(bytes_per_s=1.0)
    assert run(*programs, network=over(wire, inbound=True)).end_s == 2.0
    assert run(*programs, network=over(wire)).end_s == 1.0


def test_answers_that_a_stage_can_do_without_fill_the_gaps_of_an_inbound_wire() -> None:
    network = over(Wire(bytes_per_s=1.0), inbound=True)
    middle: list[Action] = [Wait(BELOW), works(1), Observe(1, 0, -1), Wait(("F", 1, 1)), works(1)]
    middle += [Observe(1, 1, 1)]
    above = [Send(("B", 1, 0), 1, 2.0), works(4.5), Send(("B", 1, 1), 1, 2.0)]
    found = run(
        [works(1), Send(BELOW, 1, 1.0), works(3), Send(("F", 1, 1), 1, 1.0)], middle, above, network=network
    )
    # Answer 0 goes at once, as nothing else is ready; answer 1 is ready at 4.5, while F1 occupies the wire until 5.
    assert [(m.tag, m.begins_s) for m in found.transfers] == [
        (("B", 1, 0), 0.0),
        (BELOW, 2.0),
        (("F", 1, 1), 4.0),
        (("B", 1, 1), 5.0),
    ]
    assert found.stages[1].ages == {0: 2}


def test_an_answer_without_which_a_stage_does_not_go_on_has_its_turn() -> None:
    network = over(Wire(bytes_per_s=1.0), inbound=True)
    middle: list[Action] = [Observe(1, 0, 0), Wait(BELOW)]
    found = run([Send(BELOW, 1, 1.0)], middle, [works(2), Send(("B", 1, 0), 1, 1.0)], network=network)
    assert {m.tag[0]: m.begins_s for m in found.transfers} == {"B": 2.0, "F": 3.0}


def test_of_two_messages_that_are_ready_the_needed_one_goes_first() -> None:
    network = over(Wire(bytes_per_s=1.0), inbound=True)
    middle: list[Action] = [Wait(BELOW), Wait(("F", 1, 1)), Observe(1, 0, -1), works(9), Observe(1, 1, 1)]
    above = [works(0.5), Send(("B", 1, 0), 1, 1.0), Send(("B", 1, 1), 1, 1.0)]
    found = run([Send(BELOW, 1, 1.0), works(0.75), Send(("F", 1, 1), 1, 1.0)], middle, above, network=network)
    assert [m.tag for m in found.transfers] == [BELOW, ("F", 1, 1), ("B", 1, 0), ("B", 1, 1)]


def test_an_inbound_wire_carries_what_nobody_takes_at_last() -> None:
    network = over(Wire(bytes_per_s=1.0), inbound=True)
    found = run([Send(BELOW, 1, 1.0), Send(("F", 1, 1), 1, 1.0)], [Wait(BELOW)], network=network)
    assert [m.arrives_s for m in found.transfers] == [1.0, 2.0]


# -- chance -------------------------------------------------------------------------------------------------


def delays(wire: Wire, count: int, size: float = 1.0, apart: float = 1e3, seed: int = 0) -> list[float]:
    """What chance adds to messages that are sent so many seconds apart."""
    tags = [("F", 1, n) for n in range(count)]
    sends = [action for tag in tags for action in (works(apart), Send(tag, 1, size))]
    found = run(sends, [Wait(tag) for tag in tags], network=over(wire), seed=seed)
    assert [m.tag for m in found.transfers] == tags
    return [m.arrives_s - m.leaves_s - wire.delay_s for m in found.transfers]


def test_jitter_has_its_mean_and_a_long_tail() -> None:
    found = delays(Wire(delay_s=1.0, jitter_s=2.0), 4000)
    assert min(found) >= 0
    assert mean(found) == pytest.approx(2.0, rel=0.05)
    assert mean(extra > 2.0 for extra in found) == pytest.approx(math.exp(-1), abs=0.03)  # exponential


def test_chance_is_seeded() -> None:
    wire = Wire(jitter_s=2.0, loss=0.2)
    assert delays(wire, 20, seed=1) == delays(wire, 20, seed=1)
    assert delays(wire, 20, seed=1) != delays(wire, 20, seed=2)


def test_messages_do_not_overtake_one_another() -> None:
    tags = [("F", 1, n) for n in range(200)]
    sends = [action for tag in tags for action in (works(0.01), Send(tag, 1, 1.0))]
    found = run(sends, [Wait(tag) for tag in tags], network=over(Wire(jitter_s=1.0)))
    assert [m.tag for m in found.transfers] == tags
    assert all(a.arrives_s <= b.arrives_s for a, b in pairwise(found.transfers))


@pytest.mark.parametrize("packets", [1, 3])
def test_a_lost_packet_comes_a_round_trip_later_each_time(packets: int) -> None:
    loss, rtt = 0.3, 2.0
    found = delays(Wire(delay_s=rtt / 2, loss=loss), 6000, size=1448.0 * packets)
    trips = [round(extra / rtt) for extra in found]
    assert found == pytest.approx([rtt * n for n in trips], abs=1e-6)
    for most in range(3):  # no packet is lost more than so many times
        assert mean(n <= most for n in trips) == pytest.approx((1 - loss ** (most + 1)) ** packets, abs=0.02)


def test_losses_are_rare_where_packets_are_rarely_lost() -> None:
    wire = Wire(delay_s=1.0, loss=1e-4)
    large = delays(wire, 3000, size=1448.0 * 10_000)
    assert mean(extra > 1 for extra in large) == pytest.approx(1 - (1 - 1e-4) ** 10_000, abs=0.03)


# -- BBR ----------------------------------------------------------------------------------------------------


def sent_at(sizes: Sequence[float], apart: float, **settings: Any) -> list[float]:
    """Seconds in which each message leaves, over a link with a round trip of two seconds."""
    wire = Wire(delay_s=1.0, bytes_per_s=settings.pop("bytes_per_s", math.inf))
    tags = [("F", 1, n) for n in range(len(sizes))]
    sends = [a for tag, size in zip(tags, sizes, strict=True) for a in (Send(tag, 1, size), works(apart))]
    network = over(wire, congestion="bbr", **settings)
    found = run(sends, [Wait(tag) for tag in tags], network=network)
    return [m.leaves_s - m.begins_s for m in found.transfers]


def test_bbr_sends_its_largest_burst_in_a_part_of_the_round_trip_however_large() -> None:
    trip = 2 / (BBR_GAIN - 1)
    assert pytest.approx(1.0608, abs=1e-4) == trip
    assert sent_at([1e3, 1e3], apart=5) == pytest.approx([trip, trip])
    assert sent_at([1e9, 1e9], apart=5) == pytest.approx([trip, trip])
    # A smaller one afterwards at the rate of the large one; a larger one is a larger burst.
    assert sent_at([100, 50, 200], apart=5) == pytest.approx([trip, trip / 2, trip])


def test_bbr_counts_what_it_sends_in_a_round_trip_as_one_burst() -> None:
    trip = 2 / (BBR_GAIN - 1)
    # The second begins when the first has left, after 1.06 s: both are of one round trip, and half of the burst each.
    assert sent_at([100, 100], apart=0) == pytest.approx([trip, trip / 2])
    assert sent_at([100, 100], apart=2.5) == pytest.approx([trip, trip])


def test_bbr_knows_a_burst_from_before_and_is_never_faster_than_the_wire() -> None:
    trip = 2 / (BBR_GAIN - 1)
    assert sent_at([100], apart=0, burst_bytes=400) == pytest.approx([trip / 4])
    assert sent_at([100], apart=0, burst_bytes=400, bytes_per_s=50.0) == pytest.approx([2.0])


# -- what it costs to send and to receive --------------------------------------------------------------------


def test_both_ends_compute_for_a_message() -> None:
    network = over(Wire(), startup_s=1.0, copy_s_per_byte=0.01)
    found = run([Send(UP, 1, 100.0), works(4)], [Wait(UP, 0), works(1)], network=network)
    spans = [(s.process, s.kind, s.start_s, s.end_s) for s in found.spans]
    assert spans == [
        (0, "send", 0.0, 2.0),
        (1, "receive", 2.0, 4.0),
        (1, "forward", 4.0, 5.0),
        (0, "forward", 2.0, 6.0),
    ]


def test_bytes_alone_cost_both_ends_time() -> None:
    found = run([Send(UP, 1, 100.0)], [Wait(UP, 0)], network=over(Wire(), copy_s_per_byte=0.01))
    assert [s.busy_s for s in found.stages] == [{"send": 1.0}, {"receive": 1.0}]


def test_an_answer_costs_its_handling_and_what_is_learned_from_it() -> None:
    network = over(Wire(), startup_s=1.0)
    found = run([Observe(0, 0, 0, 0.5)], [Send(DOWN, 0, 1.0)], network=network)
    assert found.stages[0].busy_s == {"observe": 1.5}
    header = run([Observe(0, 0, 0, 0.5)], [Send(DOWN, 0, 1.0, False)], network=network)
    assert header.stages[0].busy_s == {"observe": 1.0}


# -- memory, causes, bytes -----------------------------------------------------------------------------------


def test_the_peak_counts_what_is_held_for_backward_passes_and_messages_until_they_are_taken() -> None:
    lower: list[Action] = [works(1, takes=10), works(1, takes=5, frees=15), works(1, takes=7, frees=7)]
    assert run(lower).peak_bytes == 15
    sends = [Send(("F", 1, b), 1, 100.0) for b in range(3)]
    upper: list[Action] = [
        works(1),
        *(Wait(s.tag, 0) for s in sends[:2]),
        works(1, takes=250),
        Wait(sends[2].tag),
    ]
    found = run(sends, upper)
    assert [s.peak_bytes for s in found.stages] == [0, 100 + 250]  # 300 until the first is taken, then 350
    assert run(sends, [*upper[:3], works(1, takes=150)]).stages[1].peak_bytes == 300


def test_causes_of_waiting_are_a_peer_a_busy_wire_and_the_way() -> None:
    wire = Wire(delay_s=1.0, bytes_per_s=10.0, occupied_s=0.5)
    second = ("F", 1, 1)
    found = run(
        [works(2), Send(UP, 1, 20.0), Send(second, 1, 10.0)], [Wait(UP), Wait(second)], network=over(wire)
    )
    # UP: 2 s until it is sent, 2 s for its bytes, 0.5 + 1 s; the second is 1.5 s later, as it has stood in the queue.
    assert found.stages[1].idle_s == {"peer": 2.0, "bandwidth": 2.0 + 1.5, "latency": 1.5}
    assert found.stages[1].idle_cause == "bandwidth"
    assert found.stages[1].idle_share == 1.0
    assert found.stages[0].idle_s == {"peer": 0, "bandwidth": 0, "latency": 0}
    assert found.stages[0].idle_cause is None


def test_a_queue_is_waiting_for_bandwidth() -> None:
    second = ("F", 1, 1)
    found = run(
        [Send(UP, 1, 30.0), Send(second, 1, 10.0)],
        [Wait(second), Wait(UP)],
        network=over(Wire(bytes_per_s=10.0)),
    )
    assert found.stages[1].idle_s == {"peer": 0, "bandwidth": 4.0, "latency": 0}


def test_what_has_stood_in_a_queue_is_late_for_want_of_bandwidth() -> None:
    second = ("F", 1, 1)
    wire = Wire(delay_s=10.0, bytes_per_s=10.0)
    lower = [Send(UP, 1, 30.0), Send(second, 1, 10.0)]
    # The second leaves from 3 to 4 and arrives at 14, three seconds later than without the first, and one of its own.
    for came, bandwidth in ((2.0, 3.0), (7.0, 3.0), (12.0, 2.0)):
        found = run(lower, [works(came), Wait(second)], network=over(wire))
        waited = 14.0 - came
        bandwidth += came < 3
        assert found.stages[1].idle_s == {"peer": 0, "bandwidth": bandwidth, "latency": waited - bandwidth}


def test_who_waits_for_another_waits_for_what_that_waits_for() -> None:
    network = Network.of([Link(Wire(bytes_per_s=10.0)), Link(Wire(delay_s=0.5))])
    top = ("F", 2, 0)
    found = run(
        [works(1), Send(UP, 1, 30.0)],
        [works(0.25), Wait(UP), works(2), Send(top, 2, 1.0)],
        [works(0.5), Wait(top)],
        network=network,
    )
    assert found.stages[1].idle_s == {"peer": 0.75, "bandwidth": 3.0, "latency": 0}
    # From 0.5 to 1 the lowest process computes, 3 s its message leaves, 2 s the middle one computes.
    assert found.stages[2].idle_s == {"peer": 0.5 + 2.0, "bandwidth": 3.0, "latency": 0.5}


def test_a_process_that_waits_for_its_own_thread_waits_for_what_that_waits_for() -> None:
    # Process 2 communicates for process 0: it waits 1 s for a peer, then 3 s for the wire; it has the last word at 4.
    done = ("reduced", 0, 0)
    programs = [
        [works(0.5), Wait(done, 2)],
        [works(1), Send(("F", 2, 0), 2, 30.0)],
        [Wait(("F", 2, 0)), Send(done, 0, 0)],
    ]
    job = Job("thread", lambda: [iter([*p, Mark(0)]) for p in programs], 2, 1, owners={2: 0})
    found = simulate(job, over(Wire(bytes_per_s=10.0)))
    assert found.stages[0].idle_s == {"peer": 0.5, "bandwidth": 3.0, "latency": 0}
    assert found.end_s == 4.0


def test_bytes_of_a_thread_are_those_of_its_process() -> None:
    tag = ("R", 1, 0)
    programs: list[list[Action]] = [[], [Wait(tag)], [Send(tag, 1, 30.0)]]
    job = Job("thread", lambda: [iter([*p, Mark(0)]) for p in programs], 2, 1, owners={2: 0})
    assert [s.bytes_per_step for s in simulate(job, Network()).stages] == [30.0, 0.0]


def test_a_run_says_what_all_processes_wait_for_and_its_throughput() -> None:
    job = Job("toy", lambda: [iter([works(4), Mark(0)]), iter([works(1), Mark(0)])], 2, 1, batch_size=8)
    found = simulate(job, Network())
    assert found.examples_per_s == 2.0
    assert found.idle_share == 0.0
    assert found.idle_cause is None
    assert found.mean_age is None


# -- steps ----------------------------------------------------------------------------------------------------


def stepped(seconds: Sequence[float], warm: int) -> Run:
    program = [
        action
        for step, time in enumerate(seconds)
        for action in (Compute("forward", step, time), Send(("F", 1, step), 1, 10.0 * (step + 1)), Mark(step))
    ]
    above = [action for step in range(len(seconds)) for action in (Wait(("F", 1, step)), Mark(step))]
    job = Job("steps", lambda: [iter(program), iter(above)], 2, len(seconds), warm)
    return simulate(job, over(Wire(delay_s=0.5)))


def test_steps_up_to_the_warm_one_are_not_measured() -> None:
    found = stepped([5.0, 3.0, 1.0, 1.0], warm=1)
    assert found.step_s == 1.0
    assert found.end_s == 10.5
    assert found.stages[0].busy_s == {"forward": 2.0}
    assert found.stages[0].bytes_per_step == (30 + 40) / 2
    assert found.stages[1].idle_s == {"peer": 1.0, "bandwidth": 0, "latency": 1.0}
    assert found.stages[1].seconds == 2.0


def test_one_step_is_enough_to_measure() -> None:
    found = stepped([5.0, 3.0], warm=0)
    assert found.step_s == 3.0
    assert found.stages[0].busy_s == {"forward": 3.0}


def test_if_no_step_is_left_to_measure_all_are() -> None:
    found = stepped([5.0, 3.0], warm=1)
    assert found.step_s == 8.5 / 2
    assert found.stages[0].busy_s == {"forward": 8.0}
    assert found.stages[0].bytes_per_step == (10 + 20) / 2


@pytest.mark.parametrize(("steps", "warm"), [(0, 0), (2, 2), (2, -1)])
def test_a_job_has_steps(steps: int, warm: int) -> None:
    with pytest.raises(ConfigError, match="expected more steps"):
        Job("none", list, 1, steps, warm)


def test_processes_that_wait_for_each_other_are_an_error() -> None:
    with pytest.raises(ConfigError, match=r"'toy' never ends: process 0 waits at Wait.*1 others") as error:
        run([Wait(DOWN, 1), Send(UP, 1, 1)], [Wait(UP, 0), Send(DOWN, 0, 1)])
    assert "\n" not in str(error.value)


def test_a_message_is_sent_once() -> None:
    with pytest.raises(ConfigError, match="sent twice"):
        run([Send(UP, 1, 1), Send(UP, 1, 1)], [works(1), Wait(UP)])


def test_a_trace_is_recorded_only_where_it_is_asked_for() -> None:
    job = Job("toy", lambda: [iter([works(1), Send(UP, 1, 1), Mark(0)]), iter([Wait(UP), Mark(0)])], 2, 1)
    assert not simulate(job, Network()).spans + simulate(job, Network()).transfers
    traced = simulate(job, Network(), trace=True)
    assert (len(traced.spans), len(traced.transfers)) == (1, 1)
