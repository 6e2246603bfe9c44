"""Schedules as data: textbook times, orders of passes, and messages that are sent and taken once."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import pytest

from synthgrad.core import ConfigError
from synthgrad.core import timetable as tables
from synthgrad.engines.stages.window import Window
from synthgrad.planner import (
    Action,
    Compute,
    Job,
    Link,
    Mark,
    Network,
    Observe,
    Send,
    StageCost,
    Wait,
    WaitSent,
    simulate,
)
from synthgrad.planner.programs import (
    CODECS,
    SCHEDULES,
    Codec,
    backpropagation,
    data_parallel,
    decoupled,
    delayed,
    pipeline,
    window_for,
)

FORWARD, BACKWARD = 1.0, 2.0


def equal(name: str, processes: int, microbatches: int, **settings: Any) -> Job:
    """Return the job of equal parts, of which each microbatch takes 1 s and 2 s in each process."""
    chunks = SCHEDULES[name][1]
    each = StageCost(
        FORWARD * microbatches / chunks,
        BACKWARD * microbatches / chunks,
        output_bytes=10.0 * microbatches,
        held_bytes=1.0 * microbatches,
    )
    return pipeline(
        name, [each] * (processes * chunks), processes=processes, microbatches=microbatches, **settings
    )


def lists(job: Job) -> list[list[Action]]:
    return [list(program) for program in job.programs()]


def passes(actions: Iterable[Action]) -> list[str]:
    """Return the computations of a program in short, such as ``F0.2`` for microbatch 2 of stage 0."""
    short = {"forward": "F", "backward": "B", "backward_input": "I", "backward_weight": "W"}
    return [
        f"{short[a.kind]}{a.stage}.{a.batch}" for a in actions if isinstance(a, Compute) and a.kind in short
    ]


def at_once(actions: Iterable[Action], stage: int, last: str = "backward") -> int:
    """Return how many microbatches of a stage are between their forward and their last backward pass at most."""
    held = most = 0
    for a in actions:
        if isinstance(a, Compute) and a.stage == stage:
            held += (a.kind == "forward") - (a.kind == last)
            most = max(most, held)
    return most


# -- synchronous pipelines ----------------------------------------------------------------------------------

SHAPES = [(2, 2), (2, 4), (3, 6), (4, 4), (4, 8), (5, 10), (8, 16)]


@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
@pytest.mark.parametrize(("processes", "microbatches"), [*SHAPES, (3, 7)])
def test_without_links_a_step_of_equal_stages_is_that_of_the_textbook(
    name: str, processes: int, microbatches: int
) -> None:
    found = simulate(equal(name, processes, microbatches), Network())
    assert found.step_s == pytest.approx((microbatches + processes - 1) * (FORWARD + BACKWARD))
    bubble = (processes - 1) / (microbatches + processes - 1)
    assert [s.idle_share for s in found.stages] == pytest.approx([bubble] * processes)


@pytest.mark.parametrize(("processes", "microbatches"), SHAPES)
def test_half_a_stage_twice_halves_the_bubble_and_split_backward_passes_fill_it(
    processes: int, microbatches: int
) -> None:
    step = {name: simulate(equal(name, processes, microbatches), Network()).step_s for name in SCHEDULES}
    work = microbatches * (FORWARD + BACKWARD)
    bubble = {name: time - work for name, time in step.items()}
    assert bubble["1f1b"] == pytest.approx((processes - 1) * (FORWARD + BACKWARD))
    assert bubble["interleaved_1f1b"] == pytest.approx(bubble["1f1b"] / 2)
    # What is left are a forward pass and the inputs' half of a backward one, less the weights' half that fills it.
    assert bubble["zero_bubble"] == pytest.approx((processes - 1) * FORWARD / 2)
    if microbatches >= 2 * processes:
        assert bubble["zero_bubble_v"] == pytest.approx(0)


def test_updates_of_all_parts_of_a_process_are_in_its_step() -> None:
    costs = [StageCost(1.0, 1.0, optimizer_s=s) for s in (1.0, 2.0, 4.0, 8.0)]
    job = pipeline("interleaved_1f1b", costs, processes=2, microbatches=2)
    found = simulate(job, Network())
    assert [s.busy_s["update"] / 2 for s in found.stages] == [1.0 + 4.0, 2.0 + 8.0]


@pytest.mark.parametrize(("processes", "microbatches"), SHAPES)
def test_memory_in_flight_is_all_microbatches_or_no_more_than_stages(
    processes: int, microbatches: int
) -> None:
    gpipe, plain = (
        lists(equal("gpipe", processes, microbatches)),
        lists(equal("1f1b", processes, microbatches)),
    )
    for k in range(processes):
        assert at_once(gpipe[k], k) == microbatches
        assert at_once(plain[k], k) == min(microbatches, processes - k)
    found = simulate(equal("1f1b", processes, microbatches, wire_bytes=0.0), Network())
    assert [s.peak_bytes for s in found.stages] == [
        min(microbatches, processes - k) for k in range(processes)
    ]


def test_a_split_backward_pass_frees_with_its_second_half() -> None:
    job = equal("zero_bubble", 2, 4)
    (row, _) = lists(job)
    made = [a for a in row if isinstance(a, Compute) and a.batch < 4 and a.stage == 0]
    half = {
        "backward_input": (1.0, 0.0),
        "backward_weight": (1.0, 1.0),
    }  # halves of a half stage's 2 s; bytes
    for action in made:
        if action.kind in half:
            assert (2 * action.seconds, action.frees) == half[action.kind]
    # The gradient of the inputs comes first, as the process below waits for it.
    order = [(a.kind, a.batch) for a in row if isinstance(a, Compute) and a.stage == 0]
    assert all(order.index(("backward_input", b)) < order.index(("backward_weight", b)) for b in range(4))
    known = StageCost(4.0, 8.0, backward_input_s=6.0)
    (row, *_) = lists(pipeline("zero_bubble", [known] * 4, processes=2, microbatches=4))
    seconds = {a.kind: a.seconds for a in row if isinstance(a, Compute)}
    assert (seconds["backward_input"], seconds["backward_weight"]) == (1.5, 0.5)


def test_1f1b_is_one_forward_one_backward() -> None:
    job = equal("1f1b", 3, 4, steps=2)
    below, middle, top = (passes(program)[:8] for program in lists(job))
    assert " ".join(below) == "F0.0 F0.1 F0.2 B0.0 F0.3 B0.1 B0.2 B0.3"
    assert " ".join(middle) == "F1.0 F1.1 B1.0 F1.2 B1.1 F1.3 B1.2 B1.3"
    assert " ".join(top) == "F2.0 B2.0 F2.1 B2.1 F2.2 B2.2 F2.3 B2.3"


def test_gpipe_is_all_forward_then_all_backward() -> None:
    for k, program in enumerate(lists(equal("gpipe", 2, 3))):
        assert passes(program)[:6] == [f"F{k}.0", f"F{k}.1", f"F{k}.2", f"B{k}.0", f"B{k}.1", f"B{k}.2"]


def test_a_v_places_the_ends_of_the_network_in_one_process() -> None:
    placed = {
        k: {a.stage for a in p if isinstance(a, Compute) and a.stage >= 0}
        for k, p in enumerate(lists(equal("zero_bubble_v", 3, 6)))
    }
    assert placed == {0: {0, 5}, 1: {1, 4}, 2: {2, 3}}
    looped = {
        k: {a.stage for a in p if isinstance(a, Compute) and a.stage >= 0}
        for k, p in enumerate(lists(equal("zero_bubble", 3, 6)))
    }
    assert looped == {0: {0, 3}, 1: {1, 4}, 2: {2, 5}}
    # Between stages 2 and 3 of the V nothing crosses a wire.
    tags = {a.tag[:2] for p in lists(equal("zero_bubble_v", 3, 6)) for a in p if isinstance(a, Send)}
    assert ("F", 3) not in tags
    assert ("B", 2) not in tags


def check_messages(programs: Sequence[Sequence[Action]], left: int = 0) -> None:
    """Each message is sent once, to the process that takes it, which takes it once; so many may be left at the end."""
    sent: dict[Any, int] = {}
    for program in programs:
        for action in program:
            if isinstance(action, Send):
                assert action.tag not in sent
                sent[action.tag] = action.to
    taken = Counter[Any]()
    for k, program in enumerate(programs):
        answered = -1
        for action in program:
            if isinstance(action, Wait):
                assert sent[action.tag] == k
                taken[action.tag] += 1
            elif isinstance(action, Observe):
                answered = max(answered, action.until)
        taken.update(("B", k, b) for b in range(answered + 1))
    assert set(taken.values()) <= {1}
    assert set(taken) <= set(sent)
    assert len(sent) - len(taken) == left


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("processes", "microbatches"), SHAPES)
def test_every_message_is_sent_once_and_taken_once(name: str, processes: int, microbatches: int) -> None:
    job = equal(name, processes, microbatches, steps=2)
    programs = lists(job)
    check_messages(programs)
    # Every microbatch has its passes in every stage, in both steps, and one update a step.
    total = processes * SCHEDULES[name][1]
    for stage in range(total):
        computed = Counter(
            (a.kind, a.batch) for p in programs for a in p if isinstance(a, Compute) and a.stage == stage
        )
        assert set(computed.values()) == {1}
        batches = defaultdict(set)
        for kind, batch in computed:
            batches[kind].add(batch)
        whole = set(range(2 * microbatches))
        assert batches["forward"] == whole
        assert batches["backward"] | batches["backward_input"] == whole
        assert batches["backward_input"] == batches["backward_weight"]
    assert [sum(isinstance(a, Mark) for a in p) for p in programs] == [2] * processes


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(
    "network", [Network(rendezvous=True), Network(inbound=True), Network(startup_s=0.25)]
)
def test_every_schedule_ends_on_every_network(name: str, network: Network) -> None:
    link = Link.of(rtt_ms=200, mbit_s=1e-3)
    found = simulate(equal(name, 4, 8), replace(network, links=(link,)))
    assert found.step_s > simulate(equal(name, 4, 8), Network()).step_s
    crossing = 2 * (4 * SCHEDULES[name][1] - 1 - (name == "zero_bubble_v"))  # boundaries, both ways
    assert found.bytes_per_step == crossing * 8 * 10.0


def test_bytes_on_the_wire_may_be_given() -> None:
    sizes = {
        a.num_bytes for p in lists(equal("1f1b", 2, 4, wire_bytes=7.0)) for a in p if isinstance(a, Send)
    }
    assert sizes == {7.0}


def test_a_gradient_has_the_bytes_of_its_activation() -> None:
    costs = [StageCost(1.0, 1.0, output_bytes=size) for size in (40.0, 80.0, 0.0)]
    programs = lists(pipeline("1f1b", costs, processes=3, microbatches=4))
    sizes = {(*a.tag[:2], a.num_bytes) for p in programs for a in p if isinstance(a, Send)}
    assert sizes == {("F", 1, 10.0), ("F", 2, 20.0), ("B", 0, 10.0), ("B", 1, 20.0)}


def test_senders_wait_where_pytorch_waits() -> None:
    def waits(name: str) -> list[list[str]]:
        rows = []
        for program in lists(equal(name, 2, 2, steps=1)):
            named = [(a.kind if isinstance(a, Compute) else type(a).__name__) for a in program]
            rows.append([n for n in named if n in ("Send", "WaitSent", "forward", "backward")])
        return rows

    assert waits("gpipe") == [
        ["forward", "Send", "forward", "Send", "WaitSent", "WaitSent", "backward", "backward"],
        ["forward", "forward", "backward", "Send", "backward", "Send", "WaitSent", "WaitSent"],
    ]
    assert waits("1f1b") == [
        # warm-up sends at once; the last of it leaves with the question for the first gradient
        ["forward", "Send", "forward", "WaitSent", "Send", "WaitSent", "backward", "backward"],
        ["forward", "backward", "Send", "WaitSent", "forward", "backward", "Send", "WaitSent"],
    ]


def test_with_a_rendezvous_and_a_way_1f1b_pays_a_round_trip_more_a_microbatch() -> None:
    link = Link.of(rtt_ms=1000)
    eager = simulate(equal("1f1b", 2, 8), Network.of(link)).step_s
    asking = simulate(equal("1f1b", 2, 8), Network.of(link, rendezvous=True)).step_s
    assert asking > eager


@pytest.mark.parametrize(
    ("name", "stages", "settings", "message"),
    [
        (
            "pipedream",
            2,
            {},
            "schedule 'pipedream': expected one of gpipe, 1f1b, interleaved_1f1b, zero_bubble",
        ),
        ("1f1b", 3, {}, "3 parts of the network for 2 processes: the schedule '1f1b' has 1 in each"),
        ("zero_bubble", 2, {}, "has 2 in each"),
        ("1f1b", 1, dict(processes=1), "1 processes, 2 microbatches: expected 2 and 1, or more"),
        ("1f1b", 2, dict(microbatches=0), "2 processes, 0 microbatches"),
        (
            "1f1b",
            4,
            dict(processes=4),
            "with 4 processes and 2 microbatches is refused by PyTorch: Number of",
        ),
    ],
)
def test_what_is_no_pipeline_is_refused_in_one_line(
    name: str, stages: int, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        pipeline(name, [StageCost(1.0, 1.0)] * stages, **{"processes": 2, "microbatches": 2, **settings})
    assert "\n" not in str(error.value)


# -- decoupled stages -----------------------------------------------------------------------------------------

EVENTS = {"forward": "forward", "credit": "credit", "backward": "backward"}
STAGE = StageCost(
    1.0,
    2.0,
    optimizer_s=0.5,
    output_bytes=1000.0,
    credit_s=0.25,
    observe_s=0.125,
    held_bytes=5.0,
)


@pytest.mark.parametrize("stages", [2, 3, 5])
@pytest.mark.parametrize("window", [0, 1, 4])
@pytest.mark.parametrize("make", ["stages", "local", "delayed"])
def test_programs_hold_the_order_of_the_timetable(stages: int, window: int, make: str) -> None:
    steps = 12
    if make == "delayed":
        job = delayed([STAGE] * stages, window=window, steps=steps)
        terms = tables.Terms(observe=window, listens=False, waits=tables.ALWAYS)
    else:
        job = decoupled([STAGE] * stages, window=window, steps=steps, listens=make == "stages")
        terms = tables.Terms(observe=window, listens=make == "stages")
    schedule = tables.chain(*(f"s{k}" for k in range(stages - 1)), steps=steps, terms=terms)
    for k, program in enumerate(lists(job)):
        wanted = [
            (e.kind, e.batch)
            for e in tables.stage(schedule, k)
            if e.kind in ("forward", "credit", "backward", "message")
        ]
        if make == "delayed":
            wanted = [(kind, batch) for kind, batch in wanted if kind != "credit"]  # costs nothing
        elif k == stages - 1:
            assert "credit" not in {kind for kind, _ in wanted}
        found: list[tuple[str, int]] = []
        for action in program:
            if isinstance(action, Compute) and action.kind in EVENTS:
                found.append((action.kind, action.batch))
            elif isinstance(action, Observe) and make != "local":
                found.append(("message", action.until))
        assert found == wanted
        updates = [a.batch for a in program if isinstance(a, Compute) and a.kind == "update"]
        assert updates == sorted({e.step for e in tables.stage(schedule, k) if e.kind == "update"})
        assert [a.step for a in program if isinstance(a, Mark)] == list(range(steps))


@pytest.mark.parametrize("stages", [2, 3, 5])
@pytest.mark.parametrize("window", [0, 1, 4])
def test_every_message_of_stages_is_sent_once_and_taken_once(stages: int, window: int) -> None:
    job = decoupled([STAGE] * stages, window=window, steps=12)
    check_messages(lists(job), left=window * (stages - 1))
    local = decoupled([STAGE] * stages, window=window, steps=12, listens=False)
    check_messages(lists(local), left=window * (stages - 1))
    late = delayed([STAGE] * stages, window=window, steps=12)
    check_messages(lists(late), left=min(12, window * (stages - 1)))


def test_what_a_stage_does_in_a_step() -> None:
    job = decoupled([STAGE] * 3, window=1, steps=3)
    _, middle, _ = lists(job)
    last = [list(group) for _, group in groupby(middle, key=lambda a: isinstance(a, Mark))][4]
    assert last == [
        Wait(("F", 1, 2), 0),
        Compute("forward", 2, 1.0, 1, takes=5.0),
        Send(("F", 2, 2), 2, 1048.0),
        Compute("credit", 2, 0.25, 1),
        Compute("backward", 2, 2.0, 1, frees=5.0),
        Send(("B", 0, 2), 0, 1048.0, True),
        Observe(1, 2, 1, 0.125),
        Compute("update", 2, 0.5, 1),
    ]


TOP_S, LOWER_S = 3.5, 3.5 + 0.25 + 0.125  # of a step


@pytest.mark.parametrize("rtt_s", [0.0, 1.0, 10.0, 50.0])
def test_stages_never_wait_in_a_window_of_a_round_trip(rtt_s: float) -> None:
    link = Link.of(rtt_ms=1e3 * rtt_s)
    found = simulate(decoupled([STAGE] * 3, link=link), Network.of(link))
    assert found.step_s == pytest.approx(LOWER_S)
    # The top one is faster than those below it, and waits for them.
    assert [s.idle_share for s in found.stages] == pytest.approx([0, 0, 1 - TOP_S / LOWER_S], abs=1e-9)
    assert found.stages[2].idle_cause == ("latency" if rtt_s else "peer")


@pytest.mark.parametrize("window", [0, 1, 3])
def test_stages_are_throttled_by_a_window_less_than_a_round_trip(window: int) -> None:
    rtt_s = 40.0
    link = Link.of(rtt_ms=1e3 * rtt_s)
    found = simulate(decoupled([STAGE] * 2, window=window), Network.of(link))
    # From sending the activation: half a trip, a forward and a backward pass above, half a trip, and learning from it;
    # the update and the next forward pass. In this time there are as many steps as the window, and one.
    loop = rtt_s + (1.0 + 2.0) + 0.125 + 0.5 + 1.0
    assert found.step_s == pytest.approx(loop / (window + 1))
    assert found.stages[0].ages == {window: sum(found.stages[0].ages.values())}
    assert found.stages[0].idle_cause == "latency"


@pytest.mark.parametrize("rtt_s", [0.0, 1.0, 40.0])
def test_stages_wait_for_bandwidth_where_a_wire_takes_longer_than_a_step(rtt_s: float) -> None:
    link = Link.of(rtt_ms=1e3 * rtt_s, mbit_s=8 * 1048e-6 / 5.0)  # 5 s a message
    found = simulate(decoupled([STAGE] * 3, link=link), Network.of(link))
    assert found.step_s == pytest.approx(5.0)
    # The lowest stage is as far ahead as its window lets it, and its activations stand in a queue.
    assert found.stages[1].idle_cause == "bandwidth"
    assert found.stages[1].idle_s["latency"] == pytest.approx(0)


def test_the_window_that_is_chosen_is_a_round_trip_of_the_slower_stage() -> None:
    assert window_for(0.05, 0.02) == 3 + 2
    assert window_for(0.0, 0.02) == 2
    assert window_for(10.0, 0.01) == 64
    assert window_for(10.0, 0.01, most=None) == 1002
    assert window_for(1.0, 0.0) == 2
    for rtt_s, step_s in ((0.05, 0.02), (0.0, 0.02), (10.0, 0.01), (0.2, 0.0301)):
        window = Window(None, rtt_s)  # what the engine chooses
        window.record_step(step_s)
        assert window_for(rtt_s, step_s) == window.size
    slow = STAGE.scaled(0.5)
    job = decoupled([STAGE, slow, STAGE], link=Link.of(rtt_ms=1e3 * 15.5), steps=20)
    late = [min(a.step - a.until for a in p if isinstance(a, Observe)) for p in lists(job)[:2]]
    assert late == [2 + 2, 2 + 2]  # of 7.75 s each, not of 3.875 s
    per_pair = Network.of([Link.of(rtt_ms=15500), Link.of(rtt_ms=31000)])
    job = decoupled([STAGE, slow, STAGE], link=per_pair, steps=20)
    assert [min(a.step - a.until for a in p if isinstance(a, Observe)) for p in lists(job)[:2]] == [4, 6]


def test_a_share_of_the_messages_carries_a_gradient_and_each_answer_a_header() -> None:
    job = decoupled([STAGE] * 2, window=2, share=0.25, steps=4000, seed=3)
    answers = [a for a in lists(job)[1] if isinstance(a, Send)]
    assert Counter(a.num_bytes for a in answers).keys() == {48.0, 1048.0}
    carried = [a for a in answers if a.carries]
    assert {a.num_bytes for a in carried} == {1048.0}
    assert len(carried) / len(answers) == pytest.approx(0.25, abs=0.02)
    found = simulate(replace(job, warm=3), Network())
    assert found.stages[1].bytes_per_step == pytest.approx(48 + 0.25 * 1000, rel=0.05)
    assert found.stages[0].bytes_per_step == 1048.0
    learned = sum(found.stages[0].ages.values())
    assert found.stages[0].busy_s["observe"] == pytest.approx(0.125 * learned)
    assert learned == pytest.approx(0.25 * 4000, rel=0.1)


def test_draws_are_seeded_and_each_stage_has_its_own() -> None:
    def drawn(seed: int) -> list[list[bool]]:
        programs = lists(decoupled([STAGE] * 3, window=2, share=0.5, steps=50, seed=seed))
        return [[a.carries for a in p if isinstance(a, Send) and a.tag[0] == "B"] for p in programs[1:]]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    below, above = drawn(1)
    assert below != above


@pytest.mark.parametrize("silent", [dict(share=0.0), dict(listens=False)])
def test_without_messages_only_headers_come_back_and_nobody_learns_from_them(silent: dict[str, Any]) -> None:
    job = decoupled([replace(STAGE, local_s=0.75)] * 2, window=2, steps=20, **silent)
    answers = [a for a in lists(job)[1] if isinstance(a, Send)]
    assert {(a.num_bytes, a.carries) for a in answers} == {(48.0, False)}
    found = simulate(job, Network())
    assert "observe" not in found.stages[0].busy_s
    assert found.mean_age is None
    # What a rule learns from a loss of its own it learns in each step, and the last stage has no rule.
    assert found.stages[0].busy_s["local"] == pytest.approx(0.75 * (20 - 1 - job.warm))
    assert "local" not in found.stages[1].busy_s


def test_a_window_throttles_stages_without_messages_too() -> None:
    link = Link.of(rtt_ms=40_000)
    found = simulate(decoupled([STAGE] * 2, window=1, listens=False), Network.of(link))
    loop = 40.0 + 1.0 + 2.0 + 0.5 + 1.0  # header back, update, next forward pass
    assert found.step_s == pytest.approx(loop / 2)


def test_a_codec_makes_messages_smaller_for_time_at_both_ends() -> None:
    codec = Codec("half", 0.5, 1e-3)
    job = decoupled([STAGE] * 2, window=1, codec=codec, steps=10)
    found = simulate(job, Network())
    assert [s.bytes_per_step for s in found.stages] == [548.0, 548.0]
    steps = 10 - 1 - job.warm
    # The lower one encodes the activation and decodes the answer as it learns from it; the upper one both.
    assert found.stages[0].busy_s["codec"] == pytest.approx(1.0 * steps)
    assert found.stages[0].busy_s["observe"] == pytest.approx((0.125 + 1.0) * steps)
    assert found.stages[1].busy_s["codec"] == pytest.approx(2.0 * steps)
    assert {name: codec.ratio for name, codec in CODECS.items()} == {
        "float32": 1,
        "bfloat16": 0.5,
        "int8": 0.25,
    }
    header = decoupled([STAGE] * 2, window=1, codec=codec, steps=10, share=0.0)
    assert simulate(header, Network()).stages[1].busy_s["codec"] == pytest.approx(1.0 * steps)


@pytest.mark.parametrize("make", [decoupled, delayed])
def test_batches_are_accumulated_to_an_update(make: Any) -> None:
    job = make([STAGE] * 2, window=1, accumulate=3, steps=9)
    for program in lists(job):
        assert [a.batch for a in program if isinstance(a, Compute) and a.kind == "update"] == [2, 5, 8]


# -- delayed gradients -------------------------------------------------------------------------------------------


def test_delayed_gradients_without_a_window_are_one_stage_at_a_time() -> None:
    link = Link.of(rtt_ms=2000)
    found = simulate(delayed([STAGE] * 3, window=0), Network.of(link))
    # Up and down three stages and two links, the lowest one's update, which alone is in the way.
    assert found.step_s == pytest.approx(3 * (1.0 + 2.0) + 2 * 2.0 + 0.5)
    assert "credit" not in found.stages[0].busy_s
    assert "observe" not in found.stages[0].busy_s


@pytest.mark.parametrize("window", [1, 2, 3])
def test_delays_of_stages_add_up(window: int) -> None:
    stages = 4
    found = simulate(delayed([STAGE] * stages, window=window), Network())
    for k in range(stages - 1):
        late = window * (stages - 1 - k)
        program = lists(delayed([STAGE] * stages, window=window, steps=40))[k]
        backward = [a.batch for a in program if isinstance(a, Compute) and a.kind == "backward"]
        assert backward == list(range(40 - late))
        assert at_once(program, k) == late + 1  # graphs that are kept
    assert found.step_s == pytest.approx(3.5)  # none waits


def test_steps_that_are_measured_are_whole_bursts() -> None:
    def measured(*windows: int) -> int:
        links = Network.of([Link.of(rtt_ms=3875 * (w - 2)) for w in windows])
        job = decoupled([STAGE] * (len(windows) + 1), link=links)
        return job.steps - 1 - job.warm

    # Before, all windows have gone round twice, and the pipe is full.
    links = Network.of([Link.of(rtt_ms=3875 * w) for w in (2, 0)])
    assert decoupled([STAGE] * 3, link=links).warm == 2 * 4 + 3 + 4
    assert measured(2) == 24
    assert measured(4) == 25
    assert measured(2, 4) == 30
    assert measured(40) == 41
    assert measured(19, 20) == 42  # 420 would be too many


def test_all_answers_of_delayed_gradients_carry_one() -> None:
    answers = [
        a
        for a in lists(delayed([STAGE] * 3, window=1, steps=9))[1]
        if isinstance(a, Send) and a.tag[0] == "B"
    ]
    assert {(a.num_bytes, a.carries) for a in answers} == {(1048.0, True)}


@pytest.mark.parametrize("make", [decoupled, delayed])
@pytest.mark.parametrize(
    ("stages", "settings", "message"),
    [
        (1, {}, "1 stages: expected 2 or more"),
        (2, dict(window=-1), "window=-1: expected a number of steps from 0"),
        (2, dict(accumulate=0), "accumulate=0: expected 1 or more"),
    ],
)
def test_settings_of_stages_are_checked(
    make: Any, stages: int, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make([STAGE] * stages, **settings)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_is_from_0_to_1(share: float) -> None:
    with pytest.raises(ConfigError, match="expected a share of the messages"):
        decoupled([STAGE] * 2, share=share)


# -- one process, and data parallel ------------------------------------------------------------------------------


def test_what_is_held_is_freed() -> None:
    cost = replace(STAGE, held_bytes=8.0, parameter_bytes=60e6)
    jobs = [
        *(equal(name, 2, 4) for name in SCHEDULES),
        decoupled([cost] * 3, window=2),
        backpropagation(cost),
        data_parallel(cost, processes=2),
    ]
    for job in jobs:
        for program in lists(job):
            computed = [a for a in program if isinstance(a, Compute)]
            assert sum(a.takes for a in computed) == pytest.approx(sum(a.frees for a in computed)), job.name


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_steps_are_measured_as_far_as_they_go(steps: int) -> None:
    job = decoupled([STAGE] * 2, window=1, steps=steps)
    assert (job.steps, job.warm) == (steps, max(0, steps - 2))


def test_backpropagation_is_both_passes_and_the_update() -> None:
    found = simulate(backpropagation(STAGE, batch_size=7), Network())
    assert found.step_s == 3.5
    assert found.examples_per_s == 2.0
    assert found.peak_bytes == 5.0
    assert found.stages[0].busy_s == {"forward": 1.0, "backward": 2.0, "update": 0.5}


@pytest.mark.parametrize("processes", [2, 3, 4])
@pytest.mark.parametrize("size", [1e5, 3e6, 60e6])
def test_a_ring_sends_each_parameter_nearly_twice(processes: int, size: float) -> None:
    job = data_parallel(replace(STAGE, parameter_bytes=size), processes=processes, steps=2)
    programs = lists(job)
    sent = {a.tag for p in programs for a in p if isinstance(a, Send)}
    taken = [a.tag for p in programs for a in p if isinstance(a, Wait)]
    assert len(taken) == len(set(taken))
    assert set(taken) == sent
    for network in (Network(), Network(rendezvous=True)):
        found = simulate(job, network)
        wanted = 2 * (processes - 1) / processes * size
        assert [s.bytes_per_step for s in found.stages] == pytest.approx([wanted] * processes)


def test_buckets_go_in_segments_as_they_are_ready() -> None:
    mib = 1 << 20
    job = data_parallel(replace(STAGE, parameter_bytes=60.0 * mib), processes=2, steps=1)
    sizes = Counter(
        a.num_bytes for a in lists(job)[2] + lists(job)[4] if isinstance(a, Send) and a.tag[0] == "R"
    )
    # A first bucket of 1 MiB in two segments, twice 25 MiB and the other 9: half of each, in no more than 1 MiB; two phases.
    assert sizes == {mib / 4: 2 * 2, 12.5 * mib / 13: 2 * 2 * 13, 4.5 * mib / 5: 2 * 5}


def test_without_links_data_parallel_processes_share_the_passes_and_not_the_update() -> None:
    found = simulate(data_parallel(replace(STAGE, parameter_bytes=30e6), processes=4), Network())
    assert found.step_s == pytest.approx(3.0 / 4 + 0.5)
    assert found.idle_share == pytest.approx(0.0)


def test_an_all_reduce_overlaps_with_the_backward_pass_of_what_is_below() -> None:
    cost = StageCost(2.0, 4.0, parameter_bytes=2 * (1 << 20))  # buckets of a half, a second of backward each
    rate = 8e-6 * (1 << 20)  # Mbit/s of a MiB a second
    slow = Network.of(Link.of(mbit_s=rate))
    found = simulate(data_parallel(cost, processes=2), slow)
    # Each bucket is a MiB of which each of two processes sends half, twice: a second on the wire. That of the first goes
    # while the second one's gradients are computed.
    assert found.step_s == pytest.approx(1.0 + 2.0 + 1.0)
    assert found.stages[0].idle_cause == "bandwidth"


def test_a_round_of_the_ring_waits_for_the_one_before() -> None:
    cost = StageCost(2.0, 0.0, parameter_bytes=100.0)
    for processes in (2, 3):
        found = simulate(data_parallel(cost, processes=processes), Network.of(Link.of(rtt_ms=2000)))
        # Twice K - 1 rounds of a message each, of which one segment's follow one another; two segments are under way.
        assert found.step_s == pytest.approx(2.0 / processes + 2 * (processes - 1) * 1.0)


def test_data_parallel_has_two_processes() -> None:
    with pytest.raises(ConfigError, match="1 data parallel processes: expected 2 or more"):
        data_parallel(STAGE, processes=1)


def test_a_wait_for_sent_messages_names_one_of_the_process() -> None:
    for name in SCHEDULES:
        for program in lists(equal(name, 3, 6, steps=1)):
            sent: list[Any] = []
            for action in program:
                if isinstance(action, Send):
                    sent.append(action.tag)
                elif isinstance(action, WaitSent):
                    sent.remove(action.tag)
            assert not sent  # each is waited for
