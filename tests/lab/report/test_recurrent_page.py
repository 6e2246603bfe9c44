"""The page of recurrent runs: one section for all lengths of unrolls, and names that do not clash."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from synthgrad.lab.names import METHODS, RECURRENT
from synthgrad.lab.report import page as pages
from synthgrad.lab.report import write_report
from tests.lab.report.helpers import record
from tests.lab.report.recurrent import bad, clocked_run, copy_run, text_run


def _page(tmp_path: Path, *records: dict[str, Any]) -> str:
    path = tmp_path / "report.html"
    write_report(path, records)
    page = path.read_text(encoding="utf-8")
    assert "could not be made" not in page
    return page


@pytest.fixture
def few_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "MOST_PLOTS", 2)  # drawing takes long and is tried by other tests


def test_a_sweep_is_one_section_with_two_tables(tmp_path: Path) -> None:
    page = _page(tmp_path, *(text_run(m, unroll=u) for m in ("bptt", "dni") for u in (5, 20)))
    assert re.findall(r'<section id="([^"]*)"', page) == ["unrolls-1"]
    assert page.count("<table>") == 2
    assert "<h3>Data and time</h3>" in page
    assert "foretells every next character" in page
    assert "<td>1.950 (1) [1.37†]</td>" in page
    assert "A step\nis one batch" not in page  # an unroll is one here
    titles = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert titles[0] == "validation bits per character, T together"
    assert titles[-1] == "bits per character"
    names = re.findall(r' id="([^"]*)"', page)
    assert len(names) == len(set(names))
    assert set(re.findall(r'(?:url\(|href=")#([^")]*)', page)) <= set(names)


def test_how_often_was_measured_is_no_difference(tmp_path: Path) -> None:
    runs = [text_run(unroll=u) for u in (5, 20)]
    assert runs[0]["config"]["eval_every"] != runs[1]["config"]["eval_every"]
    assert "differ in" not in _page(tmp_path, *runs)
    other = runs[1] | {"env": runs[1]["env"] | {"torch": "8.8.8"}}
    assert "runs of this table differ in torch" in _page(tmp_path, runs[0], other)


@pytest.mark.usefixtures("few_plots")
def test_times_of_different_threads_are_pointed_out(tmp_path: Path) -> None:
    other = copy_run(unroll=5, env={"device": "a processor", "threads": 9})
    assert "their times are not compared" in _page(tmp_path, copy_run(), other)


@pytest.mark.usefixtures("few_plots")
def test_failed_runs_are_marked_in_both_tables(tmp_path: Path) -> None:
    page = _page(tmp_path, copy_run(), copy_run(unroll=5), bad(copy_run("dni", unroll=5)))
    assert page.count('<tr class="bad">') == 2
    assert page.count("dni, T=5: diverged: the loss is not finite") == 1


@pytest.mark.usefixtures("few_plots")
@pytest.mark.parametrize(
    ("runs", "names"),
    [
        ([copy_run(), copy_run("dni")], {"bptt": RECURRENT["bptt"], "dni": RECURRENT["dni"]}),
        (
            [record(), record("dni"), copy_run(), copy_run("dni")],
            {
                "backprop": METHODS["backprop"],
                "bptt": RECURRENT["bptt"],
                "dni": METHODS["dni"],
                "dni, recurrent": RECURRENT["dni"],
            },
        ),
        ([clocked_run(), clocked_run("cdni")], {"bptt": RECURRENT["bptt"], "cdni": METHODS["cdni"]}),
    ],
    ids=["recurrent", "both kinds", "two networks"],
)
def test_methods_are_described_as_what_they_are(
    tmp_path: Path, runs: list[dict[str, Any]], names: dict[str, str]
) -> None:
    head = _page(tmp_path, *runs).split("</header>")[0]
    assert re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", head) == list(names.items())


@pytest.mark.usefixtures("few_plots")
def test_one_length_and_two_networks_are_ordinary_sections(tmp_path: Path) -> None:
    page = _page(tmp_path, copy_run(), copy_run("dni"), clocked_run())
    assert re.findall(r'<section id="([^"]*)"', page) == ["table-1", "table-2"]
    assert "sequences grow as they are solved" in page
    assert "A sees a digit at every step" in page


@pytest.mark.usefixtures("few_plots")
def test_unknown_experiments_have_words_too(tmp_path: Path) -> None:
    assert "A network with a state learns from sequences." in _page(tmp_path, copy_run(experiment="mine"))


def test_many_sweeps_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "MOST_TABLES", 2)
    monkeypatch.setattr(pages, "MOST_PLOTS", 1)
    monkeypatch.setattr(pages, "LEAST_PLOTS", 0)
    page = _page(tmp_path, *(copy_run(unroll=u, steps=s) for u in (3, 5) for s in range(5)))
    assert page.count('<section id="unrolls-') == 2
    assert "3 more tables have no room" in page
