"""The sweep over update probabilities: which runs are compared at what, and what is drawn."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from synthgrad.lab.report import training_sheets, write_report
from synthgrad.lab.report.grids import EQUAL_STEPS, EQUAL_UPDATES, OTHER, Sweep, sparse_sheet
from synthgrad.lab.report.grids import sparse_sweeps as sweeps_of
from synthgrad.lab.report.plot import draw, standalone
from synthgrad.lab.report.plots import sparse_group
from tests.lab.report.helpers import frame, record


def sparse_sweeps(records: list[dict[str, Any]]) -> list[Sweep]:
    return sweeps_of(frame(records))


def _run(
    method: str, prob: float, steps: int, error: float = 2.0, seed: int = 0, **changes: Any
) -> dict[str, Any]:
    cell = {"data": "mnist", "arch": "fcn", "layers": 4, "width": 256, "update_prob": prob}
    metrics = {"test_error_pct": error}
    return record(
        method, seed, **{"experiment": "sparse", "steps": steps, "cell": cell, "metrics": metrics, **changes}
    )


SETTINGS = [(1.0, 400), (0.5, 800), (0.1, 4000), (0.5, 400), (0.1, 400)]
RUNS = [
    _run(m, p, s, 2 + 1000 * (1 - p) / s, k)
    for k in (0, 1)
    for m in ("backprop", "cdni")
    for p, s in SETTINGS
]


def test_all_lengths_are_one_sweep_and_no_other_table() -> None:
    (sweep,) = sparse_sweeps(RUNS)
    assert len(sweep.records) == len(RUNS)
    assert sweep.methods == ("backprop", "cdni")
    assert training_sheets(RUNS) == []


@pytest.mark.parametrize(
    ("prob", "steps", "kinds"),
    [
        (1.0, 400, [EQUAL_UPDATES, EQUAL_STEPS]),
        (0.5, 800, [EQUAL_UPDATES]),
        (0.3, 1333, [EQUAL_UPDATES]),  # 1/p steps can be rounded only
        (0.5, 400, [EQUAL_STEPS]),
        (0.5, 600, [OTHER]),
    ],
)
def test_what_is_compared_at_what(prob: float, steps: int, kinds: list[str]) -> None:
    (sweep,) = sparse_sweeps([_run("cdni", 1.0, 400), _run("cdni", prob, steps)])
    assert list(sweep.runs["kinds"].iloc[-1]) == kinds


def test_rows_are_probabilities_and_columns_methods() -> None:
    runs = [_run("backprop", 1.0, 400, e, k) for k, e in enumerate((1.0, 2.0))] + [
        _run("cdni", 0.5, 800, 3.0)
    ]
    bad = _run("backprop", 0.5, 400) | {"status": "failed", "error": "no memory", "metrics": {}}
    (sweep,) = sparse_sweeps([*runs, bad])
    sheet = sparse_sheet(sweep)
    assert sheet.headings == ("p", "compared at", "backprop", "cdni", "steps", "updates of a module")
    assert sheet.rows == (
        ("1", "every update", "1.50 ± 0.50 (2)", "—", "400", "about 400"),
        ("0.5", "equal updates", "—", "3.00 (1)", "800", "about 400"),
        ("0.5", "equal steps", "1 failed", "—", "400", "about 200"),
    )
    assert sheet.bad == (False, False, True)
    assert sheet.failures == ("backprop, p=0.5, 400 steps: failed: no memory",)


def test_last_record_of_a_run_counts_and_settings_are_apart() -> None:
    (sweep,) = sparse_sweeps([_run("cdni", 1.0, 400, 9.0), _run("cdni", 1.0, 400, 1.0)])
    assert sparse_sheet(sweep).rows[0][2] == "1.00 (1)"
    assert len(sparse_sweeps([_run("cdni", 1.0, 400), _run("cdni", 1.0, 400, tier="full")])) == 2


def test_many_probabilities_are_gathered_in_tenths() -> None:
    runs = [_run("cdni", k / 100, 5000, float(k)) for k in range(1, 101)]
    (sweep,) = sparse_sweeps(runs)
    rows = sparse_sheet(sweep).rows
    assert [row[0] for row in rows][:2] == ["0.9–1.0", "0.8–0.9"]
    assert len(rows) == 10
    assert rows[-1][0] == "0–0.1"
    assert rows[-1][2] == "5.00 ± 4.00 (9)"


def test_the_plot_has_a_line_for_each_method_and_kind() -> None:
    (sweep,) = sparse_sweeps(RUNS)
    svg = draw(sparse_group(sweep).plots[0])
    labels = re.findall(r">([^<>]+)</text>", svg)
    assert {"backprop", "cdni", "equal updates", "equal steps", "probability of an update, p"} <= set(labels)
    assert "test error (%)" in labels
    assert svg.count("stroke-dasharray") >= 2


def test_the_file_of_the_plot_stands_alone() -> None:
    (sweep,) = sparse_sweeps(RUNS)
    text = standalone(draw(sparse_group(sweep).plots[0]))
    assert "var(" not in text
    assert "currentColor" not in text
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert {"width", "height", "viewBox"} <= set(root.attrib)
    assert text == standalone(draw(sparse_group(sweep).plots[0]))


def test_the_page_has_its_section(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, RUNS)
    page = path.read_text(encoding="utf-8")
    assert re.findall(r'<section id="([^"]*)"', page) == ["sparse-1"]
    assert page.count("<figure>") == 1
    assert "could not be made" not in page


def test_nothing_that_ended_well_makes_an_empty_plot(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, [r | {"status": "diverged", "metrics": {}} for r in RUNS])
    assert "could not be made" not in path.read_text(encoding="utf-8")
