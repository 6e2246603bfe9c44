"""The search of settings for convolutional networks: held-out data alone, and defaults that come from it."""

from __future__ import annotations

import pytest

from synthgrad.lab.experiments import cnn_search
from synthgrad.lab.experiments.methods import METHODS
from synthgrad.lab.experiments.train import run


@pytest.mark.parametrize("tier", cnn_search.TIERS)
def test_everything_is_measured_on_held_out_training_data(tier: str) -> None:
    made = cnn_search.configs(tier, (0,), "cpu", None)
    assert all(c.hold_out for c in made)
    assert len({(c.schedule, c.precision, c.cell.data, c.cell.width) for c in made}) == 1


@pytest.mark.parametrize("method", ["cdni", "dni", "local_loss", "sobolev"])
def test_settings_of_methods_are_among_those_searched(method: str) -> None:
    settings = METHODS[method].settings("cifar10", "cnn")
    assert (method, settings) in cnn_search.VARIANTS
    assert METHODS[method].settings("mnist", "cnn") == settings


@pytest.mark.slow(reason="trains networks until they have learned")
def test_smoke_learns_with_the_settings_of_methods() -> None:
    made = cnn_search.configs("smoke", (0,), "cpu", None)
    for config in made:
        if config.method == "backprop" or config.rule == METHODS[config.method].settings("cifar10", "cnn"):
            record = run(config)
            assert record["status"] == "ok", record["error"]
            assert record["metrics"]["val_error_pct"] < 85  # chance is 90
            assert "test_error_pct" not in record["metrics"]
