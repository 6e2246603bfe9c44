"""The description of a link, errors in it, and the size of its queue."""

from __future__ import annotations

import pytest

from synthgrad.core import ConfigError
from synthgrad.lab.wan import Link, parse_link


@pytest.mark.parametrize(
    ("text", "link"),
    [
        ("rtt_ms=50,mbit_s=1000", Link(50.0, 1000.0)),
        ("mbit_s=0.5, rtt_ms=1e2", Link(100.0, 0.5)),
        ("rtt_ms=0", Link(0.0, None)),
        ("mbit_s=10", Link(0.0, 10.0)),
        ("mbit_s=10,down_mbit_s=2,jitter_ms=3", Link(0.0, 10.0, 2.0, 3.0)),
    ],
)
def test_a_link_is_read_from_text(text: str, link: Link) -> None:
    assert parse_link(text) == link


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "'' is not key=value"),
        ("50", "'50' is not key=value"),
        ("rtt_ms=50,", "'' is not key=value"),
        ("rtt=50", "unknown key 'rtt'; expected one of rtt_ms, mbit_s, down_mbit_s, jitter_ms"),
        ("down_mbit_s=5", "down_mbit_s=5 without mbit_s: give the rate of both directions"),
        ("mbit_s=5,down_mbit_s=0", "down_mbit_s=0: expected a rate over 0"),
        ("jitter_ms=-1", "jitter_ms=-1: expected 0 to 10000 milliseconds"),
        ("rtt_ms=1,mbit_s=1,rtt_ms=1", "rtt_ms is given twice"),
        ("rtt_ms=fast", "rtt_ms='fast' is not a number"),
        ("rtt_ms=", "rtt_ms='' is not a number"),
        ("rtt_ms=-1", "rtt_ms=-1: expected 0 to 10000 milliseconds"),
        ("rtt_ms=nan", "rtt_ms=nan: expected 0 to 10000 milliseconds"),
        ("rtt_ms=1e9", "expected 0 to 10000 milliseconds"),
        ("mbit_s=0", "mbit_s=0: expected a rate over 0"),
        ("mbit_s=-3", "mbit_s=-3: expected a rate over 0"),
        ("mbit_s=inf", "mbit_s=inf: expected a rate over 0"),
    ],
)
def test_errors_name_what_is_wrong(text: str, named: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_link(text)
    assert named in str(error.value)


def test_units() -> None:
    link = Link(50.0, 1000.0)
    assert link.delay_s == 0.025
    assert link.bytes_per_s == 125e6
    assert link.queue_bytes == link.down_queue_bytes == 6_250_000  # 125 MB/s for 50 ms
    assert link.down_bytes_per_s == link.bytes_per_s
    unequal = Link(50.0, 1000.0, 80.0)
    assert (unequal.bytes_per_s, unequal.down_bytes_per_s) == (125e6, 10e6)
    assert (unequal.queue_bytes, unequal.down_queue_bytes) == (6_250_000, 500_000)


def test_the_queue_holds_a_few_bundles_on_the_slowest_link() -> None:
    assert Link(1.0, 1.0).queue_bytes == 256 << 10
    assert Link(1.0).queue_bytes == 256 << 20
