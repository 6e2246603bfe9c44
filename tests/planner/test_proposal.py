"""Plans: figures that can be computed by hand, where decoupling begins to pay, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import synthgrad as sg
from synthgrad.core import ConfigError
from synthgrad.planner import Link, Machine, Network, Plan, StageCost, Wire, plan, simulate
from synthgrad.planner.menu import KINDS, PIPELINES
from synthgrad.planner.programs import SCHEDULES
from synthgrad.planner.table import CostTable, ModuleCost
from synthgrad.planner.verdict import with_round_trip

MIB = 2**20
#: Forward 1 s, backward 2 s, update 0.5 s; 8 bytes cross.
LAYER = StageCost(
    1.0,
    2.0,
    optimizer_s=0.5,
    output_bytes=8.0,
    credit_s=0.25,
    observe_s=0.5,
    held_bytes=MIB,
    parameter_bytes=3 * MIB,
)
NO_TRIPS: tuple[float, ...] = ()


def table(*costs: StageCost, batch_size: int = 8) -> CostTable:
    return CostTable(tuple(ModuleCost(f"layer{k}", c) for k, c in enumerate(costs)), batch_size, "toy")


FOUR = table(LAYER, LAYER, LAYER, LAYER)


def planned(costs: CostTable = FOUR, stages: int = 2, link: Any = "rtt_ms=0", **how: Any) -> Plan:
    how.setdefault("round_trips_ms", NO_TRIPS)
    return plan(costs=costs, stages=stages, link=link, **how)


def row(found: Plan, schedule: str) -> Any:
    return next(r for r in found.rows if r.schedule == schedule)


# -- figures --------------------------------------------------------------------------------------------------


def test_one_machine_takes_what_its_modules_take() -> None:
    one = row(planned(), "backprop")
    assert one.step_s == pytest.approx(14.0)
    assert one.examples_per_s == pytest.approx(8 / 14)
    assert one.memory_bytes == 4 * MIB + 12 * MIB
    assert (one.cuts, one.bytes_per_step, one.idle_for) == ((), 0.0, None)


def test_stages_take_what_the_slower_of_them_takes() -> None:
    found = planned(shares=[1.0], codecs=["float32"], schedules=["stages"])
    # Of the first stage two layers and the rule: 7 + 0.75; the second has none.
    assert found.cuts == ["layer1"]
    assert found.rows[0].step_s == pytest.approx(7.75)
    # Activations and messages of 8 bytes each way, with headers of 48.
    assert found.rows[0].bytes_per_step == pytest.approx(2 * (8 + 48))
    assert found.rows[0].parameter_bytes == (6 * MIB, 6 * MIB)


def test_delayed_gradients_have_no_rule() -> None:
    late = row(planned(schedules=["delayed"]), "delayed")
    assert late.step_s == pytest.approx(7.0)
    assert late.run.mean_age is not None


def test_a_pipeline_is_that_of_its_schedule() -> None:
    found = row(planned(schedules=["gpipe"], microbatches=[4], codecs=["float32"]), "gpipe")
    # Two parts of 6 s for 4 microbatches, one after the other: 5 times 1.5 s, and the updates of 1 s.
    assert found.step_s == pytest.approx(5 * 1.5 + 1.0)
    assert found.microbatches == 4


def test_a_pipeline_has_its_best_number_of_microbatches() -> None:
    assert row(planned(schedules=["gpipe"], microbatches=[1, 8, 2]), "gpipe").microbatches == 8
    # Each message occupies the wire for 10 s: fewer of them are better.
    slow = planned(schedules=["gpipe"], microbatches=[8, 1, 2], link="latency_ms=10000")
    assert row(slow, "gpipe").microbatches == 1


def test_schedules_with_two_parts_a_process_have_cuts_of_their_own() -> None:
    found = planned(schedules=["1f1b", "interleaved_1f1b", "zero_bubble_v"], microbatches=[4])
    assert {r.schedule: len(r.cuts) for r in found.rows} == {
        "1f1b": 1,
        "interleaved_1f1b": 3,
        "zero_bubble_v": 3,
    }
    uneven = table(*(replace(LAYER, parameter_bytes=n * MIB) for n in (1.0, 2.0, 4.0, 8.0)))
    sizes = {
        r.schedule: [size / MIB for size in r.parameter_bytes]
        for r in planned(uneven, schedules=["interleaved_1f1b", "zero_bubble_v"], microbatches=[4]).rows
    }
    # In turn 0 1 0 1, and there and back 0 1 1 0.
    assert sizes == {"interleaved_1f1b": [5.0, 10.0], "zero_bubble_v": [9.0, 6.0]}


def test_data_parallel_processes_have_a_share_of_the_batch_each() -> None:
    assert row(planned(schedules=["data_parallel"]), "data_parallel").step_s == pytest.approx(6.0 + 2.0)


def test_unequal_machines_get_unequal_stages() -> None:
    found = planned(speeds=[3.0, 1.0], shares=[1.0])
    assert found.cuts == ["layer2"]
    assert row(found, "stages").step_s == pytest.approx((10.5 + 0.75) / 3)
    assert row(found, "backprop").step_s == pytest.approx(14.0 / 3)  # on the fastest
    assert row(found, "data_parallel").step_s == pytest.approx(8.0)  # as the slowest
    assert any("slowest machine" in sentence for sentence in found.words)


def test_several_batches_to_an_update_share_it() -> None:
    found = planned(
        accumulate=5,
        schedules=["backprop", "gpipe", "stages", "data_parallel"],
        shares=[1.0],
        microbatches=[8],
    )
    assert row(found, "backprop").step_s == pytest.approx(12 + 2 / 5)
    assert row(found, "stages").step_s == pytest.approx(6.75 + 1 / 5)
    # 5 batches as 8 microbatches: 9 times 30 / 8 s, and the updates.
    assert row(found, "gpipe").step_s == pytest.approx((9 * 30 / 8 + 1) / 5)
    assert row(found, "gpipe").bytes_per_step == pytest.approx(2 * 8)
    # Gradients are averaged once for 5 batches.
    assert row(found, "data_parallel").bytes_per_step == pytest.approx(2 * 12 * MIB / 5)


def test_parts_of_a_pass_that_do_not_depend_on_examples_are_paid_once_a_batch() -> None:
    calls = table(*(replace(LAYER, forward_call_s=1.0, backward_call_s=1.0) for _ in range(4)))
    found = planned(calls, accumulate=3, schedules=["backprop"])
    assert row(found, "backprop").step_s == pytest.approx((4 * (1 + 1 + 3 * 1) + 2) / 3)


def test_codecs_of_rules_all_have_rows_those_of_others_if_they_save_time() -> None:
    slow = "mbit_s=0.00000064"  # a byte takes 12.5 s, so that 8 take 100
    found = planned(link=slow, schedules=["gpipe", "stages", "delayed"], microbatches=[1])
    assert [r.codec for r in found.rows if r.schedule == "gpipe"] == ["bfloat16", "float32"]
    near = planned(schedules=["gpipe", "stages", "delayed"], microbatches=[1])
    assert [r.codec for r in near.rows if r.schedule == "gpipe"] == ["float32"]
    assert [r.codec for r in near.rows if r.schedule == "delayed"] == ["float32"]
    assert len([r for r in near.rows if r.schedule == "stages"]) == 4


def test_rows_are_in_the_order_of_their_steps() -> None:
    steps = [r.step_s for r in planned().rows]
    assert steps == sorted(steps)


def test_gradients_of_data_parallel_processes_are_coded_too() -> None:
    found = planned(link="mbit_s=100", schedules=["data_parallel"])
    sent = {r.codec: r.bytes_per_step for r in found.rows}
    # A ring of two sends what each process has, once.
    assert sent == pytest.approx({"float32": 2 * 12 * MIB, "bfloat16": 12 * MIB})
    assert {r.memory_bytes - r.run.peak_bytes for r in found.rows} == {12 * MIB}


#: Stages of 4 and 5 s with a cut where many bytes cross, of 6 and 3 s with one where few do.
BULKY = table(
    *(
        StageCost(forward_s=s, backward_s=0.0, output_bytes=b)
        for s, b in ((4.0, 800.0), (2.0, 8.0), (3.0, 8.0))
    )
)


@pytest.mark.parametrize(
    ("bytes_per_s", "inbound", "codec", "cuts"),
    [
        (200.0, False, "float32", ["layer0"]),  # 4 s on the wire
        (100.0, False, "float32", ["layer1"]),  # 8 s
        (100.0, False, "bfloat16", ["layer0"]),
        (200.0, True, "float32", ["layer1"]),  # 4 s for the activation and 4 s for the gradient
    ],
)
def test_cuts_heed_the_bytes_on_the_wire(
    bytes_per_s: float, inbound: bool, codec: str, cuts: list[str]
) -> None:
    network = Network.of(Link(Wire(bytes_per_s=bytes_per_s), Wire(bytes_per_s=bytes_per_s)), inbound=inbound)
    found = planned(BULKY, link=network, schedules=["stages", "gpipe"], codecs=[codec], microbatches=[1])
    assert [list(r.cuts) for r in found.rows] == [cuts] * len(found.rows)


def test_cuts_heed_the_rule_where_there_is_one() -> None:
    dear = table(LAYER, replace(LAYER, observe_s=9.0), replace(LAYER, observe_s=0.0), LAYER)
    found = planned(dear, schedules=["stages", "delayed", "gpipe"], microbatches=[1], shares=[1.0])
    assert {r.schedule: list(r.cuts) for r in found.rows} == {
        "stages": ["layer0"],
        "delayed": ["layer1"],
        "gpipe": ["layer1"],
    }


def test_several_batches_have_backward_passes_for_inputs_as_one_has() -> None:
    costs = table(*(replace(LAYER, backward_input_s=0.5, backward_call_s=0.5) for _ in range(4)))

    def busy_s(accumulate: int) -> dict[str, float]:
        run = row(
            planned(costs, schedules=["zero_bubble"], microbatches=[4], accumulate=accumulate), "zero_bubble"
        ).run
        return {
            kind: sum(use.busy_s.get(kind, 0.0) for use in run.stages)
            for kind in ("backward_input", "backward_weight")
        }

    once, thrice = busy_s(1), busy_s(3)
    ratio = thrice["backward_weight"] / once["backward_weight"]
    assert ratio == pytest.approx((0.5 + 4.5 / 4) / (0.5 + 1.5 / 4))  # of four microbatches each
    assert thrice["backward_input"] == pytest.approx(ratio * once["backward_input"])


@pytest.mark.parametrize(
    ("batch", "stages", "counts"),
    [
        (64, 2, [2, 4, 8, 16, 32]),
        (12, 2, [2, 4]),
        (9, 2, [2, 4, 8]),
        (1, 2, []),
        (128, 64, [2, 4, 8, 16, 32, 64, 128]),
    ],
)
def test_microbatches_divide_the_batch_where_some_do(batch: int, stages: int, counts: list[int]) -> None:
    many = table(*[LAYER] * stages, batch_size=batch)
    found = planned(many, stages=stages, schedules=["backprop"])
    assert found.settings["microbatches"] == counts


# -- windows --------------------------------------------------------------------------------------------------


def test_the_window_is_the_round_trip_in_steps_and_two() -> None:
    assert planned(link="rtt_ms=31000", schedules=["stages"], shares=[1.0]).window == 4 + 2


def test_a_wider_window_is_chosen_where_the_wire_needs_it() -> None:
    # A message takes 7.7 s of a step of 7.75 s in each direction, so that the answer is three steps late and more.
    found = planned(
        link=Link(*[Wire(bytes_per_s=56 / 7.7)] * 2), schedules=["stages"], shares=[1.0], codecs=["float32"]
    )
    assert found.window == 4
    narrow = planned(
        link=Link(*[Wire(bytes_per_s=56 / 7.7)] * 2),
        schedules=["stages"],
        shares=[1.0],
        codecs=["float32"],
        window=2,
    )
    assert narrow.window == 2
    assert found.best.step_s < 0.98 * narrow.best.step_s


# -- verdicts -------------------------------------------------------------------------------------------------


def test_decoupling_pays_from_the_round_trip_at_which_pipelines_wait_too_long() -> None:
    # GPipe with 2 microbatches: 3 · 3 s, updates of 1 s, and two crossings; stages take 7.75 s of any round trip. Rules
    # that cost 3 s more make them slower than the pipeline over a short link.
    twice = replace(LAYER, forward_s=2.0, backward_s=4.0, optimizer_s=1.0, observe_s=3.5)
    found = plan(
        costs=table(twice, twice), stages=2, link="rtt_ms=5000", schedules=["gpipe", "stages"], microbatches=[2], shares=[1.0],
        round_trips_ms=[100, 500, 2000, 8000],
    )  # fmt: skip
    assert found.best.step_s == pytest.approx(10.75)
    assert row(found, "gpipe").step_s == pytest.approx(10.0 + 5.0)
    assert found.pays is True
    # They are 1 % faster where 10 + RTT is 10.75 / 0.99.
    assert found.break_even_s == pytest.approx(10.75 / 0.99 - 10, rel=0.02)
    assert found.curve.pays == ((found.break_even_s, math.inf),)
    assert "It pays from a round trip of 860 ms on" in " ".join(found.words)
    assert "Decoupling pays: stages (all messages, window 3) takes 10.8 s a step" in found.words[1]
    assert "1.40 times as many examples" in found.words[1]


def test_a_rule_that_costs_more_than_it_saves_does_not_pay() -> None:
    dear = table(*(replace(LAYER, observe_s=30.0) for _ in range(4)))
    found = plan(
        costs=dear, stages=2, link="rtt_ms=10", microbatches=[2, 4], round_trips_ms=[1, 10], shares=[1.0]
    )
    assert found.pays is False
    assert found.break_even_s is None
    assert found.words[1].startswith("Decoupling does not pay: stages")
    assert "It pays at no round trip from 1 ms to 10 ms" in found.words[2]


def test_one_machine_is_a_synchronous_schedule_too() -> None:
    slow = plan(
        costs=FOUR,
        stages=2,
        link=Network.of(Link.of(rtt_ms=1e6), rendezvous=True),
        window=0,
        round_trips_ms=NO_TRIPS,
    )
    assert slow.pays is False
    assert "backpropagation on one machine" in slow.words[1]
    assert any(
        sentence.startswith("One machine alone takes 14 s a step, less than 2 machines")
        for sentence in slow.words
    )


def test_decoupling_may_pay_over_short_links_alone() -> None:
    # A window of one step cannot hide long round trips, and one machine has none.
    found = plan(
        costs=FOUR, stages=2, link="rtt_ms=10", schedules=["backprop", "gpipe", "stages"], shares=[1.0], window=1,
        round_trips_ms=[1000, 4000, 16000, 64000],
    )  # fmt: skip
    ((begin, end),) = found.curve.pays
    assert begin == 0
    assert 4.0 < end < 64.0
    assert "It pays up to a round trip of" in " ".join(found.words)


def test_the_curve_is_of_the_best_schedules_at_each_round_trip() -> None:
    trips = [10.0, 1000.0]
    found = plan(
        costs=FOUR, stages=2, link="rtt_ms=1000", round_trips_ms=trips, shares=[1.0], codecs=["float32"]
    )
    best = {
        "decoupled": found.best.step_s,
        "one machine": 14.0,
        "pipelines": min(r.step_s for r in found.rows if r.schedule in PIPELINES),
        "data parallel": row(found, "data_parallel").step_s,
    }
    assert {name: steps[1] for name, steps in found.curve.steps_s.items()} == pytest.approx(best)
    assert found.curve.round_trips_s == pytest.approx((0.01, 1.0))


def test_idle_time_is_for_what_would_save_the_most_without_it() -> None:
    def causes(link: str) -> dict[str, Any]:
        found = planned(link=link, schedules=["gpipe", "backprop"], microbatches=[2], codecs=["float32"])
        return {r.schedule: r.idle_for for r in found.rows}

    assert causes("rtt_ms=0") == {"gpipe": "peer", "backprop": None}
    # The upper stage waits for the lower one, which waits for messages.
    assert causes("rtt_ms=60000")["gpipe"] == "latency"
    assert causes("mbit_s=0.000001")["gpipe"] == "bandwidth"


def test_a_table_whose_rule_learns_alone_is_that_of_local_losses() -> None:
    alone = table(*(replace(LAYER, credit_s=0.0, observe_s=0.0, local_s=1.0) for _ in range(4)))
    found = planned(alone)
    assert {r.schedule for r in found.rows} == set(KINDS) - {"stages"}
    assert found.best.schedule == "local_loss"
    assert found.best.step_s == pytest.approx(8.0)
    assert found.best.run.mean_age is None
    assert found.left_out == {"stages": "the rule of the table learns from no messages"}


def test_without_a_rule_it_says_so() -> None:
    free = table(*(replace(LAYER, credit_s=0.0, observe_s=0.0) for _ in range(4)))
    assert any("no costs of a rule" in sentence for sentence in planned(free).words)
    assert not any("no costs of a rule" in sentence for sentence in planned().words)


def test_what_cannot_be_done_is_left_out_with_its_reason() -> None:
    found = planned(table(LAYER, LAYER, batch_size=1))
    assert {"interleaved_1f1b", "zero_bubble", "zero_bubble_v", "data_parallel", "gpipe"} <= set(
        found.left_out
    )
    assert found.left_out["zero_bubble"] == "it needs 4 parts, and the network can be cut into 2"
    assert found.left_out["data_parallel"] == "a batch of 1 has no example for each of 2 processes"
    assert found.left_out["gpipe"] == "a batch of 1 has no microbatches"
    assert "stages" not in found.left_out


def test_the_best_row_sends_all_it_can_where_that_costs_next_to_nothing() -> None:
    best = planned(table(*(replace(LAYER, observe_s=0.0) for _ in range(4)))).best
    assert (best.share, best.codec) == (1.0, "float32")
    # Where messages cost time, fewer of them are better.
    assert planned(table(*(replace(LAYER, observe_s=9.0) for _ in range(4)))).best.share == 0.25


def test_timelines_are_of_one_schedule_of_each_kind() -> None:
    found = planned()
    assert {r.kind for r in found.best_schedules()} == {"decoupled", "delayed", "synchronous"}
    assert "backprop" not in {r.schedule for r in found.best_schedules()}
    only = planned(schedules=["backprop", "gpipe", "1f1b"], microbatches=[4])
    assert {r.schedule for r in only.best_schedules()} == {"backprop", "gpipe", "1f1b"}


def test_a_traced_run_is_the_same_run() -> None:
    found = planned(link="rtt_ms=100,mbit_s=1,jitter_ms=50", seed=3)
    for each in found.best_schedules():
        traced = found.traced(each)
        assert traced.spans
        assert traced.step_s == each.run.step_s


def test_processes_may_share_cores() -> None:
    shared = planned(machines=[Machine((0, 1))], schedules=["stages", "backprop"], shares=[1.0])
    assert row(shared, "stages").step_s == pytest.approx(14.75, rel=0.01)
    assert row(shared, "backprop").step_s == pytest.approx(14.0)


# -- as text and as data ----------------------------------------------------------------------------------------


def test_the_table_has_a_line_for_each_row() -> None:
    found = planned(schedules=["backprop", "stages"], shares=[1.0], codecs=["float32"])
    assert found.table().splitlines() == [
        "schedule  setting                   step  examples/s      idle  sent/step  memory  age",
        "────────  ──────────────────────  ──────  ──────────  ────────  ─────────  ──────  ───",
        "stages    all messages, window 2  7.75 s        1.03  5 % peer      112 B   8 MiB  1.0",
        "backprop  —                         14 s       0.571       0 %          —  16 MiB    —",
    ]
    assert str(found).startswith(found.table())


def test_a_plan_is_plain_data() -> None:
    found = plan(costs=FOUR, stages=2, link="rtt_ms=10", round_trips_ms=[1, 10])
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["cuts"] == ["layer1"]
    assert data["window"] == found.window
    assert data["network"]["links"][0]["up"] == {
        "delay_s": 0.005, "bytes_per_s": None, "occupied_s": 0.0, "jitter_s": 0.0, "loss": 0.0,
    }  # fmt: skip
    assert [r["step_ms"] for r in data["rows"]] == [1e3 * r.step_s for r in found.rows]
    assert CostTable.from_dict(data["costs"]) == FOUR


def test_costs_may_lie_in_a_file(tmp_path: Path) -> None:
    FOUR.write(tmp_path / "costs.json")
    assert planned(tmp_path / "costs.json").to_dict() == planned().to_dict()  # type: ignore[arg-type]


def test_a_model_is_profiled_and_cut_where_the_plan_says() -> None:
    model = nn.Sequential(*[m for _ in range(4) for m in (nn.Linear(8, 8), nn.ReLU())], nn.Linear(8, 3))
    x, y = torch.randn(16, 8), torch.randint(3, (16,))
    found = sg.planner.plan(
        model, x, stages=2, link="rtt_ms=5", target=y, criterion=nn.CrossEntropyLoss(),
        rule=sg.SyntheticGradient(context=3), local_loss=sg.LocalLoss(3), round_trips_ms=NO_TRIPS,
    )  # fmt: skip
    assert {r.schedule for r in found.rows} == set(KINDS)
    assert found.costs.names == ["1", "3", "5", "7"]
    net = sg.decouple(model, at=found.cuts, rule=sg.SyntheticGradient(context=3), example=x)
    assert len(found.cuts) == 1
    assert net(x, context=y).shape == (16, 3)


def test_a_round_trip_replaces_the_propagation_and_nothing_else() -> None:
    network = Network.of(Link.of(rtt_ms=3, mbit_s=8, latency_ms=1, loss_pct=1), rendezvous=True)
    other = with_round_trip(network, 0.5)
    assert other.rendezvous
    assert other.links[0].up == Wire(0.25, 1e6, 1e-3, 0.0, 0.01)
    assert with_round_trip(other, 0.003).links == network.links


def test_schedules_are_those_that_can_be_made() -> None:
    assert {name: chunks for name, (_, chunks) in SCHEDULES.items()} == dict(PIPELINES)


def test_a_plan_says_what_one_can_hold_it_to() -> None:
    """The step of a row is that of its job, simulated by itself."""
    found = planned(link="rtt_ms=3000")
    for each in found.rows:
        network = Network() if each.schedule == "backprop" else found.network
        assert simulate(each.job, network).step_s == each.run.step_s


# -- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"stages": 1}, "stages=1: expected the number of processes, each with a stage, at least 2"),
        ({"stages": 5}, "5 stages of a model that can be cut into 4 at most"),
        ({"schedules": ["1f2b"]}, "schedule '1f2b' is unknown (did you mean '1f1b'?); expected some of backprop, gpipe"),
        ({"schedules": []}, "no schedules: expected some of backprop"),
        ({"link": "rtt_ms=5,mbit_s=0"}, "mbit_s=0: expected a rate over 0"),
        ({"link": Link(Wire(bytes_per_s=0.0))}, "a link of 0 bytes per second carries nothing"),
        ({"link": [Link(), Link()]}, "2 links for 2 stages: expected one for all, or 1"),
        ({"link": "rtt=5"}, "unknown key 'rtt'"),
        ({"speeds": [1.0]}, "1 speeds for 2 stages"),
        ({"speeds": [1.0, 0.0]}, "speed 0.0: expected a number over 0"),
        ({"codecs": ["fp8"]}, "codec 'fp8' is unknown; expected some of float32, bfloat16, int8"),
        ({"codecs": []}, "no codecs: expected some of float32"),
        ({"shares": [1.5]}, "shares: 1.5: expected shares of the messages, from 0 to 1"),
        ({"shares": []}, "shares=(): expected one share"),
        ({"microbatches": [16]}, "16 microbatches of a batch of 8: expected 8 at most"),
        ({"microbatches": []}, "microbatches=(): expected one number or more"),
        ({"accumulate": 0}, "accumulate=0: expected the number of batches"),
        ({"window": -1}, "window=-1: expected the number of steps"),
        ({"round_trips_ms": [0.0]}, "round_trips_ms: 0.0: expected milliseconds over 0"),
        ({"costs": 3}, "costs=3: expected a CostTable"),
        ({"costs": None}, "neither a model with an example nor costs"),
        (
            {"costs": table(LAYER, LAYER, batch_size=1), "schedules": ["gpipe"]},
            "no schedule is left (gpipe: a batch of 1 has no microbatches)",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_that_says_what_is_accepted(how: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"costs": FOUR, "stages": 2, "link": "rtt_ms=1"} | how
    with pytest.raises(ConfigError) as error:
        plan(**given)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
