"""The page of a plan: where bars and messages stand, what is left out of a large one, and that a browser takes it as it is."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from synthgrad.lab.report.plan_page import Bar, Flight, PlanPage, Timeline, timeline_svg, write_plan_page
from tests.lab.report.test_browser import BROWSER, QUIET

#: Two stages over 10 s: the area is 64 to 990 wide, so that a second is 92.6.
LINE = Timeline(
    "stages (window 3)",
    "10 s a step, 5 % idle.",
    ("stage 0", "stage 1"),
    5.0,
    15.0,
    (Bar(0, "forward", 7, 5.0, 10.0), Bar(1, "backward", 6, 10.0, 12.5), Bar(0, "update", None, 14.0, 20.0)),
    (Flight(0, 1, 10.0, 11.0), Flight(1, 0, 12.5, 13.0)),
)
PAGE = PlanPage(
    "Plan: a <b>net</b> on 2 machines",
    ["Two machines.", "Decoupling pays: it does.", "x < y & z"],
    ["schedule", "setting", "step"],
    [["stages", "window 3", "10 s"], ["gpipe", "4 microbatches", "<20> s"]],
    [LINE, replace(LINE, title="gpipe")],
    [0.1, 1.0, 10.0, 100.0],
    {"stages": [9.0, 9.0, 9.0, 9.0], "pipelines": [8.0, 7.0, 3.0, 0.2]},
    10.0,
    [("rule", "cdni"), ("window", "—")],
)


def elements(svg: str, tag: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(svg).iter(tag))


def shapes(svg: str, tag: str, kind: str) -> list[dict[str, str]]:
    return [e.attrib for e in elements(svg, tag) if e.attrib.get("class") == kind]


def test_bars_stand_where_their_times_are() -> None:
    svg = timeline_svg(LINE)
    (forward,) = shapes(svg, "rect", "k0")
    # The lowest row is the first stage; it begins at the left edge and takes half of the width.
    assert (float(forward["x"]), float(forward["width"])) == (64.0, 463.0)
    (backward,) = shapes(svg, "rect", "k1")
    assert (float(backward["x"]), float(backward["width"])) == (527.0, 231.5)
    assert float(backward["y"]) < float(forward["y"])
    rows = {float(r["y"]) for r in shapes(svg, "rect", "idle")}
    assert rows == {float(backward["y"]), float(forward["y"])}


def test_bars_have_the_number_of_their_batch_where_there_is_room() -> None:
    texts = [e.text for e in elements(timeline_svg(LINE), "text") if "in" in e.attrib["class"].split()]
    assert texts == ["7", "6"]
    narrow = replace(LINE, bars=(Bar(0, "forward", 7, 5.0, 5.05),))
    assert not [e for e in elements(timeline_svg(narrow), "text") if "in" in e.attrib["class"].split()]


def test_bars_say_what_they_are() -> None:
    told = [e.text for e in elements(timeline_svg(LINE), "title")]
    assert told[1:] == ["forward 7: 5,000 ms", "backward 6: 2,500 ms", "update: 6,000 ms"]
    unknown = replace(LINE, bars=(Bar(0, "dance", 1, 5.0, 6.0),))
    assert shapes(timeline_svg(unknown), "rect", "k6")


def test_what_lies_outside_is_not_drawn() -> None:
    late = replace(LINE, bars=(Bar(0, "forward", 1, 0.0, 5.0), Bar(0, "forward", 2, 15.0, 16.0)))
    assert not shapes(timeline_svg(late), "rect", "k0")


def test_messages_go_from_edge_to_edge() -> None:
    svg = timeline_svg(LINE)
    (up,), (down,) = shapes(svg, "line", "flight up"), shapes(svg, "line", "flight down")
    assert (float(up["x1"]), float(up["x2"])) == (527.0, 619.6)
    # Upwards from the upper edge of the lower row to the lower edge of the upper one.
    assert float(up["y1"]) > float(up["y2"])
    assert (up["y1"], up["y2"]) == (down["y2"], down["y1"])


def test_too_many_messages_are_not_drawn() -> None:
    many = replace(LINE, flights=LINE.flights * 200)
    assert "flight" not in timeline_svg(many)


def test_only_the_first_of_many_stages_are_shown() -> None:
    names = tuple(f"stage {k}" for k in range(256))
    many = replace(LINE, rows=names, bars=tuple(Bar(k, "forward", k, 5.0, 6.0) for k in range(256)))
    assert (
        len(shapes(timeline_svg(many), "rect", "k0")) == len(shapes(timeline_svg(many), "rect", "idle")) == 32
    )


@pytest.mark.parametrize(
    ("length_s", "ticks"),
    [
        (10.0, ["0", "2", "4", "6", "8", "10 s"]),
        (0.087, ["0", "10", "20", "30", "40", "50", "60", "70", "80 ms"]),
        (0.0005, ["0", "100", "200", "300", "400", "500 µs"]),
    ],
)
def test_the_axis_has_round_numbers_with_a_unit(length_s: float, ticks: list[str]) -> None:
    svg = timeline_svg(replace(LINE, start_s=1.0, end_s=1.0 + length_s))
    words = [e.text for e in elements(svg, "text") if "in" not in e.attrib["class"].split()]
    assert words == ["stage 0", "stage 1", *ticks]


class _Tags(HTMLParser):
    """Counts what is opened and checks that it is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def written(page: PlanPage, folder: Path) -> tuple[str, _Tags]:
    write_plan_page(folder / "plan.html", page)
    text = (folder / "plan.html").read_text(encoding="utf-8")
    tags = _Tags()
    tags.feed(re.sub(r"<(path|rect|line|use|stop)\b([^>]*)/>", r"<\1\2></\1>", text))
    assert tags.open == []
    return text, tags


def test_the_page_is_whole_and_needs_nothing_else(tmp_path: Path) -> None:
    text, tags = written(PAGE, tmp_path)
    assert text.startswith("<!doctype html>")
    assert "<script" not in text
    assert not re.search(r'(?:src|href)="(?!#)', text)
    assert "prefers-color-scheme: dark" in text
    assert tags.seen.count("svg") == 3
    assert tags.seen.count("tr") == 3
    assert [p.name for p in tmp_path.iterdir()] == ["plan.html"]


def test_the_page_shows_texts_as_texts(tmp_path: Path) -> None:
    text, tags = written(PAGE, tmp_path)
    assert "<b>" not in text
    for words in (
        "Plan: a <b>net</b> on 2 machines",
        "x < y & z",
        "<20> s",
        "10 s a step, 5 % idle.",
        "cdni",
    ):
        assert words in tags.text, words
    assert '<p class="verdict">Decoupling pays: it does.</p>' in text


def test_the_legend_has_what_the_timelines_show(tmp_path: Path) -> None:
    text, _ = written(PAGE, tmp_path)
    legend = text[text.index('<ul class="legend">') : text.index("</ul>")]
    assert re.findall(r"</i>([^<]+)", legend) == [
        "forward", "backward", "update", "idle", "activation on its way", "gradient or message on its way",
    ]  # fmt: skip
    still, _ = written(replace(PAGE, timelines=[replace(LINE, flights=())]), tmp_path)
    assert "on its way" not in still


def test_names_inside_the_pictures_differ(tmp_path: Path) -> None:
    text, _ = written(PAGE, tmp_path)
    assert text.count('id="area-0"') == text.count('id="area-1"') == 1


def test_the_curve_has_a_line_for_each_name_and_the_link(tmp_path: Path) -> None:
    text, tags = written(PAGE, tmp_path)
    curve = text[text.index('<section id="curve">') :]
    assert (
        'aria-label="Throughput over the round trip over round trip in ms: stages, pipelines, this link"'
        in curve
    )
    for tick in ("0.1", "1", "10", "100"):
        assert f">{tick}</text>" in curve
    far, _ = written(replace(PAGE, here_ms=1000.0), tmp_path)
    assert "this link" not in far
    assert "round trip in ms" in tags.text
    assert ">examples/s</text>" in curve
    many, _ = written(replace(PAGE, curves={"stages": [9000.0] * 4}), tmp_path)
    assert ">thousand examples/s</text>" in many


def test_what_there_is_none_of_has_no_section(tmp_path: Path) -> None:
    text, _ = written(PlanPage("A plan", ["words"], ["schedule"], [["backprop"]]), tmp_path)
    assert re.findall(r'<section id="(\w+)"', text) == ["schedules"]


@pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome on PATH")
def test_a_browser_takes_the_page_as_it_is(tmp_path: Path) -> None:
    assert BROWSER is not None
    text, _ = written(PAGE, tmp_path)
    done = subprocess.run(
        [
            BROWSER,
            *QUIET,
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            (tmp_path / "plan.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert not [line for line in done.stderr.splitlines() if re.search(r"CONSOLE|plan\.html", line)]
    for tag in ("<section", "<table", "<svg", "<tr", "<rect", "<line"):
        assert done.stdout.count(tag) == text.count(tag) > 0
