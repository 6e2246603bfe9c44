"""Runs of recurrent and clocked networks: they learn, resume exactly, and report errors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from synthgrad.core import ConfigError, DataError
from synthgrad.lab.recipes import Choice, experiment_named
from synthgrad.lab.training.recurrent_methods import RECURRENT_METHODS
from synthgrad.lab.training.rehearsal import rehearse_all
from synthgrad.lab.training.run import Run
from synthgrad.lab.training.settings import BoundarySettings, Schedule
from synthgrad.lab.training.snapshot import INTERVAL_VARIABLE
from synthgrad.lab.training.tasks import feed_forward, text
from synthgrad.lab.training.train import train
from tests.lab.runs import changed

OF_THE_CLOCK = ("elapsed_s", "_per_s", "time_to")

SMOKE: dict[str, Run] = {
    f"{config.experiment}-{config.method}": config
    for name in ("copy", "repeat_copy", "charlm", "multinet")
    for config in experiment_named(name).runs("smoke")
}
every_run = pytest.mark.parametrize("name", SMOKE)


def timeless(record: Mapping[str, Any]) -> dict[str, Any]:
    def keep(values: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in values.items() if not any(word in k for word in OF_THE_CLOCK)}

    kept = {"curve": [keep(p) for p in record["curve"]], "metrics": keep(record["metrics"])}
    return kept | {"weights_sha256": record["weights_sha256"]}


#: On two stages no run can be stopped in this process.
STACKS: dict[str, Run] = {
    f"{config.payload.arch}-{config.method}": config
    for config in experiment_named("two_stages").runs("smoke")
    if config.payload.engine != "stages"
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=[] if k % 3 == 0 else [pytest.mark.slow(reason="a third of them is in the short suite")],
        )
        for k, name in enumerate([*SMOKE, *STACKS])
    ],
)
def test_a_stopped_run_goes_on_to_the_same_end(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(INTERVAL_VARIABLE, "0")
    monkeypatch.setattr(text.TextTask, "chunk", 4)
    monkeypatch.setattr(feed_forward.FeedForwardTask, "chunk", 4)
    config = {**SMOKE, **STACKS}[name]
    whole = train(config)
    assert (whole["status"], whole["error"]) == ("ok", None)
    kept = dataclasses.replace(config, snapshots=str(tmp_path))

    def stop(done: int) -> None:
        if done >= 0.6 * config.schedule.steps:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(kept, stop)
    record = train(kept)
    assert config.schedule.steps // 2 < record["resumed_at"][0] < config.schedule.steps  # between two points
    assert timeless(record) == timeless(whole)


@every_run
def test_methods_have_the_same_data_and_first_weights(name: str) -> None:
    """Before anything is learned their figures are the same: as with a learning rate of next to nothing."""
    config = SMOKE[name]
    reference = next(c for k, c in SMOKE.items() if k.startswith(config.experiment))
    figures = []
    for c in (config, reference):
        slow = dataclasses.replace(c.schedule, steps=4, eval_every=4, lr=1e-30)
        record = train(dataclasses.replace(c, schedule=slow))
        figures.append({k: v for k, v in record["curve"][-1].items() if k not in ("elapsed_s", "quality")})
    assert figures[0] == pytest.approx(figures[1], rel=1e-5)


@pytest.mark.slow(reason="trains networks until they have learned")
@pytest.mark.parametrize("method", RECURRENT_METHODS)
def test_copy_is_learned(method: str) -> None:
    config = dataclasses.replace(
        SMOKE[f"copy-{method}"], schedule=Schedule(300, 32, lr=3e-3, milestones=(), eval_every=150)
    )
    record = train(config)
    assert record["metrics"]["sequence_length"] >= 4
    assert record["metrics"]["sequences_to_longest"] <= 300 * 32


@pytest.mark.parametrize("method", ["bptt", "dni", "dni_aux"])
def test_characters_are_learned(method: str) -> None:
    config = dataclasses.replace(
        SMOKE[f"charlm-{method}"], schedule=Schedule(200, 16, lr=1e-2, milestones=(), eval_every=100)
    )
    record = train(config)
    assert record["metrics"]["bits_per_char"] < 4.0  # a character at random takes 5.9
    assert record["metrics"]["chars_seen"] == 200 * 16 * 5
    assert record["config"]["rule"].get("alpha") == (None if method == "bptt" else 0.1)


def test_windows_of_unrolls_learn_too() -> None:
    config = dataclasses.replace(
        SMOKE["charlm-dni"],
        rule=BoundarySettings(window=4, mix=0.5),
        schedule=Schedule(202, 16, lr=1e-2, milestones=(), eval_every=101),
    )
    record = train(config)
    assert record["status"] == "ok"
    assert record["metrics"]["bits_per_char"] < 4.6
    assert record["config"]["rule"]["mix"] == 0.5


def test_the_interface_lets_a_learn_more_often() -> None:
    locked, free = (train(SMOKE[f"multinet-{m}"])["metrics"] for m in ("bptt", "dni"))
    assert locked["a_updates"] == locked["b_updates"] == free["b_updates"] == 30
    assert free["a_updates"] == 60


def test_a_run_that_diverges_says_so() -> None:
    for name in ("copy-bptt", "charlm-bptt", "multinet-bptt"):
        fast = dataclasses.replace(SMOKE[name].schedule, lr=3e38)
        record = train(dataclasses.replace(SMOKE[name], schedule=fast))
        assert record["status"] == "diverged", name
        assert "loss" in record["error"]


def test_smooth_figures_are_finite() -> None:
    for name, config in SMOKE.items():
        metrics = train(dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, steps=2)))[
            "metrics"
        ]
        numbers = [v for v in metrics.values() if isinstance(v, float)]
        assert all(map(math.isfinite, numbers)), name


def test_any_text_can_be_named(tmp_path: Path) -> None:
    text = tmp_path / "my.txt"
    text.write_text("the quick brown fox\n" * 200)
    made = experiment_named("charlm").runs("smoke", choice=Choice(data=(str(text),)))
    assert {c.payload.data for c in made} == {str(text)}
    assert rehearse_all(made) == made


def test_what_cannot_begin_is_told_before_anything_is_written(tmp_path: Path) -> None:
    short, empty = tmp_path / "short.txt", tmp_path / "empty.txt"
    short.write_text("abc " * 30)
    empty.write_text("")
    config = SMOKE["charlm-dni"]
    for path, kind, words in (
        (short, ConfigError, "batch size 16|unroll of 5"),
        (empty, DataError, "has 0 characters, expected at least"),
        (tmp_path / "none.txt", ConfigError, "neither a known text nor a file"),
        (tmp_path, DataError, "is a directory"),
    ):
        unroll = 50 if path == short else 5
        with pytest.raises(kind, match=words):
            rehearse_all([changed(config, data=str(path), width=8, unroll=unroll)])
    with pytest.raises(ConfigError, match="kind 'tree' is unknown"):
        rehearse_all([changed(config, arch="tree")])
    with pytest.raises(ConfigError, match="not a method for recurrent networks"):
        rehearse_all([dataclasses.replace(config, method="stale")])


def test_unrolls_can_be_chosen() -> None:
    made = experiment_named("copy").runs("quick", choice=Choice(unroll=(5,)))
    assert {c.payload.unroll for c in made} == {5}
    with pytest.raises(ConfigError, match="--unroll 7: experiment 'copy'.* has 3, 5"):
        experiment_named("copy").runs("quick", choice=Choice(unroll=(7,)))
    with pytest.raises(ConfigError, match="--unroll 3: experiment 'unlock'.* has none"):
        experiment_named("unlock").runs("quick", choice=Choice(unroll=(3,)))
