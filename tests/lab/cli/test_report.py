"""``report``: tables and a page from folders with any content."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.lab.cli.helpers import call, records_in

pytestmark = pytest.mark.usefixtures("offline")


def test_report_of_a_folder(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.jsonl").write_bytes((done / "results.jsonl").read_bytes())
    assert call("report", tmp_path) == 0
    shown = capsys.readouterr()
    assert "cdni" in shown.out
    assert str(tmp_path / "report.html") in shown.out
    assert "cdni (means of classes, rate 1)</td>" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_report_of_several_folders(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (1, 2):
        (tmp_path / str(seed)).mkdir()
        lines = [json.dumps(r | {"seed": seed}) for r in records_in(done)]
        (tmp_path / str(seed) / "results.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert (
        call("report", done, tmp_path / "1", tmp_path / "2" / "results.jsonl", "--out", tmp_path / "all.html")
        == 0
    )
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert [(cells[1].strip(), cells[-2].strip()) for cells in rows] == [
        ("backprop", "3"),
        ("cdni (means of classes, rate 1)", "3"),
    ]
    assert (tmp_path / "all.html").exists()


def test_report_says_what_it_left_out(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.jsonl").write_bytes((done / "results.jsonl").read_bytes() + b'{"schema": 2}\n{"sch')
    assert call("report", tmp_path) == 0
    assert capsys.readouterr().err.count(", left out\n") == 2
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count("left out</p>") == 2


def test_report_of_an_empty_file_says_so_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.jsonl").write_text("")
    assert call("report", tmp_path) == 0
    assert capsys.readouterr().err == f"{tmp_path / 'results.jsonl'}: has no records\n"
    assert "has no records" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "metrics"),
    [
        ("memory", {"saved_bytes_peak": 4096, "ratio_to_backprop": 0.5}),
        ("pipeline", {"step_ms_median": 1.5, "examples_per_s": 100.0}),
        ("layer-parallel", {"step_ms_median": 1.5, "ratio_to_best_backprop": 0.5, "roofline_ms": 0.1}),
    ],
)
def test_report_takes_every_benchmark_of_the_contract(
    name: str, metrics: dict[str, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {
        "schema": 1,
        "experiment": f"bench/{name}",
        "method": "backprop",
        "status": "ok",
        "metrics": metrics,
    }
    (tmp_path / "results.jsonl").write_text(
        json.dumps(record | {"cell": {"width": 16}}) + "\n", encoding="utf-8"
    )
    assert call("report", tmp_path) == 0
    assert f"bench/{name}" in capsys.readouterr().out
