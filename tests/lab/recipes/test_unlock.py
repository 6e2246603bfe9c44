from __future__ import annotations

import pytest

from synthgrad.lab.recipes import experiment_named, unlock
from synthgrad.lab.training.train import train


def test_one_schedule_for_all() -> None:
    made = experiment_named("unlock").runs("quick")
    assert tuple(c.method for c in made) == unlock.METHODS
    assert len({(c.schedule, c.precision, c.payload.data) for c in made}) == 1


@pytest.mark.slow(reason="trains networks until they have learned")
@pytest.mark.parametrize("method", unlock.METHODS)
def test_smoke_learns(method: str) -> None:
    (config,) = [c for c in experiment_named("unlock").runs("smoke") if c.method == method]
    record = train(config)
    assert record["status"] == "ok", record["error"]
    assert record["metrics"]["test_error_pct"] < 80  # chance is 90
