from __future__ import annotations

import pytest

from synthgrad.lab.recipes import experiment_named, sparse
from synthgrad.lab.training.train import train


def test_quick_has_equal_updates_and_equal_steps() -> None:
    made = experiment_named("sparse").runs("quick")
    found = {(c.method, c.payload.update_prob, c.schedule.steps) for c in made}
    assert len(found) == len(made) == 3 * 7
    assert {(p, s) for _, p, s in found} == {
        *((1.0, 2500), (0.5, 5000), (0.2, 12_500), (0.1, 25_000)),
        *((0.5, 2500), (0.2, 2500), (0.1, 2500)),
    }
    assert {(c.precision, c.schedule.lr, c.payload.layers) for c in made} == {("bfloat16", 3e-4, 4)}


def test_equal_updates_means_as_many_as_with_every_step() -> None:
    for c in experiment_named("sparse").runs("quick"):
        if c.schedule.steps != 2500:
            assert c.schedule.steps * c.payload.update_prob == pytest.approx(2500)
            assert c.schedule.steps / c.schedule.eval_every == pytest.approx(10)


def test_full_draws_a_probability_for_each_run() -> None:
    made = experiment_named("sparse").runs("full")
    assert len(made) == 100
    assert {c.schedule.steps for c in made} == {500_000}
    counts = [sum(c.method == m for c in made) for m in sparse.METHODS]
    assert max(counts) - min(counts) <= 1
    probs = [c.payload.update_prob for c in made]
    assert probs == sparse.drawn_probs(0) != sparse.drawn_probs(1)
    assert min(probs) < 0.1
    assert max(probs) > 0.9
    assert all(0 < p <= 1 for p in sparse.drawn_probs(0, 12_500))


@pytest.mark.parametrize("method", ["backprop", "cdni"])
def test_about_as_many_updates_are_skipped_as_asked(method: str) -> None:
    for config in experiment_named("sparse").runs("smoke"):
        if config.method == method:
            record = train(config)
            assert record["status"] == "ok"
            skipped = record["metrics"]["updates_skipped_share"]
            assert skipped == pytest.approx(1 - config.payload.update_prob, abs=0.2)
            assert (skipped == 0) == (config.payload.update_prob == 1)
            assert record["metrics"]["test_error_pct"] < 85  # chance is 90
