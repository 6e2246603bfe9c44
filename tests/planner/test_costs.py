from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest

from synthgrad.core import ConfigError
from synthgrad.planner.costs import StageCost, total_cost

COST = StageCost(
    forward_s=10.0,
    backward_s=20.0,
    optimizer_s=3.0,
    output_bytes=100.0,
    credit_s=4.0,
    observe_s=8.0,
    local_s=12.0,
    held_bytes=400.0,
    parameter_bytes=60.0,
    backward_input_s=8.0,
    forward_call_s=2.0,
    backward_call_s=4.0,
)


def test_a_step_is_both_passes_and_the_update_and_a_decoupled_one_the_rule_too() -> None:
    assert COST.step_s == 33.0
    assert COST.decoupled_s == 33.0 + 4.0 + 8.0 + 12.0


def test_a_microbatch_keeps_what_a_pass_costs_however_small() -> None:
    assert COST.microbatch(4) == StageCost(
        forward_s=2.0 + 8.0 / 4,
        backward_s=4.0 + 16.0 / 4,
        optimizer_s=3.0,
        output_bytes=25.0,
        credit_s=1.0,
        observe_s=2.0,
        local_s=3.0,
        held_bytes=100.0,
        parameter_bytes=60.0,
        backward_input_s=8.0 * 8.0 / 20.0,
        forward_call_s=2.0,
        backward_call_s=4.0,
    )
    assert COST.microbatch(1) == COST


def test_a_microbatch_of_unknown_parts_leaves_them_unknown() -> None:
    assert replace(COST, backward_input_s=None).microbatch(4).backward_input_s is None
    free = StageCost(0.0, 0.0, backward_input_s=0.0, forward_call_s=1.0).microbatch(2)
    assert (free.forward_s, free.backward_s, free.backward_input_s) == (0.0, 0.0, 0.0)


def test_a_batch_has_a_microbatch() -> None:
    with pytest.raises(ConfigError, match="0 microbatches: expected 1 or more"):
        COST.microbatch(0)


def test_a_faster_machine_takes_less_time_for_the_same_bytes() -> None:
    fast = COST.scaled(2.0)
    for field in fields(COST):
        before, after = getattr(COST, field.name), getattr(fast, field.name)
        assert after == (before / 2 if field.name.endswith("_s") else before), field.name
    assert StageCost(1.0, 1.0).scaled(0.5).backward_input_s is None


@pytest.mark.parametrize("speed", [0.0, -1.0, math.inf, math.nan])
def test_a_speed_is_over_0(speed: float) -> None:
    with pytest.raises(ConfigError, match="expected a number over 0"):
        COST.scaled(speed)


def test_a_stage_of_parts_has_their_sums_and_the_end_of_the_last() -> None:
    below = replace(COST, output_bytes=1.0, credit_s=1.0, observe_s=1.0, local_s=1.0, forward_s=1.0)
    assert total_cost([below, COST]) == StageCost(
        forward_s=11.0,
        backward_s=40.0,
        optimizer_s=6.0,
        output_bytes=100.0,
        credit_s=4.0,
        observe_s=8.0,
        local_s=12.0,
        held_bytes=800.0,
        parameter_bytes=120.0,
        backward_input_s=16.0,
        forward_call_s=4.0,
        backward_call_s=8.0,
    )
    assert total_cost([COST]) == COST
    assert total_cost([replace(COST, backward_input_s=None), COST]).backward_input_s is None


def test_a_stage_has_a_module() -> None:
    with pytest.raises(ConfigError, match="a stage of no modules"):
        total_cost([])


@pytest.mark.parametrize("name", [field.name for field in fields(StageCost)])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, "1", True])
def test_costs_are_numbers_from_0(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"{name}=.*: expected a number from 0"):
        StageCost(**{"forward_s": 1.0, "backward_s": 1.0, name: value})  # type: ignore[arg-type]


def test_only_the_inputs_part_of_a_backward_pass_may_be_unknown() -> None:
    assert StageCost(1.0, 2.0).backward_input_s is None
    with pytest.raises(ConfigError, match="optimizer_s=None"):
        StageCost(1.0, 1.0, optimizer_s=None)  # type: ignore[arg-type]
