from __future__ import annotations

import pytest

from synthgrad.lab.experiments import unlock
from synthgrad.lab.experiments.train import run


def test_one_schedule_for_all() -> None:
    made = unlock.configs("quick", (0,), "cpu", None)
    assert tuple(c.method for c in made) == unlock.METHODS
    assert len({(c.schedule, c.precision, c.cell.data) for c in made}) == 1


@pytest.mark.slow(reason="trains networks until they have learned")
@pytest.mark.parametrize("method", unlock.METHODS)
def test_smoke_learns(method: str) -> None:
    (config,) = [c for c in unlock.configs("smoke", (0,), "cpu", None) if c.method == method]
    record = run(config)
    assert record["status"] == "ok", record["error"]
    assert record["metrics"]["test_error_pct"] < 80  # chance is 90
