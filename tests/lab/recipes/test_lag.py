from __future__ import annotations

from synthgrad.lab.recipes import experiment_named
from synthgrad.lab.training.train import train


def test_every_lag_is_tried_with_both_kinds_of_credit() -> None:
    made = experiment_named("lag").runs("quick", (0, 1))
    for seed in (0, 1):
        own = [c for c in made if c.seed == seed]
        assert [c.rule.delay for c in own if c.method == "cdni"] == [0, 1, 4, 16, 64]
        assert [c.rule.delay for c in own if c.method == "delayed"] == [1, 4, 16, 64]
        assert [c.payload.engine for c in own if c.method == "backprop"] == ["plain"]
    assert len({(c.schedule, c.precision, c.payload.layers) for c in made}) == 1
    assert all(c.schedule.lr_factor(c.schedule.steps - 1) == 1 for c in made)


def test_a_lag_longer_than_the_run_leaves_nothing_to_learn_from() -> None:
    found = {
        c.rule.delay: train(c) for c in experiment_named("lag").runs("smoke") if c.method == "delayed" and c.rule.delay in (1, 64)
    }  # fmt: skip
    assert {r["status"] for r in found.values()} == {"ok"}
    # In 40 steps no gradient has come back 64 steps late: the lower part stays as it was.
    assert found[1]["metrics"]["test_error_pct"] < found[64]["metrics"]["test_error_pct"]
