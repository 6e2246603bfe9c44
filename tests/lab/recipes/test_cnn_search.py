"""The search of settings for convolutional networks: it uses held-out data only, and the defaults are its results."""

from __future__ import annotations

import pytest

from synthgrad.lab.recipes import experiment_named
from synthgrad.lab.training.methods import METHODS
from synthgrad.lab.training.train import train


@pytest.mark.parametrize("tier", ["smoke", "quick"])
def test_everything_is_measured_on_held_out_training_data(tier: str) -> None:
    made = experiment_named("cnn_search").runs(tier)
    assert all(c.payload.hold_out for c in made)
    assert len({(c.schedule, c.precision, c.payload.data, c.payload.width) for c in made}) == 1


@pytest.mark.parametrize("method", ["cdni", "dni", "local_loss", "sobolev"])
def test_settings_of_methods_are_among_those_searched(method: str) -> None:
    settings = METHODS[method].settings("cifar10", "cnn")
    assert (method, settings) in [
        (run.method, run.rule) for run in experiment_named("cnn_search").runs("quick")
    ]
    assert METHODS[method].settings("mnist", "cnn") == settings


@pytest.mark.slow(reason="trains networks until they have learned")
def test_smoke_learns_with_the_settings_of_methods() -> None:
    made = experiment_named("cnn_search").runs("smoke")
    for config in made:
        if config.method == "backprop" or config.rule == METHODS[config.method].settings("cifar10", "cnn"):
            record = train(config)
            assert record["status"] == "ok", record["error"]
            assert record["metrics"]["val_error_pct"] < 85  # chance is 90
            assert "test_error_pct" not in record["metrics"]
