"""Checks before a sweep: whether a run can begin, and how much its steps will cost."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from synthgrad.core import ConfigError
from synthgrad.lab.recipes import comparison
from synthgrad.lab.training.rehearsal import StepFlops, rehearse, with_estimates
from synthgrad.lab.training.run import Run
from synthgrad.lab.training.settings import RuleSettings, Schedule
from synthgrad.lab.training.train import train
from tests.lab.cli.helpers import call, write_module
from tests.lab.runs import changed, compared

BATCH, INPUT, CLASSES = 32, 784, 10
FACTORY = """
from torch import nn


def good():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, 10))


def narrow():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, 3))
"""


def config(method: str, layers: int = 3, width: int = 16, **over: Any) -> Run:
    made = compared(method, layers=layers, width=width, steps=2, batch_size=BATCH, **over)
    return replace(made, rule=RuleSettings())


def products(layers: int, width: int) -> tuple[int, int, int]:
    """Return the operations of the network's forward pass, of its backpropagation, and of one linear ``M``.

    A product of (B, a) and (a, b) takes 2 B a b of them. Backward takes one for every weight, and one for
    every layer's input but the first's. ``M`` takes a product forward and one for its weight.
    """
    first, hidden, last = INPUT * width, (layers - 2) * width**2, width * CLASSES
    forward = 2 * BATCH * (first + hidden + last)
    backward = forward + 2 * BATCH * (hidden + last)
    return forward, backward, 2 * 2 * BATCH * width**2


def estimate(*configs: Run) -> list[float | None]:
    return [c.estimated_ratio for c in with_estimates(configs)]


def test_backpropagation_costs_what_arithmetic_says() -> None:
    forward, backward, _ = products(4, 16)
    assert rehearse(config("backprop", 4)) == StepFlops(forward, forward + backward)
    assert estimate(config("backprop", 4)) == [1.0]


@pytest.mark.parametrize("engine", ["in-process", "plain"])
@pytest.mark.parametrize(("layers", "width"), [(2, 8), (3, 16), (5, 24)])
def test_a_linear_model_at_every_cut(layers: int, width: int, engine: str) -> None:
    forward, backward, per_rule = products(layers, width)
    expected = 1 + (layers - 1) * per_rule / (forward + backward)
    assert estimate(config("cdni", layers, width, engine=engine)) == [pytest.approx(expected)]


def test_only_the_last_layer_learns() -> None:
    forward, backward, _ = products(3, 16)
    last = 2 * BATCH * 16 * CLASSES
    assert estimate(config("no_bprop")) == [pytest.approx((forward + last) / (forward + backward))]


@pytest.mark.parametrize("prob", [0.1, 0.5, 0.9])
def test_sparse_updates_lie_between_forward_alone_and_a_whole_step(prob: float) -> None:
    forward, backward, per_rule = products(3, 16)
    sparse, dense = estimate(config("cdni", update_prob=prob), config("cdni"))
    learning = backward + 2 * per_rule
    assert sparse == pytest.approx((forward + prob * learning) / (forward + backward))
    assert dense == pytest.approx((forward + learning) / (forward + backward))


def test_expected_work() -> None:
    work = StepFlops(forward=10, step=40)
    assert [work.expected(p) for p in (0.0, 0.5, 1.0)] == [10, 25, 40]


def class_means(width: int) -> int:
    """Return the operations of the means of classes: two products of one-hot rows with errors of a width."""
    return 2 * 2 * BATCH * CLASSES * width


def test_a_users_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = write_module("rehearsed_factories", FACTORY, tmp_path, monkeypatch)
    own = {"model": f"{module}:good", "at": ("2",), "steps": 2, "batch_size": BATCH}
    made = comparison("smoke", "mnist-10k", ["backprop", "cdni"], [0], **own)
    forward, backward, per_rule = products(2, 8)
    per_rule += class_means(8)
    assert estimate(*made) == [1.0, pytest.approx(1 + per_rule / (forward + backward))]


def test_runs_that_differ_by_their_seed_are_rehearsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from synthgrad.lab.training import rehearsal

    rehearsed: list[str] = []

    def listen(config: Run) -> StepFlops | None:
        rehearsed.append(config.method)
        return rehearse(config)

    monkeypatch.setattr(rehearsal, "rehearse", listen)
    made = [replace(config(name), seed=seed) for seed in (0, 1) for name in ("backprop", "cdni")]
    assert [c.seed for c in with_estimates(made)] == [0, 0, 1, 1]
    assert rehearsed == ["backprop", "cdni"]


def test_a_rehearsal_leaves_no_trace_in_the_run() -> None:
    made = config("cdni")
    before = torch.random.get_rng_state()
    (estimated,) = with_estimates([made])
    assert torch.equal(torch.random.get_rng_state(), before)
    assert estimated == replace(made, estimated_ratio=estimated.estimated_ratio)
    first, second = train(made)["metrics"], train(estimated)["metrics"]
    assert {k: v for k, v in first.items() if k != "time_to_target_s"} == {
        k: v for k, v in second.items() if k != "time_to_target_s"
    }


def test_the_record_has_the_estimate() -> None:
    (estimated,) = with_estimates([config("cdni")])
    assert train(estimated)["estimate"] == {"ratio_to_backprop": estimated.estimated_ratio}
    assert train(config("cdni"))["estimate"] == {"ratio_to_backprop": None}


def test_a_loss_that_is_not_finite_gives_no_estimate_but_may_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from synthgrad.lab.training.tasks import feed_forward

    build = feed_forward.build_model

    def broken(*args: Any) -> torch.nn.Module:
        model = build(*args)
        torch.nn.init.constant_(model.get_parameter("output.weight"), float("inf"))
        return model

    monkeypatch.setattr(feed_forward, "build_model", broken)
    assert estimate(config("backprop"), config("cdni")) == [None, None]


def test_what_cannot_begin_is_found() -> None:
    made = config("cdni")
    with pytest.raises(ConfigError, match="expected 1 to 10000"):
        rehearse(replace(made, schedule=Schedule(5, batch_size=10_001)))
    with pytest.raises(ConfigError, match="'fcn' cannot be trained with cdni on 'mnist-10k'.*nowhere"):
        rehearse(changed(made, at=("nowhere",)))


# On the command line

COMPARE = [
    *("compare", "--steps", "2", "--batch-size", "32", "--width", "8", "--layers", "3"),
    *("--methods", "backprop,cdni", "--device", "cpu", "--threads", "1"),
]


@pytest.mark.usefixtures("offline")
def test_the_estimate_is_said_before_the_first_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*COMPARE, "--out", tmp_path / "out") == 0
    lines = capsys.readouterr().err.splitlines()
    forward, backward, per_rule = products(3, 8)
    cdni = 1 + 2 * (per_rule + class_means(8)) / (forward + backward)
    assert lines[0].startswith("estimated cost of a step")
    assert f"backprop 1.00 ×, cdni {cdni:.2f} ×" in lines[0]
    assert lines[1].startswith("backprop, seed 0: ok")


@pytest.mark.usefixtures("offline")
def test_the_estimate_is_not_said_if_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*COMPARE, "--quiet", "--out", tmp_path / "out") == 0
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("offline")
def test_nothing_is_written_if_a_later_run_cannot_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = write_module("rehearsed_narrow", FACTORY, tmp_path, monkeypatch)
    small = ["compare", "--steps", "2", "--device", "cpu", "--threads", "1", "--batch-size", "32"]
    own = ["--model", f"{module}:good", "--methods", "backprop,cdni", "--at", "9"]
    assert call(*small, *own, "--out", tmp_path / "out") == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


VECTORS = """
import torch


def make():
    x, y = torch.rand(64, 5), torch.arange(64) % 2
    return x, y, x, y
"""


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"arch": "cnn"}, "expected (C, Y, X), because a convolutional network takes images"),
        (
            {"augment": True},
            "--augment: 'vectors:make' has inputs of shape (5,), expected images",
        ),
        ({"batch_size": 1}, "--batch-size 1: the network or a rule has BatchNorm"),
    ],
)
def test_data_that_are_no_images(
    given: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = write_module("vectors", VECTORS, tmp_path, monkeypatch)
    usual = {"steps": 2, "batch_size": 16}
    runs = comparison("smoke", f"{module}:make", ["cdni"], **{**usual, **given})
    with pytest.raises(ConfigError, match=re.escape(words)):
        with_estimates(runs)
    (fitting,) = with_estimates(comparison("smoke", f"{module}:make", ["cdni"], **usual))
    assert train(fitting).status == "ok"


@pytest.mark.parametrize("recompute", [False, True])
def test_rules_that_correct_or_send_ahead_are_counted(recompute: bool) -> None:
    methods = ["late_correction"] if recompute else ["interlocked", "late_correction", "head_gradient"]
    runs = comparison("smoke", methods=methods, recompute=recompute or None)
    assert all(rehearse(run) is not None for run in runs)
