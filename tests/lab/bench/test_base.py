"""What all benchmarks share: which tier a sweep is of, what is measured again, what a line holds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from synthgrad.core import ConfigError
from synthgrad.lab.bench.base import (
    Scope,
    Setting,
    blank_line,
    choose,
    finish_line,
    median_and_spread,
    sweep,
)
from synthgrad.lab.records import FILE, Record, read

TIER = Scope((8, 16), (2, 3), (32,), ("a", "b"), rounds=4, tier="quick")


class Fake:
    """Two lines for each width; counts what is measured, and fails or stops where it is told to."""

    name = "fake"
    about = "measures nothing"
    tiers = {"quick": TIER}
    networks = {"fcn": tiers}

    def __init__(self) -> None:
        self.measured: list[tuple[int, str]] = []
        self.fails: set[tuple[int, str]] = set()
        self.stops_at: tuple[int, str] | None = None

    def settings(self, scope: Scope) -> list[Setting]:
        made: list[Setting] = []
        for width in scope.widths:
            lines = [blank_line(self.name, m, scope, 0, {"width": width}, {}) for m in scope.methods]
            made.append(Setting(f"width {width}", lines, partial(self._measure, lines)))
        return made

    def _measure(self, lines: Sequence[Record]) -> Iterator[Record]:
        for line in lines:
            key = line["cell"]["width"], line["method"]
            if key == self.stops_at:
                raise KeyboardInterrupt
            self.measured.append(key)
            yield finish_line(line, "cpu", {"step_ms_median": 1.0}, "broke" if key in self.fails else None)


def lines(out: Path) -> list[tuple[int, str, str]]:
    return [(r["cell"]["width"], r["method"], r["status"]) for r in read(out / FILE)[0]]


def swept(bench: Fake, scope: Scope, out: Path, **options: Any) -> list[Record]:
    return list(sweep(bench, replace(scope, threads=1), out, **options))


# Which tier


@pytest.mark.parametrize(
    ("given", "tier"),
    [
        ({}, "quick"),
        ({"widths": (8,)}, "quick"),
        ({"layers": (3,), "widths": (16,)}, "quick"),
        ({"rounds": 4}, "quick"),
        ({"methods": ("a",), "seeds": (1, 2), "threads": 2, "device": "cpu"}, "quick"),
        ({"widths": (8, 9)}, "custom"),
        ({"layers": (4,)}, "custom"),
        ({"batch_sizes": (64,)}, "custom"),
        ({"compiled": (True,)}, "custom"),
        ({"rounds": 5}, "custom"),
    ],
)
def test_a_restricted_sweep_is_of_its_tier_and_another_is_custom(given: dict[str, Any], tier: str) -> None:
    scope = choose(Fake(), "quick", **given, data_dir=None)
    assert scope == replace(TIER, **given, tier=tier)


def test_none_keeps_the_tiers_own() -> None:
    assert choose(Fake(), "quick", widths=None, rounds=None, threads=None) == TIER


def test_what_cannot_be_chosen() -> None:
    with pytest.raises(ConfigError, match="'fake' has no tier 'full'; accepted: quick"):
        choose(Fake(), "full")
    with pytest.raises(ConfigError, match="widths is empty"):
        choose(Fake(), "quick", widths=())


# Sweeping and resuming


def test_every_line_is_written_as_it_is_yielded(tmp_path: Path) -> None:
    seen = 0
    for record in sweep(Fake(), TIER, tmp_path):
        seen += 1
        written = (tmp_path / FILE).read_text(encoding="utf-8").splitlines()
        assert len(written) == seen
        assert {k: v for k, v in json.loads(written[-1]).items() if k != "sum"} == record
    assert seen == 4


def test_resume_skips_settings_that_are_done(tmp_path: Path) -> None:
    swept(Fake(), replace(TIER, widths=(8,)), tmp_path)
    before = (tmp_path / FILE).read_bytes()
    bench, said = Fake(), []
    records = swept(bench, TIER, tmp_path, resume=True, say=said.append)
    assert bench.measured == [(16, "a"), (16, "b")]
    assert said == ["width 8: done before, skipped", "width 16 (2 of 2)"]
    assert [(r["cell"]["width"], r["method"]) for r in records] == [
        *((8, "a"), (8, "b"), (16, "a"), (16, "b"))
    ]
    assert (tmp_path / FILE).read_bytes().startswith(before)


def test_without_resume_everything_is_measured(tmp_path: Path) -> None:
    swept(Fake(), TIER, tmp_path)
    bench = Fake()
    swept(bench, TIER, tmp_path)
    assert len(bench.measured) == 4
    assert len(lines(tmp_path)) == 8


def test_resume_measures_what_was_half_done_again_as_a_whole(tmp_path: Path) -> None:
    stopped = Fake()
    stopped.stops_at = (16, "b")
    with pytest.raises(KeyboardInterrupt):
        swept(stopped, TIER, tmp_path)
    assert len(lines(tmp_path)) == 3
    bench = Fake()
    swept(bench, TIER, tmp_path, resume=True)
    assert bench.measured == [(16, "a"), (16, "b")]


def test_resume_measures_a_setting_with_a_failed_line_again(tmp_path: Path) -> None:
    broken = Fake()
    broken.fails = {(8, "b")}
    swept(broken, TIER, tmp_path)
    bench = Fake()
    swept(bench, TIER, tmp_path, resume=True)
    assert bench.measured == [(8, "a"), (8, "b")]
    assert lines(tmp_path)[-1] == (8, "b", "ok")
    again = Fake()
    swept(again, TIER, tmp_path, resume=True)
    assert again.measured == []


@pytest.mark.parametrize("other", [{"rounds": 5}, {"device": "cuda"}, {"tier": "custom"}], ids=str)
def test_resume_does_not_take_other_settings_for_the_same(other: dict[str, Any], tmp_path: Path) -> None:
    swept(Fake(), TIER, tmp_path)
    bench = Fake()
    swept(bench, replace(TIER, **other), tmp_path, resume=True)
    assert len(bench.measured) == 4


def test_nothing_is_written_if_something_cannot_be_measured(tmp_path: Path) -> None:
    class Refusing(Fake):
        def settings(self, scope: Scope) -> list[Setting]:
            raise ConfigError("no")

    with pytest.raises(ConfigError):
        swept(Refusing(), TIER, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Lines


def test_a_line_before_and_after_it_is_measured() -> None:
    scope = replace(TIER, device="cpu")
    line = blank_line("fake", "a", scope, 3, {"width": 8, "batch_size": 32}, {"optimizer": "Adam"})
    assert set(line) == {
        *("schema", "experiment", "tier", "method", "seed", "cell", "steps", "batch_size", "metrics"),
        *("time", "curve", "status", "error", "config", "env"),
    }
    assert (line["experiment"], line["tier"], line["seed"]) == ("bench/fake", "quick", 3)
    assert (line["batch_size"], line["steps"]) == (32, 4)
    assert line["config"] == {"optimizer": "Adam", "rounds": 4, "device": "cpu"}
    done = finish_line(line, "cpu", {"x_ms": 1.0}, None)
    assert (done["status"], done["error"], done["metrics"]) == ("ok", None, {"x_ms": 1.0})
    assert set(done["env"]) >= {"synthgrad", "commit", "dirty", "torch", "python", "device", "threads"}
    assert line["metrics"] == {}, "the blank line is kept as it was"
    failed = finish_line(line, "cpu", {}, "why")
    assert (failed["status"], failed["error"]) == ("failed", "why")


def test_median_and_spread() -> None:
    assert median_and_spread(list(range(11))) == (5, 1, 9)
    assert median_and_spread([2.0]) == (2, 2, 2)
