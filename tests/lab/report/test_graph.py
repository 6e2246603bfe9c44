"""Pictures of graphs: every module has its place, and what flows is what the rules say."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest

from synthgrad.lab.records import Graph
from synthgrad.lab.report.graph import Chain, chain_of
from tests.lab.report.helpers import branchy, chain, uncut


def _chain(found: dict[str, Any]) -> Chain:
    made = chain_of(Graph(found))
    assert made is not None
    ElementTree.fromstring(made.svg)  # well-formed
    return made


def _texts(made: Chain) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", made.svg)


def _count(made: Chain, mark: str) -> int:
    return len(re.findall(mark, made.svg))


def test_a_chain_has_a_rule_a_credit_and_a_message_at_every_cut() -> None:
    made = _chain(chain(4))
    assert (_count(made, 'class="module"'), _count(made, 'class="rule"'), _count(made, 'class="cut"')) == (
        4,
        3,
        3,
    )
    assert (_count(made, 'class="head credit"'), _count(made, 'class="message"')) == (3, 3)
    said = _texts(made)
    assert (said.count("SyntheticGradient"), said.count("77 parameters"), said.count("500 parameters")) == (
        3,
        3,
        2,
    )
    assert "Each module updates as soon as its own part is done." in said
    assert made.branches == ()


@pytest.mark.parametrize(
    ("rule", "credits", "messages"), [("NoBackprop()", 0, 0), ("LocalLoss(10)", 3, 0), ("Mine()", 3, 3)]
)
def test_what_flows_is_what_the_rule_does(rule: str, credits: int, messages: int) -> None:
    made = _chain(chain(4, rule))
    assert (_count(made, 'class="head credit"'), _count(made, 'class="message"')) == (credits, messages)
    assert ("δ: true message, trains only the rule" in _texts(made)) == (messages > 0)


def test_a_record_may_say_itself_what_a_rule_does() -> None:
    graph = chain(2)
    graph["interfaces"][0] |= {"credit": False, "observes": True}
    made = _chain(graph)
    assert (_count(made, 'class="head credit"'), _count(made, 'class="message"')) == (0, 1)


def test_backprop_is_locked_and_a_chain_of_its_parts() -> None:
    made = _chain(uncut("layer1", "layer2", "output"))
    assert (_count(made, 'class="module"'), _count(made, 'class="lock"'), _count(made, 'class="cut"')) == (
        3,
        1,
        0,
    )
    assert "Locked: each part waits for the gradient from above." in _texts(made)


def test_the_middle_of_a_long_chain_is_one_module() -> None:
    said = _texts(_chain(chain(40)))
    assert "… 36 more" in said
    assert {"layer1", "layer2", "layer39", "output"} <= set(said)
    assert "layer20" not in said


def test_branches_are_listed() -> None:
    assert _chain(branchy()).branches == (
        "side is fed by stem",
        "mid is fed by a.1",
        "output is fed by a.0, side, mid, stem",
    )


def test_nothing_makes_no_picture() -> None:
    assert chain_of(Graph({"modules": []})) is None


def test_names_are_escaped() -> None:
    graph = chain(2)
    graph["modules"][0]["name"] = "<b>&"
    assert "&lt;b&gt;&amp;" in _chain(graph).svg
