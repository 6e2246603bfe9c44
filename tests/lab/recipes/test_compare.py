from __future__ import annotations

from typing import Any

import pytest

from synthgrad.core import ConfigError
from synthgrad.lab.recipes import Choice, Experiment, comparison, experiment_named
from synthgrad.lab.recipes.comparison import METHODS as COMPARED
from synthgrad.lab.records import identity
from synthgrad.lab.training.settings import RuleSettings
from synthgrad.lab.training.train import empty_record


def test_defaults_are_the_quick_tier_on_the_embedded_data() -> None:
    made = comparison()
    assert [c.method for c in made] == ["backprop", "no_bprop", "dni", "cdni"]
    assert {(c.tier, c.payload.data, c.schedule.batch_size) for c in made} == {("quick", "mnist-10k", 256)}


def test_every_method_has_the_same_schedule_and_seeds_go_together() -> None:
    made = comparison("quick", "mnist", seeds=(0, 1))
    assert len({c.schedule for c in made}) == 1
    assert [c.seed for c in made] == [0] * 4 + [1] * 4


def test_quick_on_mnist_is_the_published_comparison() -> None:
    schedule = comparison("quick", "mnist")[0].schedule
    assert (schedule.steps, schedule.batch_size, schedule.lr, schedule.milestones) == (
        6000,
        256,
        3e-4,
        (0.6, 0.8),
    )


@pytest.mark.parametrize(
    ("given", "tier"),
    [
        ({"layers": 6, "width": 128}, "quick"),  # another cell of the table
        ({"steps": 10}, "custom"),
        ({"lr": 1e-3}, "custom"),
        ({"batch_size": 64}, "custom"),
        ({"update_prob": 0.5}, "custom"),
    ],
)
def test_settings_that_leave_the_tier(given: dict[str, Any], tier: str) -> None:
    assert {c.tier for c in comparison(**given)} == {tier}


def test_update_prob_is_for_unlocked_methods() -> None:
    made = comparison(update_prob=0.2)
    assert [c.payload.update_prob for c in made] == [1.0, 0.2, 0.2, 0.2]


def test_several_budgets_are_several_schedules_of_one_shape() -> None:
    made = comparison("quick", "mnist", ["backprop", "cdni"], steps=(600, 3000))
    assert [(c.schedule.steps, c.method) for c in made] == [
        *((600, "backprop"), (600, "cdni"), (3000, "backprop"), (3000, "cdni"))
    ]
    assert [c.schedule.steps / c.schedule.eval_every for c in made] == [24.0] * 4
    assert {c.tier for c in made} == {"custom"}


def test_the_whole_experiment_has_budgets_and_sparse_updates() -> None:
    made = experiment_named("budgets").runs("quick")
    found = {(c.schedule.steps, c.method, c.payload.update_prob) for c in made}
    assert len(found) == len(made) == 3 * 7
    assert {s for s, *_ in found} == {1000, 3000, 6000}
    assert {(m, p) for _, m, p in found} == {
        *(("backprop", 1.0), ("no_bprop", 1.0), ("dni", 1.0), ("cdni", 1.0)),
        *(("no_bprop", 0.2), ("dni", 0.2), ("cdni", 0.2)),
    }
    assert {c.tier for c in made} == {"quick"}


def test_the_longest_budget_is_the_comparison_that_was_recorded() -> None:
    alone = [identity(empty_record(c, 1)) for c in comparison("quick", "mnist", seeds=(0, 1), label_rate=0.0)]
    whole = [identity(empty_record(c, 1)) for c in experiment_named("budgets").runs("quick", (0, 1))]
    assert set(alone) < set(whole)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tier": "slow"},
        {"data": "imagenet"},
        {"methods": ["magic"]},
        {"methods": []},
        {"engine": "warp"},
        {"update_prob": 0.0},
        {"lr": float("nan")},
        {"steps": 0},
        {"steps": (10, 0)},
        {"batch_size": 0},
        {"model": "a:b", "layers": 3},
        {"step": 100},  # not "steps"
        {"arch": "rnn"},
        {"model": "a"},
        {"update_prob": 0.5, "engine": "plain"},
    ],
)
def test_settings_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        comparison(**wrong)


def _searched(experiment: Experiment) -> list[tuple[str, object]]:
    return [(run.method, run.rule) for run in experiment.runs("quick")]


def test_the_search_measures_on_held_out_data_only() -> None:
    search = experiment_named("dni_search")
    assert all(c.payload.config()["hold_out"] for c in search.runs("quick"))
    assert len(set(_searched(search))) == len(_searched(search))


def test_selected_settings_were_tried() -> None:
    from synthgrad.lab.training.methods import METHODS

    assert ("dni", METHODS["dni"].settings("mnist")) in _searched(experiment_named("dni_search"))
    assert set(COMPARED) <= set(METHODS)


def test_defaults_of_cdni_were_searched_on_held_out_data_and_the_papers_keep_their_form() -> None:
    from synthgrad.lab.training.methods import METHODS

    search = experiment_named("cdni_search").runs("quick")
    assert {run.payload.config()["hold_out"] for run in search} == {2000}
    for data in ("mnist-10k", "cifar10", "mine.npz"):
        assert METHODS["cdni"].settings(data) == RuleSettings(label_rate=1.0)
        assert ("cdni", METHODS["cdni"].settings(data)) in [(run.method, run.rule) for run in search]
    (run,) = comparison(methods=["cdni"])
    (before,) = comparison(methods=["cdni"], label_rate=0.0)
    assert (run.tier, before.tier) == ("quick", "quick")
    assert (run.config()["rule"]["label_rate"], "label_rate" in before.config()["rule"]) == (1.0, False)
    for name in ("table1", "budgets", "sparse", "stale", "unlock", "lag"):
        of_cdni = [
            r
            for r in experiment_named(name).runs("quick", choice=Choice(arch=("fcn",)))
            if r.method == "cdni"
        ]
        assert of_cdni, name
        assert all(r.rule.label_rate == 0 for r in of_cdni), name


def test_norm_and_activation_are_recorded_where_they_are_not_the_papers() -> None:
    (usual,) = comparison(methods=["backprop"])
    (other,) = comparison(methods=["backprop"], normalisation="layer", activation="gelu")
    assert not usual.payload.cell().keys() & {"normalisation", "activation"}
    assert other.payload.cell().items() >= {"normalisation": "layer", "activation": "gelu"}.items()
    for wrong in (
        {"normalisation": "group"},
        {"activation": "swish"},
        {"arch": "cnn", "normalisation": "layer"},
    ):
        with pytest.raises(ConfigError, match="norm|activation"):
            comparison(methods=["backprop"], **wrong)  # type: ignore[arg-type]


def test_hand_over_is_a_setting_of_methods_with_a_rule() -> None:
    over = {"warm_up": 10, "freeze_after": 50, "min_cosine": 0.1}
    reference, dni = comparison("quick", "mnist-10k", ("backprop", "dni"), **over)
    assert (reference.tier, dni.tier) == ("custom", "custom")
    assert not reference.rule.hands_over
    assert dni.config()["rule"] | over == dni.config()["rule"]
    assert "warm_up" not in comparison("quick", "mnist-10k", ("dni",))[0].config()["rule"]
