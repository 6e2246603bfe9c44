"""Reports of records that nobody foresaw: damaged, of other versions, with anything anywhere, and many."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from synthgrad.lab.records import read
from synthgrad.lab.report import bench_sheets, gathered_sheets, markdown, training_sheets, write_report
from synthgrad.lab.report import page as pages
from tests.lab.report.helpers import branchy, chain, failed, memory_line, point, record, step_line
from tests.lab.report.language import gpt_run

RECORDS = [
    record(graph=chain(4), estimate={"ratio_to_backprop": 1.5}),
    record(
        "dni",
        config={"rule": {"hidden": [8], "lr_factor": 3.0}, "hold_out": 0},
        curve=[point(s, quality={"layer1": {"cosine": 0.5, "relative_error": 1.0}}) for s in (10, 20)],
        graph=branchy(),
    ),
    failed("no memory"),
    step_line(cell={"compiled": True}),
    memory_line(),
    record(
        "cdni", experiment="sparse", cell={"data": "mnist", "arch": "fcn", "layers": 4, "update_prob": 0.2}
    ),
    gpt_run("late_correction", rule={"delay": 4}, config={"accumulate": 2, "versions": 2}, cosine=0.5),
    gpt_run("late_correction", rule={"delay": 4, "weight": None, "share": 0.25}, cosine=0.5),
    gpt_run("late_correction", rule={"delay": 4, "weight": 0.5, "share": 0.25}, cosine=0.5),
    gpt_run(),
    record("gpipe", experiment="bench/other", cell={"stages": 2}, metrics={"examples_per_s": 1.0}),
]

_ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.just(10**400),
    st.floats(),
    st.sampled_from(["", "ok", "$x_{", "\ud800", "\x00\x1b[31m", "<b>&", "x" * 5000, "Ünï", "bench/step"]),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.none() | st.integers(), max_size=2),
    st.builds(lambda: [[[[]]]]),  # a new one each time, for it may be changed in turn
    st.builds(lambda: {"a": {"b": {"c": {}}}}),
)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return every container inside with each of its keys or positions."""
    found: list[tuple[Any, Any]] = []
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        found.append((value, key))
        if isinstance(inner, dict | list):
            found += _places(inner)
    return found


@st.composite
def _mutated(draw: st.DrawFn) -> dict[str, Any]:
    made = copy.deepcopy(draw(st.sampled_from(RECORDS)))
    for _ in range(draw(st.integers(1, 3))):
        places = _places(made)
        where, key = places[draw(st.integers(0, len(places) - 1))]
        if draw(st.booleans()):
            where[key] = draw(_ODD)
        elif isinstance(where, dict):
            del where[key]
            where[draw(st.text(max_size=4))] = draw(_ODD)
    return made


@pytest.fixture
def two_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "MOST_PLOTS", 2)  # drawing takes long and is tried by other tests


def any_records(max_examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    options = settings(
        deadline=None,
        max_examples=max_examples,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    return lambda test: options(given(st.lists(_mutated(), min_size=1, max_size=3))(test))


@pytest.mark.usefixtures("two_plots")
@any_records(15)
def test_any_record_makes_a_page(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    check_page(tmp_path, records)


@pytest.mark.slow(reason="draws the plots of many pages")
@pytest.mark.usefixtures("two_plots")
@any_records(60)
def test_any_of_many_records_makes_a_page(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    check_page(tmp_path, records)


def check_page(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    path = tmp_path / "report.html"
    write_report(path, [*records, RECORDS[0]])
    page = path.read_text(encoding="utf-8")
    assert page.rstrip().endswith("</html>")
    assert "<td>backprop</td>" in page
    assert "could not be made" not in page  # foreseen after all
    for sheet in [*training_sheets(records), *gathered_sheets(records), *bench_sheets(records)]:
        assert {len(row) for row in sheet.rows} == {len(sheet.headings)}
        assert len(sheet.bad) == len(sheet.rows)
        assert markdown(sheet).startswith("**")


@settings(deadline=None, max_examples=40)
@given(st.lists(_mutated(), max_size=4), st.binary(max_size=40))
def test_any_file_is_read(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]], junk: bytes
) -> None:
    path = tmp_path_factory.mktemp("any") / "results.jsonl"
    lines = [json.dumps(r).encode() for r in records] + [junk.replace(b"\n", b"").replace(b"\r", b"")]
    path.write_bytes(b"\n".join(lines) + b"\n" + json.dumps(RECORDS[1]).encode())
    found, problems = read(path)
    assert found[-1].line() == RECORDS[1]
    assert len(found) + len(problems) <= len(records) + 2
    for r in found:
        json.dumps(r.line(), ensure_ascii=False).encode()
        training_sheets([r])


# One part that cannot be drawn


def test_a_plot_that_fails_costs_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise ZeroDivisionError("by <nothing>")

    monkeypatch.setattr(pages, "table_groups", broken)
    monkeypatch.setattr(pages, "chain_of", broken)
    path = tmp_path / "report.html"
    write_report(path, [RECORDS[0], step_line()])
    page = path.read_text(encoding="utf-8")
    assert page.count("could not be made: ZeroDivisionError: by &lt;nothing&gt;</p>") == 2
    assert "<td>backprop</td>" in page
    assert "<td>dni, plain</td>" in page


# Many


def _write(tmp_path: Path, make: Callable[[int], dict[str, Any]], num: int) -> str:
    path = tmp_path / "report.html"
    write_report(path, [make(k) for k in range(num)])
    return path.read_text(encoding="utf-8")


def test_many_rows_are_cut(tmp_path: Path) -> None:
    page = _write(tmp_path, lambda k: step_line(cell={"layers": k + 2}), 1000)
    assert page.count("<tr>") == 1 + pages.MOST_ROWS
    assert "… and 800 more rows" in page


def test_many_tables_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "MOST_TABLES", 3)
    page = _write(tmp_path, lambda k: record(steps=k), 10)
    assert page.count('<section id="table-') == 3
    assert "7 more tables have no room" in page


def test_plots_are_shared_out_among_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "MOST_PLOTS", 6)
    page = _write(tmp_path, lambda k: record(steps=k), 2)
    titles = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert titles == ["test error", "training error", "test error"] * 2
    assert page.count("5 plots have no room") == 2


@pytest.mark.usefixtures("two_plots")
def test_many_failures_and_problems_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    rows = [failed(f"reason {k}", f"method{k}") for k in range(100)]
    write_report(path, rows, [f"problem {k}" for k in range(30)])
    page = path.read_text(encoding="utf-8")
    assert page.count('<p class="note">problem') == 10
    assert "… and 20 more" in page
    assert "… and 80 more" in page
