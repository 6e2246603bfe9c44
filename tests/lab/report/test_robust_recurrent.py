"""Recurrent records that nobody foresaw: damaged in any place, and many of them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from synthgrad.lab.report import gathered_sheets, markdown, training_sheets, write_report
from synthgrad.lab.report import page as pages
from synthgrad.lab.report.frame import checked, frame_of
from synthgrad.lab.report.plot import draw
from synthgrad.lab.report.plots import measure_plot, unroll_plot
from synthgrad.lab.report.tables import grids_of, single_tables
from synthgrad.lab.report.unrolls import unroll_sweeps
from tests.lab.report.recurrent import bad, clocked_run, copy_run, text_run

QUALITY = {"state": {"cosine": 0.5, "relative_error": 1.0}}
RECORDS = [
    copy_run("dni", unroll=3),
    copy_run("bptt", unroll=5),
    text_run("dni", unroll=5),
    text_run("bptt", unroll=20),
    bad(text_run("dni_aux", unroll=20)),
    clocked_run("dni"),
]
for run in RECORDS:
    for spot in run["curve"]:
        spot["quality"] = QUALITY

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.just(10**400),
    st.floats(),
    st.sampled_from([-1.0, 1e29, 5e-324, "", "bptt", "clocked", "\ud800", "<b>&", "x" * 500]),
    st.builds(lambda: [1, "a"]),
    st.builds(lambda: {"a": {"b": 1}}),
)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return every container inside with each of its keys or positions."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found: list[tuple[Any, Any]] = []
    for key, inner in items:
        found.append((value, key))
        if isinstance(inner, dict | list):
            found += _places(inner)
    return found


#: What recurrent runs are grouped, measured and drawn by.
LIKELY = (
    "unroll",
    "steps",
    "batch_size",
    "metrics",
    "curve",
    "method",
    "seed",
    "status",
    "rule",
    "cell",
    "arch",
)


@st.composite
def _mutated(draw: st.DrawFn) -> dict[str, Any]:
    made = copy.deepcopy(draw(st.sampled_from(RECORDS)))
    for _ in range(draw(st.integers(1, 3))):
        places = _places(made)
        if draw(st.booleans()):
            places = [(where, key) for where, key in places if key in LIKELY] or places
        if not places:
            break
        where, key = places[draw(st.integers(0, len(places) - 1))]
        where[key] = draw(ODD)
    return made


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "MOST_PLOTS", 1)  # drawing takes long: the next test does it
    monkeypatch.setattr(pages, "LEAST_PLOTS", 0)


@pytest.mark.usefixtures("no_plots")
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_mutated(), min_size=1, max_size=4))
def test_any_record_makes_a_page(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    path = tmp_path / "report.html"
    write_report(path, [*records, *RECORDS])
    page = path.read_text(encoding="utf-8")
    assert page.rstrip().endswith("</html>")
    assert "could not be made" not in page  # foreseen after all
    whole = [*records, *RECORDS]
    for sheet in [*training_sheets(whole), *gathered_sheets(whole), *grids_of(checked(records)[0])]:
        assert {len(row) for row in sheet.rows} == {len(sheet.headings)}
        assert len(sheet.bad) == len(sheet.rows)
        assert markdown(sheet).startswith("**")


@settings(deadline=None, max_examples=10)
@given(st.lists(_mutated(), min_size=1, max_size=2), st.sampled_from(["data", "seconds", "unroll"]))
def test_any_record_makes_a_plot(records: list[dict[str, Any]], over: str) -> None:
    frame = frame_of(checked([*records, RECORDS[0]])[0])
    for sweep in unroll_sweeps(frame, least=1)[:2]:
        plot = unroll_plot(sweep, over)
        assert plot is None or draw(plot).startswith("<svg")
    for table in single_tables(frame)[:1]:
        plot = measure_plot(table, over=over)
        assert plot is None or draw(plot).startswith("<svg")


@pytest.mark.slow(reason="makes pages of hundreds of runs")
@pytest.mark.usefixtures("no_plots")
def test_many_lengths_and_rows_are_cut(tmp_path: Path) -> None:
    runs = [
        copy_run("dni", unroll=u, config={"rule": {"alpha": a / 10}})
        for u in range(1, 61)
        for a in range(2, 22)
    ]
    path = tmp_path / "report.html"
    write_report(path, runs)
    page = path.read_text(encoding="utf-8")
    assert page.count("<tr") < 500
    assert "could not be made" not in page
    assert "plots have no room" in page
