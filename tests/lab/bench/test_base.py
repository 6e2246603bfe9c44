"""What all benchmarks share: which tier a sweep is of, what is measured again, what a line holds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from synthgrad.core import ConfigError
from synthgrad.lab.bench import base
from synthgrad.lab.bench.base import Bench, Figures, Size, benchmark_of, choose, sweep
from synthgrad.lab.bench.declaration import Declaration, Scope, batch_sizes, layers, methods, rounds, widths
from synthgrad.lab.bench.declarations import BENCHMARKS
from synthgrad.lab.options import option
from synthgrad.lab.records import FILE, Record, read


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeScope(Scope):
    """Parameters of a benchmark that measures nothing."""

    widths: tuple[int, ...] = widths()
    layers: tuple[int, ...] = layers()
    batch_sizes: tuple[int, ...] = batch_sizes()
    modes: tuple[str, ...] = option(("eager",), help="How.", listed=True, choices=("eager", "compiled"))
    methods: tuple[str, ...] = methods(("a", "b"))
    rounds: int = rounds()
    arch: str = option("fcn", help="Network.", choices=("fcn", "cnn"))
    unrolls: tuple[int, ...] = option((), help="Unrolls.", flag="--unroll", kind=int, listed=True)


TIER = FakeScope(widths=(8, 16), layers=(2, 3), batch_sizes=(32,), rounds=4, tier="quick")
SOME = replace(TIER, layers=(2,))
CONVOLUTIONAL = replace(TIER, arch="cnn", widths=(4,))
FAKE = Declaration(
    "fake",
    "measures nothing",
    "fake",
    {"quick": TIER},
    {"fcn": {"quick": TIER}, "cnn": {"quick": CONVOLUTIONAL}},
)


class Fake(Bench[FakeScope, Size, str]):
    """Two lines for each width; counts what is measured, and fails or stops where it is told to."""

    declared = FAKE

    def __init__(self) -> None:
        self.measured: list[tuple[int, str]] = []
        self.fails: set[tuple[int, str]] = set()
        self.stops_at: tuple[int, str] | None = None
        self.closed = 0

    def cases(self, scope: FakeScope, size: Size) -> Sequence[str]:
        return scope.methods

    def cell(self, scope: FakeScope, size: Size, case: str) -> Mapping[str, Any]:
        return {"width": size.width, "batch_size": size.batch_size}

    def config(self, scope: FakeScope, size: Size, case: str) -> Mapping[str, Any]:
        return {"note": case}

    def label(self, scope: FakeScope, size: Size) -> str:
        return f"width {size.width}"

    def measure(self, scope: FakeScope, size: Size, cases: Sequence[str]) -> Iterator[Figures]:
        for case in cases:
            key = size.width, case
            if key == self.stops_at:
                raise KeyboardInterrupt
            self.measured.append(key)
            yield Figures({"step_ms_median": 1.0}, "broke" if key in self.fails else None)

    def close(self) -> None:
        self.closed += 1


def lines(out: Path) -> list[tuple[int, str, str]]:
    return [(r.cell["width"], r.method, r.status) for r in read(out / FILE)[0]]


def swept(bench: Fake, scope: FakeScope, out: Path, **options: Any) -> list[Record]:
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
        ({"modes": ("compiled",)}, "custom"),
        ({"rounds": 5}, "custom"),
    ],
)
def test_a_restricted_sweep_is_of_its_tier_and_another_is_custom(given: dict[str, Any], tier: str) -> None:
    scope = choose(FAKE, "quick", **given, data_dir=None)
    assert scope == replace(TIER, **given, tier=tier)


def test_none_keeps_the_tiers_own() -> None:
    assert choose(FAKE, "quick", widths=None, rounds=None, threads=None) == TIER


def test_a_network_has_tiers_of_its_own() -> None:
    assert choose(FAKE, arch="cnn") == CONVOLUTIONAL


@pytest.mark.parametrize(
    ("tier", "given", "words"),
    [
        ("full", {}, "'fake' has no tier 'full'; accepted: quick"),
        ("quick", {"widths": ()}, "widths is empty"),
        ("quick", {"arch": "rnn"}, "--arch 'rnn' is unknown to bench fake; accepted: fcn, cnn"),
        (
            "quick",
            {"modes": ("eager", "fast")},
            "--modes 'fast' is unknown to bench fake; accepted: eager, compiled",
        ),
        ("quick", {"unrolls": (3,)}, "bench fake has no --unroll; leave it out"),
        ("quick", {"unrolls": (3,), "arch": "cnn"}, "bench fake with --arch cnn has no --unroll"),
    ],
)
def test_what_cannot_be_chosen(tier: str, given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        choose(FAKE, tier, **given)
    assert words in str(caught.value)


def test_a_method_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match="method 'c' is unknown to bench fake; accepted: a, b"):
        Fake().settings(replace(TIER, methods=("a", "c")))


def test_every_combination_is_a_setting() -> None:
    scope = replace(TIER, batch_sizes=(16, 32), seeds=(0, 1))
    sizes = list(Fake().sizes(scope))
    assert len(set(sizes)) == len(sizes) == len(Fake().settings(scope)) == 16
    assert sizes[0] == Size(seed=0, width=8, layers=2, batch_size=16)
    assert [size.seed for size in sizes] == [0] * 8 + [1] * 8


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_declaration_leads_to_its_benchmark(name: str) -> None:
    declared = BENCHMARKS[name]
    scopes = [scope for tiers in (declared.tiers, *declared.networks.values()) for scope in tiers.values()]
    assert all(benchmark_of(declared, scope).declared is declared for scope in scopes)
    assert set(declared.tiers) <= {"smoke", "quick", "full"}
    named = {method for scope in scopes for method in scope.methods}
    if "methods" in declared.options:
        # Tiers of steps were declared before some methods, and keep the lines that they had.
        later = {"interlocked", "head_gradient", "late_correction"} if name == "step" else set[str]()
        assert named == set(declared.options["methods"].choices) - later


# Sweeping and resuming


def test_every_line_is_written_as_it_is_yielded(tmp_path: Path) -> None:
    seen = 0
    for record in sweep(Fake(), SOME, tmp_path):
        seen += 1
        written = (tmp_path / FILE).read_text(encoding="utf-8").splitlines()
        assert len(written) == seen
        assert {k: v for k, v in json.loads(written[-1]).items() if k != "sum"} == record.line()
    assert seen == 4


def test_resume_skips_settings_that_are_done(tmp_path: Path) -> None:
    swept(Fake(), replace(SOME, widths=(8,)), tmp_path)
    before = (tmp_path / FILE).read_bytes()
    bench, said = Fake(), []
    records = swept(bench, SOME, tmp_path, resume=True, say=said.append)
    assert bench.measured == [(16, "a"), (16, "b")]
    assert said == ["fake: width 8: done before, skipped", "fake: width 16 (2 of 2)"]
    assert [(r.cell["width"], r.method) for r in records] == [*((8, "a"), (8, "b"), (16, "a"), (16, "b"))]
    assert (tmp_path / FILE).read_bytes().startswith(before)


def test_without_resume_everything_is_measured(tmp_path: Path) -> None:
    swept(Fake(), SOME, tmp_path)
    bench = Fake()
    swept(bench, SOME, tmp_path)
    assert len(bench.measured) == 4
    assert len(lines(tmp_path)) == 8


def test_resume_measures_what_was_half_done_again_as_a_whole(tmp_path: Path) -> None:
    stopped = Fake()
    stopped.stops_at = (16, "b")
    with pytest.raises(KeyboardInterrupt):
        swept(stopped, SOME, tmp_path)
    assert len(lines(tmp_path)) == 3
    bench = Fake()
    swept(bench, SOME, tmp_path, resume=True)
    assert bench.measured == [(16, "a"), (16, "b")]


def test_resume_measures_a_setting_with_a_failed_line_again(tmp_path: Path) -> None:
    broken = Fake()
    broken.fails = {(8, "b")}
    swept(broken, SOME, tmp_path)
    bench = Fake()
    swept(bench, SOME, tmp_path, resume=True)
    assert bench.measured == [(8, "a"), (8, "b")]
    assert lines(tmp_path)[-1] == (8, "b", "ok")
    again = Fake()
    swept(again, SOME, tmp_path, resume=True)
    assert again.measured == []


@pytest.mark.parametrize("other", [{"rounds": 5}, {"device": "cuda"}, {"tier": "custom"}], ids=str)
def test_resume_does_not_take_other_settings_for_the_same(
    other: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "describe_environment", lambda device: {"device": device})
    swept(Fake(), SOME, tmp_path)
    bench = Fake()
    swept(bench, replace(SOME, **other), tmp_path, resume=True)
    assert len(bench.measured) == 4


def test_nothing_is_written_if_something_cannot_be_measured(tmp_path: Path) -> None:
    class Refusing(Fake):
        def check(self, scope: FakeScope) -> None:
            raise ConfigError("no")

    with pytest.raises(ConfigError):
        swept(Refusing(), SOME, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_benchmark_is_closed_at_the_end_of_a_sweep_and_when_it_is_stopped(tmp_path: Path) -> None:
    bench = Fake()
    swept(bench, SOME, tmp_path / "a")
    assert bench.closed == 1
    bench.stops_at = (16, "a")
    with pytest.raises(KeyboardInterrupt):
        swept(bench, SOME, tmp_path / "b")
    assert bench.closed == 2


# Lines


def test_a_line_before_and_after_it_is_measured() -> None:
    bench = Fake()
    bench.fails = {(8, "b")}
    setting = bench.settings(replace(SOME, seeds=(3,)))[0]
    line = setting.lines[0]
    assert set(line.line()) == {
        *("schema", "experiment", "tier", "method", "seed", "cell", "steps", "batch_size", "metrics"),
        *("time", "curve", "status", "error", "config", "env"),
    }
    assert (line.experiment, line.tier, line.seed) == ("bench/fake", "quick", 3)
    assert (line.batch_size, line.steps) == (32, 4)
    assert line.config == {"optimizer": "Adam, fused", "note": "a", "rounds": 4, "device": "cpu"}
    done, failed = setting.measure()
    assert (done.status, done.error, done.metrics) == ("ok", None, {"step_ms_median": 1.0})
    assert set(done.env) >= {"synthgrad", "commit", "dirty", "torch", "python", "device", "threads"}
    assert line.metrics == {}, "the blank line is kept as it was"
    assert (failed.status, failed.error) == ("failed", "broke")


def test_every_line_says_how_busy_the_machine_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Busy:
        def so_far(self) -> float:
            return 3.5

    monkeypatch.setattr(base, "Load", Busy)
    assert {r.env.other_load for r in swept(Fake(), SOME, tmp_path)} == {3.5}
    assert {r.env.other_load for r in read(tmp_path / FILE)[0]} == {3.5}
