from __future__ import annotations

from dataclasses import replace

from synthgrad.lab.experiments import stale
from synthgrad.lab.experiments.train import run


def test_every_decay_is_a_row_beside_the_others() -> None:
    made = stale.configs("quick", (0,), "cpu", None)
    assert [c.method for c in made if c.method != "stale"] == ["backprop", "dni", "cdni", "cdni"]
    assert [c.rule.decay for c in made if c.method == "stale"] == [0.0, 0.5, 0.9] * 2
    assert {c.cell.engine for c in made if c.rule.true_messages} == {"plain"}
    assert len({(c.schedule, c.precision, c.cell.layers) for c in made}) == 1


def test_smoke_sees_the_data_more_than_once() -> None:
    (config, *_) = [c for c in stale.configs("smoke", (0,), "cpu", None) if c.method == "stale"]
    assert config.schedule.steps * config.schedule.batch_size > 2 * 10_000
    record = run(config)
    assert record["status"] == "ok"
    assert record["metrics"]["test_error_pct"] < 60  # chance is 90


def test_true_messages_are_a_run_like_any_other() -> None:
    config = next(c for c in stale.configs("smoke", (0,), "cpu", None) if c.rule.true_messages)
    record = run(replace(config, schedule=replace(config.schedule, steps=4, eval_every=2)))
    assert record["status"] == "ok"
    assert record["config"]["rule"]["true_messages"] is True
