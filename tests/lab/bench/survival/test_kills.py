"""``bench kills``: seeded kills, what they lost, and whether a run ended as it would have."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from synthgrad.core import ConfigError
from synthgrad.lab.bench.base import choose
from synthgrad.lab.bench.declarations import KILLS
from synthgrad.lab.bench.survival import kills as bench_kills
from synthgrad.lab.bench.survival.killed_runs import Kill, Outcome, difference
from synthgrad.lab.bench.survival.kills import KillsBench
from synthgrad.lab.records import identity
from tests.lab.cli.helpers import call, records_in

RECORD = {
    "status": "ok",
    "error": None,
    "metrics": {"test_loss": 0.5, "time_to_target_s": 1.0},
    "curve": [{"step": 1, "train_loss": 0.25, "elapsed_s": 2.0}],
    "weights_sha256": "ab",
}


def settings(tier: str, **given: Any) -> list[Any]:
    return KillsBench().settings(choose(KILLS, tier, **given))


@pytest.mark.parametrize(("tier", "total", "slow"), [("smoke", 10, 1), ("quick", 200, 40)])
def test_every_engine_and_loop_is_killed(tier: str, total: int, slow: int) -> None:
    lines = [line for setting in settings(tier) for line in setting.lines]
    assert len({identity(line) for line in lines}) == len(lines) == total
    assert sum(line.cell["engine"] == "stages" for line in lines) == slow
    assert {line.cell["engine"] for line in lines} == {
        *("plain", "in-process", "layer-parallel", "stages", "recurrent", "clocked")
    }
    assert {line.cell["signal"] for line in lines} == {"SIGKILL", "SIGTERM"}
    assert [line.config for s in settings(tier) for line in s.lines] == [line.config for line in lines]
    other = [line.config["share"] for s in settings(tier, seeds=(1,)) for line in s.lines]
    assert other != [line.config["share"] for line in lines]


def test_a_method_that_is_not_killed_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="'stale' is unknown to bench kills; accepted: backprop, cdni, delayed, dni"
    ):
        settings("smoke", methods=("stale",))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights_sha256": "ac"}, "weights_sha256 ac, expected ab"),
        ({"metrics": {"test_loss": 0.5000001, "time_to_target_s": 1.0}}, "metrics"),
        ({"curve": [{"step": 1, "train_loss": 0.26, "elapsed_s": 2.0}]}, "curve"),
        ({"status": "failed"}, "status failed, expected ok"),
    ],
)
def test_any_difference_but_of_times_is_told(change: dict[str, Any], words: str) -> None:
    assert words in str(difference(RECORD | change, RECORD))
    later = {"metrics": {"test_loss": 0.5, "time_to_target_s": 9.0}, "curve": [{**RECORD["curve"][0], "elapsed_s": 7.0}]}  # type: ignore[dict-item]  # fmt: skip
    assert difference(RECORD | later, RECORD) is None


def test_a_run_that_ends_differently_fails_each_of_its_kills(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[float]] = []

    def pretend(config: Any, out: Path, every_s: float, stages: int, plan: Any) -> Outcome:
        asked.append([after for _, after in plan])
        if len(asked) == 1:
            return Outcome([], RECORD, 1.0)  # it ended before it could be killed
        kills = [Kill(name, after, 3, 0.5) for name, after in plan[:2]]
        return Outcome(kills, RECORD | {"weights_sha256": "no" if len(asked) == 2 else "ab"}, 1.0)

    monkeypatch.setattr(bench_kills, "get_ready", lambda: None)
    monkeypatch.setattr(bench_kills, "uninterrupted", lambda *args: Outcome([], RECORD, 10.0))
    monkeypatch.setattr(bench_kills, "kill_until_it_ends", pretend)
    setting = settings("smoke", rounds=4, methods=("backprop",))[0]
    records = list(setting.measure())
    assert [(r.cell["number"], r.status) for r in records] == [
        *((0, "failed"), (1, "failed"), (2, "ok"), (3, "ok"))
    ]
    assert records[0].error == "weights_sha256 no, expected ab"
    assert records[2].metrics == {"after_s": round(asked[2][0], 3), "resumed_steps": 3, "lost_s": 0.5}
    assert asked[1][0] == pytest.approx(0.9 * asked[0][0])  # drawn again, a little earlier
    assert asked[0][0] == pytest.approx(10 * setting.lines[0].config["share"], abs=1e-3)


@pytest.mark.slow(reason="kills real processes")
@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_real_kills_are_survived(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--methods", "backprop", "--rounds", "4", "--device", "cpu", "--quiet"]
    assert call("bench", "kills", *asked, "--out", tmp_path) == 0
    records = records_in(tmp_path)
    assert [r["status"] for r in records] == ["ok"] * 4
    assert all(0 <= r["metrics"]["lost_s"] <= r["metrics"]["after_s"] + 1 for r in records)
    assert "bench/kills" in capsys.readouterr().out
