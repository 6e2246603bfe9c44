"""Pictures of graphs: every module has its place, and what flows is what the rules say."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthgrad.lab.report.graph import Graph, graph_of, shortened
from synthgrad.lab.report.graph_layout import layout
from synthgrad.lab.report.graph_svg import graph_svg
from tests.lab.report.helpers import branchy, chain, module, uncut


def _graph(found: dict[str, Any]) -> Graph:
    graph = graph_of({"graph": found})
    assert graph is not None
    return graph


def _svg(found: dict[str, Any]) -> str:
    svg, _ = graph_svg(_graph(found))
    ElementTree.fromstring(svg)  # well-formed
    return svg


def _texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def _count(svg: str, kind: str) -> int:
    """Return the number of arrows of a kind outside the legend, which has one of each that there are."""
    return max(0, svg.count(f'class="head {kind}"') - 1)


def _boxes(svg: str, kind: str) -> int:
    return len(re.findall(rf'<rect class="{kind}[ "]', svg))


# What flows


def test_chain_has_a_rule_and_a_credit_at_every_cut() -> None:
    svg = _svg(chain(4))
    assert (_boxes(svg, "module"), _boxes(svg, "rule"), svg.count('<line class="cut"')) == (4, 3, 3 + 1)
    assert _count(svg, "message") == 3
    assert _count(svg, "credit") == 3 + 1  # the loss hands the true gradient to the last module
    assert _texts(svg).count("77 parameters") == 3
    assert "Each module updates as soon as its own part is done." in _texts(svg)


def test_no_bprop_has_no_credit_and_learns_from_no_message() -> None:
    svg = _svg(chain(4, "NoBackprop()"))
    assert _texts(svg).count("no credit") == 3
    assert 'class="head message"' not in svg
    assert svg.count('class="head credit"') == 1  # of the loss


def test_a_rule_may_say_what_it_gives_and_takes() -> None:
    found = chain(3, "Mine()")
    for interface in found["interfaces"]:
        interface |= {"credit": True, "observes": False}
    svg = _svg(found)
    assert (_count(svg, "credit"), 'class="head message"' in svg) == (2 + 1, False)


def test_plain_loop_says_that_updates_are_in_lock_step() -> None:
    assert any("lock step" in t for t in _texts(_svg(chain(4, engine="plain"))))


def test_backprop_is_a_locked_chain_of_parts() -> None:
    svg = _svg(uncut("layer1", "layer2", "output"))
    assert (_boxes(svg, "module"), _boxes(svg, "rule"), _boxes(svg, "lock")) == (3, 0, 1)
    assert _count(svg, "credit") == 2 + 1  # through every part, and from the loss
    assert '<line class="cut"' not in svg


def test_numbers_of_parameters_are_shown() -> None:
    assert _texts(_svg(chain(4))).count("1,000 parameters") == 2


def test_branches_feed_and_train_the_right_rules() -> None:
    svg = _svg(branchy())
    assert (_boxes(svg, "module"), _boxes(svg, "rule")) == (5, 5)
    assert _count(svg, "credit") == 5 + 1
    assert _count(svg, "message") == 5
    # Forward: one for each input of a module, the data, and out to the loss.
    assert _count(svg, "up") == 1 + 1 + 1 + 4 + 2


def test_wide_pictures_are_known() -> None:
    assert graph_svg(_graph(branchy()))[1]
    assert not graph_svg(_graph(chain(4)))[1]


# Size


@pytest.mark.parametrize("num", [1, 2, 6])
def test_short_chains_are_drawn_whole(num: int) -> None:
    assert _boxes(_svg(chain(num)), "module") == num


@pytest.mark.parametrize("num", [7, 32, 500])
def test_long_chains_are_shortened(num: int) -> None:
    texts = _texts(_svg(chain(num)))
    assert f"… {num - 4} more alike" in texts
    assert "500 each" in texts
    assert {"layer1", "layer2", f"layer{num - 1}", "output"} <= set(texts)


def test_modules_that_differ_are_not_called_alike() -> None:
    found = chain(12)
    found["modules"][5]["num_parameters"] = 123
    assert "… 8 more" in _texts(_svg(found))


def test_parts_of_unknown_size_are_not_called_alike() -> None:
    assert "… 8 more" in _texts(_svg(uncut(*(f"p{k}" for k in range(12)))))


def test_a_graph_that_cannot_be_shortened_is_not_drawn() -> None:
    wide = {
        "modules": [
            *(module(f"m{k}", ()) for k in range(60)),
            module("output", tuple(f"m{k}" for k in range(60))),
        ]
    }
    assert graph_svg(_graph(wide)) == ("", False)


def test_long_and_strange_names_are_shortened_and_escaped() -> None:
    found = chain(3, "Rule<script>&(" + "very long settings " * 20 + ")")
    found["modules"][0]["name"] = "<b>" + "x" * 300
    svg = _svg(found)
    assert "<script" not in svg
    assert all(len(t) < 60 for t in _texts(svg))


@pytest.mark.parametrize(
    "found",
    [
        None,
        {},
        [],
        {"modules": []},
        {"modules": "x"},
        {"modules": [None]},
        {"modules": [module("a", ()), module("a", ())]},
    ],
    ids=str,
)
def test_what_is_no_graph_is_not_drawn(found: Any) -> None:
    assert graph_of({"graph": found}) is None


# Layout


@st.composite
def _dags(draw: st.DrawFn) -> dict[str, Any]:
    """A graph of modules, each with one or two ends, fed by any ends before it."""
    modules: list[dict[str, Any]] = []
    ends: list[str] = []
    for k in range(draw(st.integers(1, 9))):
        fed = tuple(draw(st.sets(st.sampled_from(ends), max_size=3))) if ends else ()
        own = tuple(f"m{k}.{n}" for n in range(draw(st.integers(1, 2))))
        modules.append(module(f"m{k}", fed, own))
        ends += own
    modules.append(module("output", tuple(draw(st.sets(st.sampled_from(ends), min_size=1)))))
    rules = [{"name": e, "shape": [3], "rule": "R()", "num_parameters": 1} for e in ends]
    return {"engine": "in-process", "modules": modules, "interfaces": rules}


@settings(deadline=None, max_examples=60)
@given(_dags())
def test_places_do_not_overlap_and_lines_go_up_by_one_rank(found: dict[str, Any]) -> None:
    graph = shortened(_graph(found))
    assert graph is not None
    places = layout(graph, {m.name: 100.0 for m in graph.modules}, line=20.0, gap=10.0)
    for place in places.values():
        assert all(places[below].rank == place.rank - 1 for below in place.below)
        assert place.x >= 0
    for rank in {p.rank for p in places.values()}:
        row = sorted((p for p in places.values() if p.rank == rank), key=lambda p: p.x)
        assert all(a.x + a.width + 9.9 <= b.x for a, b in zip(row, row[1:], strict=False))


@settings(deadline=None, max_examples=60)
@given(_dags())
def test_any_graph_is_drawn_inside_its_picture(found: dict[str, Any]) -> None:
    svg = _svg(found)
    match = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert match is not None
    width, height = map(float, match.groups())
    for x, y, w, h in re.findall(r'<rect[^>]* x="(\S+)" y="(\S+)" width="(\S+)" height="(\S+)"', svg):
        assert 0 <= float(x) <= float(x) + float(w) <= width
        assert 0 <= float(y) <= float(y) + float(h) <= height
    for path in re.findall(r' d="([^"]*)"', svg):
        numbers = [float(n) for n in re.findall(r"-?[\d.]+(?:e-?\d+)?", path)]
        assert all(-1 <= n <= max(width, height) + 1 for n in numbers)
