"""Seconds, bytes and rates as short texts, in units that give three digits."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["bytes_text", "link_text", "number_text", "seconds_text", "text_table"]

from .links import Link, Network


def number_text(value: float) -> str:
    """Return a number with three digits, and separators between thousands.

    >>> number_text(12345.6), number_text(0.12345), number_text(12.0)
    ('12,346', '0.123', '12')
    """
    if value and abs(value) < 100:
        return f"{value:.3g}"
    return f"{value:,.0f}"


def seconds_text(seconds: float) -> str:
    """Return a time in seconds, milliseconds or microseconds.

    >>> seconds_text(1.5), seconds_text(0.0215), seconds_text(0.00004)
    ('1.5 s', '21.5 ms', '40 µs')
    """
    if seconds >= 1:
        return f"{number_text(seconds)} s"
    if seconds >= 1e-4 or not seconds:
        return f"{number_text(1e3 * seconds)} ms"
    return f"{number_text(1e6 * seconds)} µs"


def bytes_text(num_bytes: float) -> str:
    """Return a number of bytes.

    >>> bytes_text(512), bytes_text(3 * 2**20)
    ('512 B', '3 MiB')
    """
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if num_bytes >= 1024**power:
            return f"{number_text(num_bytes / 1024**power)} {unit}"
    return f"{number_text(num_bytes)} B"


def link_text(network: Network) -> str:
    """Return what the links are like, in words.

    >>> from synthgrad.planner import parse_link
    >>> link_text(Network.of(parse_link("rtt_ms=50,mbit_s=1000")))
    'a round trip of 50 ms, 1,000 Mbit/s'
    """
    found = list(dict.fromkeys(_one_link(link) for link in network.links))
    text = found[0] if len(found) == 1 else f"links with {'; '.join(found)}"
    if network.inbound:
        text += ", one inbound wire for each process"
    if network.rendezvous:
        text += ", messages start when they are asked for"
    if network.congestion is not None:
        text += f", {network.congestion.upper()} that starts again for each message"
    return text


def _one_link(link: Link) -> str:
    words = [f"a round trip of {seconds_text(link.rtt_s)}"]
    up, down = (_rate(wire.bytes_per_s) for wire in (link.up, link.down))
    words.append(up if up == down else f"{up} up and {down} down")
    for name, values in (
        ("occupied for {} by each message", {link.up.occupied_s, link.down.occupied_s}),
        ("a random delay of {} on average", {link.up.jitter_s, link.down.jitter_s}),
    ):
        if any(values):
            words.append(name.format(seconds_text(max(values))))
    if link.up.loss or link.down.loss:
        words.append(f"{number_text(100 * max(link.up.loss, link.down.loss))} % of packets lost")
    return ", ".join(words)


def _rate(bytes_per_s: float) -> str:
    return "no limit of the rate" if bytes_per_s == math.inf else f"{number_text(8e-6 * bytes_per_s)} Mbit/s"


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """Return a table of texts in columns of even width.

    Args:
        headings: of the columns.
        rows: as many texts each.
        left: number of columns that begin at their left edge; the others end at the right one.
    """
    lines = [list(headings), *map(list, rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(headings))]
    shown = [
        "  ".join(
            cell.ljust(width) if k < left else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([shown[0], "  ".join("─" * width for width in widths), *shown[1:]])
