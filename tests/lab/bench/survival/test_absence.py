"""``bench absence``: who trains, and on what, while one stage is dead."""

from __future__ import annotations

from typing import Any

import pytest

from synthgrad.core import ConfigError
from synthgrad.lab.bench.base import Figures, choose
from synthgrad.lab.bench.declarations import ABSENCE
from synthgrad.lab.bench.survival.absence import AbsenceBench, AbsenceSize
from synthgrad.lab.bench.survival.work import Work

STEPS = 48


def measured(*cases: str, rule: str = "local_loss", synthetic: bool = False) -> list[Figures]:
    scope = choose(ABSENCE, "smoke", rounds=STEPS, stages=3, layers=3, width=8, batch_size=16)
    return list(AbsenceBench().measure(scope, AbsenceSize(0, rule, synthetic), cases))


def steps(figures: Figures) -> list[int]:
    return [figures.metrics[f"steps_stage{stage}"] for stage in range(3)]


def alone(figures: Figures, name: str = "num_alone") -> list[int]:
    return [figures.metrics[f"{name}_stage{stage}"] for stage in range(3)]


def about(number: float) -> Any:
    return pytest.approx(number, abs=6)


def test_who_is_dead_makes_a_third_less_and_who_has_no_inputs_waits() -> None:
    none, lower, middle, upper = measured("none", "lower", "middle", "upper")
    assert steps(none) == about_all(STEPS, STEPS, STEPS)
    assert steps(upper) == about_all(STEPS, STEPS, 2 * STEPS / 3)
    assert steps(middle) == about_all(STEPS, 2 * STEPS / 3, 2 * STEPS / 3)
    assert steps(lower) == about_all(2 * STEPS / 3, 2 * STEPS / 3, 2 * STEPS / 3)
    assert alone(none) == [0, 0, 0]
    assert alone(upper) == about_all(0, STEPS / 3, 0)
    assert alone(middle) == about_all(STEPS / 3, 0, 0)


def test_with_synthetic_inputs_those_above_go_on() -> None:
    (lower,) = measured("lower", rule="cdni", synthetic=True)
    assert steps(lower) == about_all(2 * STEPS / 3, STEPS, STEPS)
    assert alone(lower, "num_synthetic") == about_all(0, STEPS / 3, 0)


def test_a_stage_may_come_back_with_fresh_weights_and_be_ignored_for_a_while() -> None:
    changes: dict[str, Any] = {"rounds": STEPS, "stages": 3, "layers": 3, "width": 8, "batch_size": 16}
    usual, fresh, ignored = (
        next(AbsenceBench().measure(scope, AbsenceSize(0, "cdni", False), ["upper"])).curve
        for scope in (
            choose(ABSENCE, "smoke", **changes),
            choose(ABSENCE, "smoke", fresh=True, **changes),
            choose(ABSENCE, "smoke", settle=1000, **changes),
        )
    )
    assert usual[:15] == fresh[:15] == ignored[:15], "until then all are one run"
    assert usual[15:] != fresh[15:]
    assert usual[16:] != ignored[16:]
    (setting,) = AbsenceBench().settings(choose(ABSENCE, "smoke", fresh=True, settle=5, methods=("upper",)))
    cell = setting.lines[0].cell
    assert (cell["settle_steps"], cell["begins"]) == (5, "fresh")
    (setting,) = AbsenceBench().settings(choose(ABSENCE, "smoke", methods=("upper",)))
    assert not {"settle_steps", "begins"} & {*setting.lines[0].cell}


@pytest.mark.parametrize("case", ["none", "lower", "middle", "upper"])
def test_the_shortest_run_ends(case: str) -> None:
    scope = choose(ABSENCE, "smoke", rounds=24, width=8, batch_size=16)
    (found,) = AbsenceBench().measure(scope, AbsenceSize(0, "cdni", True), [case])
    assert all(found.metrics[f"steps_stage{stage}"] >= 8 for stage in range(scope.stages))


def test_an_error_of_a_stage_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise ValueError("no weights to be had")

    monkeypatch.setattr(Work, "weights_of", fail)
    with pytest.raises(ValueError, match="no weights to be had"):
        measured("none")


def about_all(*numbers: float) -> list[Any]:
    return [about(number) for number in numbers]


def test_two_runs_are_equal_and_errors_are_those_of_the_course() -> None:
    (one,), (other,) = measured("upper", rule="dni"), measured("upper", rule="dni")
    assert one == other
    course = {point["share_of_run"]: point["test_error_pct"] for point in one.curve}
    assert len(course) == 24
    assert one.metrics["error_before_pct"] == course[8 / 24]
    assert one.metrics["error_alone_pct"] == course[16 / 24]
    assert one.metrics["test_error_pct"] == course[1.0]
    assert len(set(course.values())) > 5, "it learns something all the time"


def test_a_run_without_a_middle_is_refused() -> None:
    with pytest.raises(ConfigError, match="--stages 9 of 8 layers: expected 3 to 8"):
        AbsenceBench().settings(choose(ABSENCE, "smoke", stages=9))
    with pytest.raises(ConfigError, match="so that one is in the middle"):
        AbsenceBench().settings(choose(ABSENCE, "smoke", stages=2))
    with pytest.raises(ConfigError, match="--rounds 23: expected 24 or more: a stage has to begin before it"):
        AbsenceBench().settings(choose(ABSENCE, "smoke", rounds=23))
    with pytest.raises(ConfigError, match="method 'top' is unknown"):
        AbsenceBench().settings(choose(ABSENCE, "smoke", methods=("top",)))


def test_lines_of_a_tier() -> None:
    settings = AbsenceBench().settings(choose(ABSENCE, "quick"))
    assert [setting.label for setting in settings][:2] == [
        "absence: cdni, seed 0",
        "absence: cdni, synthetic inputs, seed 0",
    ]
    assert [line.method for line in settings[0].lines] == ["none", "lower", "middle", "upper"]
    assert len({(s.lines[0].cell["rule"], s.lines[0].cell["synthetic_inputs"]) for s in settings}) == 6
