"""The run loop on real digits: it learns, and the same seed gives the same result."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch

from synthgrad.lab.training.driver import Driver
from synthgrad.lab.training.methods import METHODS
from synthgrad.lab.training.run import Run
from synthgrad.lab.training.settings import RuleSettings, Schedule
from synthgrad.lab.training.tasks import feed_forward
from synthgrad.lab.training.train import train
from tests.lab.runs import changed, compared


def config(method: str, **changes: Any) -> Run:
    made = compared(method, layers=3, width=64, steps=changes.pop("steps", 120), batch_size=128)
    return changed(made, rule=RuleSettings(), **changes)


@pytest.mark.parametrize(("method", "worst"), [("backprop", 15), ("cdni", 25), ("dni", 45), ("no_bprop", 70)])
def test_every_method_learns_digits(method: str, worst: float) -> None:
    record = train(config(method))
    assert record["status"] == "ok", record["error"]
    assert record["metrics"]["test_error_pct"] < worst  # chance is 90


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_figures(method: str) -> None:
    first, second = train(config(method, steps=12)), train(config(method, steps=12))
    for key, value in first["metrics"].items():
        if not key.endswith("_s"):
            assert value == second["metrics"][key], key
    other = train(config(method, steps=12, seed=1))
    assert other["metrics"]["test_loss"] != first["metrics"]["test_loss"]


def test_record_has_the_contracts_keys() -> None:
    record = train(config("cdni", steps=30, monitor_every=5))
    assert set(record) >= {
        "schema", "experiment", "tier", "method", "seed", "cell", "steps", "batch_size", "metrics", "time",
        "curve", "status", "error", "config", "env",
    }  # fmt: skip
    assert set(record["time"]) == {"train_s", "step_ms_median", "step_ms_p10", "step_ms_p90"}
    assert set(record["env"]) >= {"synthgrad", "commit", "dirty", "torch", "python", "device", "threads"}
    point = record["curve"][-1]
    assert point["step"] == 30
    assert set(point) >= {
        *("elapsed_s", "train_loss", "train_error_pct", "test_loss", "test_error_pct", "quality")
    }
    assert set(point["quality"]) == {"layer1", "layer2"}
    assert all(0 <= p["train_error_pct"] <= 100 for p in record["curve"])


def test_all_methods_start_from_the_same_weights_and_see_the_same_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[str, list[Any]] = {}
    drawn = feed_forward.draw_batches

    def listen(*args: Any) -> Any:
        for ids in drawn(*args):
            seen[current].append(ids.clone())
            yield ids

    monkeypatch.setattr(feed_forward, "draw_batches", listen)
    weights: dict[str, dict[str, torch.Tensor]] = {}
    build = feed_forward.build_model

    def remember(*args: Any) -> Any:
        model = build(*args)
        weights[current] = {k: v.clone() for k, v in model.state_dict().items()}
        return model

    monkeypatch.setattr(feed_forward, "build_model", remember)
    for current in METHODS:
        seen[current] = []
        train(config(current, steps=5))
    for name in METHODS:
        assert all(torch.equal(v, weights["backprop"][k]) for k, v in weights[name].items())
        assert all(torch.equal(a, b) for a, b in zip(seen[name], seen["backprop"], strict=True))


def test_training_error_of_a_point_is_that_of_as_many_training_examples_as_are_tested(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured: list[tuple[int, float]] = []
    true = feed_forward.measure

    def listen(net: torch.nn.Module, split: Any) -> tuple[float, float]:
        loss, error = true(net, split)
        measured.append((len(split), error))
        return loss, error

    monkeypatch.setattr(feed_forward, "measure", listen)
    (point,) = train(config("backprop", steps=20))["curve"][-1:]
    assert measured[-3:-1] == [(2000, point["test_error_pct"]), (2000, point["train_error_pct"])]
    assert measured[-1][0] == 10_000  # the figure of the finished run is that of all training examples


@pytest.mark.filterwarnings("ignore")
def test_a_run_that_diverges_is_recorded_as_that() -> None:
    made = config("backprop")
    record = train(changed(made, lr=1e30))
    assert record["status"] == "diverged"
    assert "not finite at step" in record["error"]
    assert record["metrics"] == {}


def test_a_run_that_fails_is_recorded_with_its_error() -> None:
    made = config("cdni")
    record = train(changed(made, at=("nowhere",)))
    assert record["status"] == "failed"
    assert "no submodule of that name" in record["error"]


def test_skipped_updates_are_counted() -> None:
    made = config("cdni", steps=100)
    record = train(changed(made, update_prob=0.2))
    assert record["metrics"]["updates_skipped_share"] == pytest.approx(0.8, abs=0.08)
    assert train(config("cdni", steps=5))["metrics"]["updates_skipped_share"] == 0
    assert train(config("no_bprop", steps=5))["metrics"]["updates_skipped_share"] == pytest.approx(2 / 3)


def test_learning_rate_falls_at_its_milestones() -> None:
    schedule = Schedule(10, milestones=(0.6, 0.8))
    factors = [schedule.lr_factor(t) for t in range(10)]
    assert factors == pytest.approx([1] * 6 + [0.1] * 2 + [0.01] * 2)
    rates: list[float] = []

    class Listening(feed_forward.FeedForwardTask):
        def step(self) -> bool:
            rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
            return super().step()

    made = config("dni", steps=10)
    driver = Driver(Listening(replace(made, schedule=replace(schedule, eval_every=3, lr=1.0))))
    driver.set_up()
    driver.train()
    assert rates == pytest.approx(factors)


def test_selection_is_made_on_held_out_training_data() -> None:
    record = train(config("backprop", steps=20, hold_out=1000))
    assert "val_error_pct" in record["metrics"]
    assert not any(k.startswith("test") for k in (*record["metrics"], *record["curve"][-1]))


# Compiled

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler on the path"
)


def convolutional(method: str, **changes: Any) -> Run:
    """Return a run of a tiny convolutional network."""
    made = config(method, steps=6, precision="bfloat16", **changes)
    return changed(made, arch="cnn", width=2, layers=3, batch_size=16)


@pytest.mark.slow(reason="each run has a C++ compiler build both passes of a convolutional network")
@pytest.mark.compiles
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@needs_compiler
@pytest.mark.parametrize(
    ("method", "engine"), [("backprop", "plain"), ("cdni", "in-process"), ("cdni", "plain")]
)
def test_a_compiled_run_ends_where_the_eager_one_does(method: str, engine: str) -> None:
    made = convolutional(method)
    made = changed(made, engine=engine)
    eager, compiled = train(made), train(changed(made, compiled=True))
    assert compiled["status"] == "ok", compiled["error"]
    assert compiled["config"]["compiled"] is True
    assert "compiled" not in eager["config"]
    assert compiled["metrics"]["test_loss"] == pytest.approx(eager["metrics"]["test_loss"], rel=0.02)


@pytest.mark.compiles
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_network_that_cannot_be_compiled_is_recorded_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @torch.compiler.disable
    def apart(x: Any) -> Any:
        return x

    class Breaking(torch.nn.Sequential):
        def forward(self, input: Any) -> Any:
            return apart(super().forward(input))

    build = feed_forward.build_model
    monkeypatch.setattr(feed_forward, "build_model", lambda *args: Breaking(build(*args)))
    record = train(convolutional("backprop", compiled=True))
    assert record["status"] == "failed"
    assert record["error"].startswith("the network cannot be compiled: ")
    assert "\n" not in record["error"]
    assert train(convolutional("backprop"))["status"] == "ok"


def test_modules_are_not_compiled_where_a_cut_lies_inside_one() -> None:
    made = convolutional("cdni", compiled=True)
    record = train(changed(made, at=("layer1.0",)))
    assert record["status"] == "failed"
    assert "cut after 'layer1.0'" in record["error"]


# Augmented


def test_every_method_sees_the_same_augmented_images(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[torch.Tensor]] = {}
    true = feed_forward.Augment.__call__

    def listen(augment: Any, x: torch.Tensor) -> torch.Tensor:
        seen.setdefault(current, []).append(true(augment, x))
        return seen[current][-1]

    monkeypatch.setattr(feed_forward.Augment, "__call__", listen)
    for current in ("backprop", "cdni", "local_loss"):
        record = train(config(current, steps=4, augment=True))
        assert record["config"]["augment"] is True
    for images in seen.values():
        assert len(images) == 4
        assert all(torch.equal(a, b) for a, b in zip(images, seen["backprop"], strict=True))
    assert "augment" not in train(config("backprop", steps=4))["config"]
