"""Faults of runs on stages, in real processes: the cases that decide, and what is made of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from synthgrad.core import ConfigError
from synthgrad.lab.bench.base import choose
from synthgrad.lab.bench.declarations import FAULTS, FAULTS_BENCH
from synthgrad.lab.bench.survival.faults import MOMENTS, FaultsBench
from synthgrad.lab.records import Metrics, Record
from synthgrad.lab.report import bench_sheets, markdown

BENCH = FaultsBench()


def _record(stages: int, rank: int, moment: str, fault: str) -> Record:
    """Run one case."""
    scope = choose(FAULTS_BENCH, "quick", stages=(stages,), methods=(fault,))
    cell = {"stages": stages, "rank": rank, "moment": moment, "fault": fault}
    setting = next(s for s in BENCH.settings(scope) if s.lines[0].cell == cell)
    [record] = setting.measure()
    return record


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("stages", "rank", "moment", "fault", "within_s", "sentence"),
    [
        # The two that hold for days once, and the one that takes the store with it.
        (3, 1, "making groups", "killed", 2.0, "stage 1 (rank 1) has ended without a word"),
        (2, 0, "measuring links", "frozen", 5.0, "stage 0 (rank 0) has not answered within 3 s"),
        (3, 0, "mid-step", "frozen", 5.0, "stage 0 (rank 0) has not answered within 3 s"),
        (2, 1, "closing", "killed", 2.0, "stage 1 (rank 1) has ended without a word"),
    ],
)
def test_the_others_end_in_time_and_name_the_rank(
    stages: int, rank: int, moment: str, fault: str, within_s: float, sentence: str
) -> None:
    record = _record(stages, rank, moment, fault)
    assert record.status == "ok", record.error
    assert record.metrics["others_ended_s"] < within_s
    assert record.metrics["sentence"].startswith(sentence)
    assert record.metrics["sentence"].count(sentence) == len(record.metrics["sentence"].split(" │ "))


def test_every_rank_moment_and_fault_is_a_line() -> None:
    cells = [setting.lines[0].cell for setting in BENCH.settings(choose(FAULTS_BENCH, "quick"))]
    assert len(cells) == len({tuple(cell.items()) for cell in cells}) == len(MOMENTS) * len(FAULTS) * (2 + 3)
    assert len(BENCH.settings(choose(FAULTS_BENCH, "smoke"))) == len(MOMENTS) * 2


def test_a_fault_that_is_unknown_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="'hacked' is unknown to bench faults; accepted: killed, frozen, raises"
    ):
        BENCH.settings(choose(FAULTS_BENCH, methods=("hacked",)))


def test_a_line_of_the_table() -> None:
    line = BENCH.settings(choose(FAULTS_BENCH, "smoke"))[0].lines[0]
    record = replace(line, metrics=Metrics({"others_ended_s": 0.5, "sentence": "stage 0 is gone"}))
    text = markdown(bench_sheets([record])[0])
    assert "rank: 0; moment: handshake; fault: killed" in text
    assert "| 2 | 0.50 s | stage 0 is gone |" in text
