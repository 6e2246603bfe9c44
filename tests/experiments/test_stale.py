from __future__ import annotations

from synthgrad.experiments import stale
from synthgrad.experiments.train import run


def test_every_decay_is_a_row_beside_the_others() -> None:
    made = stale.configs("quick", (0,), "cpu", None)
    assert [c.method for c in made if c.method != "stale"] == ["backprop", "dni", "cdni"]
    assert [c.rule.decay for c in made if c.method == "stale"] == [0.0, 0.2, 0.5, 0.8, 0.95]
    assert len({(c.schedule, c.precision, c.cell.layers) for c in made}) == 1


def test_smoke_sees_the_data_more_than_once() -> None:
    (config, *_) = [c for c in stale.configs("smoke", (0,), "cpu", None) if c.method == "stale"]
    assert config.schedule.steps * config.schedule.batch_size > 2 * 10_000
    record = run(config)
    assert record["status"] == "ok"
    assert record["metrics"]["test_error_pct"] < 60  # chance is 90
