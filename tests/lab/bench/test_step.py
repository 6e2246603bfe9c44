"""``bench step``: which kinds are measured, what their lines hold, and that none of them ends the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from synthgrad.core import ConfigError, DivergedError
from synthgrad.lab.bench import learning
from synthgrad.lab.bench import step as bench_step
from synthgrad.lab.bench.base import choose
from synthgrad.lab.bench.declarations import STEP, StepScope
from synthgrad.lab.bench.step import StepBench
from synthgrad.lab.bench.steps import HAND_WRITTEN, StepCase, make_step
from synthgrad.lab.bench.turns import WARM_UP_STEPS
from synthgrad.lab.records import Metrics, Record
from synthgrad.lab.training.methods import METHODS
from synthgrad.lab.training.run import Run

WIDTH, BATCH = 16, 32
SMALL = StepScope(
    widths=(WIDTH,), layers=(3,), batch_sizes=(BATCH,), methods=("backprop", "cdni"), rounds=2, seconds=0.002
)


def measured(scope: StepScope = SMALL) -> list[Record]:
    (setting,) = StepBench().settings(scope)
    return list(setting.measure())


def kinds(scope: StepScope) -> list[tuple[str, str, float, bool]]:
    cells = [(line.method, line.cell) for line in StepBench().settings(scope)[0].lines]
    return [(m, c["engine"], c["update_prob"], c["compiled"]) for m, c in cells]


def test_cases_of_every_method_the_reference_first() -> None:
    assert kinds(replace(SMALL, methods=tuple(METHODS))) == [
        ("backprop", HAND_WRITTEN, 1.0, False),
        ("no_bprop", "in-process", 1.0, False),
        ("dni", "in-process", 1.0, False),
        ("cdni", "in-process", 1.0, False),
        ("cdni", "plain", 1.0, False),
        ("cdni", "in-process", 0.2, False),
        ("stale", "in-process", 1.0, False),
        ("local_loss", "in-process", 1.0, False),
        ("sobolev", "in-process", 1.0, False),
        ("delayed", "in-process", 1.0, False),
        ("dni_unlock", "in-process", 1.0, False),
        ("cdni_unlock", "in-process", 1.0, False),
        ("interlocked", "in-process", 1.0, False),
        ("head_gradient", "in-process", 1.0, False),
        ("late_correction", "in-process", 1.0, False),
    ]


def test_compiled_kinds_have_the_eager_loop_for_their_reference() -> None:
    assert kinds(replace(SMALL, modes=("compiled",))) == [
        ("backprop", HAND_WRITTEN, 1.0, False),
        ("backprop", HAND_WRITTEN, 1.0, True),
        ("cdni", "in-process", 1.0, True),
        ("cdni", "plain", 1.0, True),
    ]
    assert set(kinds(replace(SMALL, modes=("eager", "compiled")))) > set(kinds(SMALL))


def test_a_line_holds_what_the_contract_names() -> None:
    records = measured()
    assert len(records) == 4
    for record in records:
        assert (record.experiment, record.status, record.batch_size) == ("bench/step", "ok", BATCH)
        assert set(record.cell) >= {"width", "layers", "batch_size", "threads", "compiled"}
        metrics = record.metrics
        assert metrics["step_ms_p10"] <= metrics["step_ms_median"] <= metrics["step_ms_p90"]
        low, high = metrics["ratio_to_backprop_p10"], metrics["ratio_to_backprop_p90"]
        assert 0 < low <= metrics["ratio_to_backprop"] <= high
    reference = records[0].metrics
    assert [reference[f"ratio_to_backprop{end}"] for end in ("", "_p10", "_p90")] == [1, 1, 1]


def test_arithmetic_is_counted() -> None:
    first, hidden, last = 784 * WIDTH, WIDTH**2, WIDTH * 10
    forward, inputs = first + hidden + last, hidden + last
    # At each of two interfaces a product forward and one for the weight; one that adds up errors by class, and one that
    # takes their means off.
    rules = 2 * (2 * WIDTH**2 + 2 * 10 * WIDTH)
    expected = 1 + rules / (2 * forward + inputs)
    backprop, unlocked, plain, sparse = measured()
    assert backprop.metrics["ratio_arithmetic"] == 1
    assert unlocked.metrics["ratio_arithmetic"] == pytest.approx(expected)
    assert plain.metrics["ratio_arithmetic"] == pytest.approx(expected)
    assert "ratio_arithmetic" not in sparse.metrics, "one step's count says nothing about a random one"


def broken(
    monkeypatch: pytest.MonkeyPatch, kind: StepCase, after: int, error: Exception | None = None
) -> None:
    """Have the steps of a kind fail after a number of them."""

    def make(asked: StepCase, *args: Any) -> Callable[[], object]:
        step, left = make_step(asked, *args), [after]

        def failing() -> object:
            left[0] -= 1
            if left[0] < 0:
                raise error or RuntimeError("no more\nsteps")
            return step()

        return failing if asked == kind else step

    monkeypatch.setattr(bench_step, "make_step", make)


@pytest.mark.parametrize("after", [0, 3, WARM_UP_STEPS + 1])
def test_a_kind_that_fails_is_a_line_and_the_others_are_measured(
    after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch, StepCase("cdni", "plain"), after)
    records = measured()
    assert [r.status for r in records] == ["ok", "ok", "failed", "ok"]
    assert (records[2].error, records[2].metrics) == ("RuntimeError: no more", {})


def test_a_kind_that_diverges_between_others_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    error = DivergedError("loss", 21)
    broken(monkeypatch, StepCase("cdni", "in-process"), WARM_UP_STEPS + 1, error)
    assert [r.status for r in measured()] == ["ok", "failed", "ok", "ok"]


@pytest.mark.parametrize("after", [0, WARM_UP_STEPS + 1])
def test_without_the_reference_no_line_has_figures(after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, StepCase("backprop", HAND_WRITTEN), after)
    records = measured()
    assert {r.status for r in records} == {"failed"}
    assert records[0].error == "RuntimeError: no more"
    assert all("hand-written loop" in r.error for r in records[1:])


def test_time_to_an_accuracy_is_that_of_a_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[Run] = []

    def train(run: Run) -> Record:
        runs.append(run)
        if run.method == "backprop":
            return Record(experiment="compare", method=run.method, status="diverged", error="why")
        metrics = Metrics({"time_to_target_s": 1.5, "test_error_pct": 7.0})
        return Record(experiment="compare", method=run.method, metrics=metrics)

    monkeypatch.setattr(learning, "train", train)
    records = measured(replace(SMALL, learn=True, seeds=(4,), schedule="smoke"))
    assert records[0].metrics["learn_error"] == "diverged: why"
    assert "time_to_accuracy_s" not in records[0].metrics
    for record in records[1:]:
        assert record.metrics["time_to_accuracy_s"] == 1.5
        assert (record.metrics["accuracy_pct"], record.metrics["target_accuracy_pct"]) == (93, 92)
    payloads: list[Any] = [run.payload for run in runs]
    assert [(r.method, p.engine, p.update_prob, r.seed) for r, p in zip(runs, payloads, strict=True)] == [
        ("backprop", "plain", 1.0, 4),
        ("cdni", "in-process", 1.0, 4),
        ("cdni", "plain", 1.0, 4),
        ("cdni", "in-process", 0.2, 4),
    ]
    assert {(p.width, p.layers) for p in payloads} == {(WIDTH, 3)}
    assert {(r.schedule.steps, r.schedule.batch_size) for r in runs} == {(300, BATCH)}


def test_a_convolutional_network_of_another_precision_is_measured_beside_its_own_loop() -> None:
    scope = replace(SMALL, arch="cnn", precision="bfloat16", widths=(4,), batch_sizes=(8,))
    assert kinds(scope)[:2] == [("backprop", HAND_WRITTEN, 1.0, False), ("backprop", "plain", 1.0, False)]
    records = measured(scope)
    assert [r.status for r in records] == ["ok"] * 5
    assert {(r.cell["arch"], r.cell["precision"]) for r in records} == {("cnn", "bfloat16")}
    assert records[1].metrics["ratio_arithmetic"] == 1
    assert records[2].metrics["ratio_arithmetic"] > 1
    (delayed,) = [r for r in measured(replace(scope, methods=("delayed",))) if r.method == "delayed"]
    assert delayed.metrics["ratio_arithmetic"] == 1, "also where messages come late"
    plain = {k: v for k, v in records[0].cell.items() if k not in ("arch", "precision")}
    (setting,) = StepBench().settings(replace(SMALL, widths=(4,), batch_sizes=(8,)))
    assert setting.lines[0].cell == plain, "what was recorded before is known as the same"


def test_tiers_of_convolutional_networks() -> None:
    scope = choose(STEP, arch="cnn", layers=(3,), precision="bfloat16")
    assert (scope.arch, scope.precision, scope.widths, scope.layers, scope.tier) == (
        *("cnn", "bfloat16", (32,), (3,), "quick"),
    )


def test_what_cannot_be_measured() -> None:
    with pytest.raises(ConfigError, match="'magic' is unknown"):
        StepBench().settings(replace(SMALL, methods=("magic",)))
    with pytest.raises(ConfigError, match="batch size 10001: expected 2 to 10000"):
        StepBench().settings(replace(SMALL, batch_sizes=(10_001,)))
    with pytest.raises(ConfigError, match="leave out --learn"):
        StepBench().settings(replace(SMALL, arch="cnn", learn=True))
