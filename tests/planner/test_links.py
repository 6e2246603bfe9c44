from __future__ import annotations

import math
from typing import Any

import pytest

from synthgrad.core import ConfigError
from synthgrad.planner.links import Link, Network, Wire, parse_link


def test_a_link_is_made_of_the_figures_that_people_know() -> None:
    link = Link.of(rtt_ms=50, mbit_s=200, latency_ms=5, jitter_ms=2, loss_pct=1)
    assert link.up == link.down == Wire(0.025, 25e6, 0.005, 0.002, 0.01)
    assert link.rtt_s == pytest.approx(2 * (0.025 + 0.005 + 0.002))


def test_directions_may_differ() -> None:
    link = Link.of(rtt_ms=50, mbit_s=80, up_mbit_s=8, down_ms=40)
    assert link.up == Wire(0.025, 1e6)
    assert link.down == Wire(0.04, 10e6)
    assert Link.of(rtt_ms=50, up_ms=3, down_mbit_s=8) == Link(Wire(0.003), Wire(0.025, 1e6))
    assert link.rtt_s == pytest.approx(0.065)


def test_without_figures_a_link_is_none_at_all() -> None:
    assert Link.of() == Link(Wire(0.0, math.inf), Wire(0.0, math.inf))
    assert Wire().serialise_s(1e12) == 0.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(mbit_s=0.0), r"mbit_s=0: expected a rate over 0; leave it out for no limit"),
        (dict(up_mbit_s=-1.0), r"up_mbit_s=-1: expected a rate over 0"),
        (dict(down_mbit_s=0.0), r"down_mbit_s=0"),
        (dict(rtt_ms=-1.0), r"rtt_ms=-1: expected milliseconds from 0"),
        (dict(up_ms=-1.0), r"up_ms=-1"),
        (dict(down_ms=math.inf), r"down_ms=inf"),
        (dict(latency_ms=-1.0), r"latency_ms=-1"),
        (dict(jitter_ms=-1.0), r"jitter_ms=-1"),
        (dict(loss_pct=100.0), r"loss_pct=100: expected 0 or more, and less than 100"),
        (dict(loss_pct=-1.0), r"loss_pct=-1"),
    ],
)
def test_figures_out_of_range_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Link.of(**given)


@pytest.mark.parametrize(
    ("size", "packets"), [(0, 1), (1, 1), (1448, 1), (1449, 2), (14480, 10)]
)  # of Ethernet's TCP segments
def test_packets_of_a_message(size: float, packets: int) -> None:
    assert Wire().num_packets(size) == packets


def test_a_link_is_parsed() -> None:
    text = " rtt_ms=50, mbit_s = 1e3,up_mbit_s=8,latency_ms=1,jitter_ms=2,loss_pct=0.5"
    assert parse_link(text) == Link.of(
        rtt_ms=50, mbit_s=1000, up_mbit_s=8, latency_ms=1, jitter_ms=2, loss_pct=0.5
    )
    assert parse_link("up_ms=1,down_ms=2,down_mbit_s=8") == Link.of(up_ms=1, down_ms=2, down_mbit_s=8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fast", r"'fast' is not key=value; write it as in rtt_ms=50,mbit_s=1000"),
        ("", r"'' is not key=value"),
        ("rtt=50", r"unknown key 'rtt'; expected one of rtt_ms, mbit_s,"),
        ("rtt_ms=50,rtt_ms=60", r"rtt_ms is given twice"),
        ("rtt_ms=far", r"rtt_ms='far' is not a number"),
        ("rtt_ms=nan", r"rtt_ms='nan' is not a number"),
        ("mbit_s=0", r"mbit_s=0: expected a rate over 0"),
    ],
)
def test_what_is_no_link_says_what_is_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        parse_link(text)
    assert "\n" not in str(error.value)


def test_a_network_has_one_link_for_all_or_one_for_each_pair() -> None:
    one, other = Link.of(rtt_ms=2), Link.of(rtt_ms=4)
    assert Network.of(one).link(7) is one
    network = Network.of([one, other])
    assert (network.link(0), network.link(1)) == (one, other)
    with pytest.raises(ConfigError, match=r"2 links: .* there is a pair 2, 3"):
        network.link(2)


def test_wires_between_processes_that_are_no_neighbours_are_the_slowest_on_the_way() -> None:
    slow, narrow = Link.of(up_ms=9, down_ms=1, mbit_s=800), Link.of(up_ms=2, down_ms=2, mbit_s=8)
    network = Network.of([slow, narrow, Link.of(up_ms=2, down_ms=2, mbit_s=80)])
    assert network.wire(0, 1) is slow.up
    assert network.wire(2, 1) is narrow.down
    assert network.wire(0, 3) is slow.up
    assert network.wire(3, 1) is narrow.down  # as long a way as the next one's, and a lower rate
    assert Network.of(slow).wire(3, 0) is slow.down


def test_handling_is_for_a_message_and_for_its_bytes() -> None:
    assert Network(startup_s=0.5, copy_s_per_byte=0.01).handling_s(100) == 1.5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(congestion="cubic"), r"congestion='cubic': expected None or 'bbr'"),
        (dict(links=()), r"a network of no links"),
        (dict(startup_s=-1.0), r"startup_s=-1.0: expected a number from 0"),
        (dict(copy_s_per_byte=-1.0), r"copy_s_per_byte=-1.0"),
        (dict(burst_bytes=math.inf), r"burst_bytes=inf"),
    ],
)
def test_settings_of_a_network_are_checked(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Network(**given)
