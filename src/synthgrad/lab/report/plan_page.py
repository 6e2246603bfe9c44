"""The page of a plan: timelines of the best schedules, throughput over round trips, the table and what it says.

It is made from plain data, as every page here: who plans fills a `PlanPage`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..records import write_whole
from .plot import DASHES, Line, Plot, draw
from .words import shorten

__all__ = ["Bar", "Flight", "PlanPage", "Timeline", "timeline_svg", "write_plan_page"]

#: Kinds of computation, in the order of the legend: class of the colour, and words.
_KINDS: Mapping[str, tuple[str, str]] = {
    "forward": ("k0", "forward"),
    "backward": ("k1", "backward"),
    "backward_input": ("k1", "backward, for the inputs"),
    "backward_weight": ("k2", "backward, for the weights"),
    "credit": ("k3", "rule gives credit"),
    "local": ("k3", "rule's own loss"),
    "observe": ("k4", "rule learns from messages"),
    "update": ("k5", "update"),
    "codec": ("k6", "codec"),
    "send": ("k6", "sends"),
    "receive": ("k6", "receives"),
}
_OTHER = ("k6", "other")

#: Rows of a timeline, bars of one, and messages: more are not drawn.
_MOST_ROWS, _MOST_BARS, _MOST_FLIGHTS = 32, 4000, 240

_LEFT, _RIGHT, _ROW, _GAP, _WIDTH = 64, 10, 22, 16, 1000
_CHARACTER = 6.2  # width of one in a bar, about


@dataclass(frozen=True, slots=True)
class Bar:
    """A computation: in which row, of which kind and batch (None for all), when; times in seconds."""

    row: int
    kind: str
    batch: int | None
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Flight:
    """A message on its way from one row to another, when; times in seconds."""

    source: int
    to: int
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """Who computes what when.

    Attributes:
        title: over it.
        about: under the title.
        rows: names of the rows, from the bottom of the network up.
        start_s, end_s: what is shown.
        bars: computations.
        flights: messages.
    """

    title: str
    about: str
    rows: tuple[str, ...]
    start_s: float
    end_s: float
    bars: tuple[Bar, ...]
    flights: tuple[Flight, ...] = ()


@dataclass(frozen=True, slots=True)
class PlanPage:
    """What the page of a plan shows.

    Attributes:
        title: over it.
        words: sentences, the most important first.
        headings: of the table.
        rows: texts, as many as there are headings.
        timelines: of the best schedules.
        round_trips_ms: of the curve.
        curves: throughput in examples a second at each round trip, by name.
        here_ms: the round trip of the link.
        settings: names and values, for a list that is folded.
    """

    title: str
    words: Sequence[str]
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    timelines: Sequence[Timeline] = ()
    round_trips_ms: Sequence[float] = ()
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict[str, Sequence[float]])
    here_ms: float | None = None
    settings: Sequence[tuple[str, str]] = ()


def write_plan_page(path: Path, page: PlanPage) -> None:
    """Write the page of a plan: one file that needs nothing else, and appears whole or not at all.

    Args:
        path: of the page.
        page: what it shows.

    Raises:
        OSError: if it cannot be written.
    """
    environment = Environment(
        loader=PackageLoader("synthgrad.lab.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    drawn = any(0 < len(line.flights) <= _MOST_FLIGHTS for line in page.timelines)
    shown = environment.get_template("plan.html.j2").render(
        page=page,
        timelines=[(line, timeline_svg(line, k)) for k, line in enumerate(page.timelines)],
        legend=_legend(page.timelines),
        flights=drawn,
        curve=draw(_curve(page), "plan-curve") if page.curves and page.round_trips_ms else "",
    )
    write_whole(path, shown)


def timeline_svg(line: Timeline, number: int = 0) -> str:
    """Return a timeline as SVG: a row for each process, the last one at the top, and an axis of time below.

    Args:
        line: what it shows.
        number: of the timeline on its page.
    """
    shown = min(len(line.rows), _MOST_ROWS)
    height = shown * (_ROW + _GAP) + _GAP
    inside = [part for bar in _visible(line, shown)[:_MOST_BARS] for part in _bar(line, bar, shown)]
    if len(line.flights) <= _MOST_FLIGHTS:
        inside += [_flight(line, f, shown) for f in line.flights if max(f.source, f.to) < shown]
    about = escape(f"Timeline of {line.title}: {line.about}")
    area = f'x="{_LEFT}" y="0" width="{_WIDTH - _LEFT - _RIGHT}" height="{height}"'
    return (
        f'<svg class="timeline" viewBox="0 0 {_WIDTH} {height + 34}" role="img" aria-label="{about}">'
        f'<title>{about}</title><clipPath id="area-{number}"><rect {area}/></clipPath>'
        f"{''.join(_axis(line, shown, height))}"
        f'<g clip-path="url(#area-{number})">{"".join(inside)}</g></svg>'
    )


def _x(line: Timeline, at_s: float) -> float:
    return _LEFT + (at_s - line.start_s) / (line.end_s - line.start_s) * (_WIDTH - _LEFT - _RIGHT)


def _y(row: int, shown: int) -> float:
    return _GAP + (shown - 1 - row) * (_ROW + _GAP)


def _visible(line: Timeline, shown: int) -> list[Bar]:
    return [b for b in line.bars if b.row < shown and b.end_s > line.start_s and b.start_s < line.end_s]


def _axis(line: Timeline, shown: int, height: float) -> Iterator[str]:
    """Yield names and backgrounds of the rows, and the axis of time."""
    for row, name in enumerate(line.rows[:shown]):
        y = _y(row, shown)
        yield f'<rect class="idle" x="{_LEFT}" y="{y:g}" width="{_WIDTH - _LEFT - _RIGHT}" height="{_ROW}"/>'
        yield f'<text class="right" x="{_LEFT - 8}" y="{y + 15:g}">{escape(shorten(name, 9))}</text>'
    scale, unit = _unit(line.end_s - line.start_s)
    ticks = _ticks((line.end_s - line.start_s) * scale)
    for tick in ticks:
        x = _x(line, line.start_s + tick / scale)
        yield f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height + 4:g}"/>'
        words = f"{tick:g} {unit}" if tick == ticks[-1] else f"{tick:g}"
        if x > _WIDTH - 30:  # or it would not be seen whole
            yield f'<text class="right" x="{_WIDTH - 4}" y="{height + 18:g}">{words}</text>'
        else:
            yield f'<text class="middle" x="{x:.1f}" y="{height + 18:g}">{words}</text>'


def _unit(seconds: float) -> tuple[float, str]:
    return (1.0, "s") if seconds >= 2 else (1e3, "ms") if seconds >= 2e-3 else (1e6, "µs")


def _ticks(length: float, most: int = 9) -> list[float]:
    """Return round numbers from 0 to a length, ``most`` of them at most.

    >>> _ticks(87.0)
    [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0]
    """
    power = 10.0 ** math.floor(math.log10(length / most))
    step = next(power * n for n in (1, 2, 5, 10, 20) if length / (power * n) < most)
    return [float(f"{k * step:.12g}") for k in range(math.floor(length / step + 1e-9) + 1)]


def _bar(line: Timeline, bar: Bar, shown: int) -> Iterator[str]:
    x, end = (_x(line, at) for at in (bar.start_s, bar.end_s))
    y = _y(bar.row, shown)
    colour, words = _KINDS.get(bar.kind, _OTHER)
    which = "" if bar.batch is None else f" {bar.batch}"
    told = escape(f"{words}{which}: {1e3 * (bar.end_s - bar.start_s):,.4g} ms")
    yield (
        f'<rect class="{colour}" x="{x:.2f}" y="{y:g}" width="{max(0.4, end - x):.2f}" height="{_ROW}">'
        f"<title>{told}</title></rect>"
    )
    text = which.strip()
    left, right = max(x, _LEFT), min(end, _WIDTH - _RIGHT)
    if text and right - left > _CHARACTER * len(text) + 5:
        yield f'<text class="middle in" x="{(left + right) / 2:.1f}" y="{y + 15:g}">{text}</text>'


def _flight(line: Timeline, flight: Flight, shown: int) -> str:
    above = flight.to > flight.source  # rows go up
    begin = _y(flight.source, shown) + (0 if above else _ROW)
    end = _y(flight.to, shown) + (_ROW if above else 0)
    x1, x2 = (_x(line, at) for at in (flight.start_s, flight.end_s))
    kind = "up" if above else "down"
    return f'<line class="flight {kind}" x1="{x1:.1f}" y1="{begin:g}" x2="{x2:.1f}" y2="{end:g}"/>'


def _legend(lines: Sequence[Timeline]) -> list[tuple[str, str]]:
    """Return colours and words of what the timelines show, one for each colour and wording."""
    seen = {bar.kind for line in lines for bar in _visible(line, _MOST_ROWS)}
    found = [entry for kind, entry in _KINDS.items() if kind in seen]
    return [*found, *([_OTHER] if seen - set(_KINDS) else [])]


def _curve(page: PlanPage) -> Plot:
    every = [y for heights in page.curves.values() for y in heights]
    scale, label = (1e3, "thousand examples/s") if max(every) >= 2000 else (1.0, "examples/s")
    lines = [
        Line(
            name,
            tuple((x, y / scale, 0.0, 0.0) for x, y in zip(page.round_trips_ms, heights, strict=True)),
            k,
            k % len(DASHES),
            "o",
        )
        for k, (name, heights) in enumerate(page.curves.items())
    ]
    wide = max(every) > 12 * min(every)
    if page.here_ms is not None and page.round_trips_ms[0] <= page.here_ms <= page.round_trips_ms[-1]:
        ends = (min(every) / scale if wide else 0.0, max(every) / scale)
        lines.append(Line("this link", tuple((page.here_ms, y, 0.0, 0.0) for y in ends), 6, 3, width=1.2))
    return Plot(
        "Throughput over the round trip",
        "round trip in ms",
        label,
        tuple(lines),
        log_y=None,
        ticks=tuple(page.round_trips_ms),
    )
