"""Tables of kills and of damaged inputs: counted by what became of them."""

from __future__ import annotations

from typing import Any

from tests.lab.report.helpers import bench


def _kill(engine: str, signal: str, lost_s: float | None, **changes: Any) -> dict[str, Any]:
    return {
        "experiment": "bench/kills",
        "method": "cdni",
        "cell": {"engine": engine, "loop": "stack", "signal": signal, "number": 0},
        "metrics": {} if lost_s is None else {"lost_s": lost_s, "resumed_steps": 3},
        "status": "ok",
        "error": None,
        **changes,
    }


def test_kills_are_counted_by_engine_and_loop() -> None:
    lines = [
        _kill("stages", "SIGKILL", 0.2),
        _kill("stages", "SIGTERM", 4.0),
        _kill("stages", "SIGKILL", 0.1, status="failed", error="weights_sha256 a, expected b"),
        _kill("plain", "SIGTERM", None, status="failed", error="the run did not end: hung"),
    ]
    sheet = bench("kills", lines)
    assert sheet.rows == (
        ("stages", "stack", "3", "2", "2", "0.2 s", "4.0 s"),
        ("plain", "stack", "1", "0", "0", "—", "—"),
    )
    assert sheet.bad == (True, True)
    assert sheet.failures == ("weights_sha256 a, expected b", "the run did not end: hung")


def test_damage_is_counted_by_input() -> None:
    counts = {"inputs": 1200, "refused": 1000, "warned": 150, "unchanged": 40, "silently_wrong": 10}
    line = {
        "experiment": "bench/damage",
        "method": "reader",
        "cell": {"input": "snapshots"},
        "metrics": {**counts, "as_given": 0, "traceback": 0, "hang": 0},
        "status": "failed",
        "error": "10 silently wrong",
    }
    sheet = bench("damage", [line])
    assert sheet.rows == (("snapshots", "1,200", "1,000", "150", "40", "0", "10", "0", "0"),)
    assert (sheet.bad, sheet.failures) == ((True,), ("10 silently wrong",))
