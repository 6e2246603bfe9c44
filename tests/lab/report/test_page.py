"""The report page: one file that needs nothing else, and shows texts as texts."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from synthgrad.lab.names import METHODS
from synthgrad.lab.report import write_report
from tests.lab.report.helpers import (
    branchy,
    chain,
    failed,
    memory_line,
    point,
    record,
    step_line,
    uncut,
)


def _page(tmp_path: Path, *records: dict[str, Any], problems: tuple[str, ...] = ()) -> str:
    path = tmp_path / "report.html"
    write_report(path, records, problems)
    return path.read_text(encoding="utf-8")


class _Tags(HTMLParser):
    """Collects the elements, and complains about those that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _parse(page: str) -> _Tags:
    tags = _Tags()
    tags.feed(page)
    tags.close()
    assert tags.open == []
    return tags


def test_page_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    page = _page(tmp_path, record(), record("dni"), failed("x"))
    names = {tag for tag, _ in _parse(page).found}
    assert names.isdisjoint({"link", "script", "img", "iframe", "object", "embed", "base", "image"})
    assert "src=" not in page
    assert "@import" not in page
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))


def test_page_refers_only_to_itself(tmp_path: Path) -> None:
    page = _page(tmp_path, record())
    targets = [v for _, attrs in _parse(page).found for k, v in attrs.items() if k.endswith("href")]
    assert targets  # the markers of the plots
    assert all(target is not None and target.startswith("#") for target in targets)


def test_names_inside_the_page_are_there_once(tmp_path: Path) -> None:
    curve = [point(s, quality={"layer1": {"cosine": 0.5, "relative_error": 0.9}}) for s in (10, 20)]
    runs = [record(), record("dni", curve=curve)]
    page = _page(tmp_path, *runs, *(r | {"steps": 99} for r in runs))
    names = re.findall(r' id="([^"]*)"', page)
    assert len(names) == len(set(names))
    assert set(re.findall(r'(?:url\(|href=")#([^")]*)', page)) <= set(names)


def test_page_is_written_whole(tmp_path: Path) -> None:
    page = _page(tmp_path, record())
    assert page.startswith("<!doctype html>")
    assert page.rstrip().endswith("</html>")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_page_replaces_an_older_one(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("older" * 100_000)
    assert "older" not in _page(tmp_path, record())


def test_page_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_report(tmp_path / "report.html", [record()])
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_page_without_records_says_so(tmp_path: Path) -> None:
    assert "No finished runs to show." in _page(tmp_path)


def test_head_says_what_is_compared(tmp_path: Path) -> None:
    head = _page(tmp_path, record(), record("cdni")).split("</header>")[0]
    assert "waits for the" in head
    assert "decoupled" in head
    about = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", head))
    assert about == {name: METHODS[name] for name in ("backprop", "cdni")}


def test_several_sections_have_contents(tmp_path: Path) -> None:
    page = _page(tmp_path, record(), record(steps=60), step_line())
    links = re.findall(r'<li><a href="#([^"]*)">([^<]*)</a>', page)
    assert [anchor for anchor, _ in links] == re.findall(r'<section id="([^"]*)"', page)
    assert [title for _, title in links][
        0
    ] == "budgets · compare · quick · mnist · fcn 4 layers × 256 · batches of 32"
    assert [title for _, title in links][2:] == [
        "compare · quick · mnist · fcn 4 layers × 256 · 60 steps of 32",
        "bench/step",
    ]
    assert "<nav" not in _page(tmp_path, record())


def test_machine_is_named_in_sight(tmp_path: Path) -> None:
    page = _page(tmp_path, record())
    assert '<p class="machine">a processor · 2 threads · torch 9.9.9 · commit abc123</p>' in page


def test_runs_of_different_machines_are_pointed_out(tmp_path: Path) -> None:
    env = {"torch": "9.9.9", "device": "a processor", "threads": 1}
    page = _page(tmp_path, record(), record("dni", env=env))
    assert "their times are not compared" in page
    assert "runs of this table differ in threads: 2 (backprop); 1 (dni)." in page


def test_methods_with_one_graph_share_a_picture(tmp_path: Path) -> None:
    runs = [
        record(graph=uncut("a", "b")),
        record("dni", graph=chain(3)),
        record("dni", 1, graph=chain(3)),
        record("cdni", graph=chain(3)),
    ]
    page = _page(tmp_path, *runs)
    assert page.count('<svg class="graph"') == 2
    assert "<figcaption>dni, cdni</figcaption>" in page
    _parse(page)


def test_each_benchmark_has_a_section(tmp_path: Path) -> None:
    page = _page(tmp_path, step_line(), memory_line())
    assert re.findall(r"<h2>(bench/.*?)</h2>", page) == ["bench/step", "bench/memory"]
    assert "hand-written loop of backpropagation" in page
    assert "held for the backward pass" in page


def test_nothing_that_is_foreseen_fails(tmp_path: Path) -> None:
    graphs = {"backprop": uncut("a"), "dni": chain(3), "cdni": branchy()}
    records = [record(m, graph=g) for m, g in graphs.items()] + [step_line(), memory_line()]
    assert "could not be made" not in _page(tmp_path, *records)


@pytest.mark.slow(reason="draws every kind of plot")
def test_what_gathers_other_tables_is_well_formed(tmp_path: Path) -> None:
    cell = record()["cell"]
    runs = [record(m, steps=s, cell=cell | {"layers": n}) for m in METHODS for s in (30, 60) for n in (3, 4)]
    sweep = [
        record("cdni", experiment="sparse", steps=s, cell=cell | {"update_prob": p})
        for p, s in ((1.0, 30), (0.5, 60), (0.5, 30))
    ]
    page = _page(tmp_path, *runs, *sweep)
    _parse(page)
    names = re.findall(r' id="([^"]*)"', page)
    assert len(names) == len(set(names))
    sections = re.findall(r'<section id="([^"]*)"', page)
    assert sections[:4] == ["grid-1", "budgets-1", "budgets-2", "sparse-1"]
    assert "could not be made" not in page


def test_table_has_every_method_and_number(tmp_path: Path) -> None:
    page = _page(tmp_path, record(), record("cdni", time={"step_ms_median": 15.0}))
    assert "compare · quick · mnist · fcn 4 layers × 256 · 30 steps of 32" in page
    assert "All rows: test error: 2.50 %; cause of speed-up" not in page
    assert "test error: 2.50 %" in page
    for cell in ("backprop", "cdni", "1.9 %", "15.00 ms", "1.50 ×"):
        assert f"<td>{cell}</td>" in page


def test_settings_and_machine_are_named(tmp_path: Path) -> None:
    page = _page(tmp_path, record(), record(seed=3))
    for name, value in (
        ("lr", "0.00125"),
        ("torch", "9.9.9"),
        ("device", "a processor"),
        ("seeds", "0, 3"),
    ):
        assert f"<dt>{name}</dt><dd>{value}</dd>" in page


def test_failed_row_is_marked_and_explained(tmp_path: Path) -> None:
    page = _page(tmp_path, record(), failed("no memory left"))
    assert page.count('<tr class="bad">') == 1
    assert '<p class="note">dni: failed: no memory left</p>' in page


def test_only_failures_make_a_page(tmp_path: Path) -> None:
    page = _page(tmp_path, failed("no memory left"))
    assert "no memory left" in page
    assert "<svg" not in page


@pytest.mark.parametrize("place", ["error", "method", "problem", "data", "env"])
def test_texts_are_escaped(place: str, tmp_path: Path) -> None:
    evil = "<script>alert('1')</script> & more"
    records = {
        "error": failed(evil),
        "method": record(evil),
        "data": record(cell={"data": evil}),
        "env": record(env={evil: evil}),
    }
    page = _page(tmp_path, records.get(place, record()), problems=(evil,) if place == "problem" else ())
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    _parse(page)


# Plots


def test_plots_have_labelled_axes(tmp_path: Path) -> None:
    page = _page(tmp_path, record(), record("dni"))
    figures = re.findall(r"<figure>.*?</figure>", page, re.DOTALL)
    heights = ["test error (%)", "training error (%)", "test loss (nats)", "training loss (nats)"]
    labels = [(width, height) for width in ("step", "training time (s)") for height in heights]
    for figure, pair in zip(figures, labels, strict=True):
        assert figure.count("<svg") == figure.count("</svg>") == 1
        assert all(f">{label}</text>" in figure for label in (*pair, "backprop", "dni"))


def test_plots_grow_with_the_page(tmp_path: Path) -> None:
    for tag in re.findall(r"<svg[^>]*>", _page(tmp_path, record())):
        assert "viewBox=" in tag
        assert " width=" not in tag
        assert " height=" not in tag


def test_validation_plots_say_so(tmp_path: Path) -> None:
    curve = [{"step": 10, "elapsed_s": 1.0, "train_loss": 1.0, "val_loss": 1.0, "val_error_pct": 9.0}]
    page = _page(tmp_path, record(curve=curve, metrics={"val_error_pct": 9.0}, config={"hold_out": 500}))
    assert ">validation error (%)</text>" in page
    assert "test error" not in page


def test_quality_of_interfaces_is_plotted(tmp_path: Path) -> None:
    quality = {name: {"cosine": 0.5, "relative_error": 0.9} for name in ("layer1", "layer2")}
    page = _page(tmp_path, record("dni", curve=[point(s, quality=quality) for s in (10, 20)]), record())
    titles = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert [t for t in titles if ":" in t] == ["dni: cosine", "dni: relative error"]
    for label in ("cosine with the true message", "relative error", "after layer1", "after layer2"):
        assert f">{label}</text>" in page


@pytest.mark.parametrize(
    "curve",
    [
        [point(10)],
        [point(10, test_error_pct=0.0), point(20, test_error_pct=0.0)],
        [point(10), point(20, test_loss=None, test_error_pct=None, train_loss=None)],
        [point(10, test_loss=None, test_error_pct=None, train_loss=None)],
        [point(10, test_loss=float("nan"), train_loss=float("inf"), test_error_pct=90.0)],
        [point(10, quality={"layer1": {"cosine": None}}), point(20, quality={"layer1": {"cosine": 0.5}})],
        [{"step": 10}],
    ],
    ids=[
        "one point",
        "no error left",
        "a diverged end",
        "diverged at once",
        "not yet null",
        "quality",
        "bare",
    ],
)
def test_odd_curves_are_drawn(curve: list[dict[str, Any]], tmp_path: Path) -> None:
    page = _page(tmp_path, record(curve=curve))
    _parse(page)
    assert "<td>2.50 %</td>" in page


def test_same_records_same_page(tmp_path: Path) -> None:
    assert _page(tmp_path, record(), record("dni")) == _page(tmp_path, record(), record("dni"))


# Tables that fit


def _tables(page: str) -> list[tuple[list[str], list[list[str]]]]:
    found = re.findall(r"<thead><tr>(.*?)</tr></thead>\s*<tbody>(.*?)</tbody>", page, re.DOTALL)
    return [
        (
            re.findall(r"<th[^>]*>(.*?)</th>", head),
            [re.findall(r"<td[^>]*>(.*?)</td>", r) for r in body.split("</tr>")],
        )
        for head, body in found
    ]


def test_no_table_has_more_than_seven_columns_and_the_rest_is_folded(tmp_path: Path) -> None:
    metrics = {f"thing_{k}": float(k) for k in range(1, 12)}
    lines = [record(m, experiment="bench/other", cell={"width": 8}, metrics=metrics | {"thing_1": w}) for m, w in
             (("a", 1.5), ("b", 2.5))]  # fmt: skip
    lines.append(
        record(
            "c", experiment="bench/other", cell={"width": 9}, metrics={k: 2 * v for k, v in metrics.items()}
        )
    )
    page = _page(tmp_path, *lines)
    assert [len(head) for head, _ in _tables(page)] == [7, 7, 3]
    assert page.count("<details><summary>Further measures: thing 6, thing 7") == 1


def test_damaged_records_are_named_and_left_out(tmp_path: Path) -> None:
    page = _page(tmp_path, record(), record("dni", cell=[]), problems=("elsewhere",))
    assert '<p class="note">elsewhere</p>' in page
    assert "record 2: has no proper &#39;cell&#39;, left out" in page
    assert "<td>dni</td>" not in page
