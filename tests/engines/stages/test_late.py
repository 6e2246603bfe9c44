"""Synthetic inputs between stages: one whose input is late does not wait for it. In virtual time, so to the number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from synthgrad import SyntheticGradient, decouple
from synthgrad.core import ConfigError
from synthgrad.engines import Stages
from synthgrad.engines.stages import Link
from synthgrad.rules import SyntheticInput
from tests.engines.stages import programs
from tests.engines.stages.places import InMemory, Place


def unlocked() -> Any:
    plain = programs.network(2, "cdni").model
    torch.manual_seed(5)
    x = programs.batches(1)[0][0]
    return decouple(plain, ["0"], SyntheticGradient(context=4), x, inputs=SyntheticInput())


def _trains(place: Place, slow: tuple[float, float], steps: int, window: int) -> dict[str, Any]:
    """Train; each stage rests for a while before each step."""
    net, data = unlocked(), programs.batches(steps)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    with Stages(
        net, programs.per_example, programs.adam, window=window, timeout_s=20, transport=place.transport
    ) as stages:
        start, missing = place.now(), list[int]()
        for x, y in data:
            place.sleep(slow[place.rank])
            stages.step(x, y)
            missing.append(stages.num_synthetic)
        took_s = place.now() - start
        output = stages.predict(data[0][0])
        stages.gather()
        after = net.state_dict()
        changed = {name for name, t in before.items() if not torch.equal(t, after[name])}
        return {
            **{"synthetic": missing, "took_s": took_s, "changed": changed, "all": set(before)},
            **{"output": output, "finite": all(bool(t.isfinite().all()) for t in after.values())},
        }


def test_the_stage_above_runs_ahead_of_a_slow_one(two: InMemory) -> None:
    first, last = two.run(_trains, (1 / 8, 0), 20, 64)
    assert first["took_s"] == 20 / 8
    # It knows of the window with the first batch that comes, so the second step waits for that one.
    assert last["took_s"] == 1 / 8
    assert last["synthetic"] == list(range(1, 21))
    assert last["output"].shape == (programs.BATCH, programs.CLASSES)
    for found in (first, last):
        assert found["finite"]
        assert found["changed"] == found["all"]


@pytest.mark.parametrize("window", [2, 4, 7])
def test_it_waits_when_too_much_is_missing(two: InMemory, window: int) -> None:
    _, last = two.run(_trains, (1 / 8, 0), 20, window)
    # Its last step needs the batch that lies so far back, which was sent at the end of that step below.
    assert last["took_s"] == (20 - window) / 8
    assert last["synthetic"] == list(range(1, 21))
    assert last["changed"] == last["all"]


def test_what_is_late_now_and_then_is_synthetic_then(two: InMemory) -> None:
    _, last = two.over(Link(delay_s=3 / 16)).run(_trains, (1 / 8, 1 / 8), 12, 4)
    # A stage begins when it has measured the link: that above one way earlier. So batch t comes 3 steps after its own turn.
    assert last["synthetic"] == list(range(1, 13))
    _, last = two.over(Link(delay_s=3 / 16)).run(_trains, (1 / 8, 1 / 4), 12, 4)
    # Batch t comes at (t + 4) / 8, its turn is at (t + 1) / 4: the first two are late, the third comes just in time.
    assert last["synthetic"] == [1] + [2] * 11


def test_what_is_in_time_is_used(two: InMemory) -> None:
    _, last = two.run(_in_time)
    assert last == 0


def _in_time(place: Place) -> int:
    """Have the upper stage come late to every step: then its input is there."""
    with Stages(
        unlocked(), programs.per_example, programs.adam, window=2, timeout_s=20, transport=place.transport
    ) as stages:
        for x, y in programs.batches(6):
            if place.rank == 1:
                place.sleep(1 / 8)
            stages.step(x, y)
        return stages.num_synthetic


def _without_input(place: Place) -> None:
    with Stages(
        unlocked(), programs.per_example, programs.adam, timeout_s=20, transport=place.transport
    ) as stages:
        for x, y in programs.batches(6):
            stages.step(x if place.rank == 0 else None, y)


def test_it_needs_the_input_everywhere(two: InMemory) -> None:
    assert "call step(x, y) with the input in every process" in (two.outcomes(_without_input)[1].error or "")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"deterministic": True, "window": 1}, "so runs differ"),
        ({"target": torch.zeros(4, dtype=torch.int64)}, "not together with"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        Stages(unlocked(), nn.CrossEntropyLoss(), programs.adam, **options)
