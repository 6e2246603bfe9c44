from __future__ import annotations

from typing import Any

import pytest

from synthgrad.core import ConfigError
from synthgrad.experiments import compare, dni_search
from synthgrad.experiments.compare import Overrides, configs
from synthgrad.experiments.registry import EXPERIMENTS, experiment_named


def test_defaults_are_the_quick_tier_on_the_embedded_data() -> None:
    made = configs()
    assert [c.method for c in made] == ["backprop", "no_bprop", "dni", "cdni"]
    assert {(c.tier, c.cell.data, c.schedule.batch_size) for c in made} == {("quick", "mnist-10k", 256)}


def test_every_method_has_the_same_schedule_and_seeds_go_together() -> None:
    made = configs("quick", "mnist", seeds=(0, 1))
    assert len({c.schedule for c in made}) == 1
    assert [c.seed for c in made] == [0] * 4 + [1] * 4


def test_quick_on_mnist_is_the_published_comparison() -> None:
    schedule = configs("quick", "mnist")[0].schedule
    assert (schedule.steps, schedule.batch_size, schedule.lr, schedule.milestones) == (
        6000,
        256,
        3e-4,
        (0.6, 0.8),
    )


@pytest.mark.parametrize(
    ("overrides", "tier"),
    [
        (Overrides(layers=6, width=128), "quick"),  # another cell of the table
        (Overrides(steps=10), "custom"),
        (Overrides(lr=1e-3), "custom"),
        (Overrides(batch_size=64), "custom"),
        (Overrides(update_prob=0.5), "custom"),
    ],
)
def test_settings_that_leave_the_tier(overrides: Overrides, tier: str) -> None:
    assert {c.tier for c in configs(overrides=overrides)} == {tier}


def test_update_prob_is_for_unlocked_methods() -> None:
    made = configs(overrides=Overrides(update_prob=0.2))
    assert [c.cell.update_prob for c in made] == [1.0, 0.2, 0.2, 0.2]


@pytest.mark.parametrize(
    "wrong",
    [
        {"tier": "slow"},
        {"data": "imagenet"},
        {"methods": ["magic"]},
        {"methods": []},
        {"overrides": Overrides(engine="warp")},
        {"overrides": Overrides(update_prob=0.0)},
        {"overrides": Overrides(lr=float("nan"))},
        {"overrides": Overrides(steps=0)},
        {"overrides": Overrides(batch_size=0)},
        {"overrides": Overrides(model="a:b", layers=3)},
    ],
)
def test_settings_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        configs(**wrong)


def test_experiments_and_their_tiers() -> None:
    for name, experiment in EXPERIMENTS.items():
        for tier in experiment.tiers:
            made = experiment_named(name, tier).configs(tier, (0,), "cpu", None)
            assert {c.experiment for c in made} == {name}
    with pytest.raises(ConfigError, match="has no tier 'full'; accepted: smoke, quick"):
        experiment_named("dni_search", "full")


def test_the_search_measures_on_held_out_data_only() -> None:
    assert all(c.hold_out for c in dni_search.configs("quick", (0,), "cpu", None))
    assert len(set(dni_search.VARIANTS)) == len(dni_search.VARIANTS)


def test_selected_settings_were_tried() -> None:
    from synthgrad.experiments.methods import METHODS

    assert METHODS["dni"].settings("mnist") in dni_search.VARIANTS
    assert set(compare.METHODS) <= set(METHODS)
