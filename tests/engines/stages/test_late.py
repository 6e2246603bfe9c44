"""Synthetic inputs between processes: a stage whose input is late does not wait for it."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import nn

from synthgrad import SyntheticGradient, decouple
from synthgrad.core import ConfigError
from synthgrad.engines import Stages
from synthgrad.rules import SyntheticInput
from tests.engines.stages import programs
from tests.engines.stages.processes import Processes


def unlocked() -> Any:
    plain = programs.network(2, "cdni").model
    torch.manual_seed(5)
    x = programs.batches(1)[0][0]
    return decouple(plain, ["0"], SyntheticGradient(context=4), x, inputs=SyntheticInput())


def _trains(rank: int, slow: float, steps: int, window: int) -> dict[str, Any]:
    net, data = unlocked(), programs.batches(steps)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    with Stages(net, programs.per_example, programs.adam, window=window, timeout_s=20) as stages:
        start = time.perf_counter()
        for x, y in data:
            if rank == 0:
                time.sleep(slow)
            stages.step(x, y)
        took_s = time.perf_counter() - start
        output = stages.predict(data[0][0])
        stages.gather()
        after = net.state_dict()
        changed = {name for name, t in before.items() if not torch.equal(t, after[name])}
        return {
            **{"synthetic": stages.num_synthetic, "took_s": took_s, "changed": changed, "all": set(before)},
            **{"output": output, "finite": all(bool(t.isfinite().all()) for t in after.values())},
        }


def test_the_stage_above_runs_ahead_of_a_slow_one(two: Processes) -> None:
    first, last = two.run(_trains, 0.1, 20, 64)
    assert last["synthetic"] > 5
    assert last["took_s"] < first["took_s"]
    for found in (first, last):
        assert found["finite"]
        # The stage above may be through before anything has come that its input rule could learn from.
        assert {n for n in found["all"] - found["changed"] if not n.startswith("inputs.")} == set()
    assert last["output"].shape == (programs.BATCH, programs.CLASSES)


def test_it_waits_when_too_much_is_missing(two: Processes) -> None:
    first, last = two.run(_trains, 0.05, 20, 2)
    assert last["took_s"] > first["took_s"] / 2
    assert last["changed"] == last["all"]


def test_what_is_in_time_is_used(two: Processes) -> None:
    _, last = two.run(_in_time)
    assert last == 0


def _in_time(rank: int) -> int:
    """Have the upper stage come late to every step: then its input is there."""
    with Stages(unlocked(), programs.per_example, programs.adam, window=2, timeout_s=20) as stages:
        for x, y in programs.batches(6):
            if rank == 1:
                time.sleep(0.4)
            stages.step(x, y)
        return stages.num_synthetic


def _without_input(rank: int) -> None:
    with Stages(unlocked(), programs.per_example, programs.adam, timeout_s=20) as stages:
        for x, y in programs.batches(6):
            stages.step(x if rank == 0 else None, y)


def test_it_needs_the_input_everywhere(two: Processes) -> None:
    assert "call step(x, y) with the input in every process" in (two.outcomes(_without_input)[1].error or "")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"deterministic": True, "window": 1}, "wants runs alike"),
        ({"target": torch.zeros(4, dtype=torch.int64)}, "not together with"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        Stages(unlocked(), nn.CrossEntropyLoss(), programs.adam, **options)
