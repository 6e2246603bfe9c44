"""The sweep over lags: what is drawn, and that the page has it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from synthgrad.lab.report import has_lags, lag_picture, standalone, write_report
from tests.lab.report.helpers import failed, record


def _run(method: str, lag: int, error: float, seed: int = 0) -> dict[str, Any]:
    config = {"lr": 3e-4, "target_error_pct": 2.0, "rule": {"delay": lag} if lag else {}}
    return record(method, seed, experiment="lag", metrics={"test_error_pct": error}, config=config)


RUNS = [
    *(_run("backprop", 0, 2.0 + k, k) for k in (0, 1)),
    *(_run(m, lag, 2 + lag / 8 + k, k) for m in ("cdni", "delayed") for lag in (0, 4, 64) for k in (0, 1)),
]


def test_every_lag_stands_on_the_axis_and_every_method_in_the_legend() -> None:
    svg = standalone(lag_picture(RUNS))
    said = re.findall(r">([^<>]+)</text>", svg)
    assert {"0", "4", "64", "backprop", "cdni", "delayed", "lag of the messages (steps)"} <= set(said)
    assert "test error over lag: backprop, cdni, delayed" in svg


def test_only_runs_of_the_sweep_have_it() -> None:
    assert has_lags(RUNS)
    assert not has_lags([*RUNS, record("cdni")])


def test_a_method_that_failed_is_left_out_of_the_picture_and_stays_in_the_table(tmp_path: Path) -> None:
    runs = [*RUNS, failed("no reason", "dni", experiment="lag")]
    assert ">dni</text>" not in lag_picture(runs)
    write_report(tmp_path / "report.html", runs)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Test error over lag" in page
    assert "no reason" in page
    assert "delay 64" in page
