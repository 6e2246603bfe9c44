"""What looks on in stages: the same monitor, guard and timeline as in one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from synthgrad.core import Monitor, Timeline
from synthgrad.engines import InProcess, Lag, Stages
from tests.engines.stages import programs
from tests.engines.stages.places import InMemory, Place

STEPS, WINDOW = 9, 2


def _watched(place: Place, rule: str) -> tuple[Any, Any]:
    monitor, timeline = Monitor(every=2), Timeline()
    with Stages(
        programs.network(3, rule), programs.per_example, programs.adam, window=WINDOW, deterministic=True,
        transport=place.transport, monitor=monitor, timeline=timeline,
    ) as stages:  # fmt: skip
        for x, y in programs.batches(STEPS):
            stages.step(x if place.rank == 0 else None, y)
    return monitor.collect(), timeline.events


@pytest.mark.parametrize("rule", ["cdni", "dni", "local_loss"])
def test_the_monitor_measures_what_it_measures_in_process(rule: str) -> None:
    net, monitor = programs.network(3, rule), Monitor(every=2)
    lags = dict.fromkeys(net.interfaces, Lag(observe=WINDOW))
    trainer = InProcess(net, programs.per_example, programs.adam, lags=lags, monitor=monitor)
    for x, y in programs.batches(STEPS):
        trainer.step(x, y)
    expected = monitor.collect()
    found = [quality for quality, _ in InMemory(3).run(_watched, rule)]
    assert [list(q) for q in found] == [["0"], ["1"], []]  # each stage has the rule at its own end
    for name, quality in {**found[0], **found[1]}.items():
        assert quality == expected[name]
        assert quality.relative_error > 0


def test_a_stage_logs_its_own_part_of_a_step() -> None:
    events = InMemory(3).run(_watched, "cdni")[1][1]
    assert [str(e) for e in events if e.step == 4] == [
        "4:forward(1)@4", "4:credit(1)@4", "4:backward(1)@4", "4:message(1)@2", "4:observe(1)@2", "4:update(1)@4",
    ]  # fmt: skip


def _poisoned(place: Place) -> None:
    def loss(output: Tensor, y: Tensor) -> Tensor:
        return programs.per_example(output, y) * float("nan")

    with Stages(
        programs.network(2, "cdni"), loss, programs.adam, window=1, transport=place.transport
    ) as stages:
        for x, y in programs.batches(3):
            stages.step(x if place.rank == 0 else None, y)


def test_the_guard_stops_all_stages() -> None:
    first, last = InMemory(2).outcomes(_poisoned)
    assert "DivergedError" in (last.error or "")
    assert "stage 1 (rank 1) stopped: DivergedError" in (first.error or "")
    assert torch.is_grad_enabled()
