from __future__ import annotations

from dataclasses import replace

from synthgrad.lab.recipes import experiment_named
from synthgrad.lab.training.train import train


def test_every_decay_is_a_row_beside_the_others() -> None:
    made = experiment_named("stale").runs("quick")
    assert [c.method for c in made if c.method != "stale"] == ["backprop", "dni", "cdni", "cdni"]
    assert [c.rule.decay for c in made if c.method == "stale"] == [0.0, 0.5, 0.9] * 2
    assert {c.payload.engine for c in made if c.rule.true_messages} == {"plain"}
    assert len({(c.schedule, c.precision, c.payload.layers) for c in made}) == 1


def test_smoke_sees_the_data_more_than_once() -> None:
    (config, *_) = [c for c in experiment_named("stale").runs("smoke") if c.method == "stale"]
    assert config.schedule.steps * config.schedule.batch_size > 2 * 10_000
    record = train(config)
    assert record["status"] == "ok"
    assert record["metrics"]["test_error_pct"] < 60  # chance is 90


def test_true_messages_are_a_run_like_any_other() -> None:
    config = next(c for c in experiment_named("stale").runs("smoke") if c.rule.true_messages)
    record = train(replace(config, schedule=replace(config.schedule, steps=4, eval_every=2)))
    assert record["status"] == "ok"
    assert record["config"]["rule"]["true_messages"] is True
